"""From starts to what was reached: a race, the ascent of its winner with checkpoints, and how it ended in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ..base.progress import Progress
from ..base.unconstrained import Parts
from ..optimize.modes import Reached
from ..trace.handlers import Bind, run, sample_sites
from ..trace.provenance import symbols_of
from .ascent import Ascent, NotFinite
from .checkpoints import Checkpoints, Tree, copied
from .guide import NormalGuide
from .objective import Objective
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


ERROR = 0.02  # nats of standard error that are small enough
FEWEST = 8  # estimates, from which the error is known
DRAWS = 256  # of an estimate
LEAST, MOST = 16, 2_048  # draws of all rows that are always taken, the more the fewer rows there are
SHARE = 0.3  # of the draws of all steps
QUICK = 2_000_000  # rows, times draws, that take little time


class Level(NamedTuple):
    """A bound, and its standard error in nats."""

    bound: float
    error: float


def affordable(ascent: Ascent, particles: int) -> float:
    """Draws of all rows that may be spent on the bound that an ascent has reached: a share of those of its steps."""
    batches = ascent.batches
    return SHARE * particles * ascent.state.step * (batches.size or batches.num_rows) / batches.num_rows


def measured(pieces: Sequence[Callable[[], float]], most: int) -> Level:
    """The sum of some pieces, each estimated again and again until the standard error is small; no longer where that
    would take more than `most` times.

    The pieces, and the estimates of each, are independent.
    """
    found: list[list[float]] = []
    while True:
        found.append([piece() for piece in pieces])
        if len(found) < FEWEST:
            continue
        if len(found).bit_count() == 1:  # twice as many as at the last look
            each = torch.tensor(found, dtype=torch.float64, device="cpu")
            level = Level(float(each.mean(0).sum()), float((each.var(0) / len(each)).sum().sqrt()))
            if level.error <= ERROR or len(each) * (level.error / ERROR) ** 2 > most:
                return level


def level_of(objective: Objective, free: Parts, full: int, most: float) -> Level:
    """Of a guide: on all rows, up to `full` of them at a time, from draws alone; those of a normal guide spread evenly,
    as many as are independent in the bounds that weigh them.

    Parameters
    ----------
    most : float
        Draws of all rows that may be taken, where an error is wanted that small.
    """
    program, sampler, num = objective.program, objective.sampler, objective.particles
    total = int(max(LEAST, min(MOST, QUICK // program.size), most))
    if objective.alpha == 1.0:
        num = max(2, min(DRAWS, total // FEWEST) // 2 * 2)
        sampler = replace(sampler, even=True) if isinstance(sampler, NormalGuide) else sampler
    objective = replace(objective, sampler=sampler, particles=num, closed=False)
    split = list(torch.arange(program.num_rows, device="cpu").split(full))

    def piece(rows: Tensor | None) -> Callable[[], float]:
        share = 1.0 if rows is None else len(rows) / program.num_rows  # an estimate is one of all rows
        return lambda: share * float(objective(free, rows))

    pieces = [piece(None)] if len(split) == 1 else [piece(rows) for rows in split]
    with torch.no_grad():
        if not objective.noisy:
            return Level(sum(one() for one in pieces), 0.0)
        return measured(pieces, max(FEWEST, total // num))


def blame(objective: Objective, free: Parts, rows: Tensor | None) -> str:
    """A phrase that names the first param or site, in the order of the model, whose number is not finite."""
    with torch.no_grad():
        for name, value in objective.values(free).items():
            if not torch.isfinite(value).all():
                return f"param '{name}' is not finite"
    free = {name: value.detach().requires_grad_() for name, value in free.items()}
    program = objective.program if rows is None else objective.program.on_rows(rows)
    drawn = objective.sampler.draw(free, program, rows, 1)
    values = {**objective.values(free), **{name: value[0] for name, value in drawn.values.items()}}
    bind = Bind(values, symbols=True)
    try:
        nodes = sample_sites(run(program.model, program.data, bind, program.layout.nesting))
    except torch.linalg.LinAlgError as error:
        return f"the model cannot be computed ({error})"
    for name, site in nodes.items():
        with torch.no_grad():
            if not torch.isfinite(_log_prob(site)).all():
                return f"log p at site '{name}' is not finite"
    for name, site in nodes.items():
        log_prob = _log_prob(site).sum()
        own = {n: v for n, v in values.items() if n in symbols_of(site["fn"]) and v.requires_grad}
        if not own:
            continue
        leaves = list(own.values())
        gradients = torch.autograd.grad(log_prob, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        for param, gradient in zip(own, gradients, strict=True):
            if not torch.isfinite(gradient).all():
                return f"the gradient of site '{name}' with respect to '{param}' is not finite"
    return "the bound or its gradient is not finite"


def _log_prob(site: Any) -> Tensor:
    value = site["value"]
    if site["is_observed"] and value.is_floating_point():
        value = torch.where(value.isnan(), torch.zeros_like(value), value)
    log_prob: Tensor = site["fn"].log_prob(value)
    return log_prob
