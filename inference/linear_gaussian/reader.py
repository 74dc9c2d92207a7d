"""Which models are linear and normal in continuous latents of a row, found by reading and by running them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..base.errors import ModelError
from ..base.unconstrained import base_constraint
from ..trace.handlers import ROOM_FOR_PLATES, Bind, base_of, double, run
from ..trace.structure import Structure, read, read_again
from .marginalize import WAY_OUT, Gather, Marginal, SumOut

NUMBERED = (constraints.real, constraints.positive, constraints.nonnegative, constraints.softplus_positive)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_exact(model: Any, data: Any, values: Mapping[str, Tensor] | None = None) -> tuple[Any, Structure]:
    """The model as exact inference takes it, normal latents of its rows summed out, and its structure.

    Raises
    ------
    ModelError
        A continuous latent of the rows that cannot be summed out.
    """
    structure = read(model, data, values)
    if not structure.continuous:
        return model, structure
    marginal = sum_out(model, data, structure)
    return marginal, read_again(marginal, data, structure)


def sum_out(model: Any, data: Any, structure: Structure) -> Marginal:
    """The model with its continuous latents summed out."""
    nodes = structure.trace.nodes
    for name in structure.continuous:
        fn = nodes[name]["fn"]
        frames = {frame.name for frame in nodes[name]["cond_indep_stack"]}
        if type(base_of(fn)) not in (dist.Normal, dist.MultivariateNormal):
            raise ModelError(
                f"em: site '{name}' is a continuous latent of each row, a {type(base_of(fn)).__name__}, and only "
                f"normal ones can be summed out: discretise it on nodes (Categorical over fixed points), or {WAY_OUT}"
            )
        if frames != {structure.data_plate}:
            inner = sorted(frames - {structure.data_plate})
            raise ModelError(
                f"em: site '{name}' is a continuous latent inside the plate {', '.join(map(repr, inner))} of each row: "
                f"to sum it out, sample it in the data plate alone, as a vector with .to_event(1), or {WAY_OUT}"
            )
    shapes = {name: nodes[name]["fn"].event_shape for name in structure.continuous}
    marginal = Marginal(model, shapes, -1 - ROOM_FOR_PLATES - len(structure.latents))
    params = {name: double(param.value).nan_to_num() for name, param in structure.params.items()}
    trial = torch.randn(marginal.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    try:
        sites = _maps(marginal, data, structure, params, trial)
    except ModelError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(
            f"em: the model fails where its continuous latents stand at several points, along a dim left of the rows "
            f"({str(error).splitlines()[0]}): write it so that it broadcasts over dims to the left, or {WAY_OUT}"
        ) from error
    if not sites:
        raise ModelError(
            f"em: no observed site depends on latent '{structure.continuous[0]}': leave it out of the model"
        )
    return replace(marginal, gathers=_gathers(marginal, data, structure, params))


def _maps(
    marginal: Marginal, data: Any, structure: Structure, values: Mapping[str, Tensor], trial: Tensor | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    handler = SumOut(marginal, trial)

    def handled(data: Any) -> None:
        with handler:
            marginal.model(data)

    with torch.no_grad():
        run(handled, data, Bind(values), structure.nesting)
    return handler.maps


def _gathers(
    marginal: Marginal, data: Any, structure: Structure, values: dict[str, Tensor]
) -> dict[str, dict[str, Gather]]:
    """Which arguments are cells of a param as they stand, found by giving every cell a number of its own, twice."""
    names = [n for n, p in structure.params.items() if base_constraint(p.constraint) in NUMBERED]
    sizes = [values[name].numel() for name in names]
    owner = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(sizes, dtype=torch.long))
    place = torch.cat([torch.arange(size) for size in sizes]) if sizes else torch.zeros(0, dtype=torch.long)
    numbers = torch.arange(sum(sizes)).double()

    def met(codes: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        parts = codes.split(sizes)
        given = {n: part.reshape(values[n].shape) for n, part in zip(names, parts, strict=True)}
        return _maps(marginal, data, structure, {**values, **given})

    try:  # whole numbers, so that no sum of them is rounded
        first, second = met(numbers + 2), met(3 * numbers + 7)
    except (RuntimeError, ValueError, IndexError):  # a param that will not be a number of any size
        return {}
    out: dict[str, dict[str, Gather]] = {}
    for site, found in first.items():
        for key, one, two in zip(("loc", "factor"), found, second[site], strict=True):
            cell = (one - 2).nan_to_num(nan=-1.0)
            whole = (cell == cell.round()) & (cell >= 0) & (cell < len(numbers))
            cells = torch.where(whole, cell, 0.0).long()
            if not bool(whole.all()) or not len(numbers) or not torch.equal(two, 3.0 * cells + 7):
                continue
            own = owner[cells].unique()
            if len(own) == 1:
                dim = structure.data_dim - (1 if key == "loc" else 2)
                by_row = cells.dim() >= -dim and cells.shape[dim] > 1
                out.setdefault(site, {})[key] = Gather(names[int(own)], place[cells], by_row)
    return out
