"""Log evidence by summing out enumerated latents, and its backward pass.

Every factor is a tensor ``(R, e_1..e_M, *plates, n)``: restarts, one dim per enumerated latent, the plates that hold
latents of their own, then rows, which lie contiguous in memory. The gradient of log p(x) with respect to a factor is
the posterior expected count of each of its configurations (Darwiche 2003): the E-step of every model is this one
backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.errors import ModelError


class Elimination(NamedTuple):
    """Order of summation: for each group of plates, deepest first, the axes of its latents and of its plates."""

    latents: tuple[int, ...]
    plates: tuple[int, ...]


def log_evidence(factors: Sequence[Tensor], order: Sequence[Elimination]) -> Tensor:
    """log p(x_n) of each restart and row, (R, n)."""
    remaining = list(factors)
    plates = {axis for step in order for axis in step.plates}
    for step in order:
        deeper = tuple(sorted(plates.difference(step.plates)))
        for axis in step.latents:
            # only factors that speak of the latent meet, so the largest table is the model's own clique;
            # those of plates deeper than its own are products over these plates
            inside = [f for f in remaining if f.shape[axis] > 1]
            if not inside:
                continue
            if deeper:
                _check_nested(inside, order, deeper)
                inside = [f.sum(deeper, keepdim=True) for f in inside]
            joint = inside[0]
            for factor in inside[1:]:
                joint = joint + factor
            remaining = [f for f in remaining if f.shape[axis] == 1]
            remaining.append(joint.logsumexp(axis, keepdim=True))
    if plates:
        remaining = [f.sum(tuple(plates), keepdim=True) for f in remaining]
    total = remaining[0]
    for factor in remaining[1:]:
        total = total + factor
    return total.reshape(total.shape[0], total.shape[-1])


def _check_nested(factors: Sequence[Tensor], order: Sequence[Elimination], deeper: Sequence[int]) -> None:
    """A product over plates may not run over the cells of a latent that is still to be summed."""
    for step in order:
        for plate in set(step.plates).intersection(deeper):
            if any(f.shape[plate] > 1 and f.shape[axis] > 1 for f in factors for axis in step.latents):
                raise ModelError(
                    "latents of two plates, neither inside the other, meet in one site: the sum over their "
                    "values does not "
                    "factorise, so it cannot be had exactly; sample one of them outside both plates, or in the "
                    "inner one"
                )


def posterior(
    factors: Sequence[Tensor], order: Sequence[Elimination], weights: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Log evidence (R, n), and the posterior expected counts of each factor, shaped like it and weighted by row."""
    if len(order) == 1 and len(order[0].latents) == 1 and not order[0].plates:
        return _posterior_of_one(factors, weights)
    leaves = [f.detach().requires_grad_() for f in factors]
    with torch.enable_grad():
        rows = log_evidence(leaves, order)
        total = rows.sum() if weights is None else (rows * weights).sum()
    return rows.detach(), list(torch.autograd.grad(total, leaves))


def _posterior_of_one(factors: Sequence[Tensor], weights: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """`posterior` of a single latent, whose backward pass is a softmax: half the time of autograd, and most models."""
    joint = factors[0]
    for factor in factors[1:]:
        joint = joint + factor
    peak = joint.amax(1, keepdim=True)
    share = (joint - peak).exp_()
    total = share.sum(1, keepdim=True)
    rows = peak + total.log()
    share /= total if weights is None else total / weights
    return rows.reshape(rows.shape[0], rows.shape[-1]), [_sum_to(share, factor.shape) for factor in factors]


def _sum_to(tensor: Tensor, shape: torch.Size) -> Tensor:
    dims = [d for d, size in enumerate(shape) if size == 1 and tensor.shape[d] > 1]
    return tensor.sum(dims, keepdim=True) if dims else tensor
