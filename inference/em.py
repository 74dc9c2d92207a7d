"""Exact EM by enumeration (Dempster, Laird and Rubin 1977), for any model whose latents of a row can be summed out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import check_device, check_labels, check_latents, check_options, check_spread, check_values, row_weights
from .climb import log_prior
from .compiler import compile_program
from .data import Dataset, adapt, map_tensors, num_rows, slice_rows
from .errors import ConvergenceWarning, FitError
from .estep import expectations
from .fit import Fit, finish
from .labels import label_cells
from .links import FLOORED, floor_of
from .loop import Progress, Stop
from .modes import Outcome, map_modes, rank
from .mstep import m_step
from .pair import Pair
from .plan import Plan, make_plan, site_of
from .program import Program
from .sites import Params
from .starts import jitter, starting_values
from .structure import Structure, engine_state, read


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
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> Fit:
    """Maximise log p(x), or log p(x, shared latents) where the model has priors (MAP), by exact EM in float64.

    Parameters
    ----------
    pair : Pair
        Its model is all that EM needs; ``initialize`` gives the starts where there is one.
    data : anything `data.adapt` takes
        NaN cells are missing, and integrated out exactly.
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
    device : str, optional
        Where to compute, such as "cuda". Default: where the data are.
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
    check_options(max_iters=(max_iters, 0), tol=(tol, 0), restarts=(restarts, 1), m_steps=(m_steps, 1))
    check_options(variance_floor=(variance_floor, 0))
    check_options(seed=(seed, 0))
    dataset = adapt(data)
    if device is not None:
        home = check_device(device)
        dataset = Dataset(map_tensors(lambda t: t.to(home), dataset.values), dataset.schema)
    home = device_of(dataset.values)
    generator = torch.Generator().manual_seed(int(seed))
    with engine_state(seed, home):
        share = row_weights(weights, num_rows(dataset.values), home)
        structure = read(pair.model, dataset.values)
        check_latents(structure, structure.num_rows)
        check_values(structure, dataset.schema)
        values, share, structure = _collapsed(pair, dataset.values, structure, share, collapse)
        program = compile_program(pair.model, values, structure, natural)
        plan = make_plan(program, variance_floor)
        check_spread(program, set(plan.closed), dataset.schema)
        cells = label_cells(program)
        check_labels(structure, cells, num_rows(dataset.values))
        starts = starting_values(pair, dataset.values, structure, restarts, generator, start)
        if pair.initialize is None and start is None and _is_symmetric(program, starts):
            first = {name: value[0] for name, value in starts.items()}
            moved = jitter(first, structure, generator)
            starts = {name: torch.cat([moved[name].unsqueeze(0), value[1:]]) for name, value in starts.items()}
        runner = _Runner(program, plan, share, Stop(tol), max_iters, m_steps)
        outcomes, failed = runner.all(starts, progress)
        modes = map_modes(outcomes, cells, failed)
        fit = finish(
            pair, dataset, program, rank(outcomes)[0], modes, share, inference="em", seed=seed, weights=weights
        )
    _warn(fit, tol)
    return fit


@dataclass(frozen=True)
class _Runner:
    program: Program
    plan: Plan
    weights: Tensor | None
    stop: Stop
    max_iters: int
    m_steps: int

    def all(self, starts: Params, progress: bool | None) -> tuple[list[Outcome], int]:
        """Every restart to its end: together where the model need not be run, otherwise one after the other."""
        restarts = max((len(value) for value in starts.values()), default=1)
        together = not self.program.runs_model and not self.plan.climbed
        batches = [starts] if together else [{n: v[r : r + 1] for n, v in starts.items()} for r in range(restarts)]
        bar = Progress(self.max_iters * len(batches), "em", progress)
        outcomes: list[Outcome] = []
        lost: list[Outcome] = []
        try:
            for batch in batches:
                for outcome, sound in self._each(batch, bar):
                    (outcomes if sound else lost).append(outcome)
        finally:
            bar.close()
        if not outcomes:
            raise FitError(
                "em: log p(x) became NaN or infinite in every restart; "
                "look for a param that runs off (give it a prior or a bounded constraint), or start elsewhere",
                lost[0].params,
            )
        return outcomes, len(lost)

    def _each(self, params: Params, bar: Progress) -> list[tuple[Outcome, bool]]:
        """One batch of restarts; one by one where a singular matrix in one of them stops them all."""
        lead = max((len(value) for value in params.values()), default=1)
        try:
            return list(self.run(params, bar))
        except torch.linalg.LinAlgError:
            alone = [{name: value[r : r + 1] for name, value in params.items()} for r in range(lead)]
            return [found for one in alone for found in self.run(one, bar)]

    def run(self, params: Params, bar: Progress) -> Iterable[tuple[Outcome, bool]]:
        """One batch of restarts; each leaves the batch when it has converged. Yields outcomes in the order of the
        starts.
        """
        starts = params
        lead = max((len(value) for value in params.values()), default=1)
        histories: list[list[float]] = [[] for _ in range(lead)]
        active = list(range(lead))
        done: dict[int, tuple[Outcome, bool]] = {}
        good = params
        for iteration in range(self.max_iters + 1):
            bounds, expected = self._bounds(params)
            finished = []
            for place, number in enumerate(active):
                bound = bounds[place]
                sound = bound == bound and abs(bound) != float("inf")
                if sound:
                    histories[number].append(bound)
                met = sound and self.stop.met(histories[number])
                if met or not sound or iteration == self.max_iters:
                    reached = {n: v[place] for n, v in (params if sound else good).items()}
                    begun = {n: v[number] for n, v in starts.items()}
                    degenerate = sound and is_degenerate(self.program, self.plan, reached)
                    done[number] = (Outcome(reached, histories[number], met, degenerate, begun), sound)
                    finished.append(place)
            left = [place for place in range(len(active)) if place not in finished]
            active = [active[place] for place in left]
            if not active:
                break
            if finished:
                params, expected = _kept(params, expected, left)
            good = params
            bar.update(max(histories[number][-1] for number in active))
            with torch.no_grad():
                params = self._improve(params, expected)
        return [done[number] for number in range(lead)]

    def _bounds(self, params: Params) -> tuple[list[float], Any]:
        try:
            expected = expectations(self.program, params, self.weights)
        except torch.linalg.LinAlgError:
            if len(next(iter(params.values()))) > 1:
                raise
            return [float("nan")], None
        with torch.no_grad():
            return (expected.log_prob + log_prior(self.program, params)).tolist(), expected

    def _improve(self, params: Params, expected: Any) -> Params:
        try:
            return m_step(self.program, self.plan, params, expected, self.m_steps)
        except torch.linalg.LinAlgError:
            if len(next(iter(params.values()))) > 1:
                raise
            return {name: torch.full_like(value, float("nan")) for name, value in params.items()}


def _kept(params: Params, expected: Any, left: list[int]) -> tuple[Params, Any]:
    sums = {name: (s1[left], s0[left]) for name, (s1, s0) in expected.sums.items()}
    return {n: v[left] for n, v in params.items()}, expected._replace(log_prob=expected.log_prob[left], sums=sums)


def is_degenerate(program: Program, plan: Plan, params: dict[str, Tensor]) -> bool:
    """Whether a learned variance stands on its floor."""
    if plan.floor == 0:
        return False
    batch = {name: value.unsqueeze(0) for name, value in params.items()}
    for name, uses in plan.closed.items():
        for use in uses:
            site = site_of(program, use.site)
            if use.argument not in FLOORED or site.variance is None:
                continue
            value = site.args[use.argument].of(batch)
            floor = plan.floor * floor_of(site, use.argument)
            if use.argument == "scale":
                if bool((value**2 <= floor * (1 + 1e-6)).any()) and name:
                    return True
                continue
            covariance = {"scale_tril": lambda v: v @ v.mT, "precision_matrix": torch.linalg.inv}.get(
                use.argument, lambda v: v
            )(value)
            unit = floor.diagonal(dim1=-2, dim2=-1).sqrt()
            scaled = covariance / unit.unsqueeze(-1) / unit.unsqueeze(-2)
            if bool((torch.linalg.eigvalsh(scaled)[..., 0] <= 1 + 1e-6).any()):
                return True
    return False


def _is_symmetric(program: Program, starts: Params) -> bool:
    """Whether the first start gives every row the same posterior: EM could never tell its labels apart."""
    if not program.latents or program.num_rows < 2:
        return False
    first = {name: value[:1] for name, value in starts.items()}
    for _, posteriors in program.posteriors(first):
        for table in posteriors.values():
            if len(table) > 1 and bool(((table - table[:1]).abs() > 1e-9).any()):
                return False
    return True


def _collapsed(
    pair: Pair, values: Any, structure: Structure, weights: Tensor | None, collapse: bool | None
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
    return distinct, total, read(pair.model, distinct, given)


def device_of(values: Any) -> torch.device:
    """The device of the data."""
    found: list[torch.device] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor.device)
        return tensor

    map_tensors(note, values)
    return found[0]


def _warn(fit: Fit, tol: float) -> None:
    if tol > 0 and not fit.converged:
        warnings.warn(
            f"em: stopped after {len(fit.history) - 1} iterations before the tolerance was met "
            f"(last gain {fit.history[-1] - fit.history[-2] if len(fit.history) > 1 else float('nan'):.2g}): "
            f"raise max_iters or tol",
            ConvergenceWarning,
            stacklevel=3,
        )
    if fit.mode_map[0].degenerate:
        warnings.warn(
            "em: a component collapsed onto its variance floor in every restart, so the likelihood has no meaning: "
            "ask for fewer components, a simpler covariance, or more restarts",
            ConvergenceWarning,
            stacklevel=3,
        )
