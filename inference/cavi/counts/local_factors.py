"""The factors of the rows of split counts, given those that all rows share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...data.schema import Dataset
from ...families.factors import DirichletFactor, Point
from ...trace.structure import read
from .blocks import Block, make_block, make_blocks
from .model import Allocation, Side
from .reader import read_allocation, sample_of
from .updates import Rows, Shared, expect_shared

UPDATES = 1_000  # of a row's factor at most
STILL = 1e-6  # mean change of its natural parameters at which it stands still


class Allocated(NamedTuple):
    """A fit's model on some data, its rows' factors fitted there."""

    allocation: Allocation
    blocks: list[Block]
    state: Tensor  # of beta, (K, V[, 2])
    shared: Shared
    etas: list[Tensor]  # of theta by block

    @property
    def eta(self) -> Tensor:
        return torch.cat(self.etas)


def allocated_on(fit: Any, dataset: Dataset) -> Allocated:
    """Call inside `engine_state`."""
    return settled(*read_on(fit, dataset))


def settled(allocation: Allocation, state: Tensor) -> Allocated:
    blocks = make_blocks(allocation)
    shared = expect_shared(allocation, state)
    with torch.no_grad():
        etas = [_settle(allocation, block, shared) for block in blocks]
    return Allocated(allocation, blocks, state, shared, etas)


def read_on(fit: Any, dataset: Dataset) -> tuple[Allocation, Tensor]:
    """The model on some data, and the state of what its rows share."""
    structure = read(fit.pair.model, sample_of(dataset.values), fit.params)
    allocation = read_allocation(fit.pair.model, dataset.values, structure, dataset.schema)
    assert allocation is not None
    name = allocation.shared.name
    if name not in fit.guide_parts:  # learned as a point, or by a guide of another family: its centre stands for it
        point = Side(name, Point(), None, isinstance(allocation.shared.family, DirichletFactor))
        allocation = allocation if allocation.shared.prior is None else replace(allocation, shared=point)
    return allocation, fit.guide_parts[name] if name in fit.guide_parts else matrix_of(allocation, fit.params[name])


def _settle(allocation: Allocation, block: Block, shared: Shared) -> Tensor:
    """Each row's factor (n, K[, 2]), updated until it stands still. A few rows take hundreds of updates: whenever half
    of those at hand stand still, the others go on alone.
    """
    rows = Rows(allocation, block, shared)
    rate, eta = rows.exposure, rows.start()
    out, left = eta.clone(), torch.arange(len(eta))
    for _ in range(UPDATES):
        before, eta = eta, rows.update(eta, rate)
        moving = (eta - before).abs().flatten(1).mean(1) > STILL
        number = int(moving.sum())
        if number <= len(left) // 2:
            out[left] = eta
            left, eta = left[moving], eta[moving]
            if not number:
                return out
            rows = Rows(allocation, make_block(allocation, block.place[left]), shared)
            rate = rows.exposure
    out[left] = eta
    return out


def matrix_of(allocation: Allocation, value: Tensor) -> Tensor:
    """beta (K, V) from the model's own shape."""
    size, width = allocation.size, allocation.counts.width
    return value.reshape(width, size).mT.contiguous() if allocation.transposed else value.reshape(size, width)
