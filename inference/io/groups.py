"""A fit as groups of named arrays, for ArviZ: dims from plates, labels and columns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import OptionError
from ..base.options import check_counts, check_seed
from ..data.schema import Dataset
from ..data.sparse import Bags
from ..data.streams import as_one
from ..optimize.modes import Cells
from ..posterior.base import Draws, Fitted
from ..posterior.draws import param_draws
from .arviz import to_arviz as open_in_arviz

Groups = dict[str, dict[str, np.ndarray]]


def to_arviz(fit: Fitted, dataset: Dataset, draws: str | None, num_draws: int, seed: int) -> Any:
    """The fit as ArviZ opens it."""
    return open_in_arviz(**arviz_groups(fit, dataset, draws, num_draws, seed))


def arviz_groups(fit: Fitted, dataset: Dataset, draws: str | None, num_draws: int, seed: int) -> dict[str, Any]:
    """Arguments of `arviz.to_arviz`: groups, coords, dims and attrs, as NumPy arrays with leading (chain=1, draw=S)."""
    check_counts(num_draws=(num_draws, 1))
    seed = check_seed(seed)
    dataset = replace(dataset, values=as_one(dataset.values, "to_arviz"))
    chosen = None if fit.kind.guided or draws is None else param_draws(fit, num_draws, draws, seed)
    try:
        with fit.kind.on(dataset, seed) as it:
            drawn = it.exported(chosen, num_draws)
            new = it.replicate(drawn)
            cells, axes = it.label_cells(), it.axes(drawn)
    except torch.linalg.LinAlgError as error:
        if chosen is None:  # those of a guide, or the point: nobody asked for others
            raise
        raise OptionError(
            f"draws: met {draws!r}, and at one of the draws the model cannot be computed ({error}): the params are too "
            f'uncertain for it; use draws="bootstrap", or None for the point'
        ) from None
    assert drawn.log_prob is not None
    observed = {"x": torch.as_tensor(dataset.values)} if new is None else new.observed
    groups: Groups = {
        "posterior": {**_chain(drawn.shared), **_chain(drawn.rows)},
        "posterior_predictive": {} if new is None else _chain(new.predicted),
        # one entry per row, its latents summed out: what az.loo leaves out is a row
        "log_likelihood": _chain({next(iter(observed)) if len(observed) == 1 else "rows": drawn.log_prob}),
        "sample_stats": _chain({"lp": drawn.log_prob.sum(1)}),
        "observed_data": {n: v.cpu().numpy() for n, v in observed.items()},
    }
    dims, coords = _dims(fit, dataset, drawn, observed, cells)
    attrs: dict[str, Any] = {"inference": fit.inference, "seed": fit.seed}
    attrs |= {f"{name.replace('-', '_')}_version": version for name, version in fit.versions.items()}
    attrs["draws"] = "guide" if fit.kind.guided else draws or "point estimate"
    return {"groups": groups, "coords": coords, "dims": {**dims, **axes}, "attrs": attrs}


def _chain(values: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy()[None] for name, value in values.items()}


def _dims(
    fit: Fitted, dataset: Dataset, drawn: Draws, observed: dict[str, Tensor], cells: Cells
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    columns, width = dataset.schema.columns, dataset.schema.width
    assert drawn.log_prob is not None
    num_rows = drawn.log_prob.shape[1]
    flat = isinstance(dataset.values, Bags) or (isinstance(dataset.values, Tensor) and dataset.values.dim() <= 2)
    width = width if flat else None
    coords: dict[str, Any] = {"data": _row_names(dataset, num_rows)}
    if width is not None:
        coords["column"] = coords["column_other"] = list(columns) if columns else np.arange(width)
    if dataset.schema.graph is not None:
        coords["data"] = coords["data_other"] = list(columns) if columns else np.arange(num_rows)
    dims: dict[str, list[str]] = {"rows": ["data"]}
    for name, value in drawn.rows.items():
        dims[name] = ["data", *(f"{name}_dim_{i}" for i in range(1, value.dim() - 1))]
    for name, own in cells.items():
        coords[f"{name}_label"] = np.arange(len(next(iter(own.values()))))
    for name, value in drawn.shared.items():
        dims[name] = _param_dims(name, value[0], cells, width)
    for name, value in observed.items():
        first = ["data"] if value.shape[:1] == (num_rows,) else [f"{name}_dim_0"]
        rest = ["column" if size == width else f"{name}_dim_{i}" for i, size in enumerate(value.shape[1:], 1)]
        dims[name] = (first + rest)[: value.dim()]
    return dims, coords


def _row_names(dataset: Dataset, num_rows: int) -> np.ndarray:
    if dataset.names is None:
        return np.arange(num_rows)
    return dataset.names if dataset.names.dtype.kind in "iu" else dataset.names.astype(str)


def _param_dims(name: str, value: Tensor, cells: Cells, width: int | None) -> list[str]:
    out: list[str] = []
    for axis, size in enumerate(value.shape):
        label = next(
            (latent for latent, own in cells.items() if name in own and _is_label_axis(own[name], value, axis)), None
        )
        wanted = f"{label}_label" if label else "column" if size == width else f"{name}_dim_{axis}"
        out.append(wanted if wanted not in out else f"{wanted}_other")
    return out


def _is_label_axis(cells: Tensor, value: Tensor, axis: int) -> bool:
    """Whether label k owns exactly the cells whose place along `axis` is k."""
    if value.shape[axis] != len(cells):
        return False
    step = int(np.prod(value.shape[axis + 1 :], dtype=int))
    place = torch.div(cells, step, rounding_mode="floor") % value.shape[axis]
    return bool((place == torch.arange(len(cells)).unsqueeze(1)).all())
