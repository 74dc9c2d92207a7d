"""Models whose networks depend on what the columns of a table hold: their kinds, and how cells enter a network."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from torch import Tensor

from ..base.errors import DataError, OptionError, warn
from ..data.columns import BINARY, CATEGORICAL, COUNT, NUMERIC, center_and_variance, column_kinds, column_name, places
from ..data.schema import Schema
from ..pair import Pair

KINDS = (NUMERIC, BINARY, CATEGORICAL, COUNT)
Kinds = Mapping[Any, str] | Sequence[str]


def tabular(factory: Callable[..., Pair]) -> Callable[..., Pair]:
    """A factory of pairs for tables: it takes the `schema` of the data as well, and is called again when that is known.

    The pair that it makes at first, with ``schema=None``, takes every column as numbers.
    """
    signature = inspect.signature(factory, eval_str=True)

    @functools.wraps(factory)
    def make(*args: Any, **options: Any) -> Pair:
        given = signature.bind_partial(*args, **options).arguments
        return replace(factory(**given), for_schema=lambda schema: factory(**given, schema=schema))

    parameters = [one for name, one in signature.parameters.items() if name != "schema"]
    make.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return make


@dataclass(frozen=True)
class Columns:
    """Columns of a table: `kinds`, how many labels each has (1 of numbers), and `names` for messages.

    ``kinds=None`` is a table of which nothing is known: every column is numeric. Their `center` and `unit` are params
    that are measured, not learned, and named with `prefix`.
    """

    kinds: tuple[str, ...] | None = None
    sizes: tuple[int, ...] = ()
    names: tuple[str | int, ...] = ()
    prefix: str = ""
    guessed: set[str | int] = field(default_factory=set, compare=False)  # counts that nobody said, not looked at yet

    def at(self, where: slice | Sequence[int], prefix: str = "") -> Columns:
        """Some of them."""
        if self.kinds is None:
            return Columns(prefix=prefix)
        chosen = range(len(self.kinds))[where] if isinstance(where, slice) else where
        kinds, sizes, names = (tuple(part[n] for n in chosen) for part in (self.kinds, self.sizes, self.names))
        return Columns(kinds, sizes, names, prefix, self.guessed)  # type: ignore[arg-type]

    def of_kind(self, kind: str, num_columns: int) -> list[int]:
        """Positions of the columns of one kind."""
        kinds = (NUMERIC,) * num_columns if self.kinds is None else self.kinds
        return [place for place, met in enumerate(kinds) if met == kind]

    def numbers(self, num_columns: int) -> list[int]:
        """Positions of all that are not categorical."""
        labels = set(self.of_kind(CATEGORICAL, num_columns))
        return [place for place in range(num_columns) if place not in labels]

    def num_features(self, num_columns: int) -> int:
        """Numbers that a row is for a network: one of each column, one of each label."""
        labels = self.of_kind(CATEGORICAL, num_columns)
        return num_columns - len(labels) + sum(self.sizes[place] for place in labels)

    def features(self, x: Tensor) -> Tensor:
        """Rows (N, D) as a network takes them, (N, F): numbers standardised, counts on the scale of log(1 + count),
        codes one-hot; missing cells are 0.
        """
        center, unit = self.measured(x.shape[1])
        labels, numbers = self.of_kind(CATEGORICAL, x.shape[1]), self.numbers(x.shape[1])
        cells = (torch.where(x.isnan(), center, self._logged(x)) - center) / unit
        if not labels:
            return cells
        column = torch.tensor([place for place in labels for _ in range(self.sizes[place])], device=x.device)
        code = torch.cat([torch.arange(self.sizes[place], device=x.device) for place in labels])
        hot = (x[:, column] == code).to(cells.dtype)  # NaN is no code
        return torch.cat([cells[:, numbers], hot], -1)

    def measured(self, num_columns: int) -> tuple[Tensor, Tensor]:
        """Center and unit of each column, (D,): params that no gradient moves."""
        center = pyro.param(f"{self.prefix}center", torch.zeros(num_columns))
        unit = pyro.param(f"{self.prefix}unit", torch.ones(num_columns))
        return center.detach() + 0.0 * center, unit.detach() + 0.0 * unit

    def params(self, x: Tensor) -> dict[str, Tensor]:
        """The mean and the standard deviation of each column; categorical ones have 0 and 1, binary ones the unit 1."""
        center, variance = center_and_variance(self._logged(x))
        labels = self.of_kind(CATEGORICAL, x.shape[1])
        center[labels], variance[[*labels, *self.of_kind(BINARY, x.shape[1])]] = 0.0, 1.0
        self._doubt(x)
        return {f"{self.prefix}center": center, f"{self.prefix}unit": torch.where(variance > 0, variance, 1.0).sqrt()}

    def _doubt(self, x: Tensor) -> None:
        """Say once of a column of 0 and 1 alone that it was taken as counts: mostly it is a yes and a no."""
        for place in self.of_kind(COUNT, x.shape[1]):
            name = self.names[place]
            if name in self.guessed and bool((x[:, place].nan_to_num(nan=0.0) <= 1).all()):
                warn(
                    f"column {name!r} holds 0 and 1 alone and is taken as counts: say kinds={{{name!r}: 'binary'}}, "
                    f"or 'count'"
                )
            self.guessed.discard(name)

    def _logged(self, x: Tensor) -> Tensor:
        counts = self.of_kind(COUNT, x.shape[1])
        if not counts:
            return x
        is_count = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
        is_count[counts] = True
        return torch.where(is_count, x.clamp_min(0.0).log1p(), x)


def columns_of(schema: Schema | None, kinds: Kinds | None, num_categories: int) -> Columns:
    """What the columns of a table hold: as its types say, or as `kinds` does.

    Parameters
    ----------
    kinds : dict or sequence of str, optional
        Column -> "numeric", "binary", "categorical" or "count", by name, or by number for a bare array; or words such
        as ``"age=numeric"``.
    num_categories : int
        Labels of a categorical column of codes, whose labels nobody knows.

    Raises
    ------
    OptionError
        There is no such kind.
    DataError
        There is no such column, or it holds labels that are asked for as numbers.
    """
    said = _said(kinds)
    if schema is None or schema.width is None:
        return Columns()
    found = list(column_kinds(schema, schema.width))
    names: tuple[Any, ...] = schema.columns or tuple(range(schema.width))
    labels = [len(schema.labels.get(name, ())) for name in names]
    for name, kind in said.items():
        one = int(name) if schema.columns is None and str(name).isdigit() else name
        (place,) = places(schema, schema.width, (one,), "kinds")
        if labels[place] and (kind in (NUMERIC, COUNT) or (kind == BINARY and labels[place] != 2)):
            raise DataError(
                f"kinds: {column_name(schema, place)} holds {labels[place]} labels, so it is no {kind} column"
            )
        found[place] = kind
    sizes = (size or num_categories if kind == CATEGORICAL else 1 for size, kind in zip(labels, found, strict=True))
    guessed = {name for name, kind in zip(names, found, strict=True) if kind == COUNT} - set(said)
    return Columns(tuple(found), tuple(sizes), names, guessed=guessed)


def _said(kinds: Kinds | None) -> dict[Any, str]:
    """Column -> kind, as a person said it."""
    pairs: list[tuple[Any, str]] = []
    if isinstance(kinds, Mapping):
        pairs = list(kinds.items())
    else:
        for text in (kinds,) if isinstance(kinds, str) else kinds or ():
            name, equals, kind = str(text).rpartition("=")
            if not equals:
                raise OptionError(f"kinds: met {text!r}, expected a column and its kind, such as 'age=numeric'")
            pairs.append((name.strip(), kind.strip()))
    for name, kind in pairs:
        if kind not in KINDS:
            raise OptionError(f"kinds: met {kind!r} for column {name!r}, expected one of {', '.join(KINDS)}")
    return dict(pairs)


# --- columns that are given -------------------------------------------------------------------------------------------


def split(schema: Schema | None, conditions: int | Sequence[str | int]) -> tuple[Any, Any]:
    """Indices of the columns that are conditions, so many from the first or those named, and of all others."""
    if isinstance(conditions, int) or schema is None or schema.width is None:
        count = conditions if isinstance(conditions, int) else len(conditions)
        return slice(0, count), slice(count, None)
    first = places(schema, schema.width, conditions, "conditions")
    return first, [place for place in range(schema.width) if place not in first]


def check_conditions(c: Tensor, x: Tensor, columns: Columns) -> None:
    """Conditions are known of every row, and codes among them are codes; something is left to model."""
    if x.shape[1] < 1:
        raise DataError(f"conditions: met {c.shape[1]} columns, which is all that the data have: none is left to model")
    if not (bool(c.isnan().any()) or columns.kinds):
        return
    for place, column in enumerate(c.unbind(-1)):
        name = columns.names[place] if columns.names else place
        if bool(column.isnan().any()):
            raise DataError(
                f"data: column {name!r}, a condition, has missing cells: fill them, or leave out those rows"
            )
        if columns.kinds and columns.kinds[place] == CATEGORICAL:
            wrong = (column < 0) | (column >= columns.sizes[place]) | (column != column.floor())
            if bool(wrong.any()):
                met, most = column[wrong][0].item(), columns.sizes[place] - 1
                raise DataError(
                    f"data: column {name!r}, a condition, holds {met:g}, expected one of the codes 0 to {most}: raise "
                    f"num_categories, or say another of its kinds"
                )
