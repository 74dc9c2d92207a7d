"""What a user has -> tensors, with plain errors: arrays, tables, files, memory maps, and structures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..base.errors import DataError
from .graph import adapt_graph
from .idx import idx_array, is_idx
from .long_format import padded, split
from .schema import Dataset, Schema
from .sparse import bag_of_words, bags_of_sparse, check_bags, densified, is_sparse, is_texts
from .streams import Rows, is_loader, is_read, pieces, rows_of, rows_of_array, rows_of_bags
from .structures import (
    Named,
    check_cells,
    check_codes,
    check_size,
    fields_of,
    is_instance,
    is_structure,
    listed,
    replace_fields,
    tensors_of,
    to_tensor,
)
from .tables import encode_column, read


def adapt(
    data: Any,
    schema: Schema | None = None,
    by: str | None = None,
    graph: str | None = None,
    rows: bool = False,
    arguments: Sequence[str] = (),
    by_name: bool = False,
) -> Dataset:
    """Make tensors of what a user has.

    Parameters
    ----------
    data : object
        - A tensor or array (N, ...), kept without a copy where torch can hold its dtype (memory maps too), or a list of
          numbers.
        - A pandas Series (N,) or DataFrame (N, D). Columns of categories, strings and booleans become codes 0, 1, ...
        - A sparse matrix (N, V) of counts, of scipy or torch, or documents as lists of words (``[["a", "b"], ...]``),
          which become such a matrix with a column for each word: `bags.Bags`.
        - A NamedTuple, a dataclass or a dict of these; fields that are None, a plain number or a string stay as they
          are, booleans too.
        - With `arguments`, a tuple of these, one for each argument of the model.
        - With `by_name`, a DataFrame whose columns the model reads by their names.
        - A path ending in .csv, .csv.gz, .parquet, .npy or .npz (``"file.npz:name"`` picks one of several arrays), or
          as the files of MNIST do (``-idx3-ubyte``, ``.gz`` too: `idx.read_idx`), or the name of a bundled data set.
        - With `rows`, a `Dataset` or a `DataLoader` of torch that knows its length and gives any of its rows: of a
          tensor each, or of a tuple whose first part is that.
        - A `Dataset` as this function gives, which passes through.

        Missing cells are NaN.
    schema : Schema, optional
        That of the training data: columns are matched to it by name, and labels get the codes that they had there.
    by : str, optional
        Take a table as a long one, whose rows belong together where they share a value in the column of that name
        (`Pair.by`; see `long.split`). An array of three dims is taken as such groups, padded with NaN.
    graph : {"undirected", "directed"}, optional
        Take the data as a graph (`Pair.graph`; see `graphs.adapt_graph`).
    arguments : sequence of str
        Names of what a tuple holds: the arguments of the model.
    by_name : bool
        Whether a DataFrame is taken as columns by name (`structures.Named`), not as one tensor.
    rows : bool
        Leave memory maps (.npy and IDX files too), sparse matrices, documents and loaders where they are, as
        `rows.Rows`, whose rows are read when they are asked for.

    Returns
    -------
    Dataset
        A table is int64 where every column holds whole numbers or labels and none is missing, float64 otherwise.

    Raises
    ------
    DataError
        When the data are empty, infinite, of no usable type or unreadable, have a column without any value
        (in training only), or do not fit the schema.
    """
    graph = graph if schema is None else schema.graph
    if isinstance(data, Dataset):
        data = data if rows else loaded(data)
        if (schema is None and data.schema.graph == graph) or data.schema == schema:
            return data
        if isinstance(data.values, Rows) and schema is not None:
            return Dataset(data.values, _match(data.schema, data.values, schema))
        data = data.schema.decode(data.values, data.names)
    if graph is not None:
        values, facts, names = adapt_graph(data, graph, schema)
        return Dataset(values, Schema(**facts), names)
    call = schema.call if schema is not None else _call_of(data, arguments, by_name)
    if call:
        values, labels = _adapt_named(data, call, schema, arguments)
        own = Schema(None, labels, "structure", None, call=call)
        found = own if schema is None else replace(own, labels=schema.labels, rows=schema.rows)
        return _checked(values, found, training=schema is None)
    if isinstance(data, str | Path):
        if rows and is_idx(data):
            array, columns = idx_array(data)
            if schema is None or schema.columns == columns:
                return _adapt_rows(rows_of_array(array), schema, "frame", columns)
        data = read(data)
    by = by if schema is None or schema.by is None else schema.by
    if by is not None and not is_structure(data) and getattr(data, "ndim", 2) != 3:
        return _adapt_long(data, schema, by)
    if is_loader(data) or (rows and is_read(data)):
        source = rows_of(data)
        if rows and isinstance(source, Rows):
            return _adapt_rows(source, schema, "tensor" if is_loader(data) else "array")
        data = source.whole() if isinstance(source, Rows) else source
    if is_sparse(data) or is_texts(data):
        values, own = _adapt_bags(data, schema)
        found = own if schema is None else _match(own, values, schema)
        check_bags(values, found.columns, training=schema is None)
        return Dataset(rows_of_bags(values) if rows else values, found)
    if is_structure(data):
        values, own = _adapt_fields(data), Schema(None, {}, "structure", None)
    else:
        values, own = _adapt_one(data, "data", schema)
    return _checked(values, own if schema is None else _match(own, values, schema), training=schema is None)


def _checked(values: Any, found: Schema, training: bool) -> Dataset:
    for name, tensor in tensors_of(values).items():
        check_cells(tensor, f"data.{name}" if name else "data", found.columns, training=training)
    return Dataset(values, found)


def _call_of(data: Any, arguments: Sequence[str], by_name: bool) -> str:
    """How a model takes data of several fields that have names of their own."""
    if isinstance(data, Mapping):
        return "mapping"
    if type(data) is tuple and arguments and any(hasattr(one, "shape") for one in data):
        return "arguments"
    return "columns" if by_name and is_instance(data, "pandas", "DataFrame") else ""


def _adapt_named(
    data: Any, call: str, schema: Schema | None, arguments: Sequence[str]
) -> tuple[Named, dict[str, tuple[str, ...]]]:
    """Fields by name, and the labels of those that hold labels."""
    if call == "columns":
        if not is_instance(data, "pandas", "DataFrame"):
            raise DataError(f"data: met {type(data).__name__}, expected a DataFrame as in training")
        fields = {}
        labels: dict[str, tuple[str, ...]] = {}
        for column in data.columns:
            known = None if schema is None else schema.labels.get(str(column), ())
            array, texts, _ = encode_column(data[column], str(column), known)
            fields[str(column)] = to_tensor(array, f"data: column {str(column)!r}")
            if texts:
                labels[str(column)] = texts
        return Named(fields), labels
    if call == "arguments":
        if not isinstance(data, tuple):
            raise DataError(f"data: met {type(data).__name__}, expected a tuple of the model's arguments")
        names = [*arguments, *(str(place) for place in range(len(arguments), len(data)))][: len(data)]
        data = dict(zip(names, data, strict=True))
    elif not isinstance(data, Mapping):
        raise DataError(f"data: met {type(data).__name__}, expected a dict as in training")
    return _adapt_fields(Named({str(name): value for name, value in data.items()})), {}


def _adapt_rows(values: Rows, schema: Schema | None, container: str, columns: tuple[str, ...] | None = None) -> Dataset:
    """A memory map, or a loader. In training all rows are looked at; those met later as they are read."""
    whole = () if columns is None or values.is_floating_point() else columns
    own = Schema(columns, {}, container, values.shape[-1] if values.dim() > 1 else None, whole)
    if schema is not None:
        return Dataset(values, _match(own, values, schema))
    return Dataset(replace(values, missing=check_cells(values, "data", columns, training=True)), own)


def loaded(dataset: Dataset) -> Dataset:
    """The data in memory, for what cannot do with some rows at a time."""
    return replace(dataset, values=dataset.values.whole()) if isinstance(dataset.values, Rows) else dataset


def _adapt_long(data: Any, schema: Schema | None, by: str) -> Dataset:
    """The groups of a long table, padded: (N, M, D)."""
    known = None if schema is None else schema.columns
    rest, name, names, codes = split(data, by, known)
    values, own = _adapt_one(rest, "data", schema)
    container = own.container if is_instance(data, "pandas", "DataFrame") or isinstance(data, Tensor) else "array"
    found = own if schema is None else _match(own, values, schema)
    check_cells(values, "data", found.columns, training=schema is None)
    return Dataset(padded(values, codes, len(names)), replace(found, by=name, container=container), names)


def _adapt_bags(data: Any, schema: Schema | None) -> tuple[Any, Schema]:
    """A sparse matrix, or documents as lists of words, which have the columns of training."""
    if is_sparse(data):
        bags = bags_of_sparse(data)
        return bags, Schema(None, {}, "sparse", bags.width)
    bags, words = bag_of_words(data, schema.columns if schema is not None else None)
    return bags, Schema(words, {}, "sparse", bags.width)


def numbers_of(rows: Any, schema: Schema) -> Tensor:
    """Rows as the user brings them as numbers (n, ...) in float64, labels as codes: what `Schema.decode` undoes."""
    return densified(adapt(rows, schema).values).double()


def _adapt_one(data: Any, name: str, schema: Schema | None, booleans: bool = False) -> tuple[Tensor, Schema]:
    if is_instance(data, "pandas", "DataFrame", "Series"):
        return _adapt_table(data, name, schema)
    values = to_tensor(data, name, booleans)
    container = "tensor" if isinstance(data, Tensor) else "array"
    return values, Schema(None, {}, container, values.shape[-1] if values.dim() > 1 else None)


def _adapt_fields(data: Any) -> Any:
    changes = {}
    for name, value in fields_of(data).items():
        if value is not None and not isinstance(value, bool | int | float | str):
            value = value.to_numpy() if is_instance(value, "pandas", "Series") and value.dtype == bool else value
            changes[name], schema = _adapt_one(value, f"data.{name}", None, booleans=True)
            for column in schema.labels:
                raise DataError(f"data.{name}: column {column!r} holds labels, expected numbers; give codes 0, 1, ...")
    if not changes:
        kind = "the data" if isinstance(data, Named) else type(data).__name__
        raise DataError(f"data: no field of {kind} is a tensor or an array, expected at least one")
    return replace_fields(data, changes)


def _adapt_table(data: Any, name: str, schema: Schema | None) -> tuple[Tensor, Schema]:
    flat = data.ndim == 1
    frame = data.to_frame("value" if data.name is None else data.name) if flat else data
    columns = tuple(str(column) for column in frame.columns)
    check_size(frame.shape, name)
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise DataError(f"{name}: met columns of one name, {listed(repeated)}, expected names that differ; rename them")
    trained = schema.columns if schema is not None else None
    if schema is not None and trained is not None:
        if flat and schema.width is None:
            columns = trained  # the only column there is, whatever its name
        absent = [column for column in trained if column not in columns]
        if absent:
            raise DataError(f"{name}: met no column {listed(absent)}, expected {listed(trained)} as in training")
        frame = frame.iloc[:, [columns.index(column) for column in trained]]
        columns, flat = trained, schema.width is None
    arrays, labels, integers = [], {}, []
    for position, column in enumerate(columns):
        known = schema.labels.get(column, ()) if schema is not None and trained is not None else None
        array, texts, whole = encode_column(frame.iloc[:, position], column, known)
        arrays.append(array)
        if texts:
            labels[column] = texts
        if whole:
            integers.append(column)
    values = to_tensor(arrays[0] if flat else np.stack(arrays, axis=1), name)
    return values, Schema(columns, labels, "frame", None if flat else len(columns), tuple(integers))


def _match(own: Schema, values: Any, schema: Schema) -> Schema:
    """The schema of data met after training: columns and labels as in training, the container as met."""
    if (own.container == "structure") != (schema.container == "structure"):
        raise DataError(f"data: met a {own.container}, expected a {schema.container} as in training")
    if own.width != schema.width:
        names = f" ({listed(schema.columns)})" if schema.columns else ""
        raise DataError(f"data: met {_width(own)}, expected {_width(schema)}{names} as in training")
    for column in own.labels:
        if schema.columns is None:
            raise DataError(
                f"data: column {column!r} holds labels, expected numbers as in training; give codes 0, 1, ..."
            )
    for position, column in enumerate(schema.columns or () if own.columns is None else ()):
        for piece in pieces(values) if column in schema.labels else ():
            check_codes(piece if schema.width is None else piece[..., position], column, schema.labels[column])
    columns, integers = schema.columns or own.columns, schema.integers or own.integers
    return Schema(columns, schema.labels, own.container, own.width, integers)


def _width(schema: Schema) -> str:
    return "1-D data (N,)" if schema.width is None else f"{schema.width} column{'s' * (schema.width != 1)}"
