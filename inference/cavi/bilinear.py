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

from ..families.base import LOG_2PI
from ..families.factors import MultivariateNormalFactor, Point
from ..program.gathered import Sparse
from .moments import Families, Means, Source, expected


class Part(NamedTuple):
    """Some coordinates of the vectors of one side."""

    name: str | None  # of the latent; None for numbers
    cells: Tensor  # (I, q) cell numbers
    coef: Tensor  # (I, q)
    vectors: Tensor | None = None  # (I,) numbers of the vectors in a factor over vectors; None where it is in order


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

    left: tuple[Part, ...]
    right: tuple[Part, ...]
    values: Tensor | Sparse
    seen: Tensor | Sparse | None
    squares: Tensor  # sums of y^2: (1,) or (I,) or (J,) as the precision goes
    counts: Tensor  # of entries, likewise
    precision: str
    scale: Source  # of the distinct standard deviations
    places: tuple[Tensor, Tensor] | None = None  # (i, j) of every entry, row by row; None where entries are a table

    @property
    def size(self) -> int:
        """How many entries there are."""
        return int(self.counts.sum())

    @property
    def uses(self) -> list[str]:
        """Every latent and param in it, as often as it is met."""
        return [part.name for part in (*self.left, *self.right) if part.name is not None] + self.scale.uses

    def log_prob(self, means: Means, families: Families) -> Tensor:
        """E log p of all entries, (1,)."""
        precision = expected(self.scale, "precision", means, families).flatten()
        log_scale = expected(self.scale, "log", means, families).flatten()
        on = {name: precision if name == self.precision else None for name in ("left", "right")}
        left, right = _mean(self.left, means, families), _mean(self.right, means, families)
        cross = _between(_weighted(left, on["left"]), self.values, _weighted(right, on["right"]))
        if self.seen is None:
            totals = [
                _second_sum(parts, mean, means, families, on[name])
                for name, parts, mean in (("left", self.left, left), ("right", self.right, right))
            ]
            second = (totals[0] * totals[1]).sum()
        else:
            one = _second(self.left, left, means, families).flatten(1)
            two = _second(self.right, right, means, families).flatten(1)
            second = _between(_weighted(one, on["left"]), self.seen, _weighted(two, on["right"]))
        if not self.precision:
            cross, second = cross * precision.squeeze(), second * precision.squeeze()
        loss = (precision * self.squares).sum() - 2 * cross + second
        return (-0.5 * loss - (self.counts * (log_scale + 0.5 * LOG_2PI)).sum()).reshape(1)

    def variances(self, means: Means, families: Families) -> Tensor:
        """Of E y = l_i . r_j under the mean field, for every entry, missing ones too: (I, J), or (entries,)."""
        left, right = _mean(self.left, means, families), _mean(self.right, means, families)
        one = _second(self.left, left, means, families).flatten(1)
        two = _second(self.right, right, means, families).flatten(1)
        if self.places is None:
            return (one @ two.mT - (left @ right.mT) ** 2).clamp_min(0)
        i, j = self.places
        return (torch.linalg.vecdot(one[i], two[j]) - torch.linalg.vecdot(left[i], right[j]) ** 2).clamp_min(0)


def _mean(parts: tuple[Part, ...], means: Means, families: Families) -> Tensor:
    """Expected vectors of one side, (I, Q)."""
    found = []
    for part in parts:
        if part.name is None:
            found.append(part.coef)
            continue
        mean = families[part.name].power(means[part.name], 1.0)
        assert mean is not None
        found.append(part.coef * mean.flatten()[part.cells])
    return torch.cat(found, 1)


def _covariances(part: Part, means: Means, families: Families) -> Tensor | None:
    """Of the coordinates of one part, (I, q, q); None where they are numbers."""
    if part.name is None or isinstance(families[part.name], Point):
        return None
    family, mu = families[part.name], means[part.name]
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


def _padded(block: Tensor, start: int, size: int) -> Tensor:
    """A block (..., q, q) in its place on the diagonal of a larger one."""
    pad = (start, size - start - block.shape[-1])
    return torch.nn.functional.pad(block, (*pad, *pad))


def _second(parts: tuple[Part, ...], mean: Tensor, means: Means, families: Families) -> Tensor:
    """Second moments of the vectors, (I, Q, Q)."""
    out = mean.unsqueeze(-1) * mean.unsqueeze(-2)
    start = 0
    for part in parts:
        block = _covariances(part, means, families)
        if block is not None:
            out = out + _padded(block, start, mean.shape[1])
        start += part.cells.shape[1]
    return out


def _second_sum(
    parts: tuple[Part, ...], mean: Tensor, means: Means, families: Families, weights: Tensor | None
) -> Tensor:
    """Their sum over all vectors, (Q, Q), each with its weight: without making them one by one where that can be."""
    out = _weighted(mean, weights).mT @ mean
    start = 0
    for part in parts:
        family = None if part.name is None else families[part.name]
        block: Tensor | None
        if isinstance(family, MultivariateNormalFactor) and part.vectors is None and bool((part.coef == 1).all()):
            assert part.name is not None
            block = family.covariance_sum(means[part.name], weights)
        else:
            each = _covariances(part, means, families)
            block = None if each is None else _weighted(each, weights).sum(0)
        if block is not None:
            out = out + _padded(block, start, mean.shape[1])
        start += part.cells.shape[1]
    return out


def _weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """Each row of values times its weight."""
    return values if weights is None else values * weights.reshape(-1, *(1,) * (values.dim() - 1))


def _between(left: Tensor, matrix: Tensor | Sparse, right: Tensor) -> Tensor:
    """sum_ij left_i . right_j matrix_ij, gradients to the fewest numbers."""
    if left.requires_grad and not right.requires_grad:
        return (left * _times(matrix, right)).sum()
    return (_times(matrix.mT, left) * right).sum()


def _times(matrix: Tensor | Sparse, dense: Tensor) -> Tensor:
    return matrix.times(dense) if isinstance(matrix, Sparse) else matrix @ dense
