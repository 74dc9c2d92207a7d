"""Negative binomial mixture."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.seeding import kmeans_plusplus
from ...inference.pair import Pair
from ..registry import register

LARGEST = 1e6  # concentration; beyond it no data tell the distribution from a Poisson


@register(
    family="mixtures",
    summary="clusters of counts that vary more than Poisson counts do",
    data="counts (N,), or a table of counts (N, D), independent given the component; NaN is missing",
    references=(
        "Bliss and Fisher (1953), Biometrics 9, 176-200",
        "McLachlan and Peel (2000), Finite Mixture Models, section 5.7",
    ),
    checks=("European red mites on apple leaves, K=1: mean 1.1467, concentration 1.0246 (Bliss and Fisher)",),
    example="red_mites",
    size="num_components",
    examples=({"num_components": 1},),
)
def negative_binomial_mixture(num_components: int = 2) -> Pair:
    r"""Negative binomial mixture: Poisson counts whose rates vary within the component as gammas do.

    .. math::

        z_n &\sim \mathrm{Categorical}(\pi) \\
        x_{nd} \mid z_n = k &\sim \mathrm{NegativeBinomial}(\mu_{kd}, r_{kd}), \qquad
        \mathrm{Var}(x_{nd} \mid k) = \mu_{kd} + \mu_{kd}^2 / r_{kd}

    ============================  ======================================================================
    ``weights`` (K,)              :math:`\pi`, on the simplex
    ``mean`` (K, D)               :math:`\mu_{kd}`; (K,) for a single column
    ``concentration`` (K, D)      :math:`r_{kd}`, below 1e6, where the distribution is a Poisson
    ``z`` (N,)                    latent of each row, enumerated
    ``x`` (N, D)                  observed counts
    ============================  ======================================================================
    """
    if num_components < 1:
        raise OptionError(f"num_components: met {num_components}, expected at least 1")
    K = num_components

    def model(x: Tensor) -> None:
        D = x.shape[1:]
        weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
        mean = pyro.param("mean", lambda: torch.ones(K, *D), constraint=constraints.positive)
        concentration = pyro.param(
            "concentration", lambda: torch.full((K, *D), 2.0), constraint=constraints.interval(0.0, LARGEST)
        )
        logits = mean.log() - concentration.log()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            counts = dist.NegativeBinomial(concentration[z], logits=logits[z])
            pyro.sample("x", counts.to_event(x.dim() - 1), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """k-means++ seeds, kept off 0 so that no component starts impossible."""
        seeds = kmeans_plusplus(x.reshape(len(x), -1), K, generator)
        return {"mean": (seeds + 0.1).reshape(K, *x.shape[1:])}

    return Pair(model, initialize=initialize)
