"""Conditions that new rows are made under: values of columns that the model takes as given."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import DataError
from ..data.schema import Schema
from ..data.structures import listed


def with_conditions(
    rows: Any, given: Mapping[Any, Any], schema: Schema
) -> tuple[Any, dict[str | int, int], dict[str, Any]]:
    """Rows that hold the values given for columns (by name, or by number), where those columns stand, and what is given
    of anything else.
    """
    said = {name: place for name in given if (place := _place(name, schema)) is not None}
    others = {str(name): value for name, value in given.items() if name not in said}
    if said:
        rows = rows.to(torch.float64).clone()
        for name, place in said.items():
            rows[:, place] = _values(name, given[name], len(rows), schema)
    return rows, said, others


def no_conditions(
    said: Mapping[str | int, int], where: Mapping[str, Tensor] | None, sites: Collection[str], schema: Schema
) -> list[str]:
    """Of the names of columns that were given, those that are meant as sites of the same name.

    Raises
    ------
    DataError
        For a column that the model makes itself.
    """
    made = {place for cells in (where or {}).values() for place in cells.tolist()}
    wrong = [name for name, place in said.items() if place in made and name not in sites]
    if wrong:
        names: Sequence[str | int] = schema.columns or range(schema.width or 0)
        free = listed(names[place] for place in range(len(names)) if place not in made)
        words = f"its conditions are {free}" if free else "it has no conditions"
        raise DataError(f"generate: given names column {wrong[0]!r}, which the model makes itself: {words}")
    return [str(name) for name, place in said.items() if place in made]


def _place(name: str | int, schema: Schema) -> int | None:
    if isinstance(name, int):
        return name if 0 <= name < (schema.width or 0) else None
    return schema.columns.index(name) if schema.columns and name in schema.columns else None


def _values(name: str | int, value: Any, num: int, schema: Schema) -> Tensor:
    """One value of a column, or one for each row, labels as their codes."""
    cells = np.atleast_1d(np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value))
    if cells.shape not in ((1,), (num,)):
        raise DataError(f"generate: given {name!r} has shape {cells.shape}, expected one value, or one for each row")
    labels = schema.labels.get(str(name), ())
    if labels:
        codes = [_code(name, cell, labels) for cell in cells.tolist()]
        return torch.tensor(codes, dtype=torch.float64)
    if cells.dtype.kind not in "biuf" or not np.isfinite(cells).all():
        raise DataError(f"generate: given {name!r} is {value!r}, expected a number: the column held no labels")
    return torch.as_tensor(cells.astype(np.float64))


def _code(name: str | int, cell: Any, labels: tuple[str, ...]) -> int:
    text = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
    if text not in labels:
        raise DataError(f"generate: given {name!r} is {cell!r}, expected one of its labels {listed(labels)}")
    return labels.index(text)
