"""Rows of data that are read when they are asked for, so that what is in memory is a batch, and never the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import DataError
from .sparse import Bags
from .structures import check_size, infinite_cell, is_instance, is_missing, num_rows, slice_rows, to_tensor

CPU = torch.device("cpu")
CELLS = 2**22  # of rows that are read together, at most
DRAWN = 2**25  # of rows with draws for each
WHOLE = 2**24  # of a table that a verb may ask for as one tensor
LOADED = ("torch.utils.data", "Dataset", "DataLoader")


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows (N, ...) of a memory map, a sparse matrix, a loader, or of a table that is too large for a device.

    The functions of `arrays` that take data take these too: `num_rows`, `slice_rows`, `is_missing`.

    Attributes
    ----------
    read : callable
        Positions (B,), or a slice -> those rows as a tensor (B, ...).
    shape : tuple of int
        (N, ...).
    dtype : torch.dtype
        In which rows are given.
    whole : callable
        All that there is, as drivers without networks take it; raises DataError where nothing gives that.
    missing : bool
        Whether cells may be NaN.
    fixed : bool
        Whether a row is the same each time that it is read.
    batch_size : int, optional
        Rows of a step where nobody says another number.
    device : torch.device
        To which rows are brought.
    """

    read: Callable[[slice | Tensor], Tensor]
    shape: tuple[int, ...]
    dtype: torch.dtype
    whole: Callable[[], Any]
    missing: bool = True
    fixed: bool = True
    batch_size: int | None = None
    device: torch.device = CPU

    def __len__(self) -> int:
        return self.shape[0]

    def dim(self) -> int:
        return len(self.shape)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def pick(self, index: slice | Tensor) -> Tensor:
        """The rows that `index` picks, looked at as they come in.

        Raises
        ------
        DataError
            They are of another shape than the first row, or hold an infinite cell.
        """
        index = _as_read(index)
        found = self.read(index)
        if found.shape[1:] != self.shape[1:]:
            met, first = tuple(found.shape[1:]), self.shape[1:]
            raise DataError(f"data: met rows of shape {met}, expected {first}, the shape of the first row")
        if found.is_floating_point() and not math.isfinite(found.sum()):  # the quickest look
            _check_finite(found, index)
        return brought(found.to(self.dtype), self.device)

    def to(self, dtype: torch.dtype) -> Rows:
        """The same rows in another dtype."""
        return replace(self, dtype=dtype)


@num_rows.register
def _(values: Rows) -> int:
    return len(values)


@slice_rows.register
def _(values: Rows, index: Any) -> Tensor:
    return values.pick(index)


@is_missing.register
def _(values: Rows) -> bool:
    return values.missing


def _as_read(index: slice | Tensor) -> slice | Tensor:
    """Positions as a slice where they follow one another: then nothing is gathered."""
    if isinstance(index, slice):
        return index
    index = index.cpu()
    if index.dtype == torch.bool:
        return index.nonzero().flatten()
    first, last = (int(index[0]), int(index[-1])) if len(index) else (0, -1)
    if first >= 0 and last - first == len(index) - 1 and bool((index.diff() == 1).all()):
        return slice(first, last + 1)
    return index


def _check_finite(found: Tensor, index: slice | Tensor) -> None:
    infinite = found.isinf().nonzero()
    if not len(infinite):
        return
    place = infinite[0].tolist()
    row = place[0] + (index.start or 0) if isinstance(index, slice) else int(index[place[0]])
    column = f"column {place[-1]}" if len(place) > 1 else "the data"
    raise infinite_cell("data", column, row, found[tuple(place)].item())


def brought(rows: Tensor, device: torch.device) -> Tensor:
    """Rows on a device; to CUDA from pinned memory, so that nobody waits for them."""
    if rows.device == device or device.type == "cpu":
        return rows
    if device.type == "cuda":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device)


def together(values: Any, most: int) -> int:
    """How many rows are looked at together: `most`, or fewer where they have to be read, and are wide."""
    return min(most, max(1, CELLS // math.prod(values.shape[1:]))) if isinstance(values, Rows) else most


def with_draws(values: Any, most: int, times: int) -> int:
    """How many rows are looked at together where each is there so many times: `most` in all, or fewer likewise."""
    if isinstance(values, Rows):
        most = min(most, DRAWN // math.prod(values.shape[1:]))
    return max(1, most // times)


def pieces(values: Any, most: int = CELLS) -> Iterator[Any]:
    """All data that are in memory; others some rows at a time."""
    if not isinstance(values, Rows):
        yield values
        return
    size = together(values, most)
    yield from (values.pick(slice(start, start + size)) for start in range(0, len(values), size))


def first_rows(values: Any, num: int) -> Any:
    """So many rows, or all where there are fewer."""
    return slice_rows(values, slice(num)) if num_rows(values) > num or isinstance(values, Rows) else values


def spread_rows(values: Any) -> Any:
    """Data to find starting values on: all that are in memory; of others `CELLS` cells, their rows spread evenly.

    A column of which those rows hold no value holds in the first of them the first value that it has.
    """
    if not isinstance(values, Rows):
        return values
    size = len(values)
    found = values.pick(torch.linspace(0, size - 1, together(values, size), dtype=torch.float64).round().long())
    lacking = found.isnan().all(0)
    if values.missing and bool(lacking.any()):
        found = found.clone()
        for piece in pieces(values):
            seen = ~piece.isnan()
            now = lacking & seen.any(0)
            if bool(now.any()):
                first = seen.int().argmax(0, keepdim=True)
                found[0] = torch.where(now, piece.gather(0, first)[0], found[0])
                lacking = lacking & ~now
            if not bool(lacking.any()):
                break
    return found


def in_full(values: Any) -> Tensor:
    """A copy of a table in float64, which a verb fills in for all rows."""
    return read_whole(values, torch.float64, CPU) if isinstance(values, Rows) else values.to(torch.float64, copy=True)


def read_whole(values: Rows, dtype: torch.dtype, home: torch.device) -> Tensor:
    """All rows on a device, of which a few at a time are in this machine's memory."""
    out = torch.empty(values.shape, dtype=dtype, device=home)
    start = 0
    for piece in pieces(values):
        out[start : start + len(piece)] = piece
        start += len(piece)
    return out


def as_one(values: Any, verb: str) -> Any:
    """Data as a tensor, for a verb that looks at all rows at once.

    Raises
    ------
    DataError
        They are too many for that.
    """
    if not isinstance(values, Rows):
        return values
    if math.prod(values.shape) > WHOLE:
        met = " x ".join(map(str, values.shape))
        raise DataError(f"{verb}: looks at all rows at once, and these {met} cells are too many: pass some of the rows")
    return values.pick(slice(None))


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
