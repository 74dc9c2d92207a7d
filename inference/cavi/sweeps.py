"""One sweep of coordinate ascent over a mean field: the latents of rows, every factor in turn, then the params."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import identity_transform, transform_to

from ..base.errors import ModelError
from ..families.factors import Point
from ..optimize.minibatches import batch_expectations
from ..optimize.newton import ROUNDING, lbfgs
from ..program.estep import Expectations, expectations
from ..program.sites import Params
from .mean_field import MeanField
from .moments import Means

LONGEST = 16.0  # leap, in steps: far out rounding would speak louder than the bound


@dataclass(frozen=True)
class Sweeps:
    """Algorithm 1 of coordinate ascent (Blei et al. 2017), as `runner.Steps`.

    With `accelerate` every third sweep starts from where the two before it were heading, and is kept where the bound
    is higher for it: products of latents (factor models) would take thousands of sweeps without.

    A state holds the natural parameters (R, *B, T) of every factor, and the params (R, *shape).
    """

    field: MeanField
    weights: Tensor | None
    m_steps: int
    workers: int
    accelerate: bool = False

    @property
    def params(self) -> list[str]:
        """What is learned by gradient: params, as points, and factors without a closed form."""
        return [name for name, family in self.field.families.items() if family.learned]

    @property
    def together(self) -> bool:
        return not self.params and not self.field.bilinear and not self.accelerate

    def expect(self, means: Means) -> Expectations:
        """The latents of rows, given the factors: an E-step under expected natural parameters."""
        program = self.field.program
        if not (program.products or program.latents or program.scored):
            return Expectations(torch.zeros(1, dtype=torch.float64), {}, {})
        with torch.no_grad():
            return expectations(program, self.field.moments(means), self.weights, self.workers)

    def first(self, values: Params) -> Params:
        """The state after a sweep from factors that stand at points."""
        means = self.field.starts(values)
        return self.sweep(means, self.expect(means))

    def bounds(self, state: Params) -> tuple[list[float], Any]:
        """The evidence lower bound, exactly, (R,)."""
        try:
            with torch.no_grad():
                means = self.field.means(state)
                stats = self.expect(means)
                bound = stats.log_prob + self.field.products(means) - self.field.cost(state, means)
                return bound.tolist(), stats
        except torch.linalg.LinAlgError:
            if len(next(iter(state.values()))) > 1:
                raise
            return [float("nan")], None

    def improve(self, state: Params, expected: Any) -> Params:
        with torch.no_grad():
            once = self.sweep(self.field.means(state), expected)
            if not self.accelerate:
                return once
            twice = self.sweep(self.field.means(once), self.expect(self.field.means(once)))
            further = self._leap(state, once, twice)
            return twice if further is None or self._bound(further) < self._bound(twice) else further

    def _leap(self, state: Params, once: Params, twice: Params) -> Params | None:
        """A sweep from where two sweeps were heading (SQUAREM; Varadhan and Roland 2008), each factor by a length of
        its own; None where that is no factor.
        """
        ahead = dict(twice)
        for name in self.field.params:
            family = self.field.families[name]
            first, second, third = (family.coordinates(one[name]) for one in (state, once, twice))
            step, turn = second - first, third - 2 * second + first
            length = min(max(1.0, float(step.norm() / turn.norm().clamp_min(1e-300))), LONGEST)
            ahead[name] = family.at(first + 2 * length * step + length**2 * turn)
            if not isinstance(family, Point) and not bool(family.proper(ahead[name]).all()):
                return None
        means = self.field.means(ahead)
        return self.sweep(means, self.expect(means))

    def _bound(self, state: Params) -> float:
        bound = self.bounds(state)[0][0]
        return bound if bound == bound else float("-inf")

    @property
    def no_batches(self) -> str:
        return "it has params, or latents that multiply" if self.params or self.field.bilinear else ""

    def batch_step(self, state: Params, expected: Any, rows: Tensor, rate: float) -> tuple[Params, Any]:
        field = self.field
        means = dict(field.means(state))
        stats = batch_expectations(field.program, field.moments(means), self.weights, rows)
        out = {}
        for name, eta in state.items():
            out[name] = torch.lerp(eta, field.update(name, means, stats), rate)
            means[name] = field.families[name].mean(out[name])
        return out, stats

    def degenerate(self, state: Params) -> bool:
        return False

    def sweep(self, means: Means, stats: Expectations) -> Params:
        """Every factor in the order of the model, then the params."""
        means = dict(means)
        state: Params = {}
        for name, family in self.field.families.items():
            if not family.learned:
                state[name] = self.field.update(name, means, stats)
                self.check(name, state[name])
                means[name] = family.mean(state[name])
        if self.params:
            state |= self.learn(means, stats)
        return {name: state[name] for name in self.field.families}

    def learn(self, means: Means, stats: Expectations) -> Params:
        """An M-step: L-BFGS up the expected log density, and the entropy of the factors, of one restart."""
        names = self.params
        transforms = {
            name: transform_to(self.field.params[name].constraint)
            if isinstance(self.field.families[name], Point)
            else identity_transform
            for name in names
        }
        sites = frozenset().union(*(self.field.touching(name) for name in names))

        def objective(free: dict[str, Tensor]) -> Tensor:
            now = {**means, **{name: transforms[name](value) for name, value in free.items()}}
            return (self.field.log_prob(now, stats, sites) - self.field.negentropy(now)).sum()

        free = {name: transforms[name].inv(means[name]).detach().clone() for name in names}
        with torch.enable_grad():
            before = objective(free).detach()
            reached = lbfgs(free, objective, self.m_steps)
        gain = reached.value - before
        if not torch.isfinite(gain) or gain < -ROUNDING * before.abs():
            return {name: means[name] for name in names}
        return {name: transforms[name](value) for name, value in reached.free.items()}

    def check(self, name: str, eta: Tensor) -> None:
        """A factor that is no distribution cannot be: a prior is improper, or a site is not what it seems."""
        if bool(eta.isnan().any()):  # the bound says so, and the restart is given up
            return
        if not bool(self.field.families[name].proper(eta).all()):
            raise ModelError(
                f"cavi: the optimal factor of '{name}' is no {self.field.families[name].name} distribution: look at "
                f'the arguments of its prior (each must be in its support), or use inference="svi"'
            )
