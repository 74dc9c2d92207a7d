"""Reading a pair with networks: one run of its guide and its model on a few rows, in the dtype of its networks."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from ..base.errors import ModelError
from ..base.unconstrained import base_constraint, inside
from ..data.streams import Rows, first_rows
from ..data.structures import map_tensors, num_rows
from ..pair import Pair
from ..trace.handlers import DATA_PLATE, DIVIDER, constraint_of, is_bookkeeping
from .shape_errors import deep_errors

SAMPLE = 16  # rows of the run that reads the pair


class Leaf(NamedTuple):
    """One tensor that is learned."""

    constraint: Any
    declared: Tensor  # its value as the pair declares it, (*shape)
    of_model: bool  # declared by the model; otherwise by the guide alone
    weight: nn.Parameter | None  # where it is a network's


@dataclass(frozen=True)
class Story:
    """What one run says of a pair with networks."""

    pair: Pair  # with a guide, where the model has continuous latents
    leaves: dict[str, Leaf]
    networks: dict[str, nn.Module]
    latents: dict[str, Any]  # continuous, of each row, in the order of the model -> prior
    discrete: dict[str, int]  # enumerated, of each row -> number of values
    guided: tuple[str, ...]  # of these, those that the guide has a factor of
    observed: tuple[str, ...]
    computed: tuple[str, ...]  # what `pyro.deterministic` keeps inside the data plate
    data_dim: int
    ordered: bool  # whether model and guide draw the latents in one order
    dtype: torch.dtype

    @property
    def num_configurations(self) -> int:
        return math.prod(self.discrete.values())


class Play(Messenger):
    """Run a pair with its params at `values` and some latents `given`; keep what it did.

    Far lighter than a trace: each statement of each step passes through here.
    """

    def __init__(self, values: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values, self.given = values, given
        self.nodes: dict[str, Any] = {}

    def _pyro_param(self, msg: Any) -> None:
        msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            value = self.given.get(msg["name"])
            if value is not None:
                msg["value"], msg["done"] = value, True

    def _pyro_post_sample(self, msg: Any) -> None:
        if not is_bookkeeping(msg) or (msg["infer"] or {}).get("_deterministic"):
            self.nodes[msg["name"]] = msg


class OtherDtype(Exception):
    """The networks are of another dtype than the run."""


class Reader(Play):
    """A first run: params and networks are met as they are declared.

    Networks are met as they would be in use, so that reading leaves no trace in what they count of what passes; `modes`
    are those that they had.
    """

    def __init__(self, given: Mapping[str, Tensor], modes: dict[nn.Module, bool]) -> None:
        super().__init__({}, given)
        self.params: dict[str, tuple[Any, Tensor, nn.Parameter | None]] = {}
        self.networks: dict[str, nn.Module] = {}
        self.modes = modes

    def _pyro_param(self, msg: Any) -> None:
        pass

    def _pyro_post_param(self, msg: Any) -> None:
        name, weight = msg["name"], None
        if DIVIDER in name:
            network = _calling_module()
            self.networks[name.partition(DIVIDER)[0]] = network
            self.modes.setdefault(network, network.training)
            network.eval()
            weight = dict(network.named_parameters())[name.partition(DIVIDER)[2]]
            if weight.dtype != torch.get_default_dtype():
                raise OtherDtype(weight.dtype)
        value = weight if weight is not None else msg["value"]
        self.params[name] = (constraint_of(msg), value.detach().clone(), weight)


def _calling_module() -> nn.Module:
    """The network of the `pyro.module` statement that is being run: its weights come as params, one by one."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is pyro.module.__code__:
            found: nn.Module = frame.f_locals["nn_module"]
            return found
    raise ModelError(f"a param is named with '{DIVIDER}', which is kept for networks: use pyro.module, or another name")


def read_story(pair: Pair, data: Any, dtype: torch.dtype = torch.float32) -> Story:
    """Read a pair on the first rows of its data. Call inside `engine_state`.

    Raises
    ------
    ModelError
        No data plate; a shape that does not fit, by the layer or the site; a latent that this inference cannot take.
    """
    few = first_rows(data, SAMPLE)
    modes: dict[nn.Module, bool] = {}
    try:
        return _read(pair, few, dtype, modes)
    except OtherDtype as other:
        own = other.args[0]
        torch.set_default_dtype(own)
        return read_story(pair, to_dtype(data, own), own)
    finally:
        for network, training in modes.items():
            network.train(training)


def _read(pair: Pair, few: Any, dtype: torch.dtype, modes: dict[nn.Module, bool]) -> Story:
    model, guide = Reader({}, modes), Reader({}, modes)
    with torch.no_grad():
        with deep_errors(model, "model"), model:
            pair.model(few)
        if pair.guide is not None:
            with deep_errors(guide, "guide"), guide:
                pair.guide(few)
    of_guide = {name: msg for name, msg in guide.nodes.items() if not is_bookkeeping(msg)}
    # a second run at the guide's draws, as every step will be: its shapes are checked
    again = Play(
        {name: value if weight is None else weight for name, (_, value, weight) in model.params.items()},
        {name: msg["value"] for name, msg in of_guide.items()},
    )
    with torch.no_grad(), deep_errors(again, "model"), again:
        pair.model(few)
    return _story(pair, model, guide, again.nodes, of_guide, num_rows(few), dtype)


def _story(
    pair: Pair, model: Reader, guide: Reader, nodes: dict[str, Any], of_guide: dict[str, Any], rows: int, dtype: Any
) -> Story:
    latents: dict[str, Any] = {}
    discrete: dict[str, int] = {}
    observed: list[str] = []
    computed: list[str] = []
    dims: set[int] = set()
    for name, msg in nodes.items():
        frames = {frame.name: frame.dim for frame in msg["cond_indep_stack"]}
        inside_rows = DATA_PLATE in frames
        if inside_rows:
            dims.add(frames[DATA_PLATE])
        if is_bookkeeping(msg):
            computed += [name] if inside_rows else []
        elif not inside_rows:
            raise ModelError(
                f"svi: site '{name}' lies outside the plate \"{DATA_PLATE}\", and with networks all latents are those "
                f"of rows: learn it as a pyro.param, or sample it inside the plate"
            )
        elif msg["is_observed"]:
            observed.append(name)
        elif msg["infer"].get("enumerate") == "parallel":
            discrete[name] = len(msg["fn"].enumerate_support(expand=False))
        elif msg["fn"].support.is_discrete:
            raise ModelError(
                f"site '{name}' is a discrete latent that is not marked for enumeration: "
                f'write pyro.sample("{name}", ..., infer={{"enumerate": "parallel"}})'
            )
        else:
            latents[name] = msg["fn"]
    if not observed:
        raise ModelError(f'the model observes nothing inside the plate "{DATA_PLATE}": give at least one site obs=data')
    known = [name for name in of_guide if not of_guide[name]["is_observed"]]
    strange = sorted(set(known) - {*latents, *discrete})
    lacking = [name for name in latents if name not in known]
    if pair.guide is not None and strange:
        raise ModelError(f"svi: the guide samples {strange}, which are no latents of the model ({list(latents)})")
    if pair.guide is not None and lacking:
        raise ModelError(f"svi: the guide does not sample '{lacking[0]}', a latent of each row of the model")
    for name in latents:
        if name in of_guide and not of_guide[name]["fn"].has_rsample:
            raise ModelError(
                f"svi: the guide's {type(of_guide[name]['fn']).__name__} of '{name}' has no reparameterized draws"
            )
    leaves = {name: Leaf(c, value, True, weight) for name, (c, value, weight) in model.params.items()}
    for name, (c, value, weight) in guide.params.items():
        leaves.setdefault(name, Leaf(c, value, False, weight))
    order = [name for name in known if name in latents] == list(latents)
    (data_dim,) = dims
    return Story(
        pair,
        leaves,
        {**model.networks, **guide.networks},
        latents,
        discrete,
        tuple(name for name in discrete if name in of_guide),
        tuple(observed),
        tuple(computed),
        data_dim,
        order,
        dtype,
    )


def to_dtype(data: Any, dtype: torch.dtype) -> Any:
    """A table in the dtype of the networks, whole numbers too; of a structure the fields of numbers with fractions."""
    if isinstance(data, Tensor | Rows):
        return data.to(dtype)
    return map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, data)


def free_value(leaf: Leaf, value: Tensor) -> Tensor:
    """The unconstrained numbers of a value."""
    if base_constraint(leaf.constraint) is constraints.real:
        return value
    found: Tensor = transform_to(leaf.constraint).inv(inside(leaf.constraint, value))
    return found


def value_of(leaf: Leaf, free: Tensor) -> Tensor:
    """The value of some unconstrained numbers."""
    if base_constraint(leaf.constraint) is constraints.real:
        return free
    found: Tensor = transform_to(leaf.constraint)(free)
    return found


@contextmanager
def at_rest(story: Story) -> Iterator[None]:
    """The networks as they are in use, without dropout or noise, for a while."""
    modes = {name: network.training for name, network in story.networks.items()}
    try:
        for network in story.networks.values():
            network.eval()
        yield
    finally:
        for name, network in story.networks.items():
            network.train(modes[name])


@contextmanager
def installed(story: Story, values: Mapping[str, Tensor], training: bool = False) -> Iterator[dict[str, Tensor]]:
    """The networks with the weights of `values`, for a while; then as they were. Gives the values of all params."""
    modes = {name: network.training for name, network in story.networks.items()}
    buffers = {name: {k: b.clone() for k, b in net.named_buffers()} for name, net in story.networks.items()}
    homes = {name: (leaf.weight, leaf.weight.data) for name, leaf in story.leaves.items() if leaf.weight is not None}
    try:
        for name, (weight, _) in homes.items():
            weight.data = values[name].detach().clone()
        for network in story.networks.values():
            network.train(training)
            for buffer in network.buffers():
                buffer.data = buffer.data.to(next(iter(values.values())).device)
        yield {name: leaf.weight if leaf.weight is not None else values[name] for name, leaf in story.leaves.items()}
    finally:
        for weight, data in homes.values():
            weight.data, weight.grad = data, None
        for name, network in story.networks.items():
            network.train(modes[name])
            for key, buffer in network.named_buffers():
                buffer.data = buffers[name][key]
