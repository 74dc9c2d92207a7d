"""Gamma-Poisson factorization."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.seeding import near_mean
from ...inference.pair import Pair
from ..registry import register


@register(
    family="topics",
    summary="a table of counts as the product of two small positive matrices",
    data="counts (N, V), a table or a sparse matrix: users and items, documents and words; cells may be missing",
    inference=("cavi", "svi"),
    references=(
        "Canny (2004), SIGIR 27, 122-129 (GaP)",
        "Cemgil (2009), Computational Intelligence and Neuroscience, 785152",
        "Gopalan, Hofman and Blei (2015), Uncertainty in Artificial Intelligence 31, 326-335",
    ),
    checks=("sweep by sweep the updates of Cemgil (2009) and Gopalan et al. (2015), written out in numpy",),
    example="digit_lines",
    size="num_factors",
    examples=({"num_factors": 3},),
)
def gamma_poisson_factorization(
    num_factors: int = 5, shape: float = 0.3, rate: float = 0.3, factor_shape: float = 0.3, factor_rate: float = 0.3
) -> Pair:
    r"""Gamma-Poisson factorization (Canny 2004; Cemgil 2009; Gopalan, Hofman and Blei 2015).

    .. math::

        \beta_{kv} &\sim \mathrm{Gamma}(c, d) \\
        \theta_{nk} &\sim \mathrm{Gamma}(a, b) \\
        x_{nv} \mid \theta, \beta &\sim \mathrm{Poisson}\Big(\textstyle\sum_k \theta_{nk} \beta_{kv}\Big)

    ====================  ======================================================
    ``beta`` (K, V)       :math:`\beta_{kv}`, positive
    ``theta`` (N, K)      :math:`\theta_{nk}`, positive
    ``x`` (N, V)          observed counts
    ====================  ======================================================

    ``shape`` and ``rate`` are a and b, ``factor_shape`` and ``factor_rate`` are c and d. Shapes below 1 make for parts:
    most cells of both matrices near 0.
    """
    if num_factors < 1:
        raise OptionError(f"num_factors: met {num_factors}, expected at least 1")
    given = {"shape": shape, "rate": rate, "factor_shape": factor_shape, "factor_rate": factor_rate}
    for name, value in given.items():
        if not value > 0:
            raise OptionError(f"{name}: met {value!r}, expected a positive number")
    K = num_factors

    def model(x: Tensor) -> None:
        V = x.shape[1]
        beta = pyro.sample("beta", dist.Gamma(factor_shape * torch.ones(K, V), factor_rate).to_event(2))
        with pyro.plate("data", len(x)):
            theta = pyro.sample("theta", dist.Gamma(shape * torch.ones(K), rate).to_event(1))  # (N, K)
            pyro.sample("x", dist.Poisson(theta @ beta).to_event(1), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        return {"beta": near_mean(x, K, generator)}

    return Pair(model, initialize=initialize)
