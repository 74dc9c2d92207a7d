"""Log evidence by summing out enumerated latents, and its backward pass.

Every factor is a tensor ``(R, e_1..e_M, *plates, n)``: restarts, one dim per enumerated latent, the plates that hold
latents of their own, then rows, which lie contiguous in memory. The gradient of log p(x) with respect to a factor is
the posterior expected count of each of its configurations (Darwiche 2003): the E-step of every model is this one
backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.errors import ModelError


class Elimination(NamedTuple):
    """Order of summation: for each group of plates, deepest first, the axes of its latents and of its plates."""

    latents: tuple[int, ...]
    plates: tuple[int, ...]


def log_evidence(
    factors: Sequence[Tensor], order: Sequence[Elimination], met: Callable[[int, Tensor], None] | None = None
) -> Tensor:
    """log p(x_n) of each restart and row, (R, n); `met` is told the axis of each latent and the table it is summed out
    of.
    """
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
            if met is not None:
                met(axis, joint)
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


def backward_draws(factors: Sequence[Tensor], order: Sequence[Elimination], num: int) -> dict[int, Tensor]:
    """Joint posterior draws of all latents by axis, (num, *plates, n), 1 along plates that a latent lies outside.

    The latent that was summed out last depends on no other: it is drawn first, and the others backward from there, each
    from the table it was summed out of at what is drawn already. No table is larger than those of the sum itself.
    """
    tables: list[tuple[int, Tensor]] = []
    with torch.no_grad():
        log_evidence(factors, order, lambda axis, table: tables.append((axis, table.squeeze(0))))
    count = sum(len(step.latents) for step in order)
    drawn: dict[int, Tensor] = {}
    for axis, table in reversed(tables):
        cumulative = table.softmax(axis - 1).cumsum(axis - 1)
        cells = table.shape[count:]  # (*plates, n)
        places = [torch.arange(size).reshape(-1, *(1,) * (len(cells) - 1 - d)) for d, size in enumerate(cells)]
        noise = 1 - torch.rand(num, *cells, dtype=table.dtype)  # above 0, so that nothing impossible is drawn
        value = torch.zeros(num, *cells, dtype=torch.long)
        given = [
            drawn[a] if a in drawn and table.shape[a - 1] > 1 else torch.zeros((), dtype=torch.long)
            for a in range(1, count + 1)
        ]
        for k in range(table.shape[axis - 1] - 1):  # by its distribution function, one value at a time: no new table
            given[axis - 1] = torch.tensor(k)
            value += noise > cumulative[(*given, *places)]
        drawn[axis] = value
    return drawn


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
