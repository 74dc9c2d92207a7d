"""Running a model once under Pyro: params and latents bound, discrete latents enumerated, the engine's own state."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints

from ..base.errors import DataError, HasNetworks, ModelError, OptionError
from ..base.rng import forked
from .provenance import drawn, plain, symbol

DATA_PLATE = "data"
DIVIDER = "$$$"  # `pyro.module` names the weights of a network "network$$$layer.weight"
ROOM_FOR_PLATES = 5  # dims kept free for plates while their number is not yet known
MOST_LATENTS = 57  # enumerated at once: tensors have 64 dims


class Param(NamedTuple):
    """Something learned as a point: a `pyro.param`, a weight of a network, or (MAP) a continuous latent that all rows
    share.
    """

    value: Tensor
    constraint: Any
    prior: Any = None  # the latent's site in the trace, None for a pyro.param
    weight: nn.Parameter | None = None  # where it is a network's


class Run(NamedTuple):
    """What one run of a model did at its statements; lighter than Pyro's own trace, which every SVI step would pay."""

    nodes: dict[str, Any]


SETTLED = frozenset({torch.Size, int, bool, float, str, tuple, type(None)})  # what a distribution keeps beside numbers


class OtherDtype(Exception):
    """The networks are of another dtype than the run."""


class Bind(Messenger):
    """Give params, weights and latents the values of `values`; keep what the program declares, and what it does at each
    of its sample statements.

    Parameters
    ----------
    values : dict
        By name. What has none there is as the program declares it, and a latent is drawn.
    symbols : bool
        Whether every param and latent is a `Symbol`, so that the arguments of each site tell where they come from.
    centred : bool
        Whether a continuous latent that all rows share is something learned: without a value, at its prior's centre.
    networks : dict, optional
        Networks that the program runs are kept here, by name, and are met as they would be in use, so that reading
        leaves no trace in what they count of what passes. Without it, a network without values is refused.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        symbols: bool = False,
        centred: bool = True,
        networks: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.values, self.symbols, self.centred, self.networks = values, symbols, centred, networks
        self.declared: dict[str, Param] = {}
        self.modes: dict[nn.Module, bool] = {}  # of the networks, before they were met
        self.nodes: dict[str, Any] = {}

    def __enter__(self) -> Bind:
        self.nodes = {}
        super().__enter__()
        return self

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
        elif DIVIDER in msg["name"] and self.networks is None:
            raise HasNetworks(msg["name"].partition(DIVIDER)[0])

    def _pyro_post_param(self, msg: Any) -> None:
        msg["value"] = in_double(msg["value"])
        value, weight = plain(msg["value"]), None
        if self.networks is not None and DIVIDER in msg["name"]:
            weight = self._met(msg["name"], self.networks)
            value = weight.detach().clone()
        self._declare(msg, Param(value, constraint_of(msg), None, weight))

    def _met(self, name: str, networks: dict[str, nn.Module]) -> nn.Parameter:
        """A weight, and its network at rest."""
        (network, _, place), module = name.partition(DIVIDER), _calling_module()
        self.modes.setdefault(module, module.training)
        networks[network] = module.eval()
        weight = dict(module.named_parameters())[place]
        if weight.dtype != torch.get_default_dtype():
            raise OtherDtype(weight.dtype)
        return weight

    def _pyro_sample(self, msg: Any) -> None:
        if poutine.util.site_is_subsample(msg):
            _check_whole(msg)
            return
        msg["fn"] = in_double(msg["fn"])
        if msg["is_observed"]:
            return
        value = self.values.get(msg["name"])
        if value is None and self.centred and is_shared_latent(msg):
            value = prior_center(msg["fn"])
        if value is not None:
            msg["value"], msg["done"] = value, True

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.nodes:
            raise ModelError(f"two statements of the model are named '{name}': give each a name of its own")
        self.nodes[name] = node = msg.copy()
        node["cond_indep_stack"] = _vectorized(node)
        if msg["is_observed"] or is_bookkeeping(msg):
            return
        if self.centred:
            node["mask"] = (
                None  # Pyro enumerates past it: a latent without observed values below adds nothing to log p(x)
            )
        if self.centred and is_shared_latent(msg):
            self._declare(msg, Param(plain(msg["value"]), msg["fn"].support, msg))
        elif self.symbols and not self.centred:
            msg["value"] = symbol(plain(msg["value"]), name)
        elif self.symbols and name not in self.values and not msg["fn"].support.is_discrete:
            msg["value"] = drawn(msg["value"], name)

    def _declare(self, msg: Any, param: Param) -> None:
        self.declared[msg["name"]] = param
        if self.symbols:
            msg["value"] = symbol(msg["value"], msg["name"])


def _check_whole(msg: Any) -> None:
    """A plate holds all of its rows: the drivers draw batches, and count what they stand for."""
    size, drawn = msg["fn"].size, msg["fn"].subsample_size
    held = size if drawn is None else drawn
    if msg["value"] is not None:
        held = len(msg["value"])
    if held != size:
        raise ModelError(
            f"plate '{msg['name']}' holds {held} of its {size} members (subsample): write pyro.plate("
            f'"{msg["name"]}", {size}), and give the fit batch_size={held}, which draws rows and scales by itself'
        )


def _vectorized(msg: Any) -> tuple[Any, ...]:
    """The plates of a site that are dims. Members of a sequential plate are sites of their own, in no dim."""
    frames: tuple[Any, ...] = msg["cond_indep_stack"]
    if all(frame.vectorized for frame in frames):
        return frames
    if any(frame.name == DATA_PLATE and not frame.vectorized for frame in frames):
        raise ModelError(
            f"site '{msg['name']}' stands in a sequential plate, `for i in pyro.plate(\"{DATA_PLATE}\", ...)`, a site "
            f'for every row: write `with pyro.plate("{DATA_PLATE}", len(data)):`, and observe all rows at once'
        )
    return tuple(frame for frame in frames if frame.vectorized)


def in_double(thing: Any) -> Any:
    """A tensor, distribution or transform with its numbers in float64, where that is the dtype of the run: what a user
    made outside the model may be float32.
    """
    if torch.get_default_dtype() is not torch.float64 or not _is_narrow(thing):
        return thing
    if isinstance(thing, Tensor):
        return thing.double() if thing.is_floating_point() and thing.dtype is not torch.float64 else thing
    if isinstance(thing, list):
        parts = [in_double(part) for part in thing]
        return parts if any(new is not old for new, old in zip(parts, thing, strict=True)) else thing
    if not isinstance(thing, torch.distributions.Distribution | torch.distributions.Transform):
        return thing
    known = {key: value for key, value in vars(thing).items() if key != "_inv"}  # a transform's inverse leads back
    changed = {key: new for key, value in known.items() if (new := in_double(value)) is not value}
    if not changed:
        return thing
    out = copy.copy(thing)
    out.__dict__.update(changed)
    return out


def _is_narrow(thing: Any) -> bool:
    """Whether some number in it is no float64; asked at every statement of every run, so it builds nothing."""
    if isinstance(thing, Tensor):
        return thing.is_floating_point() and thing.dtype is not torch.float64
    if isinstance(thing, list):
        return any(map(_is_narrow, thing))
    if not isinstance(thing, torch.distributions.Distribution | torch.distributions.Transform):
        return False
    for key, value in vars(thing).items():
        if isinstance(value, Tensor):
            if value.dtype is not torch.float64 and value.is_floating_point():
                return True
        elif value.__class__ not in SETTLED and key != "_inv" and _is_narrow(value):
            return True
    return False


def _calling_module() -> nn.Module:
    """The network of the `pyro.module` statement that is being run: its weights come as params, one by one."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is pyro.module.__code__:
            found: nn.Module = frame.f_locals["nn_module"]
            return found
    raise ModelError(f"a param is named with '{DIVIDER}', which is kept for networks: use pyro.module, or another name")


class Enumerate(EnumMessenger):
    """`poutine.enum`, which looks only at the latents of rows (it may then run under `torch.vmap`), and gives each a
    dim of its own: inside `pyro.markov` Pyro uses the dims of a few steps over and over, which its own sums know of.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"]:
            msg["infer"].pop("_markov_scope", None)
        super()._pyro_sample(msg)
        dim = (msg["infer"] or {}).get("_enumerate_dim")
        if dim is not None and self.first_available_dim - dim >= MOST_LATENTS:
            raise ModelError(
                f"site '{msg['name']}' is latent {MOST_LATENTS + 1} of a row, and each is a dim to sum over, of which "
                f"tensors have {MOST_LATENTS} to spare: shorten the chain, or cut it into rows"
            )

    def _pyro_post_sample(self, msg: Any) -> None:
        if not is_shared_latent(msg):
            super()._pyro_post_sample(msg)


class OneRow(Messenger):
    """Give the data plate a single row: distributions are not expanded over the rows, so their gradients cost nothing
    by the row.
    """

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.plate and poutine.util.site_is_subsample(msg):
            msg["value"], msg["done"] = torch.zeros(1, dtype=torch.long), True


class RowsPlate(Messenger):
    """Call the plate that holds the rows `DATA_PLATE`, whatever the program calls it."""

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.plate and poutine.util.site_is_subsample(msg):
            msg["name"] = DATA_PLATE
        frames = msg["cond_indep_stack"]
        msg["cond_indep_stack"] = tuple(f._replace(name=DATA_PLATE) if f.name == self.plate else f for f in frames)


class Plates(Messenger):
    """Keep the plates of every observed site, the outermost first."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, ...]] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not is_bookkeeping(msg):
            self.found.append(tuple(msg["cond_indep_stack"]))


def constraint_of(msg: dict) -> Any:
    """The constraint that a `pyro.param` statement declares.

    One that names no value refers to what was declared before, by the model or by a module of Pyro's (`PyroParam`).
    """
    if len(msg["args"]) < 2:
        # `get_state()` has them too, but it copies the store, and strips its tensors of `unconstrained`
        return pyro.get_param_store()._constraints.get(msg["name"], constraints.real)
    return msg["kwargs"].get("constraint", msg["args"][2] if len(msg["args"]) > 2 else constraints.real)


def base_of(fn: Any) -> Any:
    """A distribution without the dims that it was declared independent over."""
    while hasattr(fn, "reinterpreted_batch_ndims"):
        fn = fn.base_dist
    return fn


def is_shared_latent(msg: dict) -> bool:
    """A continuous latent outside the data plate: unknown once, not per row."""
    return (
        not msg["is_observed"]
        and isinstance(msg["fn"], TorchDistributionMixin)
        and not msg["fn"].support.is_discrete
        and not in_data_plate(msg)
        and not is_bookkeeping(msg)
    )


def in_data_plate(msg: Any) -> bool:
    """Whether a site belongs to each row."""
    return any(frame.name == DATA_PLATE for frame in msg["cond_indep_stack"])


def is_bookkeeping(msg: Any) -> bool:
    """A sample site in name only: a plate's own, or what `pyro.deterministic` keeps."""
    return poutine.util.site_is_subsample(msg) or bool((msg["infer"] or {}).get("_deterministic"))


def prior_center(fn: Any) -> Tensor:
    """The prior's mean where it has one inside its support, otherwise a draw."""
    try:
        mean = fn.mean
        if torch.isfinite(mean).all() and fn.support.check(mean).all():
            return mean.clone()
    except (NotImplementedError, AttributeError):
        pass
    return fn.sample()


@contextmanager
def engine_state(seed: int | None = None, device: Any = "cpu", dtype: torch.dtype = torch.float64) -> Iterator[None]:
    """Run a model in `dtype` on `device`, its own param store and random state; the caller's are left untouched."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with (
            pyro.validation_enabled(False),
            forked(seed is not None),
            pyro.get_param_store().scope(),
            # on the CPU the default device is left alone: setting it slows every torch call
            nullcontext() if torch.device(device).type == "cpu" else torch.device(device),
        ):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(before)


def run(model: Any, data: Any, bind: Bind, nesting: int, enumerated: bool = True) -> Run:
    """One run of the model with every discrete latent enumerated to the left of `nesting` plate dims."""
    try:
        with bind, Enumerate(first_available_dim=-1 - nesting) if enumerated else nullcontext():
            model(data)
        return Run(bind.nodes)
    except (DataError, ModelError, OptionError) as error:
        raise (error.__cause__ or error) from None  # in its own words, without the shapes that Pyro adds


def sample_sites(trace: Any) -> dict[str, Any]:
    """The sample sites of a trace by name, bookkeeping left out."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not is_bookkeeping(site)}


def double(value: Tensor) -> Tensor:
    """Floating values as float64, others as they are."""
    value = plain(value.detach())
    return value.double() if value.is_floating_point() else value
