"""How well draws from a guide stand in for a posterior: the tail of their importance weights."""

from __future__ import annotations

import torch
from torch import Tensor


def k_hat(log_weights: Tensor) -> Tensor:
    """Shape of the generalized Pareto tail of importance weights (S, N), for each row (N,).

    Below 0.7 the weighted draws can be relied on (Vehtari, Simpson, Gelman, Yao and Gabry 2024). The tail holds
    min(S / 5, 3 sqrt(S)) weights; its shape is the estimate of Zhang and Stephens (2009), drawn to 0.5 by ten
    observations' worth of prior. Fewer than 25 draws, whose tails are too short, give NaN.
    """
    num = len(log_weights)
    tail = int(min(0.2 * num, 3 * num**0.5))
    if tail < 5:
        return torch.full_like(log_weights[0], torch.nan)
    order = (log_weights - log_weights.amax(0)).double().sort(0).values
    cut = order[-tail - 1].exp()
    x = order[-tail:].exp() - cut  # (T, N), rising
    shape = _shape(x.clamp_min(torch.finfo(torch.float64).tiny))
    return ((tail * shape + 10 * 0.5) / (tail + 10)).to(log_weights.dtype)


def _shape(x: Tensor) -> Tensor:
    """Of a generalized Pareto distribution of values (T, N) that rise."""
    size = len(x)
    many = 30 + int(size**0.5)
    quartile = x[int(size / 4 + 0.5) - 1]
    grid = 1 - (many / (torch.arange(1, many + 1, dtype=x.dtype) - 0.5)).sqrt()
    theta = grid.unsqueeze(1) / (3 * quartile) + 1 / x[-1]  # (M, N)
    mean = torch.log1p(-theta.unsqueeze(1) * x).mean(1)  # (M, N)
    likelihood = size * ((-theta / mean).log() - mean - 1)
    weights = likelihood.softmax(0)
    best = (theta * weights).sum(0)
    return torch.log1p(-best * x).mean(0)
