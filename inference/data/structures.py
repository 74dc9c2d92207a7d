"""Tensors, and NamedTuples or dataclasses of tensors, as rows of data: made from arrays, checked in chunks, sliced."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import DataError

CHUNK = 2**18
"""Cells looked at together: the checks hold no more than this at once, so those of a memory map take no memory."""


# -- structures --------------------------------------------------------------------------------------------------------


class Named:
    """Fields under names of any kind, as a model reads a table or a dict: ``d["x"]``, ``d.x``, ``d[["x", "y"]]``.

    Parameters
    ----------
    fields : mapping
        Name -> tensor, or whatever else a field holds.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._by_name = dict(fields)

    def __len__(self) -> int:
        return num_rows(self)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: Any) -> Any:
        if isinstance(name, list):
            return torch.stack([self[one] for one in name], -1)
        if name not in self._by_name:
            raise KeyError(f"{name!r}: there are {listed(self._by_name)}")
        return self._by_name[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self.__dict__.get("_by_name", {}):
            raise AttributeError(name)
        return self._by_name[name]

    @property
    def columns(self) -> list[str]:
        """The names."""
        return list(self._by_name)


def is_structure(values: object) -> bool:
    """Whether `values` are several fields: a NamedTuple, a dataclass, or `Named`."""
    if isinstance(values, Named):
        return True
    named = isinstance(values, tuple) and hasattr(values, "_fields")
    return named or (dataclasses.is_dataclass(values) and not isinstance(values, type))


def fields_of(values: Any) -> dict[str, Any]:
    """Name -> value of the fields of a structure; a bare tensor is one field without a name."""
    if isinstance(values, Tensor):
        return {"": values}
    if isinstance(values, Named):
        return {name: values[name] for name in values.columns}
    named = getattr(values, "_fields", None)
    names = [field.name for field in dataclasses.fields(values)] if named is None else named
    return {name: getattr(values, name) for name in names}


def tensors_of(values: Any) -> dict[str, Tensor]:
    """The fields that are tensors."""
    return {name: value for name, value in fields_of(values).items() if isinstance(value, Tensor)}


def replace_fields(values: Any, changes: dict[str, Any]) -> Any:
    """The same structure with some fields changed."""
    if isinstance(values, Named):
        return Named({**fields_of(values), **changes})
    named = getattr(values, "_replace", None)
    return dataclasses.replace(values, **changes) if named is None else named(**changes)


def map_tensors(fn: Callable[[Tensor], Tensor], values: Any) -> Any:
    """`fn` of a tensor, or of each tensor in a NamedTuple or dataclass; fields of other types stay as they are."""
    if isinstance(values, Tensor):
        return fn(values)
    return replace_fields(values, {name: fn(value) for name, value in tensors_of(values).items()})


# -- rows --------------------------------------------------------------------------------------------------------------


@singledispatch
def num_rows(values: Any) -> int:
    """Number of rows N: the length of a tensor (N, ...), or of the first tensor in a NamedTuple or dataclass."""
    return len(next(iter(tensors_of(values).values())))


@singledispatch
def slice_rows(values: Any, index: slice | Tensor) -> Any:
    """The rows that `index` picks: a slice, or a tensor of positions (B,) or of booleans (N,).

    In a structure every tensor whose first dim is N is sliced; the others belong to no row, and stay whole.
    """
    rows = num_rows(values)

    def of(tensor: Tensor) -> Tensor:
        if not (tensor.dim() and len(tensor) == rows):
            return tensor
        if isinstance(index, Tensor) and index.dtype is torch.long:
            return tensor.index_select(0, index.to(tensor.device))  # more than twice as fast as tensor[index]
        return tensor[index]

    return map_tensors(of, values)


def template(values: Any, n: int) -> Any:
    """Rows 0, 1, ..., n - 1 of `values`, begun again from row 0 when there are fewer."""
    rows = num_rows(values)
    return slice_rows(values, slice(n) if n <= rows else torch.arange(n) % rows)


@singledispatch
def is_missing(values: Any) -> bool:
    """Whether any cell is NaN."""
    floats = [tensor for tensor in tensors_of(values).values() if tensor.is_floating_point()]
    # A sum is the quickest look: only where it is NaN (infinities of both signs make one too) are the cells looked at.
    return any(math.isnan(part.sum()) and bool(part.isnan().any()) for tensor in floats for part in chunks(tensor))


def chunks(values: Any) -> Iterator[Tensor]:
    """Successive rows of (N, ...), of about `CHUNK` cells each; of a tensor as views."""
    values = values.detach() if isinstance(values, Tensor) else values
    size = max(1, CHUNK * len(values) // max(1, math.prod(values.shape)))
    return (slice_rows(values, slice(start, start + size)) for start in range(0, len(values), size))


# -- making tensors ----------------------------------------------------------------------------------------------------


def to_tensor(data: Any, name: str, booleans: bool = False) -> Tensor:
    """A tensor, array, memory map or list of numbers (N, ...) as a tensor, without a copy where its dtype allows.

    Booleans (kept with `booleans`) and integers other than int32 and int64 become int64, halves float32, longer floats
    float64; a tensor's integers stay. `name` stands for the data in messages.

    Raises
    ------
    DataError
        For anything else, and for no rows or no columns.
    """
    if booleans and isinstance(data, np.ndarray) and data.dtype.kind == "b":
        data = torch.from_numpy(data.copy())
    kept = booleans and isinstance(data, Tensor) and data.dtype is torch.bool
    tensor = _from_tensor(data, name) if isinstance(data, Tensor) else _from_array(_to_array(data, name), name)
    tensor = data if kept else tensor
    if tensor.dim() == 0:
        raise DataError(f"{name}: met a single number, expected rows: shape (N,) or (N, D)")
    check_size(tuple(tensor.shape), name)
    return tensor


def _from_tensor(tensor: Tensor, name: str) -> Tensor:
    if tensor.layout != torch.strided:
        raise DataError(f"{name}: met a sparse tensor, expected a dense one; densify it with .to_dense()")
    if tensor.is_complex():
        raise DataError(_complex(tensor.dtype, name))
    if tensor.dtype == torch.bool:
        return tensor.to(torch.int64)
    return tensor.to(torch.float32) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _to_array(data: Any, name: str) -> np.ndarray:
    if is_instance(data, "scipy.sparse", "sparray", "spmatrix"):
        raise DataError(f"{name}: met a sparse matrix, expected a dense one; densify it with .toarray()")
    if isinstance(data, np.ma.MaskedArray) and data.dtype.kind in "biuf":
        return np.where(np.ma.getmaskarray(data), np.nan, np.ma.getdata(data).astype(np.float64))
    if isinstance(data, np.ndarray):
        return data
    if isinstance(data, list | tuple):
        try:
            return np.asarray(data)
        except ValueError as error:
            raise DataError(f"{name}: met rows of unequal lengths, expected equal ones; pad them with NaN") from error
    expected = "a tensor, an array, a pandas table, a NamedTuple or dataclass of tensors, or a path"
    raise DataError(f"{name}: met {type(data).__module__}.{type(data).__qualname__}, expected {expected}")


def _from_array(array: np.ndarray, name: str) -> Tensor:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "c":
        raise DataError(_complex(array.dtype, name))
    if kind not in "biuf":
        way_out = "labels are taken as columns of a pandas DataFrame"
        raise DataError(f"{name}: met an array of dtype {array.dtype}, expected numbers; {way_out}")
    if kind == "f":
        array = array.astype(np.float32 if size <= 4 else np.float64, copy=False)
    elif kind == "i" and size >= 4:
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    else:
        array = to_int64(array, name)
    if any(stride < 0 or stride % array.itemsize for stride in array.strides) or not array.flags.aligned:
        array = array.copy()  # torch steps forward, in whole elements
    with warnings.catch_warnings():  # a memory map opened read-only is meant so
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def to_int64(array: np.ndarray, name: str) -> np.ndarray:
    """Integers or booleans as int64; without a copy where they are."""
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"{name}: met {array.max()}, beyond the integers of 64 bits; convert with .astype(float)")
    return array.astype(np.int64, copy=False)


# -- checks ------------------------------------------------------------------------------------------------------------


def check_size(shape: tuple[int, ...], name: str) -> None:
    """No rows and no columns are errors."""
    if 0 in shape:
        lacking = "rows" if shape[0] == 0 else "columns"
        raise DataError(f"{name}: met shape {shape}, which has no {lacking}; expected at least one")


def check_cells(values: Any, name: str, columns: Sequence[str] | None, training: bool) -> bool:
    """Infinite cells of (N, ..., D) are errors, and in training a column without any value is one too; whether any cell
    is missing.
    """
    if not values.dtype.is_floating_point:
        return False
    flat, missing = len(values.shape) == 1, False
    width = 1 if flat else values.shape[-1]
    names = [f"column {column!r}" for column in columns or range(width)] if columns or not flat else ["the data"]
    seen = torch.zeros(width, dtype=torch.bool, device=values.device)
    start = 0
    for part in chunks(values):
        cells = part.reshape(-1, width)
        if math.isfinite(cells.sum()):  # the quickest look: neither NaN nor infinity
            seen[:] = True
        else:
            infinite = cells.isinf().nonzero()
            if len(infinite):
                line, column = infinite[0].tolist()
                row = start + line * len(part) // len(cells)
                raise infinite_cell(name, names[column], row, cells[line, column].item())
            gaps = cells.isnan()
            missing = missing or bool(gaps.any())
            seen |= ~gaps.all(0)
        start += len(part)
    if len(values) == 1:  # a row by itself may be a sequence, and then no column stands alone
        seen[:] = bool(seen.any())
    if training and not seen.all():
        empty = listed((names[position] for position in (~seen).nonzero().flatten().tolist()), quote=False)
        raise DataError(f"{name}: met only missing cells in {empty}, expected some values; drop or fill it")
    return missing


def infinite_cell(name: str, column: str, row: int, met: float) -> DataError:
    """What is said of a cell that is not finite."""
    where = f"{column}, row {row} (the first is 0)"
    return DataError(f"{name}: met {met} in {where}, expected finite numbers; make it NaN (missing) or drop the row")


def check_codes(values: Tensor, column: str, labels: Sequence[str]) -> None:
    """Bare numbers (N,) in place of labels must be their codes 0, 1, ..., or NaN."""
    for part in chunks(values):
        present = part[~part.isnan()]
        wrong = present[(present < 0) | (present >= len(labels)) | (present != present.floor())]
        if len(wrong):
            expected = f"codes 0 to {len(labels) - 1} of its labels {listed(labels)}"
            raise DataError(f"data: column {column!r} holds {wrong[0].item()}, expected {expected}")


# -- words -------------------------------------------------------------------------------------------------------------


def listed(names: Iterable[object], quote: bool = True) -> str:
    """Names in a line, the first dozen of them."""
    words = [repr(name) if quote else str(name) for name in names]
    return ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "")


def is_instance(data: object, module: str, *classes: str) -> bool:
    """Whether `data` is of a class of a module that need not be imported: if it is not, `data` cannot be."""
    loaded = sys.modules.get(module)
    return loaded is not None and any(isinstance(data, getattr(loaded, name, ())) for name in classes)


def _complex(dtype: object, name: str) -> str:
    return f"{name}: met {dtype}, expected real numbers; give real and imaginary parts as columns of their own"
