"""Normal sites whose location is bilinear in latents: ``z @ w.T + mu``, ``(u[i] * v[j]).sum(-1) + a[i]``, ``x @ b``.

Every location is a product of a left vector and a right vector, l_i . r_j, whose coordinates are cells of latents,
data, or ones (`mu` is a right coordinate whose left one is 1). Under a mean field E (l_i . r_j)^2 is the product of
the two second moments, so the expected log density of all entries is a sum of matrix products, and costs no entry-by-
entry work where all entries are observed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .factors import FactorFamily, MultivariateNormalFactor, Point
from .family import LOG_2PI
from .gathered import Sparse
from .sources import Families, Means, Source, expected


class Part(NamedTuple):
    """Some coordinates of the vectors of one side."""

    name: str | None  # of the latent; None for numbers
    cells: Tensor  # (I, q) cell numbers
    coef: Tensor  # (I, q)
    vectors: Tensor | None = None  # (I,) numbers of the vectors in a factor over vectors; None where it is in order


class Moments(NamedTuple):
    """Of the vectors of one side."""

    mean: Tensor  # (I, Q)
    second: Tensor  # (I, Q, Q)


@dataclass(frozen=True)
class Bilinear:
    """One site: entries y at places (i, j), with E y = l_i . r_j.

    Attributes
    ----------
    left, right : tuple of Part
        Coordinates side by side; the same number on both sides.
    values : Tensor (I, J) or Sparse
        Entries minus what is constant in their location, 0 where missing.
    seen : Tensor (I, J), Sparse or None
        1 where there is an entry; None where there is one everywhere.
    precision : str
        What it differs over: "" (one number), "left" or "right".
    """

    name: str
    left: tuple[Part, ...]
    right: tuple[Part, ...]
    values: Tensor | Sparse
    seen: Tensor | Sparse | None
    squares: Tensor  # sums of y^2: (1,) or (I,) or (J,) as the precision goes
    counts: Tensor  # of entries, likewise
    precision: str
    scale: Source  # of the distinct standard deviations

    @property
    def uses(self) -> list[str]:
        """Every latent and param in it, as often as it is met."""
        return [part.name for part in (*self.left, *self.right) if part.name is not None] + self.scale.uses

    def log_prob(self, means: Means, families: Families) -> Tensor:
        """E log p of all entries, (1,)."""
        precision = expected(self.scale, "precision", means, families).flatten()
        log_scale = expected(self.scale, "log", means, families).flatten()
        left, right = self.side(self.left, means, families), self.side(self.right, means, families)
        if self.precision == "left":
            left = Moments(left.mean * precision.unsqueeze(-1), left.second * precision[:, None, None])
        elif self.precision == "right":
            right = Moments(right.mean * precision.unsqueeze(-1), right.second * precision[:, None, None])
        cross = (left.mean * _times(self.values, right.mean)).sum()
        if self.seen is None:
            second = (left.second.sum(0) * right.second.sum(0)).sum()
        else:
            second = (left.second.flatten(1) * _times(self.seen, right.second.flatten(1))).sum()
        if not self.precision:
            cross, second = cross * precision.squeeze(), second * precision.squeeze()
        loss = (precision * self.squares).sum() - 2 * cross + second
        return (-0.5 * loss - (self.counts * (log_scale + 0.5 * LOG_2PI)).sum()).reshape(1)

    def side(self, parts: tuple[Part, ...], means: Means, families: Families) -> Moments:
        """Moments of the vectors of one side."""
        first, covariances = [], []
        for part in parts:
            if part.name is None:
                first.append(part.coef)
                covariances.append(part.coef.new_zeros(1, part.coef.shape[1], part.coef.shape[1]))
                continue
            family, mu = families[part.name], means[part.name]
            mean = family.power(mu, 1.0)
            assert mean is not None
            first.append(part.coef * mean.flatten()[part.cells])
            covariances.append(self._covariance(part, family, mu))
        mean = torch.cat([one.expand(max(len(f) for f in first), -1) for one in first], 1)
        second = mean.unsqueeze(-1) * mean.unsqueeze(-2)
        start = 0
        blocks = []
        for cov in covariances:
            size = cov.shape[-1]
            pad = (start, mean.shape[1] - start - size)
            blocks.append(torch.nn.functional.pad(cov, (*pad, *pad)))
            start += size
        for block in blocks:
            second = second + block
        return Moments(mean, second)

    def _covariance(self, part: Part, family: FactorFamily, mu: Tensor) -> Tensor:
        """(I, q, q)."""
        size = part.cells.shape[1]
        if isinstance(family, Point):
            return part.coef.new_zeros(1, size, size)
        if isinstance(family, MultivariateNormalFactor):
            found = family.covariance(mu)
            found = found.reshape(-1, *found.shape[-2:])
            found = found if part.vectors is None else found[part.vectors]
        else:
            first, second = family.power(mu, 1.0), family.power(mu, 2.0)
            assert first is not None
            assert second is not None
            found = torch.diag_embed((second - first**2).flatten()[part.cells])
        return found * part.coef.unsqueeze(-1) * part.coef.unsqueeze(-2)


def _times(matrix: Tensor | Sparse, dense: Tensor) -> Tensor:
    return matrix.times(dense) if isinstance(matrix, Sparse) else matrix @ dense
