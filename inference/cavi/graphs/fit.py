"""CAVI of a graph whose nodes have a discrete latent each: the mean field is over nodes too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...base.errors import ModelError, OptionError
from ...data.devices import device_of
from ...data.schema import Dataset
from ...families.factors import Point
from ...optimize.coordinate_ascent import Runner
from ...optimize.modes import Outcome, Reached, map_modes, rank
from ...optimize.starts import each_start
from ...optimize.stopping import Stop
from ...pair import Pair
from ...program.estep import one_thread
from ...program.sites import Params
from ..options import CAVIOptions
from .model import GRAPH, INTO, OUT, Relation
from .reader import read_relation
from .updates import Relating, candidates_of, given_start, settled


def fit_relation(
    pair: Pair,
    dataset: Dataset,
    options: CAVIOptions,
) -> Reached:
    """Raise the bound from each start in turn. Call inside `engine_state`."""
    for name, value in (("batch_size", options.batch_size), ("fallback", options.fallback)):
        if value is not None:
            raise OptionError(f"{name}: not taken by models of graphs, whose nodes meet in pairs: leave it out")
    device = device_of(dataset.values)
    if device.type != "cpu":
        raise OptionError(f"device: met '{device}', expected 'cpu', where models of graphs are fitted: leave it out")
    assert pair.graph is not None
    relation = read_relation(pair.model, dataset.values, pair.graph, dataset.schema)
    steps = Relating(relation, options.m_steps)
    with one_thread():
        begun = _starts(
            pair, dataset, steps, options.restarts, torch.Generator().manual_seed(options.seed), options.start
        )
        starts = {name: torch.cat([one[name] for one in begun]) for name in begun[0]}
        found, failed = Runner(steps, Stop(options.tol), options.max_iters, "cavi").all(starts, options.progress)
    best = found[max(range(len(found)), key=lambda r: found[r].bound)]
    outcomes = [_aligned(relation, one, best) for one in found]
    first = rank(outcomes)[0]
    structure = relation.field.program.structure
    factors = [n for n, f in relation.field.families.items() if not isinstance(f, Point)]
    parts = {name: best.params[name] for name in (*factors, relation.latent)}
    parts |= {OUT: relation.probe.out_degree, INTO: relation.probe.in_degree}
    return Reached(
        first,
        map_modes(outcomes, {}, failed),
        {name: param.constraint for name, param in structure.params.items()},
        float(structure.num_rows),
        guide=GRAPH,
        guide_parts=parts,
        note=options.note(first.history, first.converged),
    )


def _starts(
    pair: Pair, dataset: Dataset, steps: Relating, restarts: int, generator: torch.Generator, start: Params | None
) -> list[Params]:
    """A state of each restart: `initialize` and `start` may give the latent of the nodes."""
    relation = steps.relation
    candidates = candidates_of(relation, generator)
    drawn = each_start(pair.initialize, dataset.values, generator, relation.field.program.structure)
    out = []
    for number in range(restarts):
        found = next(drawn, None)
        given = start if number == 0 and start else dict(found) if found else None
        out.append(_given(steps, given, next(candidates)) if given else steps.best(next(candidates)))
    return out


def _given(steps: Relating, given: Params, candidates: list[Tensor]) -> Params:
    relation = steps.relation
    declared = relation.field.program.structure.params
    unknown = sorted(set(given) - {relation.latent, *declared})
    if unknown:
        raise ModelError(
            f"start: a value for '{unknown[0]}', which the model does not declare: it has "
            f"{sorted((relation.latent, *declared))}"
        )
    if relation.latent in given:
        return steps.begin(given_start(relation, given[relation.latent], "start"))
    values = {name: param.value for name, param in declared.items()}
    for name, value in given.items():
        value = torch.as_tensor(value).double()
        if value.shape != values[name].shape:
            raise ModelError(
                f"start: '{name}' has shape {tuple(value.shape)}; the model declares {tuple(values[name].shape)}"
            )
        values[name] = value
    tables = relation.tables(relation.field.starts({n: v.unsqueeze(0) for n, v in values.items()}))
    q = settled(steps, tables, best_match(steps, tables, candidates))
    return steps.begin(q)


def best_match(steps: Relating, tables: Any, candidates: list[Tensor]) -> Tensor:
    """Of all candidates and of each change of places of two labels, the highest under shared values that are held."""
    return max((_matched(steps, tables, q) for q in candidates), key=lambda one: one[0])[1]


def _matched(steps: Relating, tables: Any, q: Tensor) -> tuple[float, Tensor]:
    """Labels change places two by two while that is a gain."""
    log, eta, log_normalizer = tables
    s1, s0 = (torch.from_numpy(part) for part in steps.relation.ties.sums(q.numpy()))
    totals = q.sum(0)

    def value(order: list[int]) -> float:
        at = torch.tensor(order)
        pairs = (s1 * eta[at][:, at]).sum() - (s0 * log_normalizer[at][:, at]).sum()
        return float(pairs + (totals * log[at]).sum())

    order = list(range(len(totals)))
    best = value(order)
    gained = True
    while gained:
        gained = False
        for k in range(len(order)):
            for other in range(k):
                tried = list(order)
                tried[k], tried[other] = tried[other], tried[k]
                if value(tried) > best + 1e-12 * abs(best):
                    order, best, gained = tried, value(tried), True
    moved = torch.empty_like(q)
    moved[:, torch.tensor(order)] = q
    return best, moved


def _aligned(relation: Relation, one: Outcome, best: Outcome) -> Outcome:
    """An outcome by the means of its factors, its labels as near those of the best as can be."""
    from scipy.optimize import linear_sum_assignment

    field, name = relation.field, relation.latent
    shared = {n: v for n, v in one.params.items() if n != name}
    params = {
        n: value if isinstance(field.families[n], Point) else field.families[n].center(value.unsqueeze(0))[0]
        for n, value in shared.items()
    }
    _, order = linear_sum_assignment(best.params[name].mT @ one.params[name], maximize=True)
    params = relation.permuted(params, torch.from_numpy(order))
    begun = {name: one.start[name].argmax(-1).double()}
    return replace(one, params=params, start=begun)
