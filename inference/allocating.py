"""Coordinate ascent on counts allocated to latents: one pass over the rows, and what it leaves for the shared latent.

Under factors q(theta_n) q(beta) let t_nk = exp E log theta_nk and b_kv = exp E log beta_kv. The expected counts that
k is allocated of x_nv are x_nv t_nk b_kv / s_nv with s_nv = sum_k t_nk b_kv, so all that a pass needs are s at the
cells that are not 0, and products of sparse matrices x / s with t and b. The counts' share of the bound is
sum x_nv log s_nv minus the expected rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .allocation import Allocation, Side
from .count_blocks import Block, of_rows
from .estep import _pool, one_thread
from .factors import GammaFactor, Point
from .sites import Params

TINY = 1e-300
FAINT = 1e-25  # below it single precision is not to be trusted
FIRST = 20  # updates of the rows' factors in the first pass; later ones begin where the last ended
LATER = 2
COLD = 15  # sweeps of a start, with FEW updates of rows that begin anew in each
FEW = 5


# --- one pass ---------------------------------------------------------------------------------------------------------


class Shared(NamedTuple):
    """What the rows need of q(beta)."""

    weights: Tensor  # (V, K) b, each column's largest 1
    single: Tensor  # the same in single precision
    shift: Tensor  # (V,) log of that largest
    rate: Tensor  # (V, K) d_v E beta
    total: Tensor  # (K,) its sum over columns


class Pass(NamedTuple):
    """What a pass over rows leaves."""

    bound: Tensor  # (n,) of each row, what is paid for its latent subtracted
    eta: Tensor  # (n, K[, 2]) of its factor
    counts: Tensor  # (V, K) expected counts over b
    exposure: Tensor  # (V, K) or (1, K): sum of c_n E theta_nk


def expect_shared(allocation: Allocation, state: Tensor) -> Shared:
    """Expectations under a factor of beta (K, V[, 2]), or at a value."""
    side = allocation.shared
    log, mean = expectations(side, state)
    log, mean = log.mT.contiguous(), mean.mT.contiguous()
    shift = log.amax(1)
    rate = mean * allocation.column_factor.unsqueeze(1)
    weights = (log - shift.unsqueeze(1)).exp()
    return Shared(weights, weights.float(), shift, rate, rate.sum(0))


def expectations(side: Side, state: Tensor) -> tuple[Tensor, Tensor]:
    """E log and E of a factor by natural parameters (..., K[, 2]), or of a value."""
    if isinstance(side.family, Point):
        return state.clamp_min(TINY).log(), state
    mu = side.family.mean(state)
    log = side.family.log(mu)
    assert log is not None
    return log, mean_of(side, state)


def mean_of(side: Side, state: Tensor) -> Tensor:
    """Mean of a factor."""
    if isinstance(side.family, Point):
        return state
    if isinstance(side.family, GammaFactor):
        return -(state[..., 0] + 1) / state[..., 1]
    concentration = state + 1
    return concentration / concentration.sum(-1, keepdim=True)


def cost(side: Side, eta: Tensor) -> Tensor:
    """E log q - E log p of a latent, by row or by k."""
    if side.prior is None:
        return eta.new_zeros(len(eta))
    prior = side.prior
    mu, family = side.family.mean(eta), side.family
    terms = (eta - prior) * mu
    terms = terms.flatten(1).sum(1)
    normal, own = family.log_normalizer(prior), family.log_normalizer(eta)
    if own.dim() > 1:
        return terms + (normal - own).sum(1)
    return terms + normal - own


class Rows(NamedTuple):
    """Rows' factor of one block: what does not change while it is updated."""

    allocation: Allocation
    block: Block
    shared: Shared

    @property
    def exposure(self) -> Tensor:
        """Expected rate of each k per unit of theta, (n or 1, K)."""
        c = of_rows(self.allocation.row_factor, self.block.place).unsqueeze(1)
        if self.block.missing is None:
            return c * self.shared.total
        return c * (self.shared.total - self.block.missing @ self.shared.rate)

    def ratios(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """x / s and s at the cells, s over the shifts."""
        s = self._sampled(weights, self.shared.weights, self.block.bags.count).clamp_min_(TINY)
        return self.block.bags.count / s, s

    def _sampled(self, weights: Tensor, shared: Tensor, like: Tensor) -> Tensor:
        blank = self.block.matrix(torch.zeros_like(like))
        return torch.sparse.sampled_addmm(blank, weights, shared.mT, beta=0.0).values()

    def update(self, eta: Tensor, rate: Tensor) -> Tensor:
        """The optimal factor given the allocation that is optimal under the factor `eta`."""
        weights, _ = self.weights(eta)
        single = self.block.single
        if single is not None:
            faint = weights.float()
            s = self._sampled(faint, self.shared.single, single)
            if not len(s) or s.min() > FAINT:
                found = (self.block.matrix(single / s) @ self.shared.single).double()
                return self.from_counts(weights * found, rate)
        ratio, _ = self.ratios(weights)
        return self.from_counts(weights * (self.block.matrix(ratio) @ self.shared.weights), rate)

    def from_counts(self, counts: Tensor, rate: Tensor) -> Tensor:
        """The factor given expected counts (n, K)."""
        prior = self.allocation.rows.prior
        assert prior is not None
        if isinstance(self.allocation.rows.family, GammaFactor):
            return torch.stack([prior[..., 0] + counts, prior[..., 1] - rate.expand_as(counts)], -1)
        return prior + counts

    def weights(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """t (n, K), each row's largest 1, and the log of that largest (n, 1)."""
        if isinstance(self.allocation.rows.family, GammaFactor):
            log = (eta[..., 0] + 1).digamma() - (-eta[..., 1]).log()
        else:
            log = self.allocation.rows.family.mean(eta)
        shift = log.amax(1, keepdim=True)
        return (log - shift).exp(), shift

    def start(self) -> Tensor:
        """A factor that shares a row's counts out evenly."""
        size = self.allocation.size
        even = (self.block.bags.totals / size).unsqueeze(1).expand(-1, size)
        return self.from_counts(even, self.exposure)

    def run(self, eta: Tensor | None, updates: int, tol: float = 0.0, share: Tensor | None = None) -> Pass:
        """At most so many updates of the rows' factor, and what they leave; rows weighted by `share` (n,)."""
        rate = self.exposure
        eta = self.start() if eta is None else eta
        for _ in range(updates):
            before, eta = eta, self.update(eta, rate)
            if tol and float((eta - before).abs().flatten(1).mean(1).max()) <= tol:
                break
        return self.leave(eta, rate, share)

    def leave(self, eta: Tensor, rate: Tensor, share: Tensor | None = None) -> Pass:
        """The bound of each row under a factor, and the statistics of beta there."""
        bags, allocation = self.block.bags, self.allocation
        weights, shift = self.weights(eta)
        ratio, s = self.ratios(weights)
        log = s.log() + self.shared.shift[bags.index]
        bound = self.block.base.index_add(0, bags.rows, bags.count * log) + bags.totals * shift.squeeze(1)
        mean = mean_of(allocation.rows, eta)
        if allocation.poisson:
            bound = bound - (mean * rate).sum(1)
        bound = bound - cost(allocation.rows, eta)
        if share is not None:
            weights, mean, bound = weights * share.unsqueeze(1), mean * share.unsqueeze(1), bound * share
        counts = self.block.transposed(ratio) @ weights
        exposed = mean * of_rows(allocation.row_factor, self.block.place).unsqueeze(1)
        exposure = exposed.sum(0, keepdim=True)
        if self.block.missing is not None:
            exposure = exposure - self.block.missing.mT.to_sparse_csr() @ exposed
        return Pass(bound, eta, counts, exposure)


def update_shared(allocation: Allocation, shared: Shared, counts: Tensor, exposure: Tensor) -> Tensor:
    """The optimal factor of beta (K, V[, 2]), or the best value, given a pass over the rows."""
    return update_from(allocation, counts * shared.weights, exposure)


def update_from(allocation: Allocation, counts: Tensor, exposure: Tensor) -> Tensor:
    """The same from the expected counts (V, K) themselves."""
    expected = counts.mT  # (K, V)
    rate = (exposure * allocation.column_factor.unsqueeze(1)).mT
    side = allocation.shared
    if side.prior is None:
        total = expected.sum(1, keepdim=True) if side.simplex else rate.expand_as(expected)
        return expected / total.clamp_min(TINY)
    if isinstance(side.family, GammaFactor):
        return torch.stack([side.prior[..., 0] + expected, side.prior[..., 1] - rate.expand_as(expected)], -1)
    return side.prior + expected


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
            return [found for part in _pool(self.workers).map(quietly, parts) for found in part]


def sum_of(parts: list[Tensor]) -> Tensor:
    out = parts[0].clone()
    for part in parts[1:]:
        out += part
    return out


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
