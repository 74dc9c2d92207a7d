"""One EM step of many restarts at once, as the runner of coordinate ascent takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..optimize.minibatches import batch_expectations
from ..program.estep import Expectations, expectations
from ..program.links import FLOORED, floor_of
from ..program.objective import log_prior
from ..program.program import Program
from ..program.sites import Params
from .mstep import m_step
from .plan import Plan, site_of


@dataclass(frozen=True)
class EMSteps:
    """An E-step and an M-step: the bound is log p(x), or log p(x, shared latents)."""

    program: Program
    plan: Plan
    weights: Tensor | None
    m_steps: int
    workers: int

    @property
    def together(self) -> bool:
        return not self.program.runs_model and not self.plan.climbed

    def bounds(self, state: Params) -> tuple[list[float], Any]:
        try:
            expected = expectations(self.program, state, self.weights, self.workers)
        except torch.linalg.LinAlgError:
            if len(next(iter(state.values()))) > 1:
                raise
            return [float("nan")], None
        with torch.no_grad():
            return (expected.log_prob + log_prior(self.program, state)).tolist(), expected

    def improve(self, state: Params, expected: Any) -> Params:
        try:
            return m_step(self.program, self.plan, state, expected, self.m_steps)
        except torch.linalg.LinAlgError:
            if len(next(iter(state.values()))) > 1:
                raise
            return {name: torch.full_like(value, float("nan")) for name, value in state.items()}

    @property
    def no_batches(self) -> str:
        unfit = bool(self.program.scored) or bool(self.plan.factored)
        return "its sites have no sufficient statistics of a row" if unfit else ""

    def batch_step(self, state: Params, expected: Any, rows: Tensor, rate: float) -> tuple[Params, Any]:
        found = batch_expectations(self.program, state, self.weights, rows)
        expected = _mixed(expected, found, rate)
        return m_step(self.program, self.plan, state, expected, self.m_steps), expected

    def degenerate(self, state: Params) -> bool:
        return is_degenerate(self.program, self.plan, state)


def _mixed(old: Expectations, new: Expectations, rate: float) -> Expectations:
    def between(a: Tensor, b: Tensor) -> Tensor:
        return torch.lerp(a.expand_as(b), b, rate)

    sums = {n: (between(old.sums[n][0], s1), between(old.sums[n][1], s0)) for n, (s1, s0) in new.sums.items()}
    return old._replace(sums=sums)


def is_degenerate(program: Program, plan: Plan, params: dict[str, Tensor]) -> bool:
    """Whether a learned variance stands on its floor."""
    if plan.floor == 0:
        return False
    batch = {name: value.unsqueeze(0) for name, value in params.items()}
    for name, uses in plan.closed.items():
        for use in uses:
            site = site_of(program, use.site)
            if use.argument not in FLOORED or site.variance is None:
                continue
            value = site.args[use.argument].of(batch)
            floor = plan.floor * floor_of(site, use.argument)
            if use.argument == "scale":
                if bool((value**2 <= floor * (1 + 1e-6)).any()) and name:
                    return True
                continue
            covariance = {"scale_tril": lambda v: v @ v.mT, "precision_matrix": torch.linalg.inv}.get(
                use.argument, lambda v: v
            )(value)
            unit = floor.diagonal(dim1=-2, dim2=-1).sqrt()
            scaled = covariance / unit.unsqueeze(-1) / unit.unsqueeze(-2)
            if bool((torch.linalg.eigvalsh(scaled)[..., 0] <= 1 + 1e-6).any()):
                return True
    return False
