"""Normalizing flows on the way from a network's numbers to a posterior."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineTransform
from pyro.distributions.transforms.spline_autoregressive import ConditionalSplineAutoregressive
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import constraints

from .networks import positive

CONTEXT = 16  # numbers by which an encoder bends a flow, beside its location and scale
UNITS, BINS, BOUND = 32, 8, 4.0  # of a flow's two layers; their splines are straight lines beyond the bound


# --- flows ------------------------------------------------------------------------------------------------------------


class Bends(nn.Module):
    """The layers of a flow of vectors of `size` numbers, each a spline of every number given those before it, and what
    the encoder says.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        order: Any = torch.arange(size)
        units = [max(UNITS, 2 * size)] * 2
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*input_dim = 1")  # one number bends by the context alone
            layers = [
                ConditionalAutoRegressiveNN(size, CONTEXT, units, [BINS, BINS, BINS - 1, BINS], turned)
                for turned in (order, order.flip(0))
            ]
        self.layers = nn.ModuleList(layers).to(torch.float32)

    def given(self, context: Tensor) -> list[Any]:
        """The transforms for some rows."""
        return [
            ConditionalSplineAutoregressive(self.size, layer, count_bins=BINS, bound=BOUND).condition(context)
            for layer in self.layers
        ]


class Flow(dist.TorchDistribution):
    """Normal noise bent by a network, then moved and scaled.

    Parameters
    ----------
    stats : Tensor (..., 2 K + CONTEXT)
        Location, free numbers of the scale, and what the network is told.
    network : Bends
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, stats: Tensor, network: Bends) -> None:
        self.stats, self.network = stats, network
        size = network.size
        loc, raw, context = stats.split([size, size, CONTEXT], -1)
        noise = dist.Normal(torch.zeros_like(loc), 1.0, validate_args=False).to_event(1)
        last = AffineTransform(loc, positive(raw), event_dim=1, cache_size=1)
        self.bent = torch.distributions.TransformedDistribution(noise, [*network.given(context), last], False)
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Flow:
        return Flow(self.stats.expand(*batch_shape, self.stats.shape[-1]), self.network)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.bent.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.bent.log_prob(value)

    def frozen(self) -> Flow:
        """The same distribution, whose arguments pass no gradients."""
        return Flow(self.stats.detach(), copy.deepcopy(self.network).requires_grad_(False))
