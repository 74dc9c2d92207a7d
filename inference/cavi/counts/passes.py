"""Coordinate ascent on counts allocated to latents: one pass over the rows, and what it leaves for the shared latent.

Under factors q(theta_n) q(beta) let t_nk = exp E log theta_nk and b_kv = exp E log beta_kv. The expected counts that
k is allocated of x_nv are x_nv t_nk b_kv / s_nv with s_nv = sum_k t_nk b_kv, so all that a pass needs are s at the
cells that are not 0, and products of sparse matrices x / s with t and b. The counts' share of the bound is
sum x_nv log s_nv minus the expected rates.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from ...data.sparse import Bags
from ...families.factors import GammaFactor, Point
from .model import Allocation, Side

BLOCK = 1 << 18  # cells of a block of rows
SINGLE = 10_000_000  # cells times K: updates of rows take place in single precision above it, the bound never does


class Block(NamedTuple):
    """Some rows of counts, as a sparse matrix and its transpose."""

    place: Tensor  # (n,) numbers of the rows
    bags: Bags
    starts: Tensor  # (n + 1,) int32, as the columns: half the memory to read
    columns: Tensor  # (cells,)
    by_column: tuple[Tensor, Tensor, Tensor]  # starts (V + 1,), rows, and the cells in that order
    single: Tensor | None  # counts in single precision, where that serves
    missing: Tensor | None  # (n, V) sparse, 1 where a cell is missing
    base: Tensor  # (n,) sum over cells of log h(x), the model's constants included

    def matrix(self, values: Tensor) -> Tensor:
        """(n, V) sparse, of values like the cells."""
        return _csr(self.starts, self.columns, values, (len(self.bags), self.bags.width))

    def transposed(self, values: Tensor) -> Tensor:
        """(V, n) sparse."""
        starts, rows, order = self.by_column
        return _csr(starts, rows, values[order], (self.bags.width, len(self.bags)))


def _csr(starts: Tensor, index: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(starts, index, values, size, check_invariants=False)  # made of sound parts


def make_block(allocation: Allocation, place: Tensor) -> Block:
    """Rows of an allocation's counts by number."""
    bags = allocation.counts.pick(place)
    large = len(allocation.counts.index) * allocation.size > SINGLE
    missing = None
    if bags.missing is not None and allocation.poisson:
        ones = torch.ones(len(bags.missing), dtype=torch.float64)
        size = (len(bags), bags.width)
        missing = torch.sparse_coo_tensor(bags.missing.T, ones, size, check_invariants=False).to_sparse_csr()
    base = torch.zeros(len(bags), dtype=torch.float64).index_add(0, bags.rows, -(bags.count + 1).lgamma())
    if allocation.poisson:
        logs = allocation.column_factor.log().expand(bags.width)
        base = base.index_add(0, bags.rows, bags.count * logs[bags.index])
        base = base + bags.totals * of_rows(allocation.row_factor, place).log()
    else:
        base = base + (bags.totals + 1).lgamma()
    single = bags.count.float() if large else None
    return Block(place, bags, bags.starts.int(), bags.index.int(), _by_column(bags), single, missing, base)


def _by_column(bags: Bags) -> tuple[Tensor, Tensor, Tensor]:
    """Starts (V + 1,), rows (cells,), and the cells in the order of columns."""
    number = np.arange(len(bags.index))
    rows = csr_array((number, bags.index.numpy(), bags.starts.numpy()), shape=(len(bags), bags.width)).tocsc()
    starts, index = (torch.from_numpy(part.astype(np.int32)) for part in (rows.indptr, rows.indices))
    return starts, index, torch.from_numpy(rows.data)


def make_blocks(allocation: Allocation) -> list[Block]:
    """All rows in order, about `BLOCK` cells at a time."""
    quiet()
    counts = allocation.counts
    number = torch.div(counts.starts[1:] - 1, BLOCK, rounding_mode="floor").clamp_min(0)
    number = torch.maximum(number, torch.div(torch.arange(len(counts)), 1 << 16, rounding_mode="floor"))
    sizes = torch.unique_consecutive(number, return_counts=True)[1].tolist()
    return [make_block(allocation, place) for place in torch.arange(len(counts)).split(sizes)]


def quiet() -> None:
    """Have torch say now that its sparse matrices are new, which it says once, and where nobody hears it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        torch.zeros(1, 1).to_sparse_csr()


def of_rows(factor: Tensor, place: Tensor) -> Tensor:
    return factor if len(factor) == 1 else factor[place]


TINY = 1e-300
FAINT = 1e-25  # below it single precision is not to be trusted


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


def update(allocation: Allocation, counts: Tensor, exposure: Tensor) -> Tensor:
    """The optimal factor of beta (K, V[, 2]), or the best value, given expected counts (V, K) and exposures."""
    expected = counts.mT  # (K, V)
    rate = (exposure * allocation.column_factor.unsqueeze(1)).mT
    side = allocation.shared
    if side.prior is None:
        total = expected.sum(1, keepdim=True) if side.simplex else rate.expand_as(expected)
        return expected / total.clamp_min(TINY)
    if isinstance(side.family, GammaFactor):
        return torch.stack([side.prior[..., 0] + expected, side.prior[..., 1] - rate.expand_as(expected)], -1)
    return side.prior + expected


def sum_of(parts: list[Tensor]) -> Tensor:
    out = parts[0].clone()
    for part in parts[1:]:
        out += part
    return out
