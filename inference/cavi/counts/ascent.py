"""CAVI of counts that are allocated to latents: the rows' own factors first, then those that all rows share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...base.progress import Progress
from ...data.schema import Dataset
from ...data.sparse import Bags
from ...families.factors import DirichletFactor, GammaFactor, Point
from ...optimize.coordinate_ascent import Runner
from ...optimize.modes import Outcome, Reached, map_modes, rank
from ...optimize.schedule import Schedule
from ...optimize.starts import jitter, starting_values
from ...optimize.stopping import Stop
from ...pair import Pair
from ...program.estep import one_thread, pool
from ...program.sites import Params
from ...trace.structure import Structure, read
from ..options import CAVIOptions
from .model import COUNTS, Allocation, Side, check_margins, read_allocation, sample_of
from .passes import (
    Block,
    Pass,
    Rows,
    Shared,
    cost,
    expect_shared,
    make_block,
    make_blocks,
    mean_of,
    quiet,
    sum_of,
    update_from,
    update_shared,
)

FIRST = 20  # updates of the rows' factors in the first pass; later ones begin where the last ended
LATER = 2
COLD = 15  # sweeps of a start, with FEW updates of rows that begin anew in each
FEW = 5


# --- all rows ---------------------------------------------------------------------------------------------------------


class Swept(NamedTuple):
    """What a pass over all rows leaves; `log_prob` (1,) is the bound, and the sums are for the shared latent."""

    log_prob: Tensor
    eta: Tensor  # (N, K[, 2])
    sums: dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Allocating:
    """Coordinate ascent as `runner.Steps`: the rows' factors, from where they were, then that of what they share.

    A state holds natural parameters (1, N, K[, 2]) of theta and (1, K, V[, 2]) of beta, or beta itself.
    """

    allocation: Allocation
    blocks: Sequence[Block]
    weights: Tensor | None
    workers: int
    updates: int = LATER

    @property
    def together(self) -> bool:
        return False

    def start(self, value: Tensor, cold: int = 0) -> Params:
        """The state at a value (K, V) of beta, its factor as narrow as if it had counted an even share of the data;
        after some sweeps in which rows begin anew.

        A row that has once settled on some k seldom leaves them: rows that kept what they found while beta still knew
        little would hold it there.
        """
        allocation = self.allocation
        shared = start_of(allocation, value, self.weights)
        for _ in range(cold):
            known = expect_shared(allocation, shared)
            found = self.each(partial(self._cold, known), self.weights)
            counts, exposure = sum_of([f.counts for f in found]), sum_of([f.exposure for f in found])
            shared = update_shared(allocation, known, counts, exposure)
        expected = expect_shared(allocation, shared)
        swept = self.each(lambda block, _: Rows(allocation, block, expected).run(None, FIRST, 0.0, None).eta, None)
        return {allocation.rows.name: torch.cat(swept).unsqueeze(0), allocation.shared.name: shared.unsqueeze(0)}

    def _cold(self, shared: Shared, block: Block, share: Tensor | None) -> Pass:
        return Rows(self.allocation, block, shared).run(None, FEW, 0.0, share)

    def bounds(self, state: Params) -> tuple[list[float], Any]:
        with torch.no_grad():
            swept = self.sweep(state, self.updates)
        return swept.log_prob.tolist(), swept

    def sweep(self, state: Params, updates: int) -> Swept:
        """A pass over all rows, which updates their factors."""
        allocation = self.allocation
        value = state[allocation.shared.name][0]
        shared = expect_shared(allocation, value)
        theta = state[allocation.rows.name][0]

        def one(block: Block, share: Tensor | None) -> Pass:
            own = theta[int(block.place[0]) : int(block.place[-1]) + 1]
            return Rows(allocation, block, shared).run(own, updates, 0.0, share)

        found = self.each(one, self.weights)
        counts, exposure = sum_of([f.counts for f in found]), sum_of([f.exposure for f in found])
        bound = torch.stack([f.bound.sum() for f in found]).sum() - cost(allocation.shared, value).sum()
        eta = torch.cat([f.eta for f in found])
        return Swept(bound.reshape(1), eta, {allocation.site: (counts, exposure)})

    def improve(self, state: Params, expected: Any) -> Params:
        allocation = self.allocation
        shared = expect_shared(allocation, state[allocation.shared.name][0])
        counts, exposure = expected.sums[allocation.site]
        value = update_shared(allocation, shared, counts, exposure)
        return {allocation.rows.name: expected.eta.unsqueeze(0), allocation.shared.name: value.unsqueeze(0)}

    def degenerate(self, state: Params) -> bool:
        return False

    def each(self, task: Any, weights: Tensor | None) -> list[Any]:
        """A task of every block, in order; on threads where there are blocks enough."""

        def quietly(blocks: Sequence[Block]) -> list[Any]:
            with torch.no_grad():
                return [task(block, None if weights is None else weights[block.place]) for block in blocks]

        if self.workers == 1 or len(self.blocks) < self.workers:
            return quietly(self.blocks)
        bounds = [len(self.blocks) * w // self.workers for w in range(self.workers + 1)]
        parts = [self.blocks[a:b] for a, b in pairwise(bounds)]
        with one_thread():
            return [found for part in pool(self.workers).map(quietly, parts) for found in part]


def start_of(allocation: Allocation, value: Tensor, weights: Tensor | None = None) -> Tensor:
    """A factor of beta around a value (K, V), as if it had counted the data's total, shared out by the value."""
    side, totals = allocation.shared, allocation.counts.totals
    total = (totals if weights is None else totals * weights).sum()
    if side.prior is None:
        return value
    counts = total / value.sum() * value
    if isinstance(side.family, GammaFactor):
        shape = side.prior[..., 0] + 1 + counts
        return torch.stack([shape - 1, -shape / value], -1)
    return side.prior + counts


SEEN = 2_000  # rows of a sparse matrix that `initialize` is given
NOISE = 1e-4  # a pass over batches moves the bound by chance alone by about this share of it
LOCAL = 20  # updates of a batch's rows at most
STILL = 1e-3  # mean change of their natural parameters that ends these


def fit_allocation(
    pair: Pair,
    dataset: Dataset,
    allocation: Allocation,
    structure: Structure,
    share: Tensor | None,
    options: CAVIOptions,
) -> Reached:
    """Raise the bound from each start in turn. Call inside `engine_state`."""
    seed, start, batch_size, progress = options.seed, options.start, options.batch_size, options.progress
    max_iters, tol, schedule = options.max_iters, options.tol, options.schedule or Schedule()
    check_margins(allocation, dataset.schema.columns)
    starts = _starts(
        pair, dataset.values, allocation, structure, options.restarts, torch.Generator().manual_seed(seed), start
    )
    with one_thread() as workers:
        if batch_size is None:
            steps = Allocating(allocation, make_blocks(allocation), share, workers)
            given = bool(start) and allocation.shared.name in (start or {})
            begun = [steps.start(value, 0 if given and not r else COLD) for r, value in enumerate(starts)]
            together = {name: torch.stack([one[name][0] for one in begun]) for name in begun[0]}
            found, failed = Runner(steps, Stop(tol), max_iters, "cavi", settle=0).all(together, progress)
        else:
            found, failed = [], 0
            for number, value in enumerate(starts):
                generator = torch.Generator().manual_seed(seed + number)
                run = _Batches(allocation, share, workers, batch_size, schedule, generator)
                found.append(run.run(value, max_iters, tol, progress))
    states = [one.params[allocation.shared.name] for one in found]
    outcomes = [
        replace(
            one,
            params={allocation.shared.name: _center(allocation, state)},
            start={allocation.shared.name: allocation.own_shape(value)},
        )
        for one, state, value in zip(found, states, starts, strict=False)
    ]
    best = rank(outcomes)[0]
    state = states[next(i for i, one in enumerate(outcomes) if one is best)]
    point = isinstance(allocation.shared.family, Point)
    return Reached(
        best,
        map_modes(outcomes, {}, failed),
        {name: param.constraint for name, param in structure.params.items()},
        float(len(allocation.counts) if share is None else share.sum()),
        guide=COUNTS,
        guide_parts={} if point else {allocation.shared.name: state},
        note=options.note(best.history, best.converged, "sweeps" if batch_size is None else "passes"),
    )


def _center(allocation: Allocation, state: Tensor) -> Tensor:
    return allocation.own_shape(mean_of(allocation.shared, state)).contiguous()


def _starts(
    pair: Pair,
    values: Any,
    allocation: Allocation,
    structure: Structure,
    restarts: int,
    generator: torch.Generator,
    start: Params | None,
) -> list[Tensor]:
    """Starting values of what rows share, (K, V) each; a start that cannot tell its k apart is jittered."""
    seen = values
    if isinstance(values, Bags):
        seen = values.pick(torch.linspace(0, len(values) - 1, min(SEEN, len(values))).long()).dense()
    found = starting_values(pair, seen, structure, restarts, generator, start)
    name = allocation.shared.name
    if pair.initialize is None and not (start and name in start):
        moved = jitter({name: found[name][0]}, structure, generator)[name]
        found[name] = torch.cat([moved.unsqueeze(0), found[name][1:]])
    size = allocation.size
    shape = (size, allocation.counts.width)
    each = [value.reshape(shape[::-1]).mT if allocation.transposed else value.reshape(shape) for value in found[name]]
    return [value.contiguous() for value in each]


class _Batches:
    """Stochastic variational inference by natural gradients (Hoffman, Blei, Wang and Paisley 2013).

    Rows are parted into batches once, by chance, and the batches taken in an order that is drawn anew in each pass. A
    batch's rows are updated until they stand still; then the shared factor moves by a share of the way to where it
    would be if all rows were like these. Of a param the expected counts move that way (stepwise EM).
    """

    def __init__(
        self,
        allocation: Allocation,
        share: Tensor | None,
        workers: int,
        size: int,
        schedule: Schedule,
        generator: torch.Generator,
    ) -> None:
        self.allocation, self.share, self.schedule, self.generator = allocation, share, schedule, generator
        rows = torch.randperm(len(allocation.counts), generator=generator)
        self.workers = workers if size >= 16 * workers else 1
        quiet()
        self.batches = [
            [make_block(allocation, part) for part in batch.tensor_split(self.workers) if len(part)]
            for batch in rows.split(size)
        ]

    def run(self, value: Tensor, max_iters: int, tol: float, progress: bool | None) -> Outcome:
        """Passes over the data; the history holds an estimate of the bound of each, and last the bound itself."""
        allocation = self.allocation
        state = start_of(allocation, value)
        counts, exposure = _statistics(allocation, value)
        local: dict[tuple[int, int], Tensor] = {}
        history: list[float] = []
        bar = Progress(max_iters, "cavi", progress)
        step, met = 0, False
        total = float(len(allocation.counts))
        for _ in range(max_iters):
            seen = 0.0
            for number in torch.randperm(len(self.batches), generator=self.generator).tolist():
                step += 1
                shared = expect_shared(allocation, state)
                batch = self.batches[number]
                found = self._local(number, batch, shared, local)
                rate = self.schedule.rate(step)
                scale = total / sum(len(block.place) for block in batch)
                new = sum_of([one.counts for one in found]) * shared.weights
                counts = (1 - rate) * counts + rate * scale * new
                exposure = (1 - rate) * exposure + rate * scale * sum_of([one.exposure for one in found])
                state = update_from(allocation, counts, exposure)
                seen += float(sum(one.bound.sum() for one in found))
            history.append(seen - float(cost(allocation.shared, state).sum()))
            bar.update(history[-1])
            if tol > 0 and len(history) > 1:
                gain = history[-1] - history[-2]
                met = abs(gain) <= max(tol, NOISE) * (1 + abs(history[-1]))
            if met or not math.isfinite(history[-1]):
                break
        bar.close()
        shared = expect_shared(allocation, state)
        last = [self._local(number, batch, shared, local) for number, batch in enumerate(self.batches)]
        bound = sum(float(one.bound.sum()) for found in last for one in found)
        history.append(bound - float(cost(allocation.shared, state).sum()))
        return Outcome({allocation.shared.name: state}, history, met, False, {})

    def _local(self, number: int, batch: list[Block], shared: Any, local: dict[tuple[int, int], Tensor]) -> list[Any]:
        """The rows of a batch, updated from where an earlier pass left them until they stand still."""

        def one(block: Block, share: Tensor | None) -> Any:
            key = (number, int(block.place[0]))
            found = Rows(self.allocation, block, shared).run(local.get(key), LOCAL, STILL, share)
            local[key] = found.eta
            return found

        return Allocating(self.allocation, batch, None, self.workers).each(one, self.share)


def _statistics(allocation: Allocation, value: Tensor) -> tuple[Tensor, Tensor]:
    """Expected counts (V, K) and exposures of a start, as if it had counted all data."""
    counts = allocation.counts.totals.sum() / value.sum() * value.mT
    exposure = counts.sum(0, keepdim=True) / (value.mT * allocation.column_factor.unsqueeze(1)).sum(0, keepdim=True)
    return counts.contiguous(), exposure


UPDATES = 1_000  # of a row's factor at most
SETTLED = 1e-6  # mean change of its natural parameters at which it stands still


class Allocated(NamedTuple):
    """A fit's model on some data, its rows' factors fitted there."""

    allocation: Allocation
    blocks: list[Block]
    state: Tensor  # of beta, (K, V[, 2])
    shared: Shared
    etas: list[Tensor]  # of theta by block

    @property
    def eta(self) -> Tensor:
        return torch.cat(self.etas)


def allocated_on(fit: Any, dataset: Dataset) -> Allocated:
    """Call inside `engine_state`."""
    return settled(*read_on(fit, dataset))


def settled(allocation: Allocation, state: Tensor) -> Allocated:
    blocks = make_blocks(allocation)
    shared = expect_shared(allocation, state)
    with torch.no_grad():
        etas = [_settle(allocation, block, shared) for block in blocks]
    return Allocated(allocation, blocks, state, shared, etas)


def read_on(fit: Any, dataset: Dataset) -> tuple[Allocation, Tensor]:
    """The model on some data, and the state of what its rows share."""
    structure = read(fit.pair.model, sample_of(dataset.values), fit.params)
    allocation = read_allocation(fit.pair.model, dataset.values, structure, dataset.schema)
    assert allocation is not None
    name = allocation.shared.name
    if name not in fit.guide_parts:  # learned as a point, or by a guide of another family: its centre stands for it
        point = Side(name, Point(), None, isinstance(allocation.shared.family, DirichletFactor))
        allocation = allocation if allocation.shared.prior is None else replace(allocation, shared=point)
    return allocation, fit.guide_parts[name] if name in fit.guide_parts else matrix_of(allocation, fit.params[name])


def _settle(allocation: Allocation, block: Block, shared: Shared) -> Tensor:
    """Each row's factor (n, K[, 2]), updated until it stands still. A few rows take hundreds of updates: whenever half
    of those at hand stand still, the others go on alone.
    """
    rows = Rows(allocation, block, shared)
    rate, eta = rows.exposure, rows.start()
    out, left = eta.clone(), torch.arange(len(eta))
    for _ in range(UPDATES):
        before, eta = eta, rows.update(eta, rate)
        moving = (eta - before).abs().flatten(1).mean(1) > SETTLED
        number = int(moving.sum())
        if number <= len(left) // 2:
            out[left] = eta
            left, eta = left[moving], eta[moving]
            if not number:
                return out
            rows = Rows(allocation, make_block(allocation, block.place[left]), shared)
            rate = rows.exposure
    out[left] = eta
    return out


def matrix_of(allocation: Allocation, value: Tensor) -> Tensor:
    """beta (K, V) from the model's own shape."""
    size, width = allocation.size, allocation.counts.width
    return value.reshape(width, size).mT.contiguous() if allocation.transposed else value.reshape(size, width)
