"""Sweeps over rows of split counts: their own factors first, then those that all rows share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...families.factors import GammaFactor
from ...program.estep import one_thread, pool
from ...program.sites import Params
from .blocks import Block
from .model import Allocation
from .updates import Pass, Rows, Shared, cost, expect_shared, sum_of, update_shared

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
