"""What a fit remembers of the data it was fitted to (`Schema`), and data as the engine takes them (`Dataset`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import DataError
from .graph import decode_graph
from .long_format import unpadded
from .sparse import Bags, bags_of
from .structures import Named, fields_of, listed
from .tables import BOOLEAN


@dataclass(frozen=True)
class Schema:
    """What the tensors stand for, and how to give back what the user brought.

    Parameters
    ----------
    columns : tuple of str, optional
        Names of the columns; None for a bare tensor, array or structure.
    labels : dict
        Column -> labels of its codes 0, 1, ..., for columns of categories, strings or booleans.
    container : {"tensor", "array", "frame", "structure", "sparse"}
        What `decode` gives back.
    width : int, optional
        Number of columns, the size of the last dim; None for 1-D data and for a structure.
    integers : tuple of str
        Columns of a table that came as whole numbers.
    by : str, optional
        Of a long table: the column whose values say which rows belong together. It is not among `columns`.
    graph : {"undirected", "directed"}, optional
        Of a graph, whose nodes are the rows: `columns` are their names as text, ``labels["node"]`` as they came.
    call : {"", "arguments", "mapping", "columns"}
        Of a structure: whether a model takes it as it is, its fields as arguments, as a dict, or as columns by name.
    rows : str, optional
        The plate that the rows lie in, where a model calls it otherwise than "data".
    """

    columns: tuple[str, ...] | None
    labels: dict[str, tuple[str, ...]]
    container: str
    width: int | None
    integers: tuple[str, ...] = ()
    by: str | None = None
    graph: str | None = None
    call: str = ""
    rows: str | None = None

    def decode(self, values: Any, names: Any = None) -> Any:
        """Values (N,) or (N, D) as the user brought them: a tensor, an array, a pandas Series (N,) or DataFrame (N, D).
        Of a long table, groups (N, M, D) as its rows, those of padding left out, under `names` (N,) or 0, 1, ...

        In a table labels stand in place of codes, and whole numbers come back as integers; missing cells stay missing.
        A column that no longer holds codes (a mean of them, say) is given as the numbers that it holds.

        Raises
        ------
        DataError
            When a table is due and the values have another number of columns.
        """
        if self.by is not None:
            return self._decode_long(values, names)
        if self.graph is not None:
            return decode_graph(values, self)
        if isinstance(values, Named):
            return self._decode_fields(values)
        if self.container in ("tensor", "structure"):
            return values
        if self.container == "sparse":
            return decode_sparse(values)
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
        if self.container == "array":
            return array
        import pandas as pd

        columns = self.columns or ()
        if array.ndim == 0 or array.shape[1:] != (() if self.width is None else (self.width,)):
            expected = "(N,)" if self.width is None else f"(N, {self.width})"
            raise DataError(f"decode: met shape {array.shape}, expected {expected} for columns {listed(columns)}")
        parts = zip(columns, array.reshape(len(array), -1).T, strict=True)
        frame = pd.DataFrame({name: self._decode_column(name, part) for name, part in parts})
        return frame[columns[0]] if self.width is None else frame

    def _decode_fields(self, values: Named) -> Any:
        """Fields as a tuple of arguments, a dict, or a table."""
        fields = fields_of(values)
        if self.call != "columns":
            return tuple(fields.values()) if self.call == "arguments" else fields
        import pandas as pd

        arrays = {name: np.asarray(value.detach().cpu()) for name, value in fields.items()}
        return pd.DataFrame({name: self._decode_column(name, array) for name, array in arrays.items()})

    def _decode_long(self, values: Any, names: Any) -> Any:
        groups = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
        names = np.arange(len(groups)) if names is None else np.asarray(names)
        rows, group = unpadded(groups)
        if self.container == "frame":
            frame = replace(self, by=None, width=rows.shape[1]).decode(rows)
            frame.insert(0, self.by, names[group])
            return frame
        table = np.column_stack([names[group].astype(rows.dtype), rows])
        return torch.from_numpy(table) if self.container == "tensor" else table

    def _decode_column(self, name: str, column: np.ndarray) -> Any:
        import pandas as pd

        missing = np.isnan(column)
        labels, present = self.labels.get(name), column[~missing]
        whole = bool(np.all(present % 1 == 0))
        if labels is not None and whole and np.all((present >= 0) & (present < len(labels))):
            codes = np.where(missing, -1, column).astype(np.int64)
            if labels != BOOLEAN:
                return pd.Categorical.from_codes(codes, labels)
            return pd.arrays.BooleanArray(codes == 1, missing) if missing.any() else codes == 1
        return column.astype(np.int64) if name in self.integers and whole and not missing.any() else column

    def to_json(self) -> dict[str, Any]:
        """The schema as a dict that `json.dumps` takes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Schema:
        """The schema that `to_json` gave."""
        columns = None if state["columns"] is None else tuple(state["columns"])
        labels = {name: tuple(labels) for name, labels in state["labels"].items()}
        integers = tuple(state["integers"])
        known = {name: state[name] for name in ("by", "graph", "call", "rows") if name in state}
        return cls(columns, labels, state["container"], state["width"], integers, **known)


@dataclass(frozen=True)
class Dataset:
    """Data ready for a model: a tensor, a NamedTuple or dataclass of tensors, or `rows.Rows`, and what they stand for.

    `names` (N,) are what the rows of the model are called, where they are groups of a long table.
    """

    values: Any
    schema: Schema
    names: Any = field(default=None, compare=False)


def decode_sparse(values: Any) -> Any:
    """Bags, or a table, as a sparse array of scipy."""
    return (values if isinstance(values, Bags) else bags_of(values)).scipy()
