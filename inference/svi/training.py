"""From starts to what was reached: a race, the ascent of its winner with checkpoints, and how it ended in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeVar

from ..base.progress import Progress
from ..optimize.modes import Reached
from .ascent import Ascent, NotFinite
from .checkpoints import Checkpoints, Tree, copied
from .options import SVIOptions

RACE = 200  # steps of each start before the best goes on


class Climber(Protocol):
    """One start at work."""

    @property
    def ascent(self) -> Ascent:
        """Its ascent."""


C = TypeVar("C", bound=Climber)
Begin = Callable[[int, bool], AbstractContextManager[C]]  # which start, and whether to race: it at work, for a while


class Raced(NamedTuple):
    """Where all starts stood after a few steps."""

    number: int  # of the best
    tree: Tree | None  # its state
    ends: list[float]  # mean bound of the last steps of each
    stopped: BaseException | None


@contextmanager
def trained(
    begin: Begin[C], starts: int, saver: Checkpoints, num_steps: int, bar: Progress
) -> Iterator[tuple[C, list[float], BaseException | None]]:
    """The best of some starts where its ascent has ended, where all stood after the race, and what stopped it, if
    anything did.
    """
    found = saver.read()
    try:
        if found is not None:
            raced = Raced(found["number"], found["ascent"], found["ends"], None)
        else:
            raced = _race(begin, starts, min(RACE, num_steps))
        number, tree, ends, stopped = raced
        with begin(number, False) as one:
            ascent = one.ascent
            if tree is not None:
                ascent.load_state_dict(tree)

            def state() -> Tree:
                return {"number": number, "ends": ends, "ascent": ascent.state_dict()}

            try:
                if stopped is None:
                    ascent.run(num_steps, bar, lambda: saver.maybe(ascent.state.step, state))
                    saver.write(ascent.state.step, state)
            except (KeyboardInterrupt, NotFinite) as what:
                stopped = what
            bar.close()
            ascent.settle()
            yield one, ends, stopped
    finally:
        bar.close()


def _race(begin: Begin[C], starts: int, num_steps: int) -> Raced:
    """A few steps from every start, each with the same draws; Ctrl-C ends it."""
    number, tree, stopped = 0, None, None
    ends: list[float] = []
    for n in range(starts if starts > 1 and num_steps else 0):
        with begin(n, True) as one:
            ascent = one.ascent
            try:
                ascent.run(num_steps, Progress(0, "", False), lambda: None)
            except NotFinite:
                ends.append(float("-inf"))
                continue
            except KeyboardInterrupt as what:
                stopped = what
            recent = ascent.state.bounds[-max(1, num_steps // 4) :]
            ends.append(sum(recent) / len(recent) if recent else float("-inf"))
            if tree is None or ends[n] > max(ends[:n]):
                number, tree = n, copied(ascent.state_dict())
        if stopped is not None:
            break
    return Raced(number, tree, ends, stopped)


def told(
    reached: Reached, ascent: Ascent, stopped: BaseException | None, options: SVIOptions, cause: str, way_out: str
) -> Reached:
    """With words on how it ended; of numbers that are none the cause, and the way out."""
    steps = ascent.state.step
    if isinstance(stopped, NotFinite):
        rate = f"lower learning_rate (here {options.learning_rate:g})"
        return replace(reached, failure=f"{cause} after {steps} steps: {rate}, or {way_out}")
    if stopped is not None:
        return replace(reached, note=f"interrupted after {steps} steps; the fit is what had been reached")
    if options.tol > 0 and not ascent.state.converged:
        return replace(reached, note=f"the bound had not come to rest after {steps} steps: raise num_steps, or tol")
    return reached
