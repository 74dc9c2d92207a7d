"""Counts in blocks of rows, as sparse matrices and their transposes."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from ...data.sparse import Bags
from .model import Allocation

BLOCK = 1 << 18  # cells of a block of rows
SINGLE = 10_000_000  # cells times K: updates of rows take place in single precision above it, the bound never does


class Block(NamedTuple):
    """Some rows of counts, as a sparse matrix and its transpose."""

    place: Tensor  # (n,) numbers of the rows
    bags: Bags
    starts: Tensor  # (n + 1,) int32, as the columns: half the memory to read
    columns: Tensor  # (cells,)
    by_column: tuple[Tensor, Tensor, Tensor]  # starts (V + 1,), rows, and the cells in that order
    single: Tensor | None  # counts in single precision, where that serves
    missing: Tensor | None  # (n, V) sparse, 1 where a cell is missing
    base: Tensor  # (n,) sum over cells of log h(x), the model's constants included

    def matrix(self, values: Tensor) -> Tensor:
        """(n, V) sparse, of values like the cells."""
        return _csr(self.starts, self.columns, values, (len(self.bags), self.bags.width))

    def transposed(self, values: Tensor) -> Tensor:
        """(V, n) sparse."""
        starts, rows, order = self.by_column
        return _csr(starts, rows, values[order], (self.bags.width, len(self.bags)))


def _csr(starts: Tensor, index: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(starts, index, values, size, check_invariants=False)  # made of sound parts


def make_block(allocation: Allocation, place: Tensor) -> Block:
    """Rows of an allocation's counts by number."""
    bags = allocation.counts.pick(place)
    large = len(allocation.counts.index) * allocation.size > SINGLE
    missing = None
    if bags.missing is not None and allocation.poisson:
        ones = torch.ones(len(bags.missing), dtype=torch.float64)
        size = (len(bags), bags.width)
        missing = torch.sparse_coo_tensor(bags.missing.T, ones, size, check_invariants=False).to_sparse_csr()
    base = torch.zeros(len(bags), dtype=torch.float64).index_add(0, bags.rows, -(bags.count + 1).lgamma())
    if allocation.poisson:
        logs = allocation.column_factor.log().expand(bags.width)
        base = base.index_add(0, bags.rows, bags.count * logs[bags.index])
        base = base + bags.totals * of_rows(allocation.row_factor, place).log()
    else:
        base = base + (bags.totals + 1).lgamma()
    single = bags.count.float() if large else None
    return Block(place, bags, bags.starts.int(), bags.index.int(), _by_column(bags), single, missing, base)


def _by_column(bags: Bags) -> tuple[Tensor, Tensor, Tensor]:
    """Starts (V + 1,), rows (cells,), and the cells in the order of columns."""
    number = np.arange(len(bags.index))
    rows = csr_array((number, bags.index.numpy(), bags.starts.numpy()), shape=(len(bags), bags.width)).tocsc()
    starts, index = (torch.from_numpy(part.astype(np.int32)) for part in (rows.indptr, rows.indices))
    return starts, index, torch.from_numpy(rows.data)


def make_blocks(allocation: Allocation) -> list[Block]:
    """All rows in order, about `BLOCK` cells at a time."""
    quiet()
    counts = allocation.counts
    number = torch.div(counts.starts[1:] - 1, BLOCK, rounding_mode="floor").clamp_min(0)
    number = torch.maximum(number, torch.div(torch.arange(len(counts)), 1 << 16, rounding_mode="floor"))
    sizes = torch.unique_consecutive(number, return_counts=True)[1].tolist()
    return [make_block(allocation, place) for place in torch.arange(len(counts)).split(sizes)]


def quiet() -> None:
    """Have torch say now that its sparse matrices are new, which it says once, and where nobody hears it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        torch.zeros(1, 1).to_sparse_csr()


def of_rows(factor: Tensor, place: Tensor) -> Tensor:
    return factor if len(factor) == 1 else factor[place]
