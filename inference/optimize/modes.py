"""The mode map: which optima the restarts found, how often, and how far apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..program.program import Program
from .label_switching import Cells, distance, relabel

SAME_BOUND = 1e-6  # of 1 + |bound|: two runs that end closer, with params closer than SAME_PARAMS, are one optimum
SAME_PARAMS = 0.05


@dataclass(frozen=True)
class Outcome:
    """Where one restart ended."""

    params: dict[str, Tensor]
    history: list[float]
    converged: bool
    degenerate: bool  # some variance stands on its floor: the likelihood there has no meaning
    start: dict[str, Tensor]
    error: float = 0.0  # Monte Carlo standard error of the last bound

    @property
    def bound(self) -> float:
        return self.history[-1]


@dataclass(frozen=True)
class Mode:
    """One optimum: its bound, how many restarts ended there, and its distance from the best (in spreads of the
    params).
    """

    bound: float
    count: int
    distance: float
    converged: bool
    degenerate: bool
    params: dict[str, Tensor]


@dataclass(frozen=True)
class ModeMap:
    """The distinct optima of a fit's restarts, up to relabelling, best first."""

    modes: tuple[Mode, ...]
    bounds: tuple[float, ...]  # where each restart ended, in the order of the restarts
    failed: int = 0  # restarts that met a non-finite bound

    def __iter__(self) -> Any:
        return iter(self.modes)

    def __len__(self) -> int:
        return len(self.modes)

    def __getitem__(self, number: int) -> Mode:
        return self.modes[number]

    def __str__(self) -> str:
        lines = [f"{'bound':>14} {'runs':>5} {'below best':>11} {'distance':>9}"]
        for mode in self.modes:
            notes = [n for n, yes in (("not converged", not mode.converged), ("degenerate", mode.degenerate)) if yes]
            gap = self.modes[0].bound - mode.bound
            lines.append(
                f"{mode.bound:14.4f} {mode.count:5d} {gap:11.4f} {mode.distance:9.3f}  {', '.join(notes)}".rstrip()
            )
        return "\n".join(lines)


def rank(outcomes: list[Outcome]) -> list[Outcome]:
    """Best first; a degenerate optimum, whose likelihood can be had as large as one likes, stands behind every sound
    one.
    """
    return sorted(outcomes, key=lambda o: (o.degenerate, -o.bound))


def map_modes(outcomes: list[Outcome], cells: Cells, failed: int) -> ModeMap:
    """Group outcomes into optima."""
    ranked = rank(outcomes)
    groups: list[tuple[Outcome, list[Outcome]]] = []
    for outcome in ranked:
        for head, members in groups:
            close = abs(head.bound - outcome.bound) <= SAME_BOUND * (1 + abs(head.bound))
            if close and distance(relabel(outcome.params, head.params, cells), head.params) <= SAME_PARAMS:
                members.append(outcome)
                break
        else:
            groups.append((outcome, [outcome]))
    best = ranked[0]
    modes = []
    for head, members in groups:
        aligned = relabel(head.params, best.params, cells)
        modes.append(
            Mode(
                head.bound,
                len(members),
                distance(aligned, best.params),
                any(m.converged for m in members),
                head.degenerate,
                aligned,
            )
        )
    return ModeMap(tuple(modes), tuple(o.bound for o in outcomes), failed)


@dataclass(frozen=True)
class Reached:
    """What a driver's machinery gives: plain values, of which the driver makes a fit.

    Attributes
    ----------
    best : Outcome
        The best restart; its last bound is log p(x), where no program says otherwise.
    constraints : mapping
        Of each of its params.
    rows : float
        Rows, or their total weight.
    program : Program, optional
        What gives log p(x) and the entropy of the rows' discrete latents at the params.
    share : Tensor (N,), optional
        Weights of the rows.
    guide, guide_parts :
        The family of the latents' distributions, and its numbers.
    summed_out : names
        Of params that are shared latents, summed out of all rows together: they stand at their posterior means.
    log_prob : float, optional
        Then log p(x).
    failure, note : str
        Why it could go no further, and what is to be told of how it ended.
    unchecked : str
        Why the fit could not be held against Pyro's own account of the model, where it could not.
    """

    best: Outcome
    modes: ModeMap
    constraints: Mapping[str, Any]
    rows: float
    program: Program | None = None
    share: Tensor | None = None
    guide: str = ""
    guide_parts: dict[str, Tensor] = field(default_factory=dict)
    summed_out: tuple[str, ...] = ()
    log_prob: float | None = None
    failure: str = ""
    note: str = ""
    unchecked: str = ""
