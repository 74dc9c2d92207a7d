"""When a noisy ascent has come to rest, and what its last iterates say of each other.

At a fixed learning rate the iterates of a stochastic ascent become stationary around the optimum. They have when the
split R-hat of their recent past is near 1 (Welandawe, Andersen, Vehtari and Huggins 2024, "A framework for improving
the reliability of black-box variational inference"); their average is then far nearer the optimum than any of them,
with a Monte Carlo error that batch means estimate. Then the learning rate falls, until the bound gains no more by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

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

    every: int  # iterates in a block
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
