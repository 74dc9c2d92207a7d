"""CAVI of counts that are allocated to latents: the rows' own factors first, then those that all rows share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...data.schema import Dataset
from ...data.sparse import Bags, densified
from ...data.structures import slice_rows
from ...families.factors import DirichletFactor, GammaFactor, Point
from ...optimize.modes import Outcome, Reached
from ...optimize.starts import jitter, starting_values
from ...pair import Pair
from ...program.against_pyro import COMPARED, Witness, spread
from ...program.estep import one_thread, pool
from ...program.sites import Params
from ...trace.structure import Structure, read
from ..climb import CAVIOptions, climb
from .model import COUNTS, Allocation, Side, check_margins, log_joint, read_allocation, sample_of
from .passes import Block, Pass, Rows, Shared, cost, expect_shared, make_block, make_blocks, mean_of, sum_of, update

FIRST = 20  # updates of the rows' factors in the first pass; later ones begin where the last ended
LATER = 2
COLD = 15  # sweeps of a start, with FEW updates of rows that begin anew in each
FEW = 5
LOCAL = 20  # updates of a batch's rows at most
STILL = 1e-3  # mean change of their natural parameters that ends these
SEEN = 2_000  # rows of a sparse matrix that `initialize` is given
UPDATES = 1_000  # of a row's factor at most, where all else is known
SETTLED = 1e-6  # mean change of its natural parameters at which it then stands still


class Swept(NamedTuple):
    """What a pass over all rows leaves; `log_prob` (1,) is the bound, and the sums are for the shared latent."""

    log_prob: Tensor
    eta: Tensor  # (N, K[, 2])
    sums: dict[str, tuple[Tensor, Tensor]]  # expected counts (V, K) and exposures


@dataclass(frozen=True)
class Allocating:
    """Coordinate ascent as `Steps`: the rows' factors, from where they were, then that of what they share.

    A state holds natural parameters (1, N, K[, 2]) of theta and (1, K, V[, 2]) of beta, or beta itself. Steps of
    batches change those of theta in place.
    """

    allocation: Allocation
    blocks: Sequence[Block]
    weights: Tensor | None
    workers: int

    @property
    def together(self) -> bool:
        return False

    @property
    def no_batches(self) -> str:
        return ""

    def state(self, theta: Tensor, beta: Tensor) -> Params:
        return {self.allocation.rows.name: theta.unsqueeze(0), self.allocation.shared.name: beta.unsqueeze(0)}

    def start(self, value: Tensor, cold: int = 0) -> Params:
        """The state at a value (K, V) of beta, its factor as narrow as if it had counted an even share of the data;
        after some sweeps in which rows begin anew.

        A row that has once settled on some k seldom leaves them: rows that kept what they found while beta still knew
        little would hold it there.
        """
        beta = start_of(self.allocation, value, self.weights)
        for _ in range(cold):
            beta = update(self.allocation, *self.sums(beta, self.each(self.rows_under(beta, FEW))))
        theta = self.each(self.rows_under(beta, FIRST))
        return self.state(torch.cat([found.eta for found in theta]), beta)

    def begun(self, value: Tensor) -> Params:
        """The state at a value of beta before any row has been looked at: its counts are shared out evenly."""
        beta = start_of(self.allocation, value, self.weights)
        shared = expect_shared(self.allocation, beta)
        theta = [Rows(self.allocation, block, shared).start() for block in self.blocks]
        return self.state(torch.cat(theta), beta)

    def bounds(self, state: Params) -> tuple[list[float], Any]:
        swept = self.sweep(state, LATER)
        return swept.log_prob.tolist(), swept

    def sweep(self, state: Params, updates: int) -> Swept:
        """A pass over all rows, which updates their factors."""
        allocation = self.allocation
        theta, beta = state[allocation.rows.name][0], state[allocation.shared.name][0]
        found = self.each(self.rows_under(beta, updates, theta))
        bound = torch.stack([f.bound.sum() for f in found]).sum() - cost(allocation.shared, beta).sum()
        eta = torch.cat([f.eta for f in found])
        return Swept(bound.reshape(1), eta, {allocation.site: self.sums(beta, found)})

    def improve(self, state: Params, expected: Any) -> Params:
        return self.state(expected.eta, update(self.allocation, *expected.sums[self.allocation.site]))

    def batch_step(self, state: Params, expected: Any, rows: Tensor, rate: float) -> tuple[Params, Any]:
        """Rows of a batch are updated until they stand still; the expected counts of beta then move towards what they
        would be if all rows were like these, and its factor with them (Hoffman, Blei, Wang and Paisley 2013).
        """
        allocation = self.allocation
        theta, beta = state[allocation.rows.name][0], state[allocation.shared.name][0]
        parts = self.workers if len(rows) >= 16 * self.workers else 1
        blocks = [make_block(allocation, part) for part in rows.sort().values.tensor_split(parts)]
        batch = replace(self, blocks=blocks, workers=parts)
        found = batch.each(self.rows_under(beta, LOCAL, theta, STILL))
        for block, one in zip(blocks, found, strict=True):
            theta[block.place] = one.eta
        scale = len(allocation.counts) / len(rows)
        sums = tuple(
            (1 - rate) * old + rate * scale * new
            for old, new in zip(expected.sums[allocation.site], self.sums(beta, found), strict=True)
        )
        return self.state(theta, update(allocation, *sums)), expected._replace(sums={allocation.site: sums})

    def degenerate(self, state: Params) -> bool:
        return False

    def rows_under(
        self, beta: Tensor, updates: int, theta: Tensor | None = None, tol: float = 0.0
    ) -> Callable[[Block, Tensor | None], Pass]:
        """The task of a block under a factor of beta: its rows' factors updated, from where they were or anew."""
        shared = expect_shared(self.allocation, beta)

        def task(block: Block, share: Tensor | None) -> Pass:
            own = None if theta is None else theta[block.place]
            return Rows(self.allocation, block, shared).run(own, updates, tol, share)

        return task

    def each(self, task: Callable[[Block, Tensor | None], Pass]) -> list[Pass]:
        """A task of every block, in order; on threads where there are blocks enough."""
        weights = self.weights

        def quietly(blocks: Sequence[Block]) -> list[Pass]:
            with torch.no_grad():
                return [task(block, None if weights is None else weights[block.place]) for block in blocks]

        if self.workers == 1 or len(self.blocks) < self.workers:
            return quietly(self.blocks)
        bounds = [len(self.blocks) * w // self.workers for w in range(self.workers + 1)]
        parts = [self.blocks[a:b] for a, b in pairwise(bounds)]
        with one_thread():
            return [found for part in pool(self.workers).map(quietly, parts) for found in part]

    def sums(self, beta: Tensor, found: list[Pass]) -> tuple[Tensor, Tensor]:
        """Expected counts (V, K) and exposures of some rows under a factor of beta."""
        counts = sum_of([f.counts for f in found]) * expect_shared(self.allocation, beta).weights
        return counts, sum_of([f.exposure for f in found])


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


# --- from every start -------------------------------------------------------------------------------------------------


def fit_allocation(
    pair: Pair,
    dataset: Dataset,
    allocation: Allocation,
    structure: Structure,
    share: Tensor | None,
    options: CAVIOptions,
) -> Reached:
    """Raise the bound from each start in turn. Call inside `engine_state`."""
    check_margins(allocation, dataset.schema.columns)
    name = allocation.shared.name
    proof = _witness(pair.model, dataset, allocation)
    starts = _starts(pair, dataset.values, allocation, structure, options)

    proof.compare("start", _at(allocation, proof.rows, starts[0]))

    def centred(found: list[Outcome]) -> list[Outcome]:
        own = allocation.own_shape
        params = [{name: own(mean_of(allocation.shared, one.params[name])).contiguous()} for one in found]
        return [replace(one, params=p, start={name: own(v)}) for one, p, v in zip(found, params, starts, strict=False)]

    with one_thread() as workers, torch.no_grad():
        steps = Allocating(allocation, make_blocks(allocation), share, workers)
        if options.batch_size is not None:
            begun = [steps.begun(value) for value in starts]
        else:
            told = name in (options.start or {})
            begun = [steps.start(value, 0 if told and not r else COLD) for r, value in enumerate(starts)]
        return climb(
            steps,
            {n: torch.cat([one[n] for one in begun]) for n in begun[0]},
            options,
            centred,
            len(allocation.counts),
            lambda _, state: proof.compare("end", _at(allocation, proof.rows, mean_of(allocation.shared, state[name]))),
            structure.params,
            COUNTS,
            lambda state: {} if isinstance(allocation.shared.family, Point) else {name: state[name]},
            share=share,
        )


def _witness(model: Any, dataset: Dataset, allocation: Allocation) -> Witness:
    """A few rows of counts, as the allocation has them, beside the model."""
    rows = spread(torch.arange(len(allocation.counts)), COMPARED)

    def total(_: Tensor | None, values: Params) -> float:
        beta = values[allocation.shared.name]
        beta = beta.reshape(-1, allocation.size).mT if allocation.transposed else beta.reshape(allocation.size, -1)
        theta = values[allocation.rows.name].reshape(len(rows), allocation.size)
        return log_joint(allocation, rows, theta, beta)

    return Witness("cavi", model, densified(slice_rows(dataset.values, rows)), total, len(rows), whole=True)


def _at(allocation: Allocation, rows: int, shared: Tensor) -> Params:
    """What rows share at a value (K, V), and latents of some rows at random ones."""
    theta = torch.rand(rows, allocation.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    if isinstance(allocation.rows.family, DirichletFactor):
        theta = theta / theta.sum(1, keepdim=True)
    own = allocation.shapes[allocation.rows.name]
    return {
        allocation.shared.name: allocation.own_shape(shared),
        allocation.rows.name: theta.reshape(rows, *own),
    }


def _starts(
    pair: Pair, values: Any, allocation: Allocation, structure: Structure, options: CAVIOptions
) -> list[Tensor]:
    """Starting values of what rows share, (K, V) each; a start that cannot tell its k apart is jittered."""
    seen = values
    if isinstance(values, Bags):
        seen = values.pick(torch.linspace(0, len(values) - 1, min(SEEN, len(values))).long()).dense()
    name, generator = allocation.shared.name, torch.Generator().manual_seed(options.seed)
    found = starting_values(pair, seen, structure, options.restarts, generator, options.start)
    if pair.initialize is None and name not in (options.start or {}):
        moved = jitter({name: found[name][0]}, structure, generator)[name]
        found[name] = torch.cat([moved.unsqueeze(0), found[name][1:]])
    return [matrix_of(allocation, value).contiguous() for value in found[name]]


# --- rows of a fit ----------------------------------------------------------------------------------------------------


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


def allocated_on(model: Any, params: Params, parts: Params, dataset: Dataset) -> Allocated:
    """The factors of rows under params and parts of a guide that were learned. Call inside `engine_state`."""
    return settled(*read_on(model, params, parts, dataset))


def settled(allocation: Allocation, state: Tensor) -> Allocated:
    blocks = make_blocks(allocation)
    shared = expect_shared(allocation, state)
    with torch.no_grad():
        etas = [_settle(allocation, block, shared) for block in blocks]
    return Allocated(allocation, blocks, state, shared, etas)


def read_on(model: Any, params: Params, parts: Params, dataset: Dataset) -> tuple[Allocation, Tensor]:
    """The model on some data, and the state of what its rows share."""
    structure = read(model, sample_of(dataset.values), params)
    allocation = read_allocation(model, dataset.values, structure, dataset.schema)
    assert allocation is not None
    name = allocation.shared.name
    if name not in parts:  # learned as a point, or by a guide of another family: its centre stands for it
        point = Side(name, Point(), None, isinstance(allocation.shared.family, DirichletFactor))
        allocation = allocation if allocation.shared.prior is None else replace(allocation, shared=point)
    return allocation, parts[name] if name in parts else matrix_of(allocation, params[name])


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
