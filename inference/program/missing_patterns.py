"""A multivariate normal site with missing cells: rows with the same cells missing share one marginal density.

The missing cells of a row are latent and Gaussian given the rest, so their expected statistics are exact, and linear
in the statistics of the observed cells: sums are completed once per pattern, not once per row (Little and Rubin 2002,
11.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..families.base import Args, square
from ..families.continuous import MultivariateNormalFamily

FAMILY = MultivariateNormalFamily()


class Pattern(NamedTuple):
    seen: Tensor  # (D_o,) positions of the observed cells
    unseen: Tensor  # (D_m,)


class Patterns(NamedTuple):
    """Which cells each row has: the distinct patterns, and the number of its pattern for each row (N,)."""

    distinct: list[Pattern]
    of_row: Tensor


def find_patterns(value: Tensor) -> Patterns:
    """Group the rows of (N, D) by which cells are NaN."""
    masks, of_row = torch.unique(value.isnan(), dim=0, return_inverse=True)
    return Patterns([Pattern((~m).nonzero().flatten(), m.nonzero().flatten()) for m in masks], of_row)


@dataclass
class PatternSums:
    """Log densities of chunks, and the sums that an M-step wants, pattern by pattern."""

    patterns: Patterns
    args: Args  # loc (R, e..., D), a covariance argument (R, e..., D, D); in expectation `excess` (R, e...) too
    shape: tuple[int, ...]  # (R, e...)

    def __post_init__(self) -> None:
        tril = FAMILY.cholesky(self.args)
        size = tril.shape[-1]
        self.loc = self.args["loc"].expand(*self.shape, size)
        self.covariance = (tril @ tril.mT).expand(*self.shape, size, size)
        self.excess = self.args["excess"].expand(self.shape).reshape(-1, 1) if "excess" in self.args else 0.0
        self.sums: dict[int, tuple[Tensor, Tensor]] = {}

    @cached_property
    def weights(self) -> list[tuple[Tensor, Tensor]]:
        """Of the features of each pattern, and a constant."""
        return [self._weights(pattern) for pattern in self.patterns.distinct]

    def _weights(self, pattern: Pattern) -> tuple[Tensor, Tensor]:
        seen = pattern.seen
        if len(seen) == 0:
            count = self.loc[..., 0].numel()
            return self.loc.new_zeros(count, 0), self.loc.new_zeros(count, 1)
        part = {"loc": self.loc[..., seen], "covariance_matrix": self.covariance[..., seen, :][..., seen]}
        eta, log_normalizer = FAMILY.natural(part)
        return eta.flatten(0, -2), self.excess - log_normalizer.reshape(-1, 1)

    def scores(self, rows: slice, value: Tensor) -> Tensor:
        """Log densities (R*E, n) of the observed cells of centred values (D, n)."""
        of_row = self.patterns.of_row[rows]
        out = value.new_zeros(len(self.weights[0][1]), value.shape[-1])
        for number in of_row.unique().tolist():
            members = (of_row == number).nonzero().flatten()
            weights, constant = self.weights[number]
            if weights.shape[1]:
                out = out.index_copy(1, members, weights @ self._features(value, members, number) + constant)
        return out

    def collect(self, rows: slice, value: Tensor, weights: Tensor) -> None:
        """Add a chunk's sums, weighted by (R*E, n)."""
        of_row = self.patterns.of_row[rows]
        for number in of_row.unique().tolist():
            members = (of_row == number).nonzero().flatten()
            share = weights[:, members]
            new = (share @ self._features(value, members, number).mT, share.sum(1))
            old = self.sums.get(number)
            self.sums[number] = new if old is None else (old[0] + new[0], old[1] + new[1])

    def _features(self, value: Tensor, members: Tensor, number: int) -> Tensor:
        return FAMILY.statistics(value[self.patterns.distinct[number].seen][:, members], {})

    def total(self) -> tuple[Tensor, Tensor]:
        """Completed statistics S1 (R, e..., T) and S0 (R, e...)."""
        size = self.loc.shape[-1]
        rows, cols = torch.tril_indices(size, size, device=self.loc.device)
        first = self.loc.new_zeros(*self.shape, size)
        second = self.loc.new_zeros(*self.shape, size, size)
        count = self.loc.new_zeros(self.shape)
        for number, (sums, totals) in self.sums.items():
            seen, unseen = self.patterns.distinct[number]
            if not len(seen) and "excess" in self.args:  # such a row says nothing, and has no factor
                continue
            weight = totals.reshape(self.shape)
            sums = sums.reshape(*self.shape, -1)
            seen_first, seen_second = sums[..., : len(seen)], square(sums[..., len(seen) :], len(seen))
            loc, cov = self.loc, self.covariance
            # E[x] = offset + slope x_o: the identity on what was seen, the regression on what was not
            slope = loc.new_zeros(*self.shape, size, len(seen))
            slope[..., seen, torch.arange(len(seen))] = 1.0
            residual = torch.zeros_like(cov)
            between = cov[..., unseen, :][..., seen]
            regression = torch.linalg.solve(cov[..., seen, :][..., seen], between.mT).mT if len(seen) else between
            slope[..., unseen, :] = regression
            left = cov[..., unseen, :][..., unseen] - regression @ between.mT
            residual[..., unseen.unsqueeze(-1), unseen] = left
            offset = loc - (slope @ loc[..., seen].unsqueeze(-1)).squeeze(-1)
            offset[..., seen] = 0.0
            moved = (slope @ seen_first.unsqueeze(-1)).squeeze(-1)
            first = first + weight.unsqueeze(-1) * offset + moved
            cross = offset.unsqueeze(-1) * moved.unsqueeze(-2)
            outer = offset.unsqueeze(-1) * offset.unsqueeze(-2)
            spread = slope @ seen_second @ slope.mT + cross + cross.mT
            second = second + spread + weight[..., None, None] * (outer + residual)
            count = count + weight
        return torch.cat([first, second[..., rows, cols]], -1), count
