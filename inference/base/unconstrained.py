"""Params as free numbers: what a gradient step may move in any direction, 0 at the start."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform, biject_to, transform_to

Parts = dict[str, Tensor]  # free numbers by name
EDGE = 1e-9  # a probability of 0 has no place in unconstrained space: it is moved this far inside
MATRICES = (
    constraints.positive_definite,
    constraints.positive_semidefinite,
    constraints.lower_cholesky,
)


class Free(NamedTuple):
    """How a param follows from free numbers of its own."""

    shape: tuple[int, ...]
    value: Callable[[Tensor], Tensor]


def free_param(constraint: Any, start: Tensor) -> Free:
    """Free numbers whose 0 is `start`.

    A covariance moves in units of its own start, ``C T(f) C'`` with ``C`` the Cholesky factor of the start: so steps
    mean the same whatever the units of the data.
    """
    constraint = base_constraint(constraint)
    if constraint in (constraints.softplus_lower_cholesky, constraints.softplus_positive):
        constraint = constraints.lower_cholesky if start.dim() > 1 else constraints.positive
    if constraint in MATRICES and start.dim() > 1:
        triangular = constraint is constraints.lower_cholesky
        tril = start if triangular else torch.linalg.cholesky(start)
        transform = transform_to(constraints.lower_cholesky if triangular else constraints.positive_definite)
        if triangular:
            return Free(tuple(start.shape), lambda free: tril @ transform(free))
        return Free(tuple(start.shape), lambda free: tril @ transform(free) @ tril.mT)
    if constraint is constraints.real:
        return Free(tuple(start.shape), lambda free: start + free)
    transform = transform_to(constraint)
    origin = transform.inv(inside(constraint, start))
    return Free(tuple(origin.shape), lambda free: transform(origin + free))


def values_of(params: Mapping[str, Free], free: Parts, prefix: str) -> Parts:
    """Params from their free numbers, which are named after them behind a prefix."""
    return {name: one.value(free[prefix + name]) for name, one in params.items()}


def total(terms: list[Tensor]) -> Tensor:
    """The sum of some tensors; 0 of none."""
    return sum(terms[1:], terms[0]) if terms else torch.zeros((), dtype=torch.float64)


def base_constraint(constraint: Any) -> Any:
    """A constraint without the dims that it was declared independent over."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def inside(constraint: Any, value: Tensor) -> Tensor:
    """A value on the boundary of its support, moved just inside."""
    constraint = base_constraint(constraint)
    if constraint is constraints.simplex:
        value = value.clamp_min(EDGE)
        return value / value.sum(-1, keepdim=True)
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    if low is not None and high is not None:
        return value.clamp(low + EDGE * (high - low), high - EDGE * (high - low))
    if low is not None:
        return value.clamp_min(low + EDGE)
    return value if high is None else value.clamp_max(high - EDGE)


def free_dims(constraint: object, value: Tensor) -> int:
    """Dimensions along which a param of this constraint can move."""
    constraint = base_constraint(constraint)
    size = value.shape[-1] if value.dim() else 1
    if constraint is constraints.simplex:
        return value.numel() // size * (size - 1)
    triangular = (constraints.positive_definite, constraints.lower_cholesky, constraints.softplus_lower_cholesky)
    if any(constraint is c for c in triangular):
        return value.numel() // size**2 * (size * (size + 1) // 2)
    if constraint is constraints.corr_cholesky:
        return value.numel() // size**2 * (size * (size - 1) // 2)
    return value.numel()


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
