"""Coordinate ascent from many starts, of EM or of a mean field: together where that can be, otherwise in turn."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ..base.errors import FitError
from ..base.progress import Progress
from ..program.sites import Params
from .modes import Outcome
from .stopping import Stop

# Near a maximum the bound is flat: where it has converged to a tolerance, params are only near by its square root.
# A few more iterations, until they stand still, cost little and bring a fast run to all its digits. They also tell a
# maximum from a plateau, where gains are small for a while: there gains or moves do not shrink, and the run goes on.
SETTLE = 20
STILL = 1e-12
FAINT = 1e-6  # moves that need not shrink: as near as M-steps of their own iterations come


class Steps(Protocol):
    """One kind of coordinate ascent: R restarts side by side in each tensor (R, ...) of a state."""

    @property
    def together(self) -> bool:
        """Whether restarts can share a batch."""

    def bounds(self, state: Params) -> tuple[list[float], Any]:
        """The bound at a state, and what a step from there needs."""

    def improve(self, state: Params, expected: Any) -> Params:
        """The state after one iteration, none of its bounds lower."""

    def degenerate(self, state: Params) -> bool:
        """Whether a state (no R) is no sound estimate."""


@dataclass(frozen=True)
class Runner:
    """The loop: every restart until it has converged.

    Attributes
    ----------
    label : str
        The driver, for messages.
    settle : int
        Iterations at most, once the tolerance is met, until nothing moves; convergence is claimed where by then the
        tolerance is met over all of them, and moves do not grow.
    """

    steps: Steps
    stop: Stop
    max_iters: int
    label: str
    settle: int = SETTLE

    def all(self, starts: Params, progress: bool | None) -> tuple[list[Outcome], int]:
        """Every restart to its end; how many of them failed."""
        restarts = max((len(value) for value in starts.values()), default=1)
        batches = [starts] if self.steps.together else [pick(starts, [r]) for r in range(restarts)]
        bar = Progress(self.max_iters * len(batches), self.label, progress)
        outcomes: list[Outcome] = []
        lost: list[Outcome] = []
        try:
            for batch in batches:
                alone = replace(self, steps=copy(self.steps))  # steps that count themselves begin anew
                for outcome, sound in alone._each(batch, bar):
                    (outcomes if sound else lost).append(outcome)
        finally:
            bar.close()
        if not outcomes:
            raise FitError(
                f"{self.label}: the bound became NaN or infinite in every restart; "
                "look for a param that runs off (give it a prior or a bounded constraint), or start elsewhere",
                lost[0].params,
            )
        return outcomes, len(lost)

    def _each(self, params: Params, bar: Progress) -> list[tuple[Outcome, bool]]:
        """One batch of restarts; one by one where a singular matrix in one of them stops them all."""
        lead = max((len(value) for value in params.values()), default=1)
        try:
            return list(self.run(params, bar))
        except torch.linalg.LinAlgError:
            return [found for r in range(lead) for found in self.run(pick(params, [r]), bar)]

    def run(self, params: Params, bar: Progress) -> Iterable[tuple[Outcome, bool]]:
        """One batch of restarts; each leaves the batch when it has converged. Yields outcomes in the order of the
        starts.
        """
        starts = params
        lead = max((len(value) for value in params.values()), default=1)
        histories: list[list[float]] = [[] for _ in range(lead)]
        active = list(range(lead))
        done: dict[int, tuple[Outcome, bool]] = {}
        settling: dict[int, tuple[int, float]] = {}  # since which iteration, and how far params moved in it
        good = params
        for iteration in range(self.max_iters + 1):
            bounds, expected = self.steps.bounds(params)
            finished = []
            for place, number in enumerate(active):
                bound = bounds[place]
                sound = bound == bound and abs(bound) != float("inf")
                if sound:
                    histories[number].append(bound)
                history = histories[number]
                if number not in settling and sound and self.stop.met(history):
                    settling[number] = len(history), _moved(good, params, place)
                met = sound and number in settling
                over = not sound or iteration == self.max_iters
                if met:
                    since, first = settling[number]
                    move = _moved(good, params, place)
                    over = over or len(history) - since >= self.settle or move <= STILL
                    if over and not (self.stop.held(history[since - 1 :]) and move <= max(first, FAINT)):
                        del settling[number]
                        met, over = False, iteration == self.max_iters
                if over:
                    reached = {n: v[place] for n, v in (params if sound else good).items()}
                    begun = {n: v[number] for n, v in starts.items()}
                    degenerate = sound and self.steps.degenerate(reached)
                    done[number] = (Outcome(reached, histories[number], met, degenerate, begun), sound)
                    finished.append(place)
            left = [place for place in range(len(active)) if place not in finished]
            active = [active[place] for place in left]
            if not active:
                break
            if finished:
                params, expected = pick(params, left), _kept(expected, left)
            good = params  # of the iteration before, place by place
            bar.update(max(histories[number][-1] for number in active))
            with torch.no_grad():
                params = self.steps.improve(params, expected)
        return [done[number] for number in range(lead)]


def pick(state: Params, places: list[int]) -> Params:
    """Some of the restarts."""
    return {name: value[places] for name, value in state.items()}


def _moved(before: Params, now: Params, place: int) -> float:
    """Largest move of any cell in the last iteration, relative to 1 + its size."""
    moves = [
        ((now[n][place] - v[place]).abs() / (1 + v[place].abs())).max().item() for n, v in before.items() if v.numel()
    ]
    return max(moves, default=0.0)


def _kept(expected: Any, left: list[int]) -> Any:
    def of(value: Any) -> Any:  # what is the same in all restarts is held once
        return value[left] if len(value) > 1 else value

    sums = {name: (of(s1), of(s0)) for name, (s1, s0) in expected.sums.items()}
    return expected._replace(log_prob=of(expected.log_prob), sums=sums)
