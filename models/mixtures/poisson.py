"""Poisson mixture."""

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


@register(
    family="mixtures",
    summary="clusters of counts, each with its own rates",
    data="counts (N,), or a table of counts (N, D), independent given the component; NaN is missing",
    references=("Hasselblad (1969), Journal of the American Statistical Association 64, 1459-1471",),
    checks=(
        "deaths of women over 80 in The Times, K=2: weight 0.3599, rates 1.2561 and 2.6634, log-likelihood "
        "-1989.946 (Hasselblad)",
    ),
    example="hasselblad_deaths",
    size="num_components",
    examples=({"num_components": 2},),
)
def poisson_mixture(num_components: int = 2) -> Pair:
    r"""Poisson mixture (Hasselblad 1969).

    .. math::

        z_n &\sim \mathrm{Categorical}(\pi) \\
        x_{nd} \mid z_n = k &\sim \mathrm{Poisson}(\lambda_{kd})

    ====================  ==============================================
    ``weights`` (K,)      :math:`\pi`, on the simplex
    ``rate`` (K, D)       :math:`\lambda_{kd}`; (K,) for a single column
    ``z`` (N,)            latent of each row, enumerated
    ``x`` (N, D)          observed counts
    ====================  ==============================================
    """
    if num_components < 1:
        raise OptionError(f"num_components: met {num_components}, expected at least 1")
    K = num_components

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
        rate = pyro.param("rate", lambda: torch.ones(K, *x.shape[1:]), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Poisson(rate[z]).to_event(x.dim() - 1), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """k-means++ seeds, kept off 0 so that no component starts impossible."""
        seeds = kmeans_plusplus(x.reshape(len(x), -1), K, generator)
        return {"rate": (seeds + 0.1).reshape(K, *x.shape[1:])}

    return Pair(model, initialize=initialize)
