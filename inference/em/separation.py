"""A column of one answer: where the model puts no bound to it, its probability is fitted as 1, and a param runs off."""

from __future__ import annotations

from collections.abc import Sequence

from pyro import poutine
from torch import Tensor

from ..base.errors import DataError
from ..base.rng import forked
from ..base.unconstrained import base_constraint
from ..data.columns import center_and_variance
from ..data.schema import Schema
from ..families.discrete import BernoulliFamily, CategoricalFamily
from ..program.program import Program
from ..program.sites import Site
from ..trace.handlers import Bind, sample_sites
from ..trace.provenance import provenance, symbol
from .gradient import free_values, influences


def check_certain(program: Program, climbed: Sequence[str], schema: Schema) -> None:
    """Refuse columns of codes that hold one value, where a param that is free to run off serves them alone.

    Raises
    ------
    DataError
    """
    certain = {
        (site.name, int(cell))
        for site in program.products.values()
        if isinstance(site.family, BernoulliFamily | CategoricalFamily)
        and site.gathered is None
        and any(argument.depends & set(climbed) for argument in site.args.values())
        for cell in _constant(site).nonzero().flatten()
    }
    if not certain:
        return
    found = influences(program, climbed)
    owner = [name for name, value in free_values(program, climbed).items() for _ in range(value.numel())]
    others = {int(n) for one in found if (one.site, one.cell) not in certain for n in one.numbers}
    for one in found:
        own = [owner[n] for n in one.numbers.tolist() if n not in others and _runs_off(program, owner[n])]
        if (one.site, one.cell) in certain and own:
            site = program.products[one.site]
            value = site.value.reshape(len(site.value), -1)[:, one.cell]
            value = value[~value.isnan()][0] if value.is_floating_point() else value[0]
            raise DataError(
                f"{_column(program, one.site, one.cell, schema, int(value))} in every row, so it would be fitted as "
                f"certain and param '{own[0]}' would run off to infinity: drop the column, or give '{own[0]}' a prior"
            )


def _constant(site: Site) -> Tensor:
    return center_and_variance(site.value.reshape(len(site.value), -1))[1] == 0


def _runs_off(program: Program, name: str) -> bool:
    param = program.structure.params[name]
    return param.prior is None and not hasattr(base_constraint(param.constraint), "upper_bound")


def _column(program: Program, site: str, cell: int, schema: Schema, value: int) -> str:
    """What the user calls the column and its one value."""
    data, place = program.data, None
    if isinstance(data, Tensor) and data.dim() == 2:
        with Bind({name: param.value for name, param in program.structure.params.items()}), forked():
            node = sample_sites(poutine.trace(program.model).get_trace(symbol(data, "data")))[site]
        known = provenance(node["value"])
        if known is not None and known.cells is not None:
            place = int(known.cells.reshape(len(data), -1)[0, cell]) % data.shape[1]
    if place is None:
        return f"site '{site}', cell {cell}, is {value}"
    name = schema.columns[place] if schema.columns else None
    labels = schema.labels.get(name) if name and schema.labels else None
    met = repr(labels[value]) if labels else str(value)
    return f"column {repr(name) if name else place} holds {met}"
