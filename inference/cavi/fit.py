"""Coordinate ascent of a pair on its data, from every start to its optimum, by what kind of model it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..base.errors import OptionError
from ..data.schema import Dataset
from ..data.sparse import Bags, densified
from ..families.factors import Point
from ..linear_gaussian.marginalize import check_handed_on
from ..optimize.modes import Outcome, Reached, label_cells
from ..optimize.starts import first_starts, jitter
from ..pair import Pair
from ..program.against_pyro import Witness
from ..program.checks import check_rows, check_said, check_values
from ..program.compiler import compile_program
from ..program.estep import one_thread
from ..program.objective import witness
from ..program.program import Program
from ..program.sites import Params
from ..trace.provenance import plain as plain_values
from ..trace.structure import Structure, read
from .climb import CAVIOptions, climb
from .counts.ascent import fit_allocation
from .counts.model import read_allocation, sample_of
from .derivation import mean_field
from .graphs.ascent import fit_relation
from .mean_field import MeanField
from .monte_carlo import DrawnFactor
from .sweeps import Sweeps

LARGE = 100_000  # entries of a bilinear site
CONJUGATE = "conjugate"  # the name of a mean field of conjugate factors in a fit


def fit_cavi(pair: Pair, dataset: Dataset, share: Tensor | None, options: CAVIOptions) -> Reached:
    """Raise the bound from each start; rows weigh `share` (N,). Call inside `engine_state`."""
    if pair.graph is not None:
        return fit_relation(pair, dataset, options)
    structure = read(pair.model, sample_of(dataset.values))
    allocation = read_allocation(pair.model, dataset.values, structure, dataset.schema)
    if allocation is not None:
        return fit_allocation(pair, dataset, allocation, structure, share, options)
    if isinstance(dataset.values, Bags):
        dataset = replace(dataset, values=densified(dataset.values))
        structure = read(pair.model, dataset.values)
    check_handed_on(pair.model, dataset.values, structure, "cavi")
    return fit_mean_field(pair, dataset, structure, share, options)


def fit_mean_field(
    pair: Pair, dataset: Dataset, structure: Structure, share: Tensor | None, options: CAVIOptions
) -> Reached:
    """A mean field over shared latents, the enumerated ones of a row kept jointly."""
    check_values(structure, dataset.schema)
    check_said(structure)
    field = mean_field(pair.model, dataset.values, structure, options.fallback == "svi")
    if share is not None and (field.bilinear or structure.continuous):
        raise OptionError("weights: not taken by models whose latents multiply: repeat the rows, or leave it out")
    plain = compile_program(pair.model, dataset.values, structure)
    cells = {} if field.bilinear else label_cells(plain)
    check_rows(structure, cells, structure.num_rows)
    generator = torch.Generator().manual_seed(options.seed)
    starts = first_starts(pair, dataset.values, plain, options.restarts, generator, options.start)
    if field.bilinear and pair.initialize is None and options.start is None:  # at its prior mean a product stays there
        starts = _jittered(starts, structure, generator)
    lead = max((len(value) for value in starts.values()), default=1)
    for name in structure.continuous:  # updated first, so that their own start is never used
        value = plain_values(structure.trace.nodes[name]["value"]).double()
        starts[name] = value.expand(lead, *value.shape)
    proof = _witness(pair.model, field, plain)
    own = {name: starts[name][0] for name in structure.continuous}
    first = {name: value[0] for name, value in starts.items() if name in structure.params}
    proof.compare("start", {**own, **jitter(first, structure, torch.Generator().manual_seed(0))})
    small = all(one.size < LARGE for one in field.bilinear.values())  # torch's own threads serve large products
    leaps = bool(field.bilinear) if options.accelerate is None else options.accelerate
    with one_thread(when=small) as workers:
        sweeps = Sweeps(field, share, options.m_steps, workers, leaps)
        return climb(
            sweeps,
            _begin(sweeps, starts),
            options,
            lambda found: [_centred(field, one, starts) for one in found],
            plain.num_rows,
            lambda best, _: proof.compare("end", {**own, **best.params}),
            structure.params,
            CONJUGATE,
            lambda state: {n: eta for n, eta in state.items() if n in field.priors and n in structure.params},
            cells=cells,
            program=plain,
            share=share,
        )


def _witness(model: Any, field: MeanField, plain: Program) -> Witness:
    """The mean field with each of its factors at a point, beside the model."""
    structure = plain.structure
    if any(isinstance(family, DrawnFactor) for family in field.families.values()):  # which know no points
        return witness("cavi", model, plain)

    def total(rows: Tensor | None, values: dict[str, Tensor]) -> float:
        few = field if rows is None else replace(field, compiled=field.program.on_rows(rows))
        return few.at_points({name: values[name].unsqueeze(0) for name in field.families})

    whole = bool(field.bilinear or structure.continuous)  # which are held for all rows together
    return Witness("cavi", model, plain.data, total, plain.num_rows, plate=structure.data_plate, whole=whole)


def _jittered(starts: Params, structure: Structure, generator: torch.Generator) -> Params:
    """Every start moved a little at random."""
    lead = max(len(value) for value in starts.values())
    each = [jitter({name: value[r] for name, value in starts.items()}, structure, generator) for r in range(lead)]
    return {name: torch.stack([one[name] for one in each]) for name in starts}


def _begin(sweeps: Sweeps, starts: Params) -> Params:
    """States after the first sweep of every start."""
    lead = max(len(value) for value in starts.values())
    if sweeps.together:
        return sweeps.first(starts)
    each = [sweeps.first({name: value[r : r + 1] for name, value in starts.items()}) for r in range(lead)]
    return {name: torch.cat([one[name] for one in each]) for name in each[0]}


def _centred(field: MeanField, one: Outcome, starts: Params) -> Outcome:
    """An outcome by the means of its factors."""
    params = _centers(field, one.params)
    return replace(one, params=params, start={name: starts[name][0] for name in params})


def _centers(field: MeanField, state: Params) -> Params:
    """The mean of each factor, and params as they are."""
    out = {}
    for name, value in state.items():
        if name not in field.params:  # of a row: found again from the shared ones
            continue
        family = field.families[name]
        center = value if isinstance(family, Point) else family.center(value.unsqueeze(0)).squeeze(0)
        out[name] = center.reshape(field.params[name].value.shape)
    return out
