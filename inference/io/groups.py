"""A fit as groups of named arrays, for ArviZ: dims from plates, labels and columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import OptionError
from ..base.options import check_seed
from ..data.schema import Dataset
from ..optimize.label_switching import Cells, label_cells
from ..posterior import draws as drawing
from ..posterior import guided
from ..posterior.exact import program_on
from ..posterior.generate import simulate
from ..posterior.kinds import NETWORKS, OWN, filling_of
from ..program.program import Program
from ..program.sites import Params
from ..trace.handlers import engine_state
from ..trace.provenance import plain
from .arviz import to_arviz as open_in_arviz

Groups = dict[str, dict[str, np.ndarray]]


def to_arviz(fit: Any, dataset: Dataset, draws: str | None, num_draws: int, seed: int) -> Any:
    """The fit as ArviZ opens it."""
    return open_in_arviz(**arviz_groups(fit, dataset, draws, num_draws, seed))


def arviz_groups(fit: Any, dataset: Dataset, draws: str | None, num_draws: int, seed: int) -> dict[str, Any]:
    """Arguments of `export.to_arviz`: groups, coords, dims and attrs, as NumPy arrays with leading (chain=1,
    draw=S).
    """
    own = filling_of(fit.guide) if fit.guide in NETWORKS else OWN.get(fit.guide)
    if own is not None:
        found: dict[str, Any] = own.arviz_groups(fit, dataset, num_draws, seed)
        return found
    seed = check_seed(seed)
    if fit.guide:
        params = guided.shared_draws(fit, dataset, num_draws, seed)
    elif draws is None:
        params = {name: value.unsqueeze(0) for name, value in fit.params.items()}
    else:
        params = drawing.param_draws(fit, num_draws, draws, seed)
    count = len(next(iter(params.values()))) if params else 1
    try:
        with engine_state(seed), torch.no_grad():
            program, latents, scores = _of_rows(fit, dataset, params, count)
            each = [{name: value[s] for name, value in params.items()} for s in range(count)]
            predicted = [simulate(fit, dataset.values, one) for one in each]
    except torch.linalg.LinAlgError as error:
        if draws is None:  # those of a guide, or the point: nobody asked for others
            raise
        raise OptionError(
            f"draws: met {draws!r}, and at one of the draws the model cannot be computed ({error}): the params are too "
            f'uncertain for it; use draws="bootstrap", or None for the point'
        ) from None
    observed = {name: plain(program.structure.trace.nodes[name]["value"]) for name in program.structure.observed}
    if isinstance(dataset.values, Tensor) and isinstance(
        predicted[0], Tensor
    ):  # the table itself, not its columns one by one
        observed = {"x": dataset.values}
        predicted = [{"x": one} for one in predicted]
    dims, coords = _dims(fit, program, dataset, observed, latents[0])
    rows = torch.stack(scores)
    groups: Groups = {
        "posterior": {**_chain(params), **_chain({n: torch.stack([d[n] for d in latents]) for n in latents[0]})},
        "posterior_predictive": _chain({n: torch.stack([p[n] for p in predicted]) for n in observed}),
        # one entry per row, its latents summed out: what az.loo leaves out is a row
        "log_likelihood": _chain({next(iter(observed)) if len(observed) == 1 else "rows": rows}),
        "sample_stats": _chain({"lp": rows.sum(1)}),
        "observed_data": {n: v.cpu().numpy() for n, v in observed.items()},
    }
    dims.setdefault("rows", ["data"])
    attrs = {f"{name.replace('-', '_')}_version": version for name, version in fit.versions.items()}
    attrs |= {"inference": fit.inference, "seed": fit.seed, "draws": draws or "point estimate"}
    return {"groups": groups, "coords": coords, "dims": dims, "attrs": attrs}


def _of_rows(
    fit: Any, dataset: Dataset, params: Params, count: int
) -> tuple[Program, list[dict[str, Tensor]], list[Tensor]]:
    """For each draw of the params: one of the latents of every row, and log p(x_n) with them summed out, (N,)."""
    latents, scores = [], []
    on_rows = guided.guided_on(fit, dataset) if fit.guide else None
    program = on_rows.program if on_rows else program_on(fit, dataset)[0]
    draws = list(guided.draws_of(on_rows, count)) if on_rows else [{} for _ in range(count)]
    for s, drawn in enumerate(draws):
        batch = {**drawn, **{name: value[s : s + 1] for name, value in params.items()}}
        found = {name: value[0] for name, value in drawing.latent_draws(program, batch, 1).items()}
        for name in program.structure.continuous:
            found[name] = guided.rows_first(program, name, batch[name][0])
        latents.append(found)
        if on_rows and on_rows.per_row:
            held = {name: value[s : s + 1] for name, value in params.items()}
            scores.append(guided.importance(on_rows, guided.SHORT, held))
        else:
            scores.append(program.row_log_prob(batch).squeeze(0))
    return program, latents, scores


def _chain(values: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy()[None] for name, value in values.items()}


def _dims(
    fit: Any, program: Program, dataset: Dataset, observed: dict[str, Tensor], latents: dict[str, Tensor]
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    columns, width = dataset.schema.columns, dataset.schema.width
    width = width if isinstance(dataset.values, Tensor) and dataset.values.dim() <= 2 else None
    coords: dict[str, Any] = {"data": _row_names(dataset, program.num_rows)}
    if width is not None:
        coords["column"] = coords["column_other"] = list(columns) if columns else np.arange(width)
    cells = label_cells(program)
    dims: dict[str, list[str]] = {}
    for name, latent in program.structure.latents.items():
        coords[f"{name}_label"] = np.arange(latent.cardinality)
        dims[name] = ["data"]
    for name, drawn in latents.items():
        dims.setdefault(name, ["data", *(f"{name}_dim_{i}" for i in range(1, drawn.dim()))])
    for name, value in fit.params.items():
        dims[name] = _param_dims(name, value, cells, width)
    for name, value in observed.items():
        first = ["data"] if value.shape[:1] == (program.num_rows,) else [f"{name}_dim_0"]
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
