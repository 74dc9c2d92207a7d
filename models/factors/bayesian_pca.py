"""Principal components with a prior that empties those that are not needed."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.columns import center_and_variance
from ...inference.pair import Pair
from ..registry import register

VAGUE = 1e-3  # shape and rate of the Gamma priors (Bishop 1999)


@register(
    family="factors",
    summary="a few continuous latents behind the columns of a table, as many as it takes",
    data="a table of numbers (N, D), cells may be missing",
    inference=("cavi", "svi"),
    references=(
        "Bishop (1999), Variational principal components, ICANN 9, 509-514",
        "Bishop (2006), Pattern Recognition and Machine Learning, section 12.2.3",
    ),
    checks=("coordinate updates equal those of Bishop (1999) at every sweep",),
    example="iris",
    examples=({"num_factors": 2},),
)
def bayesian_pca(num_factors: int = 2) -> Pair:
    r"""Variational principal component analysis (Bishop 1999).

    .. math::

        \alpha_k &\sim \mathrm{Gamma}(10^{-3}, 10^{-3}), \qquad
        w_{dk} \mid \alpha_k \sim \mathrm{N}(0, \alpha_k^{-1}) \\
        \mu_d &\sim \mathrm{N}(m, 10^6 s^2), \qquad \tau \sim \mathrm{Gamma}(10^{-3}, 10^{-3}) \\
        z_n &\sim \mathrm{N}(0, I_K), \qquad x_{nd} \mid z_n \sim \mathrm{N}(w_d^\top z_n + \mu_d, \tau^{-1})

    A column of loadings that the data do not ask for gets a large precision (automatic relevance determination), and is
    0. `m` and `s` are the mean and standard deviation of all cells.

    ==========================  =========================================================
    ``relevance`` (K,)          :math:`\alpha_k`, the precision of each factor's loadings
    ``loadings`` (D, K)         :math:`w_{dk}`
    ``loc`` (D,)                :math:`\mu_d`
    ``precision`` ()            :math:`\tau`, of the noise
    ``z`` (N, K)                the latents of each row
    ``x`` (N, D)                observed
    ==========================  =========================================================

    Every start draws the loadings at random, as large as the columns vary.
    """
    if num_factors < 1:
        raise OptionError(f"num_factors: met {num_factors}, expected at least 1")
    K = num_factors

    def model(x: Tensor) -> None:
        N, D = x.shape
        m, s = x.nanmean(), x[~x.isnan()].std()
        relevance = pyro.sample("relevance", dist.Gamma(VAGUE, VAGUE).expand([K]).to_event(1))
        loadings = pyro.sample("loadings", dist.Normal(torch.zeros(D, K), relevance**-0.5).to_event(2))
        loc = pyro.sample("loc", dist.Normal(m, 1e3 * s).expand([D]).to_event(1))
        precision = pyro.sample("precision", dist.Gamma(VAGUE, VAGUE))
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ loadings.T + loc, precision**-0.5).to_event(1), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        mean, variance = center_and_variance(x)
        drawn = torch.randn(x.shape[1], K, generator=generator, dtype=variance.dtype)
        return {
            "loadings": drawn * (variance / K).sqrt().unsqueeze(-1),
            "loc": mean,
            "relevance": torch.full((K,), float(K / variance.mean())),
            "precision": 1 / variance.mean(),
        }

    return Pair(model, initialize=initialize)
