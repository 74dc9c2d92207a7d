"""What every iterative driver shares: when to stop, what to show, and not losing what was reached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stop:
    """Stop when the bound has almost no way left to go.

    The increments of EM shrink geometrically, so the way left is the last increment times a / (1 - a), with a the
    ratio of the last two (Aitken; Boehning et al. 1994). The rule is met when both the last increment and the way left
    are at most ``tol * (1 + |bound|)``; a run has converged when further iterations bear it out (`held`). ``tol=0``
    never stops early.
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
        return _way_left(step, before) <= room

    def held(self, window: list[float]) -> bool:
        """Whether the bounds since the rule was met bear it out: gains of its second half against those of the first,
        and of its last quarter against those of the third. On a plateau the gains of what converges fast die away,
        those of what is slow remain, and those of what leaves it rise.
        """
        room, rounding = (scale * (1 + abs(window[-1])) for scale in (self.tol, 1e-13))
        for span in {(len(window) - 1) // 2, (len(window) - 1) // 4} - {0}:
            last, before = window[-1] - window[-1 - span], window[-1 - span] - window[-1 - 2 * span]
            if last > rounding and _way_left(last, before) > room:
                return False
        return True


def _way_left(step: float, before: float) -> float:
    """All further gains, if each is to the one before as these two are."""
    ratio = step / before if before > 0 else 1.0
    return step * ratio / (1 - ratio) if ratio < 1 else float("inf")


STILL = 3  # passes without a gain
NOISE = 1e-6  # relative tolerance at the least: steps that shrink never come quite to rest


@dataclass(frozen=True)
class Settled(Stop):
    """Stop when the best bound of the last passes is hardly better than that before: passes are noisy."""

    def met(self, history: list[float]) -> bool:
        if self.tol <= 0 or len(history) <= STILL:
            return False
        return max(history[-STILL:]) - max(history[:-STILL]) <= max(self.tol, NOISE) * (1 + abs(history[-1]))

    def held(self, window: list[float]) -> bool:
        return True
