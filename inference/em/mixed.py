"""Mixed models: params at the maximum of the likelihood, the effects of groups summed out of it exactly.

Nothing is left to be completed, so the "M-step" climbs log p itself, by Newton's method or L-BFGS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from ..linear_gaussian.groups import Mixed
from ..optimize.newton import Free, lbfgs, newton
from ..program.sites import Params

FEW = 16  # numbers: each costs a gradient of the gradient


@dataclass(frozen=True)
class MixedSteps:
    """Steps up log p(x), or log p(x, shared latents) with those that are not summed out."""

    mixed: Mixed
    m_steps: int

    @property
    def together(self) -> bool:
        return False

    def bounds(self, state: Params) -> tuple[list[float], Any]:
        """The bound at a state (1, *shape)."""
        try:
            with torch.no_grad():
                return [self.mixed.log_prob({name: value[0] for name, value in state.items()}).item()], None
        except torch.linalg.LinAlgError:
            return [float("nan")], None

    def improve(self, state: Params, expected: Any) -> Params:
        """A state of a higher bound."""
        params = self.mixed.structure.params
        transforms = {name: transform_to(params[name].constraint) for name in state}
        free = {name: transforms[name].inv(value[0]).detach().clone() for name, value in state.items()}
        if not free:
            return state

        def objective(values: Free) -> Tensor:
            try:
                return self.mixed.log_prob({name: transforms[name](value) for name, value in values.items()})
            except torch.linalg.LinAlgError:  # a step too far, where a spread is 0
                return torch.nan * torch.stack([value.sum() for value in values.values()]).sum()

        numbers = sum(value.numel() for value in free.values())
        with torch.enable_grad():
            start = objective(free).detach()
            blocks = torch.arange(numbers).unsqueeze(0)
            reached = newton(free, objective, blocks, self.m_steps) if numbers <= FEW else None
            if reached is None or not reached.sound:
                reached = lbfgs(free if reached is None else reached.free, objective, self.m_steps)
        if not reached.value >= start:
            return state
        return {name: transforms[name](value).unsqueeze(0) for name, value in reached.free.items()}

    def degenerate(self, state: Params) -> bool:
        """A spread of 0 between groups is a sound estimate."""
        return False
