"""Whether a function of some values is affine in them, and its coefficients: asked of the function itself, so that it
makes no difference how a model writes it (a product of matrices, an einsum, a stack of sums).

Directions are pushed forward by differentiating twice backward, the second time all of them at once: `torch.func.jvp`
says the same, but a model cannot be run under it where it looks at its own values, and its first call costs seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

NUMBERS = 1 << 22  # of outcomes that are worked on together, so that the directions of a long one go in turn
ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-4}  # relative to the terms that are summed


class Linear(NamedTuple):
    """``base + jacobian @ x``, with x the cells of the named values laid end to end."""

    base: Tensor  # (*shape)
    jacobian: Tensor  # (*shape, P)
    exact: bool  # whether the function is that at random points too


def linear_in(
    fn: Callable[[dict[str, Tensor]], Tensor],
    values: Mapping[str, Tensor],
    names: Sequence[str],
    reach: Sequence[float] = (1.0,),
) -> Linear:
    """The line that a function follows at 0, and whether it follows it elsewhere.

    Parameters
    ----------
    fn : callable
        Of a dict like `values`. Gradients flow to whatever else it uses.
    values : dict
        Of all it takes; those of `names` are moved, the others held.
    reach : numbers
        Sizes of the random points where the line is checked: a bend may lie far off.
    """
    shapes = [values[name].shape for name in names]
    sizes = [shape.numel() for shape in shapes]
    like = values[names[0]]

    def at(x: Tensor) -> Tensor:
        parts = (part.reshape(shape) for part, shape in zip(x.split(sizes), shapes, strict=True))
        return fn({**values, **dict(zip(names, parts, strict=True))})

    with torch.enable_grad():
        zero = torch.zeros(sum(sizes), dtype=like.dtype, device=like.device, requires_grad=True)
        base = at(zero)
    jacobian = slopes(base, zero)
    base = base if torch.is_grad_enabled() else base.detach()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        points = [size * torch.randn(sum(sizes), generator=generator, dtype=torch.float64).to(zero) for size in reach]
        exact = all(follows(base, jacobian, x, at(x)) for x in points)
    return Linear(base, jacobian, exact)


def slopes(out: Tensor, x: Tensor, directions: Tensor | None = None) -> Tensor:
    """The derivatives (*shape, R) of an outcome by what it was computed from, x (P,), along each of the `directions`
    (R, P); by default along each axis. Gradients flow through them where they are enabled.
    """
    along = torch.eye(len(x), dtype=x.dtype, device=x.device) if directions is None else directions
    create_graph = torch.is_grad_enabled()
    still = torch.zeros(*out.shape, len(along), dtype=out.dtype, device=out.device)
    if not out.requires_grad:
        return still
    with torch.enable_grad():
        weight = torch.zeros_like(out, requires_grad=True)
        back: Tensor | None = torch.autograd.grad(out, x, weight, create_graph=True, allow_unused=True)[0]
    if back is None or not back.requires_grad or not len(along):
        return still
    parts = []
    for some in along.split(max(1, NUMBERS // max(1, out.numel()))):
        (part,) = torch.autograd.grad(
            back, weight, some, is_grads_batched=True, create_graph=create_graph, retain_graph=True
        )
        parts.append(part)
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).movedim(0, -1)


def follows(base: Tensor, jacobian: Tensor, x: Tensor, met: Tensor) -> bool:
    """Whether the outcome met at x (P,) is the one that a line foretells, up to rounding."""
    if not bool(torch.isfinite(base).all()) or met.shape != base.shape:
        return False
    if not base.numel():
        return True
    terms = base.abs() + jacobian.abs() @ x.abs()
    room = ROUNDING.get(base.dtype, 1e-4) * terms + 16 * torch.finfo(base.dtype).eps * terms.max()
    return bool(((met - base - jacobian @ x).abs() <= room).all())
