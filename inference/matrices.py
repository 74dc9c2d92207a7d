"""Positive definite matrices as free numbers, one for each cell of the lower triangle: torch has no such bijection."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform, biject_to

from .free import base_constraint


class PositiveDefiniteTransform(Transform):
    """The lower triangle (..., D (D + 1) / 2) of a Cholesky factor, logarithms on its diagonal, to L L'."""

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PositiveDefiniteTransform)

    def _call(self, x: Tensor) -> Tensor:
        size = _size(x)
        rows, cols = torch.tril_indices(size, size, device=x.device)
        tril = x.new_zeros(*x.shape[:-1], size, size)
        tril[..., rows, cols] = torch.where(rows == cols, x.exp(), x)
        return tril @ tril.mT

    def _inverse(self, y: Tensor) -> Tensor:
        tril = torch.linalg.cholesky(y)
        rows, cols = torch.tril_indices(y.shape[-1], y.shape[-1], device=y.device)
        cells = tril[..., rows, cols]
        diagonal = rows == cols
        return torch.where(diagonal, torch.where(diagonal, cells, 1.0).log(), cells)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """2^D prod_i L_ii^(D - i) of L to L L', times prod_i L_ii of the logarithms; i from 0."""
        size = _size(x)
        rows, cols = torch.tril_indices(size, size, device=x.device)
        weight = torch.where(rows == cols, size - rows + 1, 0).to(x)
        return x @ weight + size * math.log(2)

    def forward_shape(self, shape: Any) -> torch.Size:
        size = (math.isqrt(8 * shape[-1] + 1) - 1) // 2
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: Any) -> torch.Size:
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


def _size(x: Tensor) -> int:
    return (math.isqrt(8 * x.shape[-1] + 1) - 1) // 2


def bijection(constraint: Any) -> Any:
    """The transform of free numbers to a support, as torch's `biject_to`, and of matrices too."""
    if base_constraint(constraint) is constraints.positive_definite:
        return PositiveDefiniteTransform()
    return biject_to(constraint)
