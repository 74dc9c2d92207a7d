"""The mode map: which optima the restarts found, how often, and how far apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..program.program import Program
from ..trace.handlers import double
from .starts import jitter

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


Cells = dict[str, dict[str, Tensor]]  # latent -> param -> cell numbers (K, cells of one label)


def label_cells(program: Program) -> Cells:
    """Cells of each label, for every latent all of whose labels own cells of some param.

    Gathers tell which; where a model also computes with its params, other params whose first dim counts the labels are
    tried too, and a latent is kept only if log p stays what it is when its labels change places.
    """
    found = _gathered_cells(program)
    return _symmetries(program, found) if program.runs_model and found else found


def _symmetries(program: Program, found: Cells) -> Cells:
    structure, generator = program.structure, torch.Generator().manual_seed(0)
    values = {name: double(param.value) for name, param in structure.params.items()}
    values = jitter(values, structure, generator)  # where nothing is symmetric by chance
    known = {param for own in found.values() for param in own}
    out: Cells = {}
    for latent, own in found.items():
        size = structure.latents[latent].cardinality
        others = {n: v for n, v in values.items() if n not in known and v.dim() and len(v) == size}
        rows = {n: torch.arange(v.numel(), device=v.device).reshape(size, -1) for n, v in others.items()}
        for cells in ({**own, **rows}, own) if rows else (own,):
            if _is_symmetry(program, values, cells, size):
                out[latent] = cells
                break
    return out


def _is_symmetry(program: Program, values: dict[str, Tensor], own: dict[str, Tensor], size: int) -> bool:
    moved = permuted(values, own, torch.arange(size).roll(1))
    with torch.no_grad():
        one, two = (program.row_log_prob({n: v.unsqueeze(0) for n, v in each.items()}) for each in (values, moved))
    return bool(torch.isfinite(one).any()) and torch.allclose(one, two, rtol=1e-8, atol=1e-8)


def _gathered_cells(program: Program) -> Cells:
    found: Cells = {}
    for i, (name, latent) in enumerate(program.structure.latents.items()):
        own: dict[str, list[Tensor]] = {}
        for table in (program.latents, program.products, program.tables):
            for site in table.values():
                for argument in site.args.values():
                    if argument.index is None or argument.param is None:
                        continue
                    if argument.index.shape[i] == latent.cardinality:
                        own.setdefault(argument.param, []).append(
                            argument.index.movedim(i, 0).reshape(latent.cardinality, -1)
                        )
                    elif site.name == name and argument.event_dim and argument.index.shape[-1] == latent.cardinality:
                        own.setdefault(argument.param, []).append(
                            argument.index.movedim(-1, 0).reshape(latent.cardinality, -1)
                        )
        cells = {param: torch.cat(parts, 1).unique(dim=1) for param, parts in own.items()}  # many cells may take one
        cells = {param: cell for param, cell in cells.items() if cell.unique().numel() == cell.numel()}
        if cells and latent.cardinality > 1:
            found[name] = cells
    return found


def relabel(params: dict[str, Tensor], reference: dict[str, Tensor], cells: Cells) -> dict[str, Tensor]:
    """The same params with labels permuted to lie nearest to `reference` (one optimal assignment per latent)."""
    if params is reference or not cells:
        return dict(params)
    from scipy.optimize import linear_sum_assignment  # takes a tenth of a second to import

    params = dict(params)
    for own in cells.values():
        mine, theirs = _profiles(params, reference, own)
        _, order = linear_sum_assignment(((theirs[:, None] - mine[None]) ** 2).sum(-1))
        params = permuted(params, own, torch.as_tensor(np.asarray(order)))
    return params


def permuted(params: dict[str, Tensor], own: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """Params whose label k is what label order[k] was."""
    out = dict(params)
    for name, cell in own.items():
        flat = params[name].flatten().clone()
        flat[cell] = params[name].flatten()[cell[order]]
        out[name] = flat.reshape(params[name].shape)
    return out


def distance(params: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Largest difference of any cell, relative to its param's spread (1 for a single value)."""
    worst = 0.0
    for name, value in params.items():
        other = reference[name]
        if not other.numel():  # slopes on no columns
            continue
        unit = other.std().item() if other.numel() > 1 else 1.0
        worst = max(worst, ((value - other).abs().max() / max(unit, 1e-12)).item())
    return worst


def _profiles(a: dict[str, Tensor], b: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    parts = []
    for values in (a, b):
        rows = [
            values[name].flatten()[cell] / b[name].std().clamp_min(1e-12).item()
            for name, cell in own.items()
            if b[name].numel() > 1
        ]
        parts.append(torch.cat(rows, 1).numpy())
    return parts[0], parts[1]
