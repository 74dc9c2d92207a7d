"""Reading a pair with networks: one run of its guide and its model on a few rows, in the dtype of its networks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from ..base.errors import ModelError
from ..base.unconstrained import base_constraint, inside
from ..data.streams import Rows, first_rows
from ..data.structures import map_tensors
from ..pair import Pair
from ..trace.handlers import DATA_PLATE, Bind, OtherDtype, Param, Run, in_data_plate, sample_sites
from ..trace.structure import Structure, structure_of
from .shape_errors import deep_errors

SAMPLE = 16  # rows of the run that reads the pair


@dataclass(frozen=True)
class Story:
    """What one run says of a pair with networks."""

    pair: Pair  # with a guide, where the model has continuous latents
    model: Structure
    guide: Structure | None
    dtype: torch.dtype

    @cached_property
    def leaves(self) -> dict[str, Param]:
        """What is learned: of the model, then of the guide alone."""
        return {**self.model.params, **{n: leaf for n, leaf in self.guide_params.items() if n not in self.model.params}}

    @property
    def guide_params(self) -> dict[str, Param]:
        return self.guide.params if self.guide else {}

    @cached_property
    def networks(self) -> dict[str, nn.Module]:
        return {**self.model.networks, **(self.guide.networks if self.guide else {})}

    @cached_property
    def latents(self) -> dict[str, Any]:
        """Continuous, of each row, in the order of the model -> prior."""
        return {name: self.model.trace.nodes[name]["fn"] for name in self.model.continuous}

    @cached_property
    def discrete(self) -> dict[str, int]:
        """Enumerated, of each row -> number of values."""
        return {name: latent.cardinality for name, latent in self.model.latents.items()}

    @cached_property
    def guided(self) -> tuple[str, ...]:
        """Of the enumerated ones, those that the guide has a factor of."""
        return tuple(name for name in self.discrete if name in self.guide_sites)

    @property
    def observed(self) -> tuple[str, ...]:
        return self.model.observed

    @cached_property
    def computed(self) -> tuple[str, ...]:
        """What `pyro.deterministic` keeps inside the data plate."""
        nodes = self.model.trace.nodes.items()
        return tuple(name for name, msg in nodes if (msg["infer"] or {}).get("_deterministic") and in_data_plate(msg))

    @property
    def data_dim(self) -> int:
        return self.model.data_dim

    @cached_property
    def ordered(self) -> bool:
        """Whether model and guide draw the latents in one order."""
        return [name for name in self.guide_sites if name in self.latents] == list(self.latents)

    @property
    def num_configurations(self) -> int:
        return math.prod(self.discrete.values())

    @cached_property
    def guide_sites(self) -> dict[str, Any]:
        sites = sample_sites(self.guide.trace) if self.guide else {}
        return {name: msg for name, msg in sites.items() if not msg["is_observed"]}


def read_story(pair: Pair, data: Any, dtype: torch.dtype = torch.float32) -> Story:
    """Read a pair on the first rows of its data. Call inside `engine_state`.

    Raises
    ------
    ModelError
        No data plate; a shape that does not fit, by the layer or the site; a latent that this inference cannot take.
    """
    few = first_rows(data, SAMPLE)
    networks: dict[str, nn.Module] = {}
    model, guide = (Bind({}, centred=False, networks=networks) for _ in range(2))
    try:
        story = _read(pair, few, model, guide, dtype)
    except OtherDtype as other:
        own = other.args[0]
        torch.set_default_dtype(own)
        return read_story(pair, to_dtype(data, own), own)
    finally:
        for network, training in {**guide.modes, **model.modes}.items():
            network.train(training)
    _check_latents(story)
    return story


def _read(pair: Pair, few: Any, model: Bind, guide: Bind, dtype: torch.dtype) -> Story:
    with torch.no_grad():
        played(pair.model, few, model, "model")
        of_guide = None if pair.guide is None else played(pair.guide, few, guide, "guide")
        # a second run at the guide's draws, as every step will be: its shapes are checked
        values = {name: leaf.value if leaf.weight is None else leaf.weight for name, leaf in model.declared.items()}
        values |= {name: msg["value"] for name, msg in sample_sites(Run(guide.nodes)).items()}
        again = played(pair.model, few, Bind(values, centred=False, networks=model.networks), "model")
    outside = [name for name, msg in sample_sites(again).items() if not in_data_plate(msg)]
    if outside:
        raise ModelError(
            f"svi: site '{outside[0]}' lies outside the plate \"{DATA_PLATE}\", and with networks all latents are "
            f"those of rows: learn it as a pyro.param, or sample it inside the plate"
        )
    guided = None if of_guide is None else structure_of(of_guide, guide, of_guide=True)
    return Story(pair, structure_of(again, model), guided, dtype)


def played(function: Any, rows: Any, bind: Bind, where: str) -> Run:
    """A run of a model or guide; shapes that do not fit are met in plain words."""
    with deep_errors(bind, where), bind:
        function(rows)
    return Run(bind.nodes)


def _check_latents(story: Story) -> None:
    """The guide draws every continuous latent of the model, and can pass gradients; it draws nothing else."""
    if story.guide is None:
        return
    known = story.guide_sites
    if strange := sorted(set(known) - {*story.latents, *story.discrete}):
        raise ModelError(f"svi: the guide samples {strange}, which are no latents of the model ({list(story.latents)})")
    for name in story.latents:
        if name not in known:
            raise ModelError(f"svi: the guide does not sample '{name}', a latent of each row of the model")
        if not known[name]["fn"].has_rsample:
            raise ModelError(
                f"svi: the guide's {type(known[name]['fn']).__name__} of '{name}' has no reparameterized draws"
            )


def to_dtype(data: Any, dtype: torch.dtype) -> Any:
    """A table in the dtype of the networks, whole numbers too; of a structure the fields of numbers with fractions."""
    if isinstance(data, Tensor | Rows):
        return data.to(dtype)
    return map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, data)


def free_value(leaf: Param, value: Tensor) -> Tensor:
    """The unconstrained numbers of a value."""
    if base_constraint(leaf.constraint) is constraints.real:
        return value
    found: Tensor = transform_to(leaf.constraint).inv(inside(leaf.constraint, value))
    return found


def value_of(leaf: Param, free: Tensor) -> Tensor:
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
