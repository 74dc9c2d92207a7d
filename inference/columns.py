"""Moments of the columns of a data set, in passes that hold one chunk at a time."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 65536


def center_and_variance(value: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over the rows of (N, ...), NaN cells left out; both of shape (...), float64.

    A column of one repeated value gets a variance of exactly 0.
    """
    count = total = torch.zeros((), dtype=torch.float64)
    for part in value.split(CHUNK):
        part = part.to(torch.float64)
        seen = ~part.isnan()
        count = count + seen.sum(0)
        total = total + part.nan_to_num(nan=0.0).sum(0)
    center = total / count.clamp_min(1)
    square = torch.zeros((), dtype=torch.float64)
    constant = None
    for part in value.split(CHUNK):
        part = part.to(torch.float64)
        deviation = torch.where(part.isnan(), 0.0, part - center)
        square = square + (deviation * deviation).sum(0)
        low, high = part.nan_to_num(nan=torch.inf).amin(0), part.nan_to_num(nan=-torch.inf).amax(0)
        constant = (
            (low, high) if constant is None else (torch.minimum(constant[0], low), torch.maximum(constant[1], high))
        )
    assert constant is not None
    variance = square / count.clamp_min(1)
    return center, torch.where(constant[0] >= constant[1], 0.0, variance)


def num_categories(column: Tensor) -> int:
    """How many codes 0, 1, ... a column of codes needs: its largest value plus one, NaN left out."""
    largest = column.nan_to_num(nan=0.0).max() if column.is_floating_point() else column.max()
    return int(largest) + 1
