"""Times of two sides, turn by turn, and the line of the table that they make."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    """One line of the table."""

    job: str
    peer: str
    ours: str
    theirs: str
    ratio: float
    target: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return 0 < self.ratio <= self.target if self.at_most else self.ratio >= self.target


def alternate(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Medians of what both return, turn by turn."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def per_iteration(run: Callable[[int], object], few: int = 1, many: int = 6) -> float:
    """Seconds per iteration, from the difference of two runs."""
    times = []
    for count in (few, many):
        start = time.perf_counter()
        run(count)
        times.append(time.perf_counter() - start)
    return (times[1] - times[0]) / (many - few)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def timed(
    job: str, peer: str, ours: Callable[[], float], theirs: Callable[[], float], rounds: int, target: float
) -> Row:
    mine, other = alternate(ours, theirs, rounds)
    return Row(job, peer, f"{mine * 1e3:.1f} ms", f"{other * 1e3:.1f} ms", other / mine, target)
