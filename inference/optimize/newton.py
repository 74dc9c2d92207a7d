"""Newton's method on blocks of numbers that do not meet, kept from ever going down."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.errors import ModelError

Free = dict[str, Tensor]
HALVINGS = 6  # of a step that would go down
ROUNDING = 1e-14  # of the objective
LEFT = 1e-20  # of the objective, not worth another step


class Reached(NamedTuple):
    free: Free
    value: Tensor
    sound: bool  # False where no step along Newton's direction goes up, though the gradient says that there is a way


def gradients(value: Tensor, free: Free, create_graph: bool = False) -> Tensor:
    """The gradient of a value with respect to all free numbers, laid end to end.

    Raises
    ------
    ModelError
        A param that the value does not depend on.
    """
    names = list(free)
    found = (
        torch.autograd.grad(value, list(free.values()), create_graph=create_graph, allow_unused=True)
        if value.requires_grad
        else [None] * len(names)
    )
    for name, part in zip(names, found, strict=True):
        if part is None:
            raise ModelError(
                f"em: no gradient reaches param '{name}': no site uses it, or only after an operation that has "
                f"no gradient (detach, rounding to integers); use it in a site, or make it a fixed number"
            )
    return torch.cat([part.flatten() for part in found if part is not None])


def newton(free: Free, objective: Callable[[Free], Tensor], blocks: Tensor, steps: int) -> Reached:
    """Rise by at most `steps` Newton steps, with one Hessian per block; `blocks` as `blocks.find_blocks` gives them.

    Where the objective is not concave the step follows the absolute curvature (Dauphin et al. 2014), so it always
    points up; a step that goes down is halved.
    """
    free = {name: value.detach().requires_grad_() for name, value in free.items()}
    value = objective(free)
    for _ in range(steps):
        slope = gradients(value, free, create_graph=True)
        direction = _direction(slope, free, blocks)
        foretold = 0.5 * (direction * slope.detach()).sum()
        room = ROUNDING * (1 + value.detach().abs())
        if not torch.isfinite(foretold):
            return Reached(_still(free), value.detach(), False)
        share = 1.0
        for _ in range(HALVINGS):
            there = {n: v.requires_grad_() for n, v in _moved(free, share * direction).items()}
            found = objective(there)
            gain = (found - value).detach()
            if gain >= -room:
                break
            share /= 4
        else:
            return Reached(_still(free), value.detach(), bool(foretold <= 100 * room))
        free, value = there, found
        # a gain e times other than foretold leaves about e^2 times as much to be had
        if foretold <= 100 * room or (share == 1 and (gain - foretold) ** 2 <= LEFT / ROUNDING * room * foretold):
            break
    return Reached(_still(free), value.detach(), True)


def _still(free: Free) -> Free:
    return {name: value.detach() for name, value in free.items()}


def _moved(free: Free, step: Tensor) -> Free:
    parts = step.split([value.numel() for value in free.values()])
    return {n: v.detach() + part.reshape(v.shape) for (n, v), part in zip(free.items(), parts, strict=True)}


def _direction(slope: Tensor, free: Free, blocks: Tensor) -> Tensor:
    """The step of every block, (numbers,)."""
    mine, place = blocks >= 0, blocks.clamp_min(0)
    columns = []
    for number in range(blocks.shape[1]):
        chosen = torch.zeros_like(slope).index_fill(0, place[mine[:, number], number], 1.0)  # one number of each block
        columns.append(_product(slope, free, chosen)[place])
    hessian = torch.stack(columns, -1) * (mine.unsqueeze(-1) & mine.unsqueeze(-2))
    # numbers of one block may differ in their units: measure each by its own curvature
    unit = hessian.diagonal(dim1=-2, dim2=-1).abs().sqrt()
    unit = torch.where(unit > 0, unit, 1.0)
    scaled = hessian / (unit.unsqueeze(-1) * unit.unsqueeze(-2))
    curvature, axes = torch.linalg.eigh(-0.5 * (scaled + scaled.mT))
    size = curvature.abs()
    inverse = torch.where(size > 1e-12, 1 / size, 0.0)
    along = (axes.mT @ (slope.detach()[place] * mine / unit).unsqueeze(-1)) * inverse.unsqueeze(-1)
    step = (axes @ along).squeeze(-1) / unit
    return torch.zeros_like(slope).detach().index_add(0, place[mine], step[mine])


def _product(slope: Tensor, free: Free, vector: Tensor) -> Tensor:
    """The Hessian times a vector."""
    if not slope.requires_grad:
        return torch.zeros_like(slope)
    found = torch.autograd.grad(slope, list(free.values()), vector, retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def lbfgs(free: Free, objective: Callable[[Free], Tensor], steps: int) -> Reached:
    """Rise by at most `steps` L-BFGS steps with a line search."""
    free = {name: value.clone().requires_grad_() for name, value in free.items()}
    optimizer = torch.optim.LBFGS(
        list(free.values()),
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        value = -objective(free)
        parts = gradients(value, free).split([one.numel() for one in free.values()])
        for one, part in zip(free.values(), parts, strict=True):
            one.grad = part.reshape(one.shape)
        return value

    optimizer.step(loss)
    reached = {name: value.detach() for name, value in free.items()}
    return Reached(reached, objective(reached).detach(), True)
