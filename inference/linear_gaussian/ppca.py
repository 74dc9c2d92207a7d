"""Principal components: where models with loadings start."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..base.errors import DataError
from ..data.columns import center_and_variance


class Principal(NamedTuple):
    """The closed form maximum of probabilistic PCA (Tipping and Bishop 1999, 3.2)."""

    loadings: Tensor  # (D, K)
    noise: Tensor  # () standard deviation of what the components leave


def check_factors(x: Tensor, num_factors: int) -> None:
    """Fewer factors than columns, so that something is left to be noise.

    Raises
    ------
    DataError
    """
    width = x.shape[-1] if x.dim() == 2 else 1
    if width <= num_factors:
        raise DataError(
            f"num_factors: met {num_factors} with data of {width} column{'s' * (width != 1)}, expected fewer factors "
            f"than columns"
        )


def principal(covariance: Tensor, num_factors: int) -> Principal:
    """Loadings on the first components of a covariance (D, D)."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    noise = values[num_factors:].mean()
    gain = (values[:num_factors] - noise).clamp_min(1e-3 * values[0])
    return Principal(vectors[:, :num_factors] * gain.sqrt(), noise.clamp_min(1e-6 * values[0]).sqrt())


def filled(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N, D) with missing cells at their column's mean; the mean and variance (D,) of each column."""
    center, variance = center_and_variance(x)
    return torch.where(x.isnan(), center, x.to(torch.float64)), center, variance


def covariance_of(rows: Tensor) -> Tensor:
    """Of rows (N, D) without missing cells."""
    away = rows - rows.mean(0)
    return away.mT @ away / max(len(rows), 1)
