"""The loop of stochastic variational inference: Adam on one vector, learning rates that fall, and when to stop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..base.progress import Progress
from .stationarity import Iterates, gain

log = logging.getLogger("latentzoo.svi")

WINDOW = 50  # steps between two looks at the bound
FALL = 0.25  # the learning rate falls to this share of itself
STATIONARY = 1.1  # split R-hat of iterates at rest (Welandawe et al. 2024)
ACCURACY = 0.1  # Monte Carlo error wanted of the averaged iterates, in units of `Ascent.spread`
LOWEST = 1e-5  # of the first learning rate
BETAS = (0.9, 0.99)


class NotFinite(ArithmeticError):
    """The bound or its gradient is no number, or cannot be computed.

    Attributes
    ----------
    at : Tensor (P,), optional
        The point where that is so.
    """

    def __init__(self, at: Tensor | None = None) -> None:
        super().__init__("the bound or its gradient is no number")
        self.at = at


@dataclass
class State:
    """All that an ascent needs to go on: with the random state it is what a checkpoint holds."""

    x: Tensor
    momentum: Tensor
    square: Tensor
    rate: float
    step: int = 0
    since: int = 0  # steps at this learning rate
    level: float = -math.inf  # mean bound at rest, at the learning rate before
    length: float = 0.0  # running mean of the gradient's length
    converged: bool = False
    best: float = -math.inf  # the highest bound met, where it has no noise, and where that was
    best_x: Tensor = field(default_factory=lambda: torch.empty(0))
    bounds: list[float] = field(default_factory=list)
    iterates: Iterates = field(default_factory=lambda: Iterates(WINDOW // 2))
    sound: Tensor | None = None  # the last point whose bound and gradient were numbers

    @classmethod
    def start(cls, x: Tensor, rate: float) -> State:
        return cls(x, torch.zeros_like(x), torch.zeros_like(x), rate)


@dataclass(frozen=True)
class Ascent:
    """What is raised, and how.

    Attributes
    ----------
    bound : callable
        ``bound(x)``, a scalar estimate; one batch further on at every call.
    noisy : bool
        Whether two estimates at one point differ.
    spread : Tensor (P,)
        About the posterior standard deviation of each number: how near is near.
    watched : Tensor (P,) of bool
        The numbers whose rest is waited for.
    """

    bound: Callable[[Tensor], Tensor]
    noisy: bool
    spread: Tensor
    watched: Tensor
    rate: float
    tol: float
    clip: float

    def run(self, state: State, num_steps: int, bar: Progress, after: Callable[[State], Any]) -> State:
        """Step until the bound has come to rest, or `num_steps` are done. `after` is called between steps."""
        while state.step < num_steps and not state.converged:
            self.step(state)
            if state.since % WINDOW == 0:
                self.look(state)
                shown = sum(state.bounds[-WINDOW:]) / len(state.bounds[-WINDOW:])
                bar.update(shown, WINDOW, rate=state.rate)
                log.debug("step %d: bound %.6g, learning rate %.3g", state.step, shown, state.rate)
            after(state)
        return state

    def ended(self, state: State) -> Tensor:
        """Where a run ends up: at its best point where that is known, otherwise where it stands."""
        return state.best_x if not self.noisy and state.best > -math.inf else state.x

    def step(self, state: State) -> None:
        """One step of Adam (Kingma and Ba 2015) up the bound, its gradient clipped.

        Raises
        ------
        NotFinite
            There is none from here; then the state is back at the last point from which there was one.
        """
        value, gradient = self._met(state)
        length = float(torch.linalg.vector_norm(gradient))
        if not (math.isfinite(value) and math.isfinite(length)):
            raise self._back(state)
        state.sound = state.x
        if not self.noisy and value > state.best:
            state.best, state.best_x = value, state.x
        state.step += 1
        state.since += 1
        state.bounds.append(value)
        if self.clip and state.step > WINDOW and length > self.clip * state.length:
            gradient = gradient * (self.clip * state.length / length)
            length = self.clip * state.length
        share = max(0.02, 1 / state.step)
        state.length += share * (length - state.length)
        state.momentum.lerp_(gradient, 1 - BETAS[0])
        state.square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        level = (1 - BETAS[1] ** state.step) ** 0.5
        step_size = level * state.rate / (1 - BETAS[0] ** state.step)
        state.x = torch.addcdiv(state.x, state.momentum, state.square.sqrt().add_(1e-12 * level), value=step_size)
        if self.noisy:
            state.iterates.add(state.x)

    def _met(self, state: State) -> tuple[float, Tensor]:
        """The bound where a state is, and its gradient."""
        try:
            with torch.enable_grad():  # a caller may have turned it off
                x = state.x.detach().requires_grad_()
                bound = self.bound(x)
            return float(bound.detach()), torch.autograd.grad(bound, x)[0]
        except torch.linalg.LinAlgError:
            raise self._back(state) from None

    def _back(self, state: State) -> NotFinite:
        at = state.x
        state.x = at if state.sound is None else state.sound
        return NotFinite(at)

    def look(self, state: State) -> None:
        """Is the ascent at rest at this learning rate? Then average, and lower the rate, or end."""
        recent = state.bounds[-state.since :]
        if not self.noisy:
            if len(recent) <= WINDOW:
                return
            rise, room = max(recent[-WINDOW:]) - max(recent[:-WINDOW]), self.tol * (1 + abs(state.best))
            if rise <= room:
                state.x, state.momentum = state.best_x, torch.zeros_like(state.x)
                self._lower(state, state.best, room)
            return
        if state.since % (4 * WINDOW) or state.since < 8 * WINDOW:
            return
        half = recent[len(recent) // 2 :]
        rise, error = gain(half)
        room = self.tol * (1 + abs(half[-1])) + 2 * error
        still = state.iterates.r_hat(self.watched) <= STATIONARY and rise <= 2 * error
        at_rest = still or (rise <= error and state.since >= 32 * WINDOW)
        near = state.iterates.error(ACCURACY * self.spread, self.watched) <= 1
        first = state.level == -math.inf
        if at_rest and (near or first):
            level = sum(half) / len(half)
            state.x = state.iterates.average()
            self._lower(state, level, room)

    def _lower(self, state: State, level: float, room: float) -> None:
        done = level - state.level <= room or state.rate <= LOWEST * self.rate
        log.info("step %d: at rest at learning rate %.3g, bound %.6g", state.step, state.rate, level)
        state.level = level
        if done:
            state.converged = True
            return
        state.rate *= FALL
        state.since = 0
        state.iterates = Iterates(WINDOW // 2)
