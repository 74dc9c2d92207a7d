"""Zero-inflated Poisson."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.pair import Pair
from ..registry import register


@register(
    family="mixtures",
    summary="counts with more zeros than a Poisson has: some cells can only be zero",
    data="counts (N,), or a table of counts (N, D), each column with its own gate and rate; NaN is missing",
    references=("Lambert (1992), Technometrics 34, 1-14",),
    checks=(
        "movements of a fetal lamb (Leroux and Puterman 1992): the maximum of the closed-form likelihood, as scipy and "
        "statsmodels find it",
    ),
    example="fetal_lamb",
    examples=({},),
)
def zero_inflated_poisson() -> Pair:
    r"""Zero-inflated Poisson (Lambert 1992, without covariates).

    .. math::

        s_{nd} &\sim \mathrm{Bernoulli}(\gamma_d) \\
        x_{nd} \mid s_{nd} = 0 &\sim \mathrm{Poisson}(\lambda_d), \qquad x_{nd} = 0 \text{ where } s_{nd} = 1

    ========================  ===================================================================
    ``gate`` (D,)             :math:`\gamma_d`, the share of structural zeros; () for one column
    ``rate`` (D,)             :math:`\lambda_d`
    ``structural`` (N, D)     latent of each cell, enumerated: 1 where it can only be zero
    ``x`` (N, D)              observed counts
    ========================  ===================================================================
    """

    def model(x: Tensor) -> None:
        x = one_column(x)
        D = x.shape[1:]
        gate = pyro.param("gate", lambda: torch.full(D, 0.5), constraint=constraints.unit_interval)
        rate = pyro.param("rate", lambda: torch.ones(D), constraint=constraints.positive)
        with pyro.plate("data", len(x), dim=-x.dim()):
            if D:
                with pyro.plate("columns", D[0], dim=-1):
                    count(x, gate, rate)
            else:
                count(x, gate, rate)

    def count(x: Tensor, gate: Tensor, rate: Tensor) -> None:
        structural = pyro.sample("structural", dist.Bernoulli(gate), infer={"enumerate": "parallel"})
        zero = dist.Poisson(torch.zeros_like(rate))  # certain
        pyro.sample("x", dist.MaskedMixture(structural.bool(), dist.Poisson(rate), zero), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """About half of the zeros structural; the rate that of the other cells."""
        x = one_column(x)
        zeros = (x == 0).double().mean(0)
        share = zeros * torch.empty(x.shape[1:]).uniform_(0.2, 0.8, generator=generator)
        return {"gate": share.clamp(0.01, 0.99), "rate": x.double().nanmean(0).clamp_min(0.01) / (1 - share)}

    def one_column(x: Tensor) -> Tensor:
        """A table (N, 1) is a column (N,)."""
        return x[:, 0] if x.shape[1:] == (1,) else x

    return Pair(model, initialize=initialize)
