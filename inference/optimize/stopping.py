"""What every iterative driver shares: when to stop, what to show, and not losing what was reached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stop:
    """Stop when the bound has almost no way left to go.

    The increments of EM shrink geometrically, so the way left is the last increment times a / (1 - a), with a the
    ratio of the last two (Aitken; Boehning et al. 1994). A run has converged when both the last increment and the way
    left are at most ``tol * (1 + |bound|)``. ``tol=0`` never stops early.
    """

    tol: float

    def met(self, history: list[float]) -> bool:
        """Whether the bounds so far satisfy the rule."""
        if self.tol <= 0 or len(history) < 2:
            return False
        step, room = history[-1] - history[-2], self.tol * (1 + abs(history[-1]))
        if step > room:
            return False
        if step <= 1e-14 * (1 + abs(history[-1])):  # nothing but rounding is left
            return True
        if len(history) < 3:
            return False
        before = history[-2] - history[-3]
        ratio = step / before if before > 0 else 1.0
        return ratio < 1 and step * ratio / (1 - ratio) <= room


STILL = 3  # passes without a gain
NOISE = 1e-6  # relative tolerance at the least: steps that shrink never come quite to rest


@dataclass(frozen=True)
class Settled(Stop):
    """Stop when the best bound of the last passes is hardly better than that before: passes are noisy."""

    def met(self, history: list[float]) -> bool:
        if self.tol <= 0 or len(history) <= STILL:
            return False
        return max(history[-STILL:]) - max(history[:-STILL]) <= max(self.tol, NOISE) * (1 + abs(history[-1]))
