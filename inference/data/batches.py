"""Minibatches: every row once, in an order drawn anew for each pass over the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base.errors import OptionError


class Batches:
    """Positions of the rows of successive batches.

    Attributes
    ----------
    size : int
        Rows of a batch; None for all of them at every step.
    generator : torch.Generator
        Draws the orders; apart from the generator of the draws from the guide.
    """

    def __init__(self, num_rows: int, size: int | None, seed: int) -> None:
        self.num_rows, self.size = num_rows, size
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long, device="cpu")
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """Where in the data they are."""
        return {"order": self.order, "position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.order, self.position = state["order"], state["position"]
        self.generator.set_state(state["generator"])

    def next(self) -> Tensor | None:
        """Rows (B,) of the next batch; None where it is all rows.

        What is left of a pass and too short for a batch is dropped, so that every row counts N / B times its chance.
        """
        if self.size is None:
            return None
        if self.position + self.size > len(self.order):
            self.order = torch.randperm(self.num_rows, generator=self.generator, device="cpu")
            self.position = 0
        rows = self.order[self.position : self.position + self.size]
        self.position += self.size
        return rows


def batch_size_of(given: Any, rows: int, full: int, default: int) -> int | None:
    """Rows of a step; None where it is all of them.

    Where nobody asks for a number, all up to `full` rows, otherwise `default`.

    Raises
    ------
    OptionError
        It is no number of rows.
    """
    if given is None:
        return None if rows <= full else default
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= rows:
        raise OptionError(f"batch_size: met {given!r}, expected a whole number from 1 to {rows}, the number of rows")
    return None if given == rows else given
