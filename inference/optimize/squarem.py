"""SQUAREM (Varadhan and Roland 2008): leaps along the path of a fixed-point map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CYCLES = 30  # of an M-step at most, each of three steps of EM
ENOUGH = 1e-13  # relative gain of a cycle that ends an M-step


def squarem(step: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, share: float) -> Tensor:
    """Fixed point iteration of many vectors (R, P) at once, extrapolated; ``step(x)`` gives the next and how high x is.

    What is extrapolated is taken only where it is at least as high as the iterate before.
    """
    first = x.new_zeros(len(x))
    for cycle in range(CYCLES):
        one, height = step(x)
        two, before = step(one)
        move, bend = one - x, two - 2 * one + x
        length = -(move.norm(dim=1) / bend.norm(dim=1).clamp_min(1e-300)).clamp(1.0, 1e6).unsqueeze(1)
        leap = x - 2 * length * move + length**2 * bend
        try:
            landed, there = step(leap)
        except torch.linalg.LinAlgError:
            landed, there = two, torch.full_like(before, -torch.inf)
        sound = (there >= before) & landed.isfinite().all(1)
        x = torch.where(sound.unsqueeze(1), landed, two)
        gain = torch.where(sound, there, before) - height
        first = gain if cycle == 0 else first
        if bool((gain <= torch.maximum(ENOUGH * (1 + height.abs()), share * first)).all()):
            break
    return x
