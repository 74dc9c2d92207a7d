"""Coordinate ascent by minibatches: stepwise EM (Cappé and Moulines 2009), and natural-gradient variational inference
(Hoffman, Blei, Wang and Paisley 2013).

A batch of B rows of N gives expected statistics that, times N / B, are those of all rows in the mean. EM moves its
running statistics towards them by a step rho_t, and maximises; a mean field moves the natural parameters of each factor
by rho_t towards the optimum that the batch asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batches import Batches
from .errors import OptionError
from .estep import Expectations, expectations
from .loop import Stop
from .mstep import m_step
from .objective import on_rows
from .program import Program
from .runner import EMSteps, Steps
from .schedule import Schedule
from .sites import Params
from .sweeps import Sweeps

STILL = 3  # passes without a gain
NOISE = 1e-6  # relative tolerance at the least: steps that shrink never come quite to rest


@dataclass(frozen=True)
class Settled(Stop):
    """Stop when the best bound of the last passes is hardly better than that before: passes are noisy."""

    def met(self, history: list[float]) -> bool:
        if self.tol <= 0 or len(history) <= STILL:
            return False
        return max(history[-STILL:]) - max(history[:-STILL]) <= max(self.tol, NOISE) * (1 + abs(history[-1]))


@dataclass
class Stepwise:
    """`runner.Steps` whose iterations are passes over the data in batches; bounds are of all rows, and exact.

    Attributes
    ----------
    inner : EMSteps or Sweeps
        What one step on all rows would do.
    count : int
        Steps so far.
    """

    inner: EMSteps | Sweeps
    batches: Batches
    schedule: Schedule
    count: int = 0

    @property
    def together(self) -> bool:
        return self.inner.together

    def bounds(self, state: Params) -> tuple[list[float], Any]:
        return self.inner.bounds(state)

    def degenerate(self, state: Params) -> bool:
        return self.inner.degenerate(state)

    def improve(self, state: Params, expected: Any) -> Params:
        assert self.batches.size is not None
        for _ in range(self.batches.num_rows // self.batches.size):
            rows = self.batches.next()
            assert rows is not None
            self.count += 1
            rate = self.schedule.rate(self.count)
            if isinstance(self.inner, EMSteps):
                expected = _mixed(expected, self._statistics(self.inner.program, state, rows), rate)
                state = m_step(self.inner.program, self.inner.plan, state, expected, self.inner.m_steps)
            else:
                state = self._natural_step(self.inner, state, rows, rate)
        return state

    def _natural_step(self, sweeps: Sweeps, state: Params, rows: Tensor, rate: float) -> Params:
        field = sweeps.field
        means = dict(field.means(state))
        stats = self._statistics(field.program, field.moments(means), rows)
        out = {}
        for name, eta in state.items():
            out[name] = torch.lerp(eta, field.update(name, means, stats), rate)
            means[name] = field.families[name].mean(out[name])
        return out

    def _statistics(self, program: Program, params: Params, rows: Tensor) -> Expectations:
        """Of a batch, times N / B."""
        share = None if self.inner.weights is None else self.inner.weights[rows]
        found = expectations(on_rows(program, rows), params, share, workers=1)
        scale = program.num_rows / len(rows)
        return found._replace(sums={name: (s1 * scale, s0 * scale) for name, (s1, s0) in found.sums.items()})


def _mixed(old: Expectations, new: Expectations, rate: float) -> Expectations:
    def between(a: Tensor, b: Tensor) -> Tensor:
        return torch.lerp(a.expand_as(b), b, rate)

    sums = {n: (between(old.sums[n][0], s1), between(old.sums[n][1], s0)) for n, (s1, s0) in new.sums.items()}
    return old._replace(sums=sums)


def stepwise(
    inner: EMSteps | Sweeps, batch_size: int, num_rows: int, schedule: Schedule, seed: int, driver: str
) -> Steps:
    """The passes of a driver by batches.

    Raises
    ------
    OptionError
        More rows than there are, or a model that batches cannot serve.
    """
    if not 1 <= batch_size <= num_rows:
        raise OptionError(f"batch_size: met {batch_size}, expected a whole number from 1 to {num_rows}, the rows")
    why = ""
    if isinstance(inner, EMSteps):
        if inner.program.scored or inner.plan.factored:
            why = "its sites have no sufficient statistics of a row"
    elif inner.params or inner.field.bilinear:
        why = "it has params, or latents that multiply"
    if why:
        raise OptionError(f"{driver}: batch_size: the model cannot be fitted by batches ({why}): leave it out")
    return Stepwise(inner, Batches(num_rows, batch_size, seed + 1), schedule)
