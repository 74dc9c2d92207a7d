"""A distribution of rows whose columns are of different families, and what the engine asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ..trace.handlers import base_of
from .missing import marginal_log_prob


class Part(NamedTuple):
    """Some columns, and the distribution of their cells, event (columns,)."""

    columns: list[int]
    fn: Any
    sizes: tuple[int, ...] = ()  # of categorical columns: how many labels each has, the others being impossible

    @property
    def place(self) -> Any:
        """An index of the columns that makes no copy where they lie side by side."""
        first, last = self.columns[0], self.columns[-1]
        return slice(first, last + 1) if self.columns == list(range(first, last + 1)) else self.columns


class MixedRows(TorchDistribution):
    """Rows (D,) whose parts are independent; every column is in one of them."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts
        width = sum(len(part.columns) for part in parts)
        super().__init__(parts[0].fn.batch_shape, torch.Size((width,)), validate_args=False)

    @property
    def support(self) -> Any:
        return Cells(self.parts)

    def log_prob(self, value: Tensor) -> Tensor:
        found: Tensor = sum(part.fn.log_prob(value[..., part.place]) for part in self.parts)
        return found

    def sample(self, sample_shape: Any = ()) -> Tensor:
        drawn = [part.fn.sample(sample_shape) for part in self.parts]
        out = drawn[0].new_empty(*drawn[0].shape[:-1], *self.event_shape)
        for part, cells in zip(self.parts, drawn, strict=True):
            out[..., part.columns] = cells.to(out)
        return out

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixedRows:
        return MixedRows(tuple(part._replace(fn=part.fn.expand(batch_shape)) for part in self.parts))


class Cells(constraints.Constraint):
    """The support of mixed rows."""

    is_discrete = False
    event_dim = 1

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        fits = [base_of(part.fn).support.check(value[..., part.columns]).all(-1) for part in self.parts]
        return torch.stack(fits).all(0)


@marginal_log_prob.register(MixedRows)
def _(fn: Any, value: Tensor, observed: Tensor) -> Tensor:
    found: Any = sum(marginal_log_prob(p.fn, value[..., p.place], observed[..., p.place]) for p in fn.parts)
    return found


def parts_of(fn: Any, width: int) -> Iterator[tuple[list[int], Any]]:
    """The columns of an observed row, and their distribution: of mixed rows part by part, each categorical column for
    itself.
    """
    for part in fn.parts if isinstance(fn, MixedRows) else (Part(list(range(width)), fn),):
        if not part.sizes:
            yield part.columns, part.fn
            continue
        logits = base_of(part.fn).logits
        for number, (column, size) in enumerate(zip(part.columns, part.sizes, strict=True)):
            yield [column], dist.Categorical(logits=logits[..., number : number + 1, :size]).to_event(1)
