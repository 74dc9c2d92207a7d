"""Memory maps, sparse matrices and loaders as `rows.Rows`."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import DataError
from .sparse import Bags
from .streams import Rows
from .structures import check_size, is_instance, to_tensor

LOADED = ("torch.utils.data", "Dataset", "DataLoader")


def is_loader(data: object) -> bool:
    """Whether the data are a `Dataset` or a `DataLoader` of torch."""
    return is_instance(data, *LOADED)


def is_read(data: object) -> bool:
    """Whether rows of the data can be read by themselves."""
    return isinstance(data, np.memmap) or is_loader(data)


def rows_of(data: Any) -> Rows | Tensor:
    """A memory map, `Dataset` or `DataLoader` as rows; a `TensorDataset` as its tensor, which is in memory."""
    if isinstance(data, np.memmap):
        return rows_of_array(data)
    return _of_loader(data) if is_instance(data, "torch.utils.data", "DataLoader") else _of_dataset(data, None)


def rows_of_bags(bags: Bags) -> Rows:
    """A sparse matrix: rows become dense as they are taken."""
    shape = (len(bags), bags.width)
    return Rows(lambda index: bags.pick(index).dense(), shape, torch.float64, lambda: bags, bags.missing is not None)


def rows_of_tensor(table: Tensor, batch_size: int | None = None) -> Rows:
    """A table that is in memory."""
    missing = table.is_floating_point()
    return Rows(table.__getitem__, tuple(table.shape), table.dtype, lambda: table, missing, True, batch_size)


def rows_of_array(data: np.ndarray) -> Rows:
    """A memory map, or another array whose numbers are made floats as they are taken."""
    first = to_tensor(data[:1] if data.ndim else data, "data")  # its dtype, or what is wrong with it
    check_size(data.shape, "data")

    def read(index: slice | Tensor) -> Tensor:
        chosen = index if isinstance(index, slice) else index.numpy()
        return to_tensor(np.ascontiguousarray(data[chosen]), "data")

    return Rows(read, data.shape, first.dtype, lambda: to_tensor(data, "data"), first.is_floating_point())


# --- loaders ----------------------------------------------------------------------------------------------------------


def _of_loader(loader: Any) -> Rows | Tensor:
    from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler, default_collate

    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        raise DataError(_sampled(type(loader.batch_sampler).__name__))
    sampler = loader.sampler
    plain = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(loader.dataset)
    )
    if not isinstance(loader.dataset, torch.utils.data.IterableDataset) and not plain:
        raise DataError(_sampled(type(sampler).__name__))
    collate = None if loader.collate_fn is default_collate or loader.batch_size is None else loader.collate_fn
    size = loader.batch_size if loader.batch_size != 1 else None  # a loader's own default, which nobody asked for
    return _of_dataset(loader.dataset, collate, size)


def _sampled(name: str) -> str:
    return (
        f"data: met a DataLoader whose rows are drawn by a {name}, expected one with shuffle=True or False: every row "
        f"counts once; leave rows out by torch.utils.data.Subset, or give weights="
    )


def _of_dataset(data: Any, collate: Callable[[list[Any]], Any] | None, batch_size: int | None = None) -> Rows | Tensor:
    """Rows of a map-style dataset: `collate` makes a batch of items, as a loader does."""
    if isinstance(data, torch.utils.data.IterableDataset) or not hasattr(data, "__len__"):
        raise DataError(
            f"data: met a {type(data).__name__} that is only gone through in order, expected a Dataset with __len__ "
            f"and __getitem__: rows are drawn by their number; write what it gives to a .npy file, and give its path"
        )
    size = len(data)
    if size == 0:
        raise DataError(f"data: met a {type(data).__name__} of no rows, expected at least one")
    if isinstance(data, torch.utils.data.TensorDataset) and collate is None:
        return data.tensors[0] if batch_size is None else rows_of_tensor(to_tensor(data.tensors[0], "data"), batch_size)
    take = getattr(data, "__getitems__", None) or (lambda places: [data[place] for place in places])

    def read(index: slice | Tensor) -> Tensor:
        places = list(range(*index.indices(size))) if isinstance(index, slice) else index.tolist()
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            items = take(places)
            return _stacked(items, places) if collate is None else _collated(collate(items), len(places))

    first = read(slice(1))
    check_size((size, *first.shape[1:]), "data")
    return Rows(read, (size, *first.shape[1:]), first.dtype, _refused, first.is_floating_point(), False, batch_size)


def _refused() -> Any:
    raise DataError(
        "data: met a loader, which only pairs with networks are fitted from, batch by batch: this inference needs the "
        "table in memory; give it as a tensor, torch.stack([row for row, *_ in dataset])"
    )


def _row(item: Any, place: int) -> Any:
    """The first part of an item."""
    beside = isinstance(item, tuple) and not isinstance(item[0] if item else 0, int | float)
    if beside or (isinstance(item, list) and item and isinstance(item[0], Tensor | np.ndarray)):
        item = item[0]
    if not isinstance(item, Tensor | np.ndarray | np.generic | int | float | list | tuple):
        raise DataError(
            f"data: item {place} of the dataset is a {type(item).__name__}, expected a row of numbers, or a tuple "
            f"whose first part is that"
        )
    return item


def _stacked(items: list[Any], places: list[int]) -> Tensor:
    rows: list[Tensor] = []
    for item, place in zip(items, places, strict=True):
        row = _row(item, place)
        row = row if isinstance(row, Tensor) else torch.from_numpy(_array(row, place))
        if rows and row.shape != rows[0].shape:
            met, other = tuple(row.shape), tuple(rows[0].shape)
            raise DataError(f"data: row {place} has shape {met}, row {places[0]} has {other}: expected equal shapes")
        rows.append(row)
    return to_tensor(torch.stack(rows), "data") if math.prod(rows[0].shape) else torch.zeros(len(rows), 0)


def _array(row: Any, place: int) -> np.ndarray:
    try:
        found = np.asarray(row)
    except ValueError as error:
        raise DataError(f"data: row {place} holds parts of unequal lengths, expected numbers") from error
    if found.dtype.kind not in "biuf":
        raise DataError(f"data: row {place} holds {found.dtype}, expected numbers")
    return found


def _collated(batch: Any, size: int) -> Tensor:
    """The first part of what a loader's own `collate_fn` gives."""
    rows = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    if not isinstance(rows, Tensor | np.ndarray):
        raise DataError(
            f"data: the loader's collate_fn gives a {type(rows).__name__}, expected a tensor of rows, or a tuple whose "
            f"first part is that"
        )
    if len(rows) != size:
        raise DataError(f"data: the loader's collate_fn makes {len(rows)} rows of {size} items, expected as many")
    return to_tensor(rows, "data")
