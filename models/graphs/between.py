"""What the models of blocks share: which number belongs to two blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from ...inference.base.errors import OptionError


def between_blocks(num_blocks: int, directed: bool) -> Tensor:
    """The place (K, K) of the number of two blocks: of undirected pairs one for (k, l) and (l, k)."""
    K = num_blocks
    if directed:
        return torch.arange(K * K).reshape(K, K)
    place = torch.zeros(K, K, dtype=torch.long)
    first, second = torch.triu_indices(K, K)
    place[first, second] = place[second, first] = torch.arange(len(first))
    return place


def check(num_blocks: int, **positive: float) -> None:
    """Hyper-parameters that make sense."""
    if num_blocks < 1:
        raise OptionError(f"num_blocks: met {num_blocks}, expected at least 1")
    for name, value in positive.items():
        if not value > 0:
            raise OptionError(f"{name}: met {value!r}, expected a positive number")
