"""Exact EM by enumeration (Dempster, Laird and Rubin 1977), for any model whose latents of a row can be summed out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .begin import first_starts, take_in
from .certain import check_certain
from .checks import (
    check_counts,
    check_latents,
    check_options,
    check_rows,
    check_seed,
    check_spread,
    check_values,
    row_weights,
)
from .compiler import compile_program
from .data import num_rows, slice_rows
from .errors import FitError, warn
from .estep import one_thread
from .factor_plan import spread_by_column
from .factored import turned
from .finish import finish
from .fit import Fit
from .labels import label_cells
from .loop import Stop
from .modes import map_modes, rank
from .pair import Pair
from .plan import make_plan
from .runner import EMSteps, Runner
from .schedule import Schedule
from .stepwise import Settled, stepwise
from .structure import Structure, engine_state, read
from .sum_out import read_exact

LARGE = 1_000_000  # rows times configurations


def em(
    pair: Pair,
    data: Any,
    *,
    max_iters: int = 10_000,
    tol: float = 1e-11,
    restarts: int = 1,
    seed: int = 0,
    weights: Any = None,
    start: dict[str, Tensor] | None = None,
    m_steps: int = 20,
    variance_floor: float = 1e-6,
    collapse: bool | None = None,
    natural: bool = True,
    batch_size: int | None = None,
    schedule: Schedule | None = None,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> Fit:
    """Maximise log p(x), or log p(x, shared latents) where the model has priors (MAP), by exact EM in float64.

    Parameters
    ----------
    pair : Pair
        Its model is all that EM needs; ``initialize`` gives the starts where there is one.
    data : anything `data.adapt` takes
        NaN cells are missing, and integrated out exactly. Memory maps and sparse matrices are taken as whole tables;
        loaders are refused: give a tensor.
    max_iters : int
        M-steps at most.
    tol : float
        Relative tolerance of the bound (`loop.Stop`); 0 runs exactly `max_iters` iterations.
    restarts : int
        Runs from different starts, as one batch where the model need not be run again; the best is returned, all are in
        ``fit.mode_map``.
    weights : (N,) numbers, optional
        Weight 2 is the row twice.
    start : dict, optional
        Values of some or all params for the first start.
    m_steps : int
        L-BFGS iterations of one M-step, for params that have no closed form.
    variance_floor : float
        Learned variances stay above this share of their column's variance, so no component collapses onto a point.
    collapse : bool, optional
        Fit repeated rows once, with their count as weight: the same answer, faster. Default: where all sites are
        discrete.
    natural : bool
        False scores every observed site by running the model, instead of by matrix products. Slower, the same numbers.
    batch_size : int, optional
        Rows of a step of stepwise EM (`stepwise`): one iteration is then a pass over the data in batches, for data of
        many rows. The bound may fall a little from pass to pass. Default: all rows in each iteration.
    schedule : Schedule, optional
        Sizes of these steps.
    device : str, optional
        Where to compute, such as "cuda" (in float64, which "mps" has not). Default: where the data are.
    progress : bool, optional
        Show a bar. Default: on a terminal.

    Returns
    -------
    Fit

    Raises
    ------
    ModelError, DataError, OptionError
        Plain words on what cannot be fitted, and the way out.
    FitError
        The bound became NaN or infinite in every restart; ``error.params`` holds the last good values.

    Warns
    -----
    ConvergenceWarning
        `max_iters` came first, or every restart ended on the variance floor.
    """
    check_counts(max_iters=(max_iters, 0), restarts=(restarts, 1), m_steps=(m_steps, 1))
    check_options(tol=(tol, 0), variance_floor=(variance_floor, 0))
    seed = check_seed(seed)
    pair, dataset, home = take_in(pair, data, device)
    generator = torch.Generator().manual_seed(seed)
    with engine_state(seed, home):
        share = row_weights(weights, num_rows(dataset.values), home)
        model, structure = read_exact(pair.model, dataset.values)
        check_latents(structure)
        check_values(structure, dataset.schema)
        rows = structure.num_rows
        collapse = False if collapse is None and batch_size is not None else collapse
        values, share, structure = _collapsed(model, dataset.values, structure, share, collapse)
        program = compile_program(model, values, structure, natural)
        plan = make_plan(program, variance_floor)
        cells = label_cells(program)
        check_rows(structure, cells, rows)
        check_spread(program, set(plan.closed) | spread_by_column(program, plan.factored), dataset.schema)
        check_certain(program, list(plan.climbed), dataset.schema)
        starts = first_starts(pair, dataset.values, program, restarts, generator, start)
        # sites scored by running the model work on all rows at once: large operations, which threads serve well
        with one_thread(when=not (program.scored and program.size > LARGE)) as workers:
            steps = EMSteps(program, plan, share, m_steps, workers)
            runner = Runner(steps, Stop(tol), max_iters, "em")
            if batch_size is not None:
                passes = stepwise(steps, batch_size, program.num_rows, schedule or Schedule(), seed, "em")
                runner = Runner(passes, Settled(tol), max_iters, "em", settle=0)
            outcomes, failed = runner.all(starts, progress)
        outcomes = [replace(one, params=turned(program, plan.factored, one.params)) for one in outcomes]
        modes = map_modes(outcomes, cells, failed)
        fit = finish(
            pair, dataset, program, rank(outcomes)[0], modes, share, inference="em", seed=seed, weights=weights
        )
    _warn(fit, tol)
    return fit


def _collapsed(
    model: Any, values: Any, structure: Structure, weights: Tensor | None, collapse: bool | None
) -> tuple[Any, Tensor | None, Structure]:
    """The distinct rows with their total weights, where that is asked for or pays."""
    whole = isinstance(values, Tensor) and len(values) == structure.num_rows
    if collapse is None:
        discrete = all(structure.trace.nodes[name]["fn"].support.is_discrete for name in structure.observed)
        collapse = whole and discrete and len(values) >= 256
    if not collapse:
        return values, weights, structure
    if not whole:
        raise FitError("em: collapse=True needs data of one tensor with a row for each member of the data plate", {})
    filled = values.nan_to_num(nan=float("inf")) if values.is_floating_point() else values
    _, group = torch.unique(filled, dim=0, return_inverse=True)
    count = int(group.max()) + 1
    if count > len(values) // 2:
        return values, weights, structure
    ones = torch.ones(len(values), device=values.device) if weights is None else weights
    total = torch.zeros(count, device=values.device).index_add(0, group, ones)
    first = torch.full((count,), len(values), device=values.device)
    first = first.scatter_reduce(0, group, torch.arange(len(values), device=values.device), "amin")
    distinct = slice_rows(values, first)
    given = {name: param.value for name, param in structure.params.items()}
    return distinct, total, read(model, distinct, given)


def _warn(fit: Fit, tol: float) -> None:
    if tol > 0 and not fit.converged:
        warn(
            f"em: stopped after {len(fit.history) - 1} iterations before the tolerance was met "
            f"(last gain {fit.history[-1] - fit.history[-2] if len(fit.history) > 1 else float('nan'):.2g}): "
            f"raise max_iters or tol"
        )
    if fit.mode_map[0].degenerate:
        warn(
            "em: a component collapsed onto its variance floor in every restart, so the likelihood has no meaning: "
            "ask for fewer components, a simpler covariance, or more restarts"
        )
