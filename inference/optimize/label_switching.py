"""Which cells of the params belong to which label of a discrete latent, and how two sets of params match up to
relabelling.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..program.program import Program
from ..trace.handlers import double
from .starts import jitter

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
