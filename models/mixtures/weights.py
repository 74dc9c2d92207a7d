"""Weights of a mixture with a prior: how many of the components are used is learned."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.base.errors import OptionError

PRIORS = ("dirichlet", "dirichlet_process")


def check_prior(prior: str, concentration: float, components: int) -> None:
    """Refuse priors of weights that are none."""
    if prior not in PRIORS:
        raise OptionError(f"prior: met {prior!r}, expected one of {', '.join(PRIORS)}")
    if not concentration > 0:
        raise OptionError(f"concentration: met {concentration}, expected a number above 0")
    least = 1 + (prior == "dirichlet_process")
    if components < least:
        raise OptionError(f"the number of components: met {components}, expected at least {least}")


def mixture_weights(prior: str, components: int, concentration: float) -> Tensor:
    r"""Weights (K,) from their prior, sampled here.

    ``dirichlet``: :math:`\pi \sim \mathrm{Dirichlet}(\alpha / K, \dots, \alpha / K)`, the site ``weights``.
    ``dirichlet_process``: :math:`v_k \sim \mathrm{Beta}(1, \alpha)`, :math:`\pi_k = v_k \prod_{i < k} (1 - v_i)`, the
    last component taking what is left (Blei and Jordan 2006); the site ``sticks`` (K - 1,), from which ``weights``
    is computed.
    """
    if prior == "dirichlet":
        return pyro.sample("weights", dist.Dirichlet(torch.full((components,), concentration / components)))
    sticks = pyro.sample("sticks", dist.Beta(torch.ones(components - 1), concentration).to_event(1))
    left = (1 - sticks).cumprod(-1)
    weights = torch.cat([sticks, torch.ones(1)]) * torch.cat([torch.ones(1), left])
    return pyro.deterministic("weights", weights)
