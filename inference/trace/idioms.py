"""Idioms whose meaning the engine must get right or refuse: masks, scales, plates, missing cells that are used again.

What Pyro's own sums would give (`TraceEnum_ELBO`, or a plain trace) is the meaning of a program. Subsampled and
sequential plates, and `pyro.markov`, are met at the statement itself (`handlers`); what needs a whole run is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..base.errors import DataError, ModelError
from ..data.structures import num_rows, tensors_of
from .handlers import DATA_PLATE, Bind, base_of, in_data_plate, run, sample_sites
from .polynomials import unbroadcast
from .provenance import known_cells, plain, symbol, symbols_of

MADE_HOLES = "_made_holes"  # the mark of a site whose NaN cells the engine itself has written


def is_one(scale: Any) -> bool:
    """Whether a scale changes nothing."""
    return bool((scale == 1).all()) if isinstance(scale, Tensor) else scale == 1


def is_all(mask: Any) -> bool:
    """Whether a mask leaves nothing out."""
    return mask is None or bool(mask.all() if isinstance(mask, Tensor) else mask)


def check_masks(priors: Mapping[str, Any]) -> None:
    """Latents that all rows share count whole."""
    for name, site in priors.items():
        if not is_all(site["mask"]):
            raise ModelError(
                f"latent '{name}', which all rows share, is masked: where a prior is left out nothing holds the "
                f"latent, so sample it outside poutine.mask, and mask what is observed"
            )


def row_scale(sites: Mapping[str, Any], nesting: int, data_dim: int, rows: int) -> Tensor | float:
    """The scale of the rows, a number or (N,), where latents are summed out: outside that sum, as Pyro has it.

    Without latents to sum each site is scaled by itself, and this is 1.
    """
    scaled = [name for name, site in sites.items() if in_data_plate(site) and not is_one(site["scale"])]
    tied = [name for name, site in sites.items() if in_data_plate(site) and _has_latents(site, nesting)]
    unseen = [name for name, site in sites.items() if not site["is_observed"] and in_data_plate(site)]
    drawn = [name for name in unseen if "_enumerate_dim" not in sites[name]["infer"]]
    for name in scaled:
        if drawn:
            raise ModelError(
                f"site '{name}' is scaled (poutine.scale), and '{drawn[0]}' is a continuous latent of each row: let "
                f"rows count by weights= of the fit"
            )
    if not tied or not set(tied) & set(scaled):
        return 1.0
    first = sites[tied[0]]["scale"]
    for name in (n for n, site in sites.items() if in_data_plate(site)):
        if not _same(sites[name]["scale"], first):
            raise ModelError(
                f"sites '{tied[0]}' and '{name}' are scaled differently (poutine.scale), and latents are summed out "
                f"before rows are scaled: scale all sites of the rows alike, or let rows count by weights= of the fit"
            )
    if not isinstance(first, Tensor) or first.numel() == 1:
        return float(first)
    shape = (1,) * (-data_dim - first.dim()) + tuple(first.shape)
    if shape[data_dim] != first.numel() or first.numel() != rows:
        raise ModelError(
            f"site '{tied[0]}' is scaled by a tensor of shape {tuple(first.shape)}, expected a number or one for each "
            f"of the {rows} rows"
        )
    return plain(first).detach().double().flatten()


def _has_latents(site: Any, nesting: int) -> bool:
    mask = site["mask"].shape if isinstance(site["mask"], Tensor) else ()
    shapes = (site["fn"].batch_shape, mask)
    return "_enumerate_dim" in site["infer"] or any(
        size > 1 for shape in shapes for size in shape[: max(len(shape) - nesting, 0)]
    )


def _same(one: Any, other: Any) -> bool:
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    return one.numel() == other.numel() and bool((one.flatten() == other.flatten()).all())


def check_rows(model: Any, data: Any, bind: Bind, plate: tuple[int, int], nesting: int) -> None:
    """The plate of the rows has a member for each row of the data, and they lie along its first dim."""
    if not tensors_of(data):
        return
    (_, size), rows = plate, num_rows(data)
    if size != rows:
        shape = tuple(data.shape) if isinstance(data, Tensor) else None
        turned = ""
        if shape is not None and size in shape[1:]:
            turned = f" (shape {shape}): rows lie along the first dim, so give data.mT"
        raise ModelError(
            f'plate "{DATA_PLATE}" has {size} members, and the data {rows} rows{turned}: write '
            f'pyro.plate("{DATA_PLATE}", len(data))'
        )
    if isinstance(data, Tensor) and data.dim() > 1 and rows > 1 and rows in data.shape[1:]:
        sites = sample_sites(run(model, symbol(data, "data"), Bind(bind.values), nesting))
        for name, site in sites.items():
            cells = known_cells(site["value"]) if site["is_observed"] and in_data_plate(site) else None
            dim = plate[0] - len(site["fn"].event_shape)
            if cells is None or cells.dim() < -dim or cells.shape[dim] != rows:
                continue
            own = plain(cells).movedim(dim, 0).reshape(rows, -1) // (data.numel() // rows)
            if not bool((own == torch.arange(rows, device=own.device).unsqueeze(1)).all()):
                raise ModelError(
                    f"site '{name}' observes rows that do not lie along the first dim of the data (shape "
                    f"{tuple(data.shape)}): give data.mT, and change the model accordingly"
                )


def check_missing(data: Any, bind: Bind, sites: Mapping[str, Any], data_dim: int) -> None:
    """Only NaN cells of the data are missing: a model makes none, and computes nothing that is observed from them."""
    unknown = {name for name, param in bind.declared.items() if bool(param.value.isnan().any())}
    gaps: dict[str, Tensor] = {}  # site -> rows with a NaN
    for name, site in sites.items():
        found = _nan_rows(site["value"], data_dim - len(site["fn"].event_shape)) if _is_seen(site) else None
        if found is not None:
            gaps[name] = found
    of_data = _rows_with_gaps(data) if gaps else torch.zeros(0, dtype=torch.bool)
    for name, rows in gaps.items():
        made = rows & ~of_data if len(rows) == len(of_data) else torch.zeros_like(rows)
        if bool(made.any()):
            raise DataError(
                f"site '{name}' is given NaN in row {int(made.nonzero()[0])} (the first is 0), whose cells are all "
                f"there: the model makes it (a logarithm or root of a negative number, 0/0): change the data or the "
                f"model"
            )
    for name, site in sites.items():
        if _is_seen(site) and site["mask"] is None and not gaps:  # with gaps it may be one that is handed on
            _check_arguments(name, site["fn"], unknown, data_dim)


def _is_seen(site: Any) -> bool:
    return site["is_observed"] and in_data_plate(site) and MADE_HOLES not in site["infer"]


def _nan_rows(value: Tensor, dim: int) -> Tensor | None:
    """Which rows, along a dim, hold a NaN; None where none does, or all are the same."""
    if not value.is_floating_point() or value.dim() < -dim:
        return None
    found = unbroadcast(plain(value)).isnan().movedim(dim, 0)
    found = found.reshape(len(found), -1).any(1)
    return found if bool(found.any()) and len(found) > 1 else None


def _rows_with_gaps(data: Any) -> Tensor:
    rows = num_rows(data)
    fields = [t for t in tensors_of(data).values() if t.dim() and len(t) == rows and t.is_floating_point()]
    gaps = [t.isnan().reshape(rows, -1).any(1) for t in fields]
    return torch.stack(gaps).any(0) if gaps else torch.zeros(rows, dtype=torch.bool)


def _check_arguments(name: str, fn: Any, unknown: set[str], data_dim: int) -> None:
    """No missing cell of the data enters the distribution of what is observed."""
    base = base_of(fn)
    if symbols_of(base) & unknown:
        return
    closed = len(base.batch_shape) - len(fn.batch_shape)
    for argument, constraint in getattr(base, "arg_constraints", {}).items():
        value = vars(base).get(argument)
        rows = _nan_rows(value, data_dim - closed - constraint.event_dim) if isinstance(value, Tensor) else None
        if rows is not None:
            raise ModelError(
                f"site '{name}' has a {argument} that is NaN in row {int(rows.nonzero()[0])} (the first is 0): a "
                f"missing cell enters it, and only cells that a site observes may be missing: drop those rows, or fill "
                f"the column"
            )
