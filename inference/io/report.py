"""A fit as files that a person opens: figures, and tables as CSV."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.errors import OptionError
from ..posterior.base import Fitted
from ..program.deterministic import Moments


def write_report(fit: Fitted, folder: str | Path, kinds: Iterable[str | None]) -> list[str]:
    """The run folder of a fit that has its data, with figures (PNG) and the latents of its rows (CSV) in it.

    Parameters
    ----------
    fit : Fit
    folder : path
    kinds : iterable of str or None
        Of the figures, as ``fit.plot`` takes them; those that do not fit the model are left out.

    Returns
    -------
    list of str
        Names of the files beside the run's own.
    """
    fit.save(folder)
    files = []
    for kind in dict.fromkeys(kinds):
        name = f"{kind or 'picture'}.png"
        try:
            figure = fit.plot(kind)
        except OptionError:  # that model has no such picture, as CAVI has no half-steps
            continue
        figure.savefig(Path(folder, name), dpi=150)
        files.append(name)
    columns = latent_columns(fit.latents())
    if columns:
        names = None if fit.data is None else fit.data.names
        rows = range(len(next(iter(columns.values())))) if names is None else names
        write_csv({fit.schema.by or "row": rows, **columns}, Path(folder, "latents.csv"))
        files.append("latents.csv")
    return files


def latent_columns(latents: dict[str, Tensor | Moments]) -> dict[str, list[Any]]:
    """Posteriors by site as columns (N,): of probabilities (N, K) or (N, plates, K) the most probable value, and each;
    of moments (N, ...) the mean and the standard deviation.
    """
    columns: dict[str, list[Any]] = {}
    for site, probs in latents.items():
        if isinstance(probs, Moments):
            for kind, values in zip(Moments._fields, probs, strict=True):
                for index, column in enumerate(values.reshape(len(values), -1).unbind(1)):
                    columns[f"{site}_{kind}" if values.dim() == 1 else f"{site}[{index}]_{kind}"] = column.tolist()
            continue
        for index, part in enumerate(probs.reshape(len(probs), -1, probs.shape[-1]).unbind(1)):
            name = site if probs.dim() == 2 else f"{site}[{index}]"
            columns[name] = part.argmax(-1).tolist()
            columns |= {f"{name}={value}": part[:, value].tolist() for value in range(part.shape[-1])}
    return columns


def write_csv(rows: Any, path: str | Path | None = None) -> None:
    """A dict of columns, a table, or an array (N,) or (N, D) as CSV; to stdout without a path.

    Columns without names are called x0, x1, ...
    """
    import pandas as pd

    frame = pd.DataFrame(rows.detach().cpu().numpy() if isinstance(rows, Tensor) else rows)
    if isinstance(frame.columns, pd.RangeIndex):
        frame.columns = [f"x{number}" for number in frame.columns]
    frame.to_csv(sys.stdout if path is None else path, index=False)
