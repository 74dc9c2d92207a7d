"""All free numbers of a fit as one vector: an optimizer step is then one operation, however many params there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..base.unconstrained import Parts

PROBES = 8  # of the curvature: random signs, each the price of two gradients
WIDEST = 1e6  # units of numbers that take any real value; none is less than 1 / WIDEST
WIDE = 3.0  # of logarithms, log-odds and the like, whose own scale is one


@dataclass(frozen=True)
class Vector:
    """Named tensors laid end to end, each number measured from an origin in a unit of its own.

    Adam moves every number by about the same step. In units of the curvature that step means the same for a mean in
    dollars and for a log-odds.
    """

    origin: Parts
    unit: Parts

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @cached_property
    def sizes(self) -> list[int]:
        """Of the named tensors."""
        return [value.numel() for value in self.origin.values()]

    @cached_property
    def flat(self) -> tuple[Tensor, Tensor]:
        """Origin and unit end to end, (P,) each."""
        nothing = torch.empty(0, dtype=torch.float64)
        origin, unit = ([one[name].flatten() for name in self.origin] for one in (self.origin, self.unit))
        return torch.cat(origin or [nothing]), torch.cat(unit or [nothing])

    def unpack(self, x: Tensor) -> Parts:
        """The named tensors at a point (P,); gradients flow."""
        origin, unit = self.flat
        pieces = torch.addcmul(origin, x, unit).split(self.sizes)
        return {
            name: piece if value.dim() == 1 else piece.reshape(value.shape)
            for (name, value), piece in zip(self.origin.items(), pieces, strict=True)
        }


def curvature(bound: Callable[[Parts], Tensor], at: Parts, names: list[str], generator: torch.Generator) -> Parts:
    """Absolute diagonal of the Hessian of `bound` (Hutchinson's estimate), for the parts `names`."""
    free = {name: at[name].clone().requires_grad_() for name in names}
    leaves = list(free.values())
    with torch.enable_grad():
        gradients = _gradients(bound({**at, **free}), leaves, again=True)
        total = [torch.zeros_like(x) for x in leaves]
        for _ in range(PROBES):
            signs = [torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1 for x in leaves]
            inner = sum(((g * s).sum() for g, s in zip(gradients, signs, strict=True)), torch.zeros(()))
            if not inner.requires_grad:
                break
            products = _gradients(inner, leaves)
            total = [t + p * s for t, p, s in zip(total, products, signs, strict=True)]
    return {name: (t / PROBES).abs().detach() for name, t in zip(names, total, strict=True)}


def _gradients(value: Tensor, leaves: list[Tensor], again: bool = False) -> list[Tensor]:
    """Gradients, 0 where the value does not depend on a leaf; with `again` they can be differentiated themselves."""
    found = torch.autograd.grad(
        value, leaves, retain_graph=True, create_graph=again, allow_unused=True, materialize_grads=True
    )
    return list(found)


def units(diagonal: Parts, num_rows: float, widest: Parts) -> Parts:
    """How far each number may move before one row's log density changes by about one half: 1 / sqrt(curvature).

    Never more than `widest`: on a plateau, such as a probability of nearly 0 as a log-odds, the curvature says nothing.
    """
    out = {}
    for name, value in diagonal.items():
        per_row = value / num_rows
        sound = torch.isfinite(per_row) & (per_row > WIDEST**-2)
        out[name] = torch.where(sound, per_row, 1.0).rsqrt().clamp_min(1 / WIDEST).minimum(widest[name])
    return out
