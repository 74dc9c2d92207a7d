"""Where a bound stands, and how well that is known: an estimate of it has a Monte Carlo error of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.unconstrained import Parts
from .ascent import Ascent
from .guide import NormalGuide
from .objective import Objective

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
