"""Coordinate ascent by minibatches: stepwise EM (Cappé and Moulines 2009), and natural-gradient variational inference
(Hoffman, Blei, Wang and Paisley 2013).

A batch of B rows of N gives expected statistics that, times N / B, are those of all rows in the mean. EM moves its
running statistics towards them by a step rho_t, and maximises; a mean field moves the natural parameters of each factor
by rho_t towards the optimum that the batch asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ..base.errors import OptionError
from ..base.options import check_options
from ..data.batches import Batches
from ..program.estep import Expectations, expectations
from ..program.program import Program
from ..program.sites import Params
from .coordinate_ascent import Steps


@runtime_checkable
class BatchSteps(Steps, Protocol):
    """Steps that a batch of rows can take."""

    @property
    def no_batches(self) -> str:
        """Why batches cannot serve the model; nothing where they can."""

    def batch_step(self, state: Params, expected: Any, rows: Tensor, rate: float) -> tuple[Params, Any]:
        """The state moved by `rate` towards what a batch asks for, and the running statistics."""


@dataclass
class Stepwise:
    """`Steps` whose iterations are passes over the data in batches; bounds are of all rows, and exact.

    Attributes
    ----------
    inner : BatchSteps
        What one step on all rows would do.
    count : int
        Steps so far.
    """

    inner: BatchSteps
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
            state, expected = self.inner.batch_step(state, expected, rows, self.schedule.rate(self.count))
        return state


def batch_expectations(program: Program, params: Params, weights: Tensor | None, rows: Tensor) -> Expectations:
    """Expected statistics of a batch, times N / B."""
    share = None if weights is None else weights[rows]
    found = expectations(program.on_rows(rows), params, share, workers=1)
    scale = program.num_rows / len(rows)
    return found._replace(sums={name: (s1 * scale, s0 * scale) for name, (s1, s0) in found.sums.items()})


def stepwise(
    inner: BatchSteps, batch_size: int, num_rows: int, schedule: Schedule | None, seed: int, driver: str
) -> Steps:
    """The passes of a driver by batches.

    Raises
    ------
    OptionError
        More rows than there are, or a model that batches cannot serve.
    """
    if not 1 <= batch_size <= num_rows:
        raise OptionError(f"batch_size: met {batch_size}, expected a whole number from 1 to {num_rows}, the rows")
    if inner.no_batches:
        raise OptionError(
            f"{driver}: batch_size: the model cannot be fitted by batches ({inner.no_batches}): leave it out"
        )
    return Stepwise(inner, Batches(num_rows, batch_size, seed + 1), schedule or Schedule())


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
