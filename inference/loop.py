"""What every iterative driver shares: when to stop, what to show, and not losing what was reached."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any


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


class Progress:
    """A tqdm bar with the bound, shown where a person looks on: on a terminal, or when asked for."""

    def __init__(self, total: int, label: str, show: bool | None) -> None:
        self.bar: Any = None
        if show or (show is None and sys.stderr.isatty()):
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=label, leave=False)

    def update(self, bound: float, steps: int = 1, **shown: float) -> None:
        """Some iterations done; tqdm shows their rate."""
        if self.bar is not None:
            self.bar.update(steps)
            self.bar.set_postfix(bound=f"{bound:.6g}", **{k: f"{v:.2g}" for k, v in shown.items()}, refresh=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
