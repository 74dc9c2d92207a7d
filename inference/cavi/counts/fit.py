"""CAVI of counts that are allocated to latents: all rows in each sweep, or batches of them with decreasing steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...base.progress import Progress
from ...data.schema import Dataset
from ...data.sparse import Bags
from ...families.factors import Point
from ...optimize.coordinate_ascent import Runner
from ...optimize.modes import Outcome, Reached, map_modes, rank
from ...optimize.schedule import Schedule
from ...optimize.starts import jitter, starting_values
from ...optimize.stopping import Stop
from ...pair import Pair
from ...program.estep import one_thread
from ...program.sites import Params
from ...trace.structure import Structure
from ..options import CAVIOptions
from .blocks import Block, make_block, make_blocks, quiet
from .model import COUNTS, Allocation, check_margins
from .sweeps import COLD, Allocating, start_of
from .updates import Rows, cost, expect_shared, mean_of, sum_of, update_from

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
