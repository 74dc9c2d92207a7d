"""How much of the KL divergence counts, as it goes: warm-up, and free bits."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.errors import OptionError
from ..base.options import check_counts, check_options


@dataclass(frozen=True)
class Warmup:
    """The weight of the KL divergence rises in a line from `start` to 1 over the first `steps` steps (Bowman et al.
    2016), `cycles` times where that is asked for (Fu et al. 2019).

    With cycles the steps of one are followed by as many at 1.
    """

    steps: int
    start: float = 0.0
    cycles: int = 1

    def __post_init__(self) -> None:
        check_counts(steps=(self.steps, 1), cycles=(self.cycles, 1))
        check_options(start=(self.start, 0))
        if self.start > 1:
            raise OptionError(f"start: met {self.start!r}, expected a number from 0 to 1")

    def weight(self, step: int) -> float:
        """Of step 0, 1, ..."""
        if self.cycles > 1 and step < 2 * self.steps * self.cycles:
            step %= 2 * self.steps
        return min(1.0, self.start + (1 - self.start) * step / self.steps)

    @property
    def ends(self) -> int:
        """The step from which the weight stays 1."""
        return self.steps if self.cycles == 1 else 2 * self.steps * self.cycles - self.steps


@dataclass(frozen=True)
class FreeBits:
    """Each number of a latent may carry so many nats, on average over the rows, at no cost (Kingma et al. 2016)."""

    nats: float

    def __post_init__(self) -> None:
        check_options(nats=(self.nats, 0))
