"""EM of a pair on its data, from every start to its maximum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from ..base.errors import FitError, OptionError
from ..base.options import check_counts, check_options, check_seed
from ..data.schema import Dataset
from ..data.structures import slice_rows
from ..linear_gaussian.groups import Mixed, find_mixed
from ..linear_gaussian.loadings import spread_by_column, turned
from ..linear_gaussian.marginalize import read_exact
from ..optimize.coordinate_ascent import Runner
from ..optimize.minibatches import Schedule, stepwise
from ..optimize.modes import Outcome, Reached, label_cells, map_modes, rank
from ..optimize.newton import Free, lbfgs, newton
from ..optimize.starts import first_starts, jitter
from ..optimize.stopping import Settled, Stop
from ..pair import Pair
from ..program.against_pyro import Witness
from ..program.checks import check_latents, check_rows, check_spread, check_values
from ..program.compiler import compile_program
from ..program.estep import one_thread
from ..program.objective import witness
from ..program.program import Program
from ..program.sites import Params
from ..trace.structure import Structure, read_again
from .mstep import EMSteps
from .plan import make_plan
from .separation import check_certain

LARGE = 1_000_000  # rows times configurations


@dataclass(frozen=True)
class EMOptions:
    """The options of `em` that say how, by their names there."""

    max_iters: int = 10_000
    tol: float = 1e-11
    restarts: int = 1
    seed: int = 0
    start: dict[str, Tensor] | None = None
    m_steps: int = 20
    variance_floor: float = 1e-6
    collapse: bool | None = None
    natural: bool = True
    batch_size: int | None = None
    schedule: Schedule | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        check_counts(max_iters=(self.max_iters, 0), restarts=(self.restarts, 1), m_steps=(self.m_steps, 1))
        check_options(tol=(self.tol, 0), variance_floor=(self.variance_floor, 0))
        object.__setattr__(self, "seed", check_seed(self.seed))


def fit_em(
    pair: Pair, dataset: Dataset, share: Tensor | None, options: EMOptions, known: Program | None = None
) -> Reached:
    """Raise log p(x) from each start; rows weigh `share` (N,). Call inside `engine_state`.

    The model is read, unless its program on other data is `known`.
    """
    generator = torch.Generator().manual_seed(options.seed)
    if known is None:
        model, structure = read_exact(pair.model, dataset.values)
    else:
        model, structure = known.model, known.structure_on(dataset.values)
    check_latents(structure)
    check_values(structure, dataset.schema)
    mixed = find_mixed(model, dataset.values, structure, share)
    if mixed is not None:
        return _fit_mixed(pair, dataset, mixed, options, generator)
    rows, batch_size = structure.num_rows, options.batch_size
    collapse = False if options.collapse is None and batch_size is not None else options.collapse
    values, share, structure = _collapsed(model, dataset.values, structure, share, collapse)
    program = compile_program(model, values, structure, options.natural)
    plan = make_plan(program, options.variance_floor)
    cells = label_cells(program)
    check_rows(structure, cells, rows)
    check_spread(program, set(plan.closed) | spread_by_column(program, plan.factored), dataset.schema)
    check_certain(program, list(plan.climbed), dataset.schema)
    starts = first_starts(pair, dataset.values, program, options.restarts, generator, options.start)
    proof = witness("em", pair.model, program)
    first = {name: value[0] for name, value in starts.items()}
    if known is None:
        proof.compare("start", jitter(first, structure, torch.Generator().manual_seed(0)))
    # sites scored by running the model work on all rows at once: large operations, which threads serve well
    with one_thread(when=not (program.scored and program.size > LARGE)) as workers:
        steps = EMSteps(program, plan, share, options.m_steps, workers)
        runner = Runner(steps, Stop(options.tol), options.max_iters, "em")
        if batch_size is not None:
            passes = stepwise(steps, batch_size, program.num_rows, options.schedule, options.seed, "em")
            runner = Runner(passes, Settled(options.tol), options.max_iters, "em", settle=0)
        outcomes, failed = runner.all(starts, options.progress)
    outcomes = [replace(one, params=turned(program, plan.factored, one.params)) for one in outcomes]
    best, modes = rank(outcomes)[0], map_modes(outcomes, cells, failed)
    unchecked = proof.compare("end", best.params) if known is None else ""
    constraints = {name: param.constraint for name, param in program.structure.params.items()}
    total = float(program.num_rows if share is None else share.sum())
    return Reached(best, modes, constraints, total, program, share, note=_note(best, options), unchecked=unchecked)


def _note(best: Outcome, options: EMOptions) -> str:
    """What is to be told of a run that was stopped."""
    if options.tol <= 0 or best.converged:
        return ""
    history = best.history
    gain = history[-1] - history[-2] if len(history) > 1 else float("nan")
    return (
        f"stopped after {len(history) - 1} iterations before the tolerance was met (last gain {gain:.2g}): "
        f"raise max_iters or tol"
    )


def _fit_mixed(pair: Pair, dataset: Dataset, mixed: Mixed, options: EMOptions, generator: torch.Generator) -> Reached:
    """The maximum of the likelihood of which shared latents are summed out; these stand at their posterior means."""
    if options.batch_size is not None:
        names = ", ".join(map(repr, mixed.shapes))
        raise OptionError(f"em: {names} are summed out of all rows together, so they cannot be fitted in batches")
    program = compile_program(mixed.model, dataset.values, mixed.structure, options.natural)
    check_spread(program, set(mixed.structure.params), dataset.schema)
    starts = first_starts(pair, dataset.values, program, options.restarts, generator, options.start)
    proof = witness("em", pair.model, program)
    first = {name: value[0] for name, value in starts.items()}
    proof.compare("start", jitter(first, mixed.structure, torch.Generator().manual_seed(0)))
    free = {name: value for name, value in starts.items() if name not in mixed.shapes}
    runner = Runner(MixedSteps(mixed, options.m_steps), Stop(options.tol), options.max_iters, "em")
    outcomes, failed = runner.all(free, options.progress)
    begun = {name: value[0] for name, value in starts.items() if name in mixed.shapes}
    found = [mixed.latents(one.params) for one in outcomes]
    outcomes = [
        replace(one, params={**one.params, **{n: mean for n, (mean, _) in own.items()}}, start={**one.start, **begun})
        for one, own in zip(outcomes, found, strict=True)
    ]
    best, modes = rank(outcomes)[0], map_modes(outcomes, {}, failed)
    spreads = next(own for one, own in zip(outcomes, found, strict=True) if one is best)
    if mixed.share is None:  # what was summed out, too
        rows = program.num_rows
        whole = Witness("em", pair.model, dataset.values, lambda _, v: float(mixed.log_prob(v)), rows, whole=True)
        whole.compare("end", {name: value for name, value in best.params.items() if name not in mixed.shapes})
    constraints = {name: param.constraint for name, param in mixed.structure.params.items()}
    total = float(program.num_rows if mixed.share is None else mixed.share.sum())
    log_prob = best.bound - float(mixed.log_prior(best.params))
    return Reached(
        best,
        modes,
        constraints,
        total,
        program,
        mixed.share,
        note=_note(best, options),
        guide_parts={name: spread for name, (_, spread) in spreads.items()},
        unchecked=proof.compare("end", best.params),
        summed_out=tuple(mixed.shapes),
        log_prob=log_prob,
    )


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
    return distinct, total, read_again(model, distinct, structure)


FEW = 16  # numbers: each costs a gradient of the gradient


@dataclass(frozen=True)
class MixedSteps:
    """Steps up log p(x), or log p(x, shared latents) with those that are not summed out."""

    mixed: Mixed
    m_steps: int

    @property
    def together(self) -> bool:
        return False

    def bounds(self, state: Params) -> tuple[list[float], Any]:
        """The bound at a state (1, *shape)."""
        try:
            with torch.no_grad():
                return [self.mixed.log_prob({name: value[0] for name, value in state.items()}).item()], None
        except torch.linalg.LinAlgError:
            return [float("nan")], None

    def improve(self, state: Params, expected: Any) -> Params:
        """A state of a higher bound."""
        params = self.mixed.structure.params
        transforms = {name: transform_to(params[name].constraint) for name in state}
        free = {name: transforms[name].inv(value[0]).detach().clone() for name, value in state.items()}
        if not free:
            return state

        def objective(values: Free) -> Tensor:
            try:
                return self.mixed.log_prob({name: transforms[name](value) for name, value in values.items()})
            except torch.linalg.LinAlgError:  # a step too far, where a spread is 0
                return torch.nan * torch.stack([value.sum() for value in values.values()]).sum()

        numbers = sum(value.numel() for value in free.values())
        with torch.enable_grad():
            start = objective(free).detach()
            blocks = torch.arange(numbers).unsqueeze(0)
            reached = newton(free, objective, blocks, self.m_steps) if numbers <= FEW else None
            if reached is None or not reached.sound:
                reached = lbfgs(free if reached is None else reached.free, objective, self.m_steps)
        if not reached.value >= start:
            return state
        return {name: transforms[name](value).unsqueeze(0) for name, value in reached.free.items()}

    def degenerate(self, state: Params) -> bool:
        """A spread of 0 between groups is a sound estimate."""
        return False
