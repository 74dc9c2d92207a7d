"""Factor analysis."""

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
    summary="a few factors that explain how columns of numbers hang together, and noise of each column's own",
    data="a table of numbers (N, D) with more columns than factors, in any units; NaN is missing",
    inference=("em",),
    references=(
        "Bartholomew, Knott and Moustaki (2011), Latent Variable Models and Factor Analysis, chapter 3",
        "Rubin and Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47, 69-76",
    ),
    checks=(
        "girls (Harman 1976): chi-square 611.44, 75.74, 22.81, 4.63 of 1 to 4 factors (R factanal)",
        "girls, 1 factor: uniquenesses 0.158 0.135 0.190 0.187 0.760 0.829 0.877 0.801 (R factanal)",
        "wine, standardised, 2 factors: log-likelihood -2747.1911 (scikit-learn)",
    ),
    example="girls",
    size="num_factors",
    examples=({"num_factors": 1}, {"num_factors": 2}),
)
def factor_analysis(num_factors: int = 2) -> Pair:
    r"""Factor analysis (Bartholomew, Knott and Moustaki 2011, chapter 3).

    .. math::

        u_n &\sim \mathcal{N}(0, I_K) \\
        x_n \mid u_n &\sim \mathcal{N}(W u_n + \mu, \mathrm{diag}(\psi))

    ======================  ===============================================================
    ``loc`` (D,)            :math:`\mu`
    ``load`` (D, K)         :math:`W`, the loadings, up to a rotation; the strongest factor first
    ``scale`` (D,)          :math:`\sqrt{\psi}`, the standard deviation that is each column's own
    ``u`` (N, K)            latent of each row, summed out exactly
    ``x`` (N, D)            observed
    ======================  ===============================================================

    The share :math:`\psi_d / (\psi_d + \sum_k W_{dk}^2)` is the uniqueness of column d. Loadings are told up to a
    rotation: they are given with the factors independent given x; ``varimax`` of ``inference/linear_gaussian`` turns
    them to what is easier to name. Learned :math:`\psi` stay above 1e-6 of their column's variance (the driver's
    ``variance_floor``; where some end there, a Heywood case, ask for fewer factors).
    """
    if num_factors < 1:
        raise OptionError(f"num_factors: met {num_factors}, expected at least 1")
    K = num_factors

    def model(x: Tensor) -> None:
        check_factors(x, K)
        D = x.shape[1]
        loc = pyro.param("loc", torch.zeros(D))
        load = pyro.param("load", torch.eye(D, K))
        scale = pyro.param("scale", torch.ones(D), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(u @ load.mT + loc, scale).to_event(1), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Iterator[Mapping[str, Tensor]]:
        """Principal components of the standardised columns; restarts are jittered around them."""
        rows, center, variance = filled(x)
        unit = variance.sqrt()
        load, _ = principal(covariance_of((rows - center) / unit.clamp_min(1e-300)), K)
        left = (1 - load.square().sum(1)).clamp_min(0.05)
        yield {"loc": center, "load": unit.unsqueeze(1) * load, "scale": unit.clamp_min(1e-300) * left.sqrt()}

    return Pair(model, initialize=initialize)
