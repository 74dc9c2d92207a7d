"""Distributions of counts that Pyro lacks, as subclasses of its own: they are scored and learned as their parents."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..trace.provenance import plain


class RowMultinomial(dist.Multinomial):
    """A multinomial whose total may differ from row to row.

    Parameters
    ----------
    totals : Tensor (*batch)
        How many draws each row counts; a missing one is taken as the mean of the others. Samples have these totals,
        and the density asks nothing of them.
    probs, logits : Tensor (*batch, V)
        One of them.
    """

    def __init__(
        self,
        totals: Tensor,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(1, probs=probs, logits=logits, validate_args=validate_args)
        totals = plain(totals).detach().to(torch.get_default_dtype())
        usual = totals.nanmean().round().nan_to_num(nan=0.0)
        self.totals = torch.where(totals.isnan(), usual, totals)

    @property
    def mean(self) -> Tensor:
        mean: Tensor = self.probs * self.totals.unsqueeze(-1)
        return mean

    @property
    def variance(self) -> Tensor:
        variance: Tensor = self.mean * (1 - self.probs)
        return variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> RowMultinomial:
        grown = self._categorical.expand(batch_shape)
        if "logits" in vars(grown):  # as given: probabilities made of them lose the small ones
            return RowMultinomial(self.totals, logits=grown.logits)
        return RowMultinomial(self.totals, grown.probs)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Cell by cell, each binomial of what the cells before it have left."""
        shape = torch.Size(sample_shape) + torch.broadcast_shapes(self.batch_shape, self.totals.shape)
        left, share = self.totals.expand(shape), torch.ones(shape)
        cells = []
        for probs in self.probs.unbind(-1):
            chance = (probs / share.clamp_min(1e-300)).clamp(0.0, 1.0)
            cells.append(torch.binomial(left, chance.expand(shape).to(left)))
            left, share = left - cells[-1], share - probs
        cells[-1] = cells[-1] + left  # what rounding left over
        return torch.stack(cells, -1)


def log_shares(counts: Tensor) -> Tensor:
    """Logarithms (V,) of the columns' shares of all counts (N, V), as if each column had counted a half more."""
    total = counts.to(torch.get_default_dtype()).nan_to_num(nan=0.0).sum(0) + 0.5
    return (total / total.sum()).log()
