"""Rows of counts, most of them 0: bags of words, kept as the cells that are not 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import DataError
from .structures import infinite_cell, is_instance, listed, slice_rows

DENSE_BYTES = 1 << 30  # a table up to this size is made where a driver needs one


@dataclass(frozen=True, eq=False)
class Bags:
    """N rows over V columns.

    Attributes
    ----------
    lengths : Tensor (N,)
        How many cells of each row are not 0.
    index : Tensor (cells,)
        Their columns, row after row, ascending within a row.
    count : Tensor (cells,)
        Their values.
    width : int
        V.
    missing : Tensor (M, 2), optional
        Row and column of the cells that are missing (NaN).
    """

    lengths: Tensor
    index: Tensor
    count: Tensor
    width: int
    missing: Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def starts(self) -> Tensor:
        """Where each row begins among the cells, and the end, (N + 1,)."""
        zero = self.lengths.new_zeros(1)
        return torch.cat([zero, self.lengths.cumsum(0)])

    @cached_property
    def rows(self) -> Tensor:
        """The row of each cell, (cells,)."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.index.device), self.lengths)

    @cached_property
    def totals(self) -> Tensor:
        """Sum of each row, (N,)."""
        return self.count.new_zeros(len(self)).index_add(0, self.rows, self.count)

    @cached_property
    def blank(self) -> Tensor:
        """Which rows are missing altogether, (N,) of bool."""
        if self.missing is None:
            return torch.zeros(len(self), dtype=torch.bool, device=self.index.device)
        return torch.bincount(self.missing[:, 0], minlength=len(self)) == self.width

    def pick(self, index: Any) -> Bags:
        """The rows that `index` picks."""
        if isinstance(index, slice):
            chosen = torch.arange(*index.indices(len(self)), device=self.index.device)
        else:
            chosen = index.nonzero().flatten() if index.dtype == torch.bool else index % len(self)
        lengths = self.lengths[chosen]
        cells = _runs(self.starts[:-1][chosen], lengths)
        missing = None
        if self.missing is not None:
            of_row = self.missing[:, 0].contiguous()  # ascending
            first = torch.searchsorted(of_row, chosen)
            gaps = torch.searchsorted(of_row, chosen, right=True) - first
            place = torch.repeat_interleave(torch.arange(len(chosen), device=chosen.device), gaps)
            found = self.missing[_runs(first, gaps), 1]
            missing = torch.stack([place, found], 1) if len(found) else None
        return Bags(lengths, self.index[cells], self.count[cells], self.width, missing)

    def dense(self) -> Tensor:
        """The table (N, V), float64."""
        out = torch.zeros(len(self), self.width, dtype=torch.float64, device=self.index.device)
        out[self.rows, self.index] = self.count.double()
        if self.missing is not None:
            out[self.missing[:, 0], self.missing[:, 1]] = torch.nan
        return out

    def scipy(self) -> Any:
        """The same as a scipy CSR array."""
        from scipy.sparse import csr_array

        parts = (self.count.cpu().numpy(), self.index.cpu().numpy(), self.starts.cpu().numpy())
        out = csr_array(parts, shape=(len(self), self.width))
        if self.missing is None:
            return out
        place = self.missing.cpu().numpy()
        return out + csr_array((np.full(len(place), np.nan), (place[:, 0], place[:, 1])), shape=out.shape)


slice_rows.register(Bags, Bags.pick)


def _runs(first: Tensor, lengths: Tensor) -> Tensor:
    """Runs of successive numbers, each from its first and of its length, end to end."""
    within = torch.arange(int(lengths.sum()), device=first.device)
    return torch.repeat_interleave(first - (lengths.cumsum(0) - lengths), lengths) + within


def check_bags(bags: Bags, columns: Sequence[str] | None, training: bool) -> None:
    """Infinite cells are errors, and in training a column without any value is one too: see `arrays.check_cells`."""
    infinite = bags.count.isinf().nonzero()
    if len(infinite):
        cell = int(infinite[0])
        row, column = int(torch.searchsorted(bags.starts, cell, right=True)) - 1, int(bags.index[cell])
        name = f"column {columns[column]!r}" if columns else f"column {column}"
        raise infinite_cell("data", name, row, bags.count[cell].item())
    if training and bags.missing is not None:
        unseen = torch.bincount(bags.missing[:, 1], minlength=bags.width) == len(bags)
        if bool(unseen.any()) and len(bags) > 1:
            found = unseen.nonzero().flatten().tolist()
            empty = listed((f"column {columns[c] if columns else c!r}" for c in found), quote=False)
            raise DataError(f"data: met only missing cells in {empty}, expected some values; drop or fill it")


def check_counts(counts: Bags, site: str, column: Callable[[int], str], start: int = 0) -> None:
    """Cells are whole numbers, none negative; `start` is the number of the first row."""
    wrong = ((counts.count < 0) | (counts.count != counts.count.floor())).nonzero()
    if len(wrong):
        cell = int(wrong[0])
        raise DataError(
            f"site '{site}': row {int(counts.rows[cell]) + start} holds {counts.count[cell].item():g} in "
            f"{column(int(counts.index[cell]))}, expected counts: whole numbers, none negative"
        )


def check_rows_count(counts: Bags, site: str, start: int = 0) -> None:
    """Multinomial rows are whole or wholly missing, and count something; `start` is the number of the first."""
    if counts.missing is not None:
        partly = torch.bincount(counts.missing[:, 0], minlength=len(counts))
        torn = ((partly > 0) & ~counts.blank).nonzero()
        if len(torn):
            raise DataError(
                f"site '{site}': row {int(torn[0]) + start} has missing cells beside others; a multinomial row is "
                f"whole or wholly missing"
            )
    empty = ((counts.lengths == 0) & ~counts.blank).nonzero()
    if len(empty):
        raise DataError(
            f"site '{site}': row {int(empty[0]) + start} (the first is 0) counts nothing, so it says nothing of its "
            f"topics: leave it out"
        )


def bags_of(table: Tensor) -> Bags:
    """A table (N, V) as the cells that are not 0."""
    filled = table.nan_to_num(nan=0.0) if table.is_floating_point() else table
    rows, index = filled.nonzero(as_tuple=True)
    missing = table.isnan().nonzero() if table.is_floating_point() and bool(table.isnan().any()) else None
    lengths = torch.bincount(rows, minlength=len(table))
    return Bags(lengths, index, filled[rows, index].double(), table.shape[1], missing)


def is_sparse(data: object) -> bool:
    """Whether the data are a sparse matrix of scipy or torch."""
    if isinstance(data, Tensor):
        return data.layout in (torch.sparse_coo, torch.sparse_csr)
    return is_instance(data, "scipy.sparse", "sparray", "spmatrix")


def bags_of_sparse(data: Any) -> Bags:
    """A sparse matrix (N, V) of scipy or torch."""
    if len(data.shape) != 2:
        raise DataError(f"data: met a sparse array of shape {tuple(data.shape)}, expected rows and columns (N, V)")
    if 0 in data.shape:
        raise DataError(f"data: met a sparse matrix of shape {tuple(data.shape)}, expected rows and columns")
    if isinstance(data, Tensor):
        coo = (data.to_sparse_coo() if data.layout != torch.sparse_coo else data).coalesce()
        rows, index = coo.indices()
        count = coo.values()
    else:
        if data.dtype.kind not in "biuf":
            raise DataError(f"data: met a sparse matrix of dtype {data.dtype}, expected numbers")
        csr = data.tocsr(copy=True)
        csr.sum_duplicates()
        index, count = torch.from_numpy(csr.indices.astype(np.int64)), torch.from_numpy(csr.data.astype(np.float64))
        rows = torch.repeat_interleave(torch.arange(data.shape[0]), torch.from_numpy(np.diff(csr.indptr)).long())
    count = count.double()
    seen = count != 0
    gaps = count.isnan()
    missing = torch.stack([rows[gaps], index[gaps]], 1) if bool(gaps.any()) else None
    seen = seen & ~gaps
    lengths = torch.bincount(rows[seen], minlength=data.shape[0])
    return Bags(lengths, index[seen].contiguous(), count[seen].contiguous(), data.shape[1], missing)


def densified(values: Any) -> Any:
    """Bags as a table, where that is not too large; other data as they are."""
    if not isinstance(values, Bags):
        return values
    if len(values) * values.width * 8 > DENSE_BYTES:
        raise DataError(
            f"data: this inference needs the {len(values)} x {values.width} sparse matrix as a dense table, which is "
            f'too large: use inference="cavi" with a model of counts, or fewer rows or columns'
        )
    return values.dense()


def is_texts(data: object) -> bool:
    """Whether the data are documents: lists of words."""
    if not isinstance(data, list | tuple) or not data:
        return False
    lists = all(isinstance(one, list | tuple) for one in data)
    return lists and any(len(one) for one in data) and all(isinstance(word, str) for one in data for word in one)


def bag_of_words(
    documents: Iterable[Sequence[str] | Sequence[int]], vocabulary: Sequence[str] | int | None = None
) -> tuple[Bags, tuple[str, ...] | None]:
    """Documents as counts of their words.

    Parameters
    ----------
    documents : lists of words, or of numbers of words 0, 1, ...
    vocabulary : sequence of str or int, optional
        The words that columns stand for, in order, or their number. Default: the words met, sorted; for numbers, as
        many as the largest needs.

    Returns
    -------
    bags : Bags
        (N, V)
    words : tuple of str or None
        Names of the columns.

    Raises
    ------
    DataError
        A document is empty, or holds a word that is not in the vocabulary.
    """
    documents = list(documents)
    if not documents:
        raise DataError("data: met no documents, expected at least one list of words")
    for place, one in enumerate(documents):
        if not len(one):
            raise DataError(f"data: document {place} (the first is 0) holds no word: leave it out")
    words: tuple[str, ...] | None = None
    if isinstance(documents[0][0], str):
        given = None if vocabulary is None or isinstance(vocabulary, int) else tuple(map(str, vocabulary))
        words = tuple(sorted({str(word) for one in documents for word in one})) if given is None else given
        place_of = {word: place for place, word in enumerate(words)}
        numbers = [[_place(place_of, str(word), number) for word in one] for number, one in enumerate(documents)]
        width = len(words)
    else:
        numbers = [[int(word) for word in one] for one in documents]
        words = None if vocabulary is None or isinstance(vocabulary, int) else tuple(map(str, vocabulary))
        most = max(max(one) for one in numbers)
        width = vocabulary if isinstance(vocabulary, int) else most + 1 if words is None else len(words)
        for number, ids in enumerate(numbers):
            if min(ids) < 0 or max(ids) >= width:
                wrong = next(word for word in ids if not 0 <= word < width)
                raise DataError(
                    f"data: document {number} (the first is 0) holds the word number {wrong}, expected 0 to {width - 1}"
                )
    flat = torch.tensor([word for one in numbers for word in one])
    row = torch.repeat_interleave(torch.arange(len(numbers)), torch.tensor([len(one) for one in numbers]))
    cells, count = torch.unique(row * width + flat, return_counts=True)
    lengths = torch.bincount(torch.div(cells, width, rounding_mode="floor"), minlength=len(numbers))
    return Bags(lengths, cells % width, count.double(), width), words


def _place(place_of: dict[str, int], word: str, number: int) -> int:
    if word not in place_of:
        raise DataError(
            f"data: document {number} (the first is 0) holds {word!r}, which is not in the vocabulary of "
            f"{len(place_of)} words: leave it out, or fit again with it"
        )
    return place_of[word]
