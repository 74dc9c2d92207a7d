"""From pooled sums to the value of a param: one link for each kind of ratio, ``link(old, num, den, floor,
constraint)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .sites import Site

SMALL = 1e-300  # a cell with no weight at all keeps its value: any value is a maximiser


def _divide(old: Tensor, num: Tensor, den: Tensor) -> Tensor:
    return torch.where(den > SMALL, num / den.clamp_min(SMALL), old)


def _mean(old: Tensor, num: Tensor, den: Tensor, low: Tensor, constraint: Any) -> Tensor:
    return _clip(_divide(old, num, den), constraint)


def _scale(old: Tensor, num: Tensor, den: Tensor, low: Tensor, constraint: Any) -> Tensor:
    floor = _divide(torch.zeros_like(old), low, den)
    return _clip(_divide(old**2, num, den).maximum(floor).sqrt(), constraint)


def _simplex(old: Tensor, num: Tensor, den: Tensor, low: Tensor, constraint: Any) -> Tensor:
    total = num.sum(-1, keepdim=True)
    return torch.where(total > SMALL, num / total.clamp_min(SMALL), old)


def _logits(old: Tensor, num: Tensor, den: Tensor, low: Tensor, constraint: Any) -> Tensor:
    tiny = torch.finfo(old.dtype).tiny
    return _simplex(old.softmax(-1), num, den, low, constraint).clamp_min(tiny).log()


def _log_odds(old: Tensor, num: Tensor, den: Tensor, low: Tensor, constraint: Any) -> Tensor:
    return _divide(old.sigmoid(), num, den).logit(eps=1e-15)


def _covariance(old: Tensor, num: Tensor, den: Tensor, low: Tensor, constraint: Any) -> Tensor:
    """The maximiser under a floor: eigenvalues are clipped, in units where the floor is the identity."""
    matrix = torch.where(den > SMALL, num / den.clamp_min(SMALL), old)
    matrix = 0.5 * (matrix + matrix.mT)
    floor = _divide(torch.zeros_like(old), low, den).diagonal(dim1=-2, dim2=-1)
    held = (floor > 0).all(-1, keepdim=True)  # no floor was asked for, or the component has no rows
    unit, least = torch.where(held, floor, 1.0).sqrt(), held.to(matrix)
    scaled = matrix / unit.unsqueeze(-1) / unit.unsqueeze(-2)
    sound = (torch.linalg.eigvalsh(scaled) >= least).all(-1)
    if sound.all():
        return matrix
    values, vectors = torch.linalg.eigh(scaled)
    clipped = (vectors * values.maximum(least).unsqueeze(-2)) @ vectors.mT
    clipped = clipped * unit.unsqueeze(-1) * unit.unsqueeze(-2)
    clipped = 0.5 * (clipped + clipped.mT)
    return torch.where(sound[..., None, None], matrix, clipped)


def _scale_tril(old: Tensor, num: Tensor, den: Tensor, low: Tensor, constraint: Any) -> Tensor:
    return torch.linalg.cholesky(_covariance(old @ old.mT, num, den, low, constraint))


def _precision(old: Tensor, num: Tensor, den: Tensor, low: Tensor, constraint: Any) -> Tensor:
    return torch.linalg.inv(_covariance(torch.linalg.inv(old), num, den, low, constraint))


LINKS: dict[str, Callable[..., Tensor]] = {
    "mean": _mean,
    "rate": _mean,
    "proportion": _mean,
    "scale": _scale,
    "simplex": _simplex,
    "logits": _logits,
    "log_odds": _log_odds,
    "covariance_matrix": _covariance,
    "scale_tril": _scale_tril,
    "precision_matrix": _precision,
}
UNDIVIDED = ("simplex", "logits")  # links that look at the numerator alone
FLOORED = ("scale", "covariance_matrix", "scale_tril", "precision_matrix")
MATRICES = FLOORED[1:]


def floor_of(site: Site, kind: str) -> Tensor:
    """Variances of a site's values, shaped to its ratio: the yardstick of a collapse."""
    assert site.variance is not None
    if kind not in MATRICES:
        return site.variance
    return torch.diag_embed(site.variance)


def _clip(value: Tensor, constraint: Any) -> Tensor:
    """Into an interval: exact, since each objective here has one peak in each cell."""
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    return value if low is None and high is None else value.clamp(low, high)
