"""Columns of a data set: their moments, in passes that hold one chunk at a time, and the parts that they play."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base.errors import DataError
from .schema import Schema

CHUNK = 65536


def center_and_variance(value: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over the rows of (N, ...), NaN cells left out; both of shape (...), float64.

    A column of one repeated value gets a variance of exactly 0.
    """
    parts = [part.to(torch.float64) for part in value.split(CHUNK)]
    count = total = torch.zeros((), dtype=torch.float64)
    whole = []
    for part in parts:
        sums = part.sum(0)
        whole.append(bool(sums.isfinite().all()))  # then no cell is missing: fewer passes
        seen = len(part) if whole[-1] else (~part.isnan()).sum(0)
        count = count + seen
        total = total + (sums if whole[-1] else part.nan_to_num(nan=0.0).sum(0))
    center = total / count.clamp_min(1)
    square = torch.zeros((), dtype=torch.float64)
    lows, highs = [], []
    for part, full in zip(parts, whole, strict=True):
        deviation = part - center if full else torch.where(part.isnan(), 0.0, part - center)
        square = square + (deviation * deviation).sum(0)
        lows.append((part if full else part.nan_to_num(nan=torch.inf)).amin(0))
        highs.append((part if full else part.nan_to_num(nan=-torch.inf)).amax(0))
    constant = torch.stack(lows).amin(0) >= torch.stack(highs).amax(0)
    return center, torch.where(constant, 0.0, square / count.clamp_min(1))


def location_and_variance(value: Tensor) -> tuple[Tensor, Tensor]:
    """`center_and_variance`, for priors scaled by the data: the variance of a constant column is 1."""
    center, variance = center_and_variance(value)
    return center, torch.where(variance > 0, variance, 1.0)


def num_categories(column: Tensor) -> int:
    """How many codes 0, 1, ... a column of codes needs: its largest value plus one, NaN left out."""
    largest = column.nan_to_num(nan=0.0).max() if column.is_floating_point() else column.max()
    return int(largest) + 1


def common_codes(schema: Schema, columns: Sequence[str]) -> tuple[tuple[str, ...], list[Tensor]]:
    """Columns whose labels name the same things: the names of all these, and for each column their place by its code.

    Columns of numbers have no names: ``((), [])``.
    """
    labels = [schema.labels.get(column, ()) for column in columns]
    if not labels or not all(labels):
        return (), []
    names = tuple(dict.fromkeys(label for own in labels for label in own))
    return names, [torch.tensor([names.index(label) for label in own]) for own in labels]


# --- the parts that columns play --------------------------------------------------------------------------------------

NUMERIC, BINARY, CATEGORICAL, COUNT = "numeric", "binary", "categorical", "count"
Names = Sequence[str | int]


def places(schema: Schema, width: int, chosen: Names, option: str) -> list[int]:
    """Positions of columns given by name, or by number where the data have no names.

    Raises
    ------
    DataError
        There is no such column, or one is given twice.
    """
    found: list[int] = []
    for one in (chosen,) if isinstance(chosen, str | int) else chosen:
        if isinstance(one, int) and -width <= one < width:
            place = one % width
        elif schema.columns is not None and one in schema.columns:
            place = schema.columns.index(str(one))
        else:
            known = ", ".join(map(repr, schema.columns)) if schema.columns else f"numbers from 0 to {width - 1}"
            raise DataError(f"{option}: met {one!r}, which is no column of the data; there are {known}")
        if place in found:
            raise DataError(f"{option}: met {one!r} twice, expected each column once")
        found.append(place)
    return found


def column_name(schema: Schema, place: int) -> str:
    """A column as messages call it."""
    return f"column {schema.columns[place]!r}" if schema.columns else f"column {place}"


def column_kinds(
    schema: Schema, width: int, categorical: Names = (), counts: Names = (), numeric: Names = ()
) -> tuple[str, ...]:
    """What each column of a table holds: NUMERIC, BINARY, CATEGORICAL or COUNT.

    Two labels (or booleans) are binary, other labels categorical, whole numbers counts, any others numeric, unless the
    options say otherwise. A bare array has no types of columns: all are numeric but those named.

    Raises
    ------
    DataError
        An option names no column, or a column of labels as numbers; or two options name one column.
    """
    kinds = [_kind_of(schema, place) for place in range(width)]
    said: dict[int, str] = {}
    for option, kind, chosen in (
        ("categorical", CATEGORICAL, categorical),
        ("counts", COUNT, counts),
        ("numeric", NUMERIC, numeric),
    ):
        for place in places(schema, width, chosen, option):
            if place in said:
                raise DataError(f"{option}: {column_name(schema, place)} is named by '{said[place]}' too: choose one")
            if kind != CATEGORICAL and kinds[place] in (BINARY, CATEGORICAL):
                raise DataError(f"{option}: {column_name(schema, place)} holds labels, which can only be categorical")
            said[place], kinds[place] = option, kind
    return tuple(kinds)


def _kind_of(schema: Schema, place: int) -> str:
    if schema.columns is None:
        return NUMERIC
    name = schema.columns[place]
    if name in schema.labels:
        return BINARY if len(schema.labels[name]) == 2 else CATEGORICAL
    return COUNT if name in schema.integers else NUMERIC


def inputs(table: Tensor, schema: Schema, chosen: Sequence[int], role: str) -> Tensor:
    """Columns as inputs of a regression (N, P): labels beyond two as indicators of all but the first.

    Raises
    ------
    DataError
        A cell is missing: what a model takes as given must be there.
    """
    parts = []
    for place in chosen:
        column = table[:, place].double()
        if column.isnan().any():
            raise DataError(
                f"{column_name(schema, place)} has missing cells, and the model takes it as {role}, which it gives no "
                f"distribution to: fill them, or leave out those rows or the column"
            )
        labels = schema.labels.get(schema.columns[place], ()) if schema.columns else ()
        if len(labels) > 2:
            parts += [(column == code).double() for code in range(1, len(labels))]
        else:
            parts.append(column)
    return torch.stack(parts, 1) if parts else table.new_zeros(len(table), 0).double()
