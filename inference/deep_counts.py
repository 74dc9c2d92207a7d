"""Bad counts met before the first step of a pair with networks whose rows are multinomial."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .arrays import DataError


def check_row_counts(site: str, value: Tensor, start: int, column: Callable[[int], str]) -> None:
    """Rows (B, V) count something, in whole numbers, and are whole or wholly missing; `start` is the first's number.

    Raises
    ------
    DataError
        Which row and column hold what.
    """
    gaps = value.isnan()
    wrong = (~gaps & ((value < 0) | (value != value.floor()))).nonzero()
    if len(wrong):
        row, place = wrong[0].tolist()
        raise DataError(
            f"site '{site}': row {row + start} holds {value[row, place]:g} in {column(place)}, expected counts: whole "
            f"numbers, none negative"
        )
    torn = (gaps.any(1) & ~gaps.all(1)).nonzero()
    if len(torn):
        raise DataError(
            f"site '{site}': row {int(torn[0]) + start} has missing cells beside others; a multinomial row is whole or "
            f"wholly missing"
        )
    empty = (torch.nan_to_num(value, nan=1.0) == 0).all(1).nonzero()
    if len(empty):
        raise DataError(
            f"site '{site}': row {int(empty[0]) + start} (the first is 0) counts nothing, so it says nothing of its "
            f"topics: leave it out"
        )
