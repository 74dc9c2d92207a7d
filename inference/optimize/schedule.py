"""Step sizes of stochastic approximation (Robbins and Monro 1951)."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.errors import OptionError
from ..base.options import check_options


@dataclass(frozen=True)
class Schedule:
    """Step t has size ``(t + delay) ** -forgetting`` (Hoffman, Blei, Wang and Paisley 2013, equation 26).

    Attributes
    ----------
    delay : float
        Down-weights the first steps; not negative.
    forgetting : float
        How quickly old batches are forgotten: above 0.5 and at most 1, without which the steps do not converge.
    """

    delay: float = 1.0
    forgetting: float = 0.7

    def __post_init__(self) -> None:
        check_options(delay=(self.delay, 0), forgetting=(self.forgetting, 0))
        if not 0.5 < self.forgetting <= 1:
            raise OptionError(f"forgetting: met {self.forgetting!r}, expected a number above 0.5 and at most 1")

    def rate(self, step: int) -> float:
        """The size of step 1, 2, ...; never above 1."""
        return float(min(1.0, (step + self.delay) ** -self.forgetting))
