"""Long tables: several rows of the table are one row of the model, those that share a value in one column.

Ratings by item, words by document, steps by sequence. The groups become a dense tensor (N, M, D): N values of that
column in order, M rows of the largest group, D other columns; shorter groups end in rows of NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import DataError
from .structures import is_instance, listed, to_tensor


def split(data: Any, by: str, known: tuple[str, ...] | None) -> tuple[Any, str, np.ndarray, np.ndarray]:
    """A long table without its column `by`: the rest, the column's name, its values in order, and each row's place
    among them.

    Parameters
    ----------
    data : DataFrame, or array or tensor (rows, 1 + D)
        The column is the one named `by`; where none is, the first (of those not in `known`).
    known : tuple of str, optional
        The other columns as they were in training.

    Raises
    ------
    DataError
        There is no other column, or the column has missing cells.
    """
    import pandas as pd

    if is_instance(data, "pandas", "DataFrame"):
        columns = [str(name) for name in data.columns]
        others = [place for place, name in enumerate(columns) if name not in (known or ())]
        place = columns.index(by) if by in columns else others[0] if others else -1
        if place < 0 or len(columns) < 2:
            raise DataError(
                f"data: met columns {listed(columns)}, expected a long table: '{by}', whose values say which rows "
                f"belong together, and {listed(known) if known else 'at least one other'}"
            )
        name, column = columns[place], data.iloc[:, place]
        rest = data.iloc[:, [other for other in range(len(columns)) if other != place]]
    else:
        table = to_tensor(data, "data")
        if table.dim() != 2 or table.shape[1] < 2:
            raise DataError(
                f"data: met shape {tuple(table.shape)}, expected a long table: a first column '{by}', whose values say "
                f"which rows belong together, and at least one other (or a tensor (N, M, D) padded with NaN)"
            )
        name, column, rest = by, pd.Series(table[:, 0].cpu().numpy()), table[:, 1:]
    missing = column.isna().to_numpy()
    if missing.any():
        raise DataError(f"data: column '{name}' is missing in row {int(missing.argmax())}: say what the row belongs to")
    if column.dtype.kind == "f" and bool((column == column.round()).all()):
        column = column.astype(np.int64)
    try:
        codes, names = pd.factorize(column, sort=True)
    except TypeError:  # values of several types have no order: take that of their text
        codes, names = pd.factorize(column.astype(str), sort=True)
    return rest, name, np.asarray(names), codes


def padded(values: Tensor, codes: np.ndarray, num_groups: int) -> Tensor:
    """Rows (L, D) or (L,) as groups (N, M, D), in the order in which they stand; missing rows are NaN."""
    values = values.reshape(len(values), -1)
    by_group = np.argsort(codes, kind="stable")
    size = np.bincount(codes, minlength=num_groups)
    first = size.cumsum() - size
    places = np.arange(len(codes)) - first[codes[by_group]]
    group, order, place = (torch.from_numpy(part).to(values.device) for part in (codes[by_group], by_group, places))
    dtype = values.dtype if values.is_floating_point() else torch.float64
    out = torch.full((num_groups, int(size.max()), values.shape[1]), torch.nan, dtype=dtype, device=values.device)
    out[group, place] = values[order].to(dtype)
    return out


def unpadded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups (N, M, D) as rows (L, D), those of padding left out, and the group of each row (L,)."""
    kept = ~np.isnan(values).all(-1)
    return values[kept], kept.nonzero()[0]


def keep_padding(out: Tensor, values: Tensor) -> Tensor:
    """NaN in `out` (N, M, D) where a row of `values` is padding: nothing was there to be drawn or filled in."""
    return torch.where(values.isnan().all(-1, keepdim=True), torch.nan, out) if values.is_floating_point() else out
