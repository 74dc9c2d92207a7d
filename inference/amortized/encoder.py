"""Encoders that follow from a model: a guide whose factors of each row are computed from the row by a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from ..base.errors import ModelError, OptionError
from ..base.rng import forked
from ..base.unconstrained import base_constraint
from ..data.schema import Schema
from ..data.streams import Rows, pieces
from ..data.structures import num_rows, tensors_of
from ..nn.networks import fresh, mlp
from ..nn.posteriors import COMPONENTS, POSTERIORS, posterior_of
from ..pair import Pair
from ..trace.handlers import DIVIDER
from .reader import Story

NETWORK = "encoder"


@dataclass(frozen=True)
class Amortized:
    """A guide that an encoder computes: factors of the unconstrained continuous latents of a row.

    Attributes
    ----------
    posterior : str
        The family of each factor: "diagonal", "full" (normal), "mixture" (of normals) or "flow".
    hidden : sequence of int
        Units of the hidden layers; none for a linear encoder.
    components : int
        Of a mixture.
    """

    posterior: str = "diagonal"
    hidden: Sequence[Any] = (64,)
    components: int = COMPONENTS

    def __post_init__(self) -> None:
        posterior_of(self.posterior, 1, self.components)  # refuses what is none
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in self.hidden):
            raise OptionError(f"hidden: met {self.hidden!r}, expected whole numbers of at least 1")

    @property
    def name(self) -> str:
        return "amortized" if self.posterior == "diagonal" else f"amortized_{self.posterior}"


NAMES = {shape.name: shape for shape in map(Amortized, POSTERIORS)}


def asked_for(guide: Any) -> Amortized | None:
    """The amortized guide that an option asks for, if it does."""
    return guide if isinstance(guide, Amortized) else NAMES.get(guide) if isinstance(guide, str) else None


def amortize(
    pair: Pair, story: Story, data: Any, schema: Schema, shape: Amortized, known: Mapping[str, Tensor] | None = None
) -> tuple[Pair, dict[str, Tensor]]:
    """The pair with an encoder for its guide, and what the encoder measures columns by.

    Parameters
    ----------
    data : what the model takes
        Rows to measure the columns on, where `known` does not say it.
    known : dict, optional
        Of a fit: ``mean`` and ``sd`` of the columns.
    """
    if story.data_dim != -1:
        raise ModelError("amortized: the latents lie in a plate inside the rows: write a guide for them")
    features = _features(data, schema)
    if known is None:
        known = _measured(data, features)
    mean, sd = known["mean"], known["sd"]
    sizes = {name: _size(fn) for name, fn in story.latents.items()}
    laws = {
        name: posterior_of(shape.posterior, size, shape.components, f"{NETWORK}_{name}") for name, size in sizes.items()
    }
    outputs = [law.num_stats for law in laws.values()]
    with forked():
        networks = {NETWORK: mlp(2 * len(mean), shape.hidden, sum(outputs))}
        for law in laws.values():
            networks |= {name: build(0) for name, build in law.networks.items()}
        for network in networks.values():
            network.to(story.dtype)

    def guide(rows: Any) -> None:
        encoder = pyro.module(NETWORK, networks[NETWORK])
        cells = features(rows)
        cells = (cells - mean.to(cells.device)) / sd.to(cells.device)
        stats = encoder(torch.cat([cells.nan_to_num(nan=0.0), (~cells.isnan()).to(cells.dtype)], -1))
        with pyro.plate("data", num_rows(rows)):
            for (name, law), part in zip(laws.items(), stats.split(outputs, -1), strict=True):
                pyro.sample(name, _factor(story.latents[name], law.of(part)))

    begun = [law.starts["encoder"](mean) if law.starts else torch.empty(0) for law in laws.values()]
    initialize = _with_weights(pair, networks, torch.cat(begun))
    fixed = {"mean": mean, "sd": sd}
    if shape.posterior == "mixture":
        fixed["components"] = torch.tensor(shape.components)
    return replace(pair, guide=guide, initialize=initialize), fixed


def _measured(data: Any, features: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    """Mean and standard deviation of each column of the features, missing cells left out."""
    count, total, square = torch.zeros((), dtype=torch.long), torch.zeros(()), torch.zeros(())
    for piece in pieces(data):
        cells = features(piece)
        count, total = count + (~cells.isnan()).sum(0), total + cells.nan_to_num().sum(0)
    count = count.clamp_min(1)
    mean = total / count
    for piece in pieces(data):
        cells = features(piece)
        square = square + (torch.where(~cells.isnan(), cells - mean, 0.0) ** 2).sum(0)
    sd = (square / count).sqrt()
    return {"mean": mean, "sd": torch.where(sd > 0, sd, 1.0)}


def _with_weights(pair: Pair, networks: Mapping[str, nn.Module], begun: Tensor) -> Callable[..., Any]:
    """Starting values of the model, and of the encoder for each of them."""

    def initialize(data: Any, generator: torch.Generator) -> Any:
        found = pair.initialize(data, generator) if pair.initialize else {}
        each = iter([found]) if isinstance(found, Mapping) else found
        for one in each:
            yield {**one, **fresh(networks, generator, {NETWORK: begun} if len(begun) else {})}

    return initialize


def shape_of(guide: str, parts: Mapping[str, Tensor]) -> Amortized:
    """The guide of a fit, from its name and its parts."""
    weights = [v for name, v in parts.items() if name.startswith(f"value/{NETWORK}{DIVIDER}") and v.dim() == 2]
    components = int(parts["fixed/components"]) if "fixed/components" in parts else COMPONENTS
    return Amortized(NAMES[guide].posterior, tuple(len(weight) for weight in weights[:-1]), components)


def _size(fn: Any) -> int:
    transform = biject_to(fn.support)
    shape = transform.inverse_shape(fn.event_shape)
    return int(torch.Size(shape).numel())


def _factor(prior: Any, normal: Any) -> Any:
    """A distribution of vectors as one over the values of a latent."""
    support, event = prior.support, tuple(prior.event_shape)
    real = base_constraint(support) is constraints.real or support is constraints.real_vector
    if real and len(event) == 1:
        return normal
    free = tuple(biject_to(support).inverse_shape(event))
    shaped = torch.distributions.transforms.ReshapeTransform(normal.event_shape, torch.Size(free))
    parts = [shaped] if real else [shaped, biject_to(support)]
    return dist.TransformedDistribution(normal, parts)


def _features(data: Any, schema: Schema) -> Callable[[Any], Tensor]:
    """How to lay the cells of rows out as numbers (B, F); columns of three labels or more become one for each."""
    labels = {n: len(schema.labels.get(name, ())) for n, name in enumerate(schema.columns or ())}
    wide = {n: size for n, size in labels.items() if size > 2 and isinstance(data, Tensor | Rows)}

    def features(rows: Any) -> Tensor:
        size = num_rows(rows)
        fields = [t.reshape(size, -1) for t in tensors_of(rows).values() if t.dim() and len(t) == size]
        cells = torch.cat([t.to(torch.get_default_dtype()) for t in fields], -1)
        if not wide:
            return cells
        columns = []
        for n, column in enumerate(cells.unbind(-1)):
            if n in wide:
                codes = torch.arange(wide[n]).to(cells)
                hot = (column.unsqueeze(-1) == codes).to(cells.dtype)
                columns.append(torch.where(column.isnan().unsqueeze(-1), torch.nan, hot))
            else:
                columns.append(column.unsqueeze(-1))
        return torch.cat(columns, -1)

    return features


OWN = "networks"  # the guide of a fit whose pair brings its own
