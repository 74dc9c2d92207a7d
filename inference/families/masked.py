"""A mixture of two distributions of which a latent says which it is (`dist.MaskedMixture`), the second without params.

Where the second stands there is nothing to learn, so the statistics are those of the first, and 0 there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Args, Family, Ratio


class MaskedFamily(Family):
    augmented = True

    def __init__(self, first: Family) -> None:
        self.first = first
        self.order = first.order

    def read(self, fn: Any) -> dict[str, tuple[Tensor, int]]:
        fn = getattr(fn, "base_dist", fn)
        return {**self.first.read(fn.component0), "mask": (fn.mask, 0)}

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        kept = (~args["mask"]).to(value)
        stats = [one * kept for one in self.first.statistics(value, args)]
        return torch.stack([*stats, kept.expand_as(stats[0])])

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        eta, log_normalizer = self.first.natural(args)
        return torch.cat([eta, -log_normalizer.unsqueeze(-1)], -1), torch.zeros_like(log_normalizer)

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        return self.first.ratio(name, args, s1[..., :-1], s1[..., -1])
