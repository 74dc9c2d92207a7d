"""When an ascent has come to rest.

At a fixed learning rate the iterates of a stochastic ascent become stationary around the optimum. They have when the
split R-hat of their recent past is near 1 (Welandawe, Andersen, Vehtari and Huggins 2024, "A framework for improving
the reliability of black-box variational inference"); their average is then far nearer the optimum than any of them,
with a Monte Carlo error that batch means estimate. An ascent without noise is at rest where its best bound has not
risen for a while, one of many weights where patience with its bound is at an end. Then the learning rate falls, until
the bound gains no more by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

WINDOW = 50  # steps, at least, between two looks at the bound
R_HAT = 1.1  # of iterates at rest (Welandawe et al. 2024)
ACCURACY = 0.1  # Monte Carlo error wanted of the averaged iterates, in units of the spread
MOST = 32  # blocks kept; when there are more, neighbours are merged, so memory does not grow


class Block(NamedTuple):
    """Moments of successive iterates."""

    size: int  # how many
    mean: Tensor  # (P,)
    square: Tensor  # (P,) sum of squared deviations

    def merge(self, other: Block) -> Block:
        """Both together (Chan, Golub and LeVeque 1979)."""
        size = self.size + other.size
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.size / size)
        return Block(size, mean, self.square + other.square + delta**2 * (self.size * other.size / size))


@dataclass
class Iterates:
    """The iterates at one learning rate, in blocks."""

    every: int = WINDOW // 2  # iterates in a block
    blocks: list[Block] = field(default_factory=list)
    count: int = 0  # in the block that is open
    first: Tensor = field(default_factory=lambda: torch.empty(0))
    sums: Tensor = field(default_factory=lambda: torch.empty(0))  # of deviations from its first iterate
    squares: Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, x: Tensor) -> None:
        """One more iterate."""
        if self.count == 0:
            self.first, self.sums, self.squares = x.clone(), torch.zeros_like(x), torch.zeros_like(x)
        else:
            away = x - self.first
            self.sums.add_(away)
            self.squares.addcmul_(away, away)
        self.count += 1
        if self.count >= self.every:
            mean = self.sums / self.count
            self.blocks.append(Block(self.count, self.first + mean, self.squares - self.count * mean**2))
            self.count = 0
            if len(self.blocks) > MOST:
                self.blocks = [a.merge(b) for a, b in zip(self.blocks[::2], self.blocks[1::2], strict=False)]
                self.every *= 2

    def state_dict(self) -> dict[str, Any]:
        return vars(self)

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Iterates:
        """As it was, on a device."""
        found: dict[str, Any] = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in state.items()}
        found["blocks"] = [Block(size, mean.to(device), square.to(device)) for size, mean, square in state["blocks"]]
        return cls(**found)

    def last_half(self) -> list[Block]:
        """The more recent half of the blocks."""
        return self.blocks[len(self.blocks) // 2 :]

    def average(self) -> Tensor:
        """Mean of the recent half."""
        return _merged(self.last_half()).mean

    def r_hat(self, watched: Tensor) -> float:
        """Split R-hat of the recent half, of the worst number watched (Gelman et al. 2013, 11.4)."""
        recent = self.last_half()
        if len(recent) < 4:
            return float("inf")
        first, second = _merged(recent[: len(recent) // 2]), _merged(recent[len(recent) // 2 :])
        n = min(first.size, second.size)
        within = (first.square / (first.size - 1) + second.square / (second.size - 1)) / 2
        between = n * (first.mean - second.mean) ** 2 / 2
        ratio = torch.where(within > 0, ((n - 1) / n * within + between / n) / within.clamp_min(1e-300), 1.0)
        return float(ratio[watched].max().sqrt())

    def error(self, wanted: Tensor, watched: Tensor) -> float:
        """Monte Carlo standard error of the average, in units of `wanted` (P,), of the worst number watched."""
        recent = self.last_half()
        if len(recent) < 4:
            return float("inf")
        means = torch.stack([block.mean for block in recent])
        return float((means.std(0) / len(recent) ** 0.5 / wanted)[watched].max())  # by batch means


def _merged(blocks: list[Block]) -> Block:
    whole = blocks[0]
    for block in blocks[1:]:
        whole = whole.merge(block)
    return whole


def gain(bounds: list[float]) -> tuple[float, float]:
    """Rise of the mean from the first to the second half of some bounds, and its standard error (by batch means)."""
    values = torch.tensor(bounds, dtype=torch.float64)
    size = len(values) // 8
    batches = values[-8 * size :].reshape(8, size).mean(1)
    first, second = batches[:4], batches[4:]
    error = ((first.var() + second.var()) / 4).sqrt()
    return float(second.mean() - first.mean()), float(error)


@dataclass
class State:
    """Where an ascent stands, beside what is learned and the optimizer."""

    rate: float
    step: int = 0
    since: int = 0  # steps at this learning rate
    rested: float = -math.inf  # the bound at rest, at the learning rate before
    highest: float = -math.inf  # bound of a look
    waited: int = 0  # looks since that
    length: float = 0.0  # running mean of the gradient's
    converged: bool = False
    best_bound: float = -math.inf  # the highest that is known without noise, and what was learned there
    best: dict[str, Tensor] = field(default_factory=dict)
    bounds: list[float] = field(default_factory=list)
    iterates: Iterates = field(default_factory=Iterates)

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        bounds = torch.tensor(self.bounds, dtype=torch.float64, device="cpu")
        return {**vars(self), "bounds": bounds, "iterates": self.iterates.state_dict()}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> State:
        """As it was, on a device."""
        best = {name: value.to(device) for name, value in state["best"].items()}
        iterates = Iterates.from_state(state["iterates"], device)
        return cls(**{**state, "best": best, "bounds": state["bounds"].tolist(), "iterates": iterates})


class Rest(NamedTuple):
    """An ascent at rest at its learning rate."""

    level: float  # of the bound
    room: float  # what a lower rate must gain
    point: dict[str, Tensor]  # to go on from; empty for where it stands


@dataclass(frozen=True)
class IteratesStationary:
    """Of a noisy bound, of one vector of numbers: its iterates are stationary, and their average is known well.

    Attributes
    ----------
    spread : Tensor (P,)
        About the posterior standard deviation of each number: how near is near.
    watched : Tensor (P,) of bool
        The numbers whose rest is waited for.
    """

    tol: float
    spread: Tensor
    watched: Tensor
    lowest: float = 1e-5

    def look(self, state: State) -> Rest | None:
        if state.since % (4 * WINDOW) or state.since < 8 * WINDOW:
            return None
        half = state.bounds[-(state.since // 2) :]
        rise, error = gain(half)
        still = state.iterates.r_hat(self.watched) <= R_HAT and rise <= 2 * error
        at_rest = still or (rise <= error and state.since >= 32 * WINDOW)
        near = state.iterates.error(ACCURACY * self.spread, self.watched) <= 1
        if not at_rest or not (near or state.rested == -math.inf):
            return None
        room = self.tol * (1 + abs(half[-1])) + 2 * error
        return Rest(sum(half) / len(half), room, {"x": state.iterates.average()})


@dataclass(frozen=True)
class PatienceEnded:
    """Of a bound without noise, or of many weights: so many looks have not found it higher.

    Attributes
    ----------
    level : callable
        Where the bound stands, by the state.
    after : int
        Steps without looks, as long as the bound itself changes.
    keep : callable, optional
        What is learned, to be kept where the level is highest.
    """

    tol: float
    patience: int
    level: Callable[[State], float]
    after: int = 0
    keep: Callable[[], dict[str, Tensor]] | None = None
    lowest: float = 1e-5

    def look(self, state: State) -> Rest | None:
        if state.step <= self.after:
            return None
        level = self.level(state)
        if self.keep is not None and level > state.best_bound:
            state.best_bound, state.best = level, self.keep()
        room = self.tol * (1 + abs(state.highest)) if math.isfinite(state.highest) else 0.0
        if level > state.highest + room:
            state.highest, state.waited = level, 0
            return None
        state.waited += 1
        if state.waited < self.patience or self.tol <= 0:
            return None
        return Rest(state.highest, room, state.best)


Plateau = IteratesStationary | PatienceEnded
