"""Probabilistic principal component analysis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.linear_gaussian.posterior import check_factors, covariance_of, filled, principal
from ...inference.pair import Pair
from ..registry import register


@register(
    family="factors",
    summary="a few directions along which rows of numbers spread, and equal noise around them",
    data="a table of numbers (N, D) with more columns than factors; NaN is missing",
    inference=("em",),
    references=(
        "Tipping and Bishop (1999), Probabilistic Principal Component Analysis, JRSS B 61, 611-622",
        "Bishop (2006), Pattern Recognition and Machine Learning, section 12.2",
    ),
    checks=(
        "iris, 2 factors: log-likelihood -404.9628 (closed form)",
        "wine, standardised: -2875.6363 (2 factors), -2614.4640 (10); digits, 10 factors: -287508.7350 (closed form)",
    ),
    example="iris",
    size="num_factors",
    examples=({"num_factors": 2},),
)
def probabilistic_pca(num_factors: int = 2) -> Pair:
    r"""Probabilistic principal component analysis (Tipping and Bishop 1999).

    .. math::

        u_n &\sim \mathcal{N}(0, I_K) \\
        x_n \mid u_n &\sim \mathcal{N}(W u_n + \mu, \sigma^2 I_D)

    ======================  ===============================================================
    ``loc`` (D,)            :math:`\mu`
    ``load`` (D, K)         :math:`W`, up to a rotation; given with orthogonal columns, the longest first
    ``scale`` ()            :math:`\sigma`
    ``u`` (N, K)            latent of each row, summed out exactly
    ``x`` (N, D)            observed
    ======================  ===============================================================

    The columns of ``load`` lie along the first principal components, and :math:`\sigma^2` is the mean variance of all
    others. Columns in different units should be standardised first; `factor_analysis` does not mind units.
    """
    if num_factors < 1:
        raise OptionError(f"num_factors: met {num_factors}, expected at least 1")
    K = num_factors

    def model(x: Tensor) -> None:
        check_factors(x, K)
        D = x.shape[1]
        loc = pyro.param("loc", torch.zeros(D))
        load = pyro.param("load", torch.eye(D, K))
        scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(u @ load.mT + loc, scale).to_event(1), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Iterator[Mapping[str, Tensor]]:
        """The closed form maximum, of missing cells at their column's mean; restarts are jittered around it."""
        rows, center, _ = filled(x)
        load, noise = principal(covariance_of(rows), K)
        yield {"loc": center, "load": load, "scale": noise}

    return Pair(model, initialize=initialize)
