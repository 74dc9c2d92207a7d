"""Rows of data that are read when they are asked for, so that what is in memory is a batch, and never the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..base.errors import DataError
from .structures import infinite_cell, is_missing, num_rows, slice_rows

CPU = torch.device("cpu")
CELLS = 2**22  # of rows that are read together, at most
DRAWN = 2**25  # of rows with draws for each
WHOLE = 2**24  # of a table that a verb may ask for as one tensor


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
