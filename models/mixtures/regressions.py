"""Mixture of regressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.columns import inputs, places
from ...inference.data.schema import Schema
from ...inference.data.seeding import random_regressions
from ...inference.pair import Pair
from ..registry import register


class Regression(NamedTuple):
    """Rows of a table by the parts that its columns play."""

    inputs: Tensor  # (N, P) of each component's line
    gate: Tensor  # (N, Q) of the weights; Q is 0 where these are the same for all rows
    response: Tensor  # (N,)


@register(
    family="mixtures",
    summary="rows on several regression lines, unknown which",
    data="a table of numbers: a response, which may be missing (NaN), and its inputs, which may not; labels as input "
    "are indicators",
    references=(
        "Quandt and Ramsey (1978), Journal of the American Statistical Association 73, 730-738",
        "De Veaux (1989), Computational Statistics and Data Analysis 8, 227-245",
        "Grun and Leisch (2008), flexmix 2, Journal of Statistical Software 28(4)",
    ),
    checks=("the optimum of EM by weighted least squares written out in numpy, from the same start",),
    example="iris",
    size="num_components",
    examples=({"num_components": 2}, {"num_components": 2, "weights_on": ("sepal length (cm)",)}),
)
def mixture_of_regressions(
    num_components: int = 2, response: str | int = -1, weights_on: Sequence[str | int] = ()
) -> Pair:
    r"""Mixture of linear regressions (De Veaux 1989), with covariates on the weights if asked for.

    .. math::

        z_n &\sim \mathrm{Categorical}(\pi) \quad\text{or}\quad
            \mathrm{Categorical}(\mathrm{softmax}_k(a_k + g_n^\top c_k)), \qquad a_1 = 0,\ c_1 = 0 \\
        y_n \mid z_n = k &\sim \mathcal{N}(b_k + x_n^\top \beta_k, \sigma_k^2)

    ==========================  =====================================================================
    ``weights`` (K,)            :math:`\pi`, on the simplex; without `weights_on`
    ``gate_intercept`` (K - 1)  :math:`a_k` of the components after the first; with `weights_on`
    ``gate_slopes`` (K - 1, Q)  :math:`c_k`
    ``intercept`` (K,)          :math:`b_k`
    ``slopes`` (K, P)           :math:`\beta_k`
    ``scale`` (K,)              :math:`\sigma_k`
    ``z`` (N,)                  latent of each row, enumerated
    ``y`` (N,)                  observed, the column `response` (the last, unless it says otherwise)
    ==========================  =====================================================================

    The columns `weights_on` are :math:`g_n`, all the others :math:`x_n`; for columns that are both see
    mixture_of_experts.
    """
    if num_components < 1 + bool(weights_on):
        raise OptionError(f"num_components: met {num_components}, expected at least {1 + bool(weights_on)}")
    K = num_components

    def model(data: Regression) -> None:
        P, Q = data.inputs.shape[1], data.gate.shape[1]
        if Q:
            gate_intercept = pyro.param("gate_intercept", torch.zeros(K - 1))
            gate_slopes = pyro.param("gate_slopes", torch.zeros(K - 1, Q))
            lines = gate_intercept + data.gate @ gate_slopes.mT  # (N, K - 1)
            component = dist.Categorical(logits=torch.nn.functional.pad(lines, (1, 0)))
        else:
            component = dist.Categorical(pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex))
        intercept = pyro.param("intercept", torch.zeros(K))
        slopes = pyro.param("slopes", torch.zeros(K, P))
        scale = pyro.param("scale", torch.ones(K), constraint=constraints.positive)
        with pyro.plate("data", len(data.response)):
            z = pyro.sample("z", component, infer={"enumerate": "parallel"})
            loc = intercept[z] + (slopes[z] * data.inputs).sum(-1)
            pyro.sample("y", dist.Normal(loc, scale[z]), obs=data.response)

    def initialize(data: Regression, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Lines through small random samples of rows."""
        intercept, slopes, scale = random_regressions(data.inputs, data.response, K, generator)
        return {"intercept": intercept, "slopes": slopes, "scale": scale.expand(K)}

    def arrange(table: Tensor, schema: Schema) -> Regression:
        width = table.shape[1]
        (own,) = places(schema, width, (response,), "response")
        gate = places(schema, width, weights_on, "weights_on")
        others = [place for place in range(width) if place != own and place not in gate]
        return Regression(
            inputs(table, schema, others, "an input"), inputs(table, schema, gate, "a covariate"), table[:, own]
        )

    return Pair(model, initialize=initialize, arrange=arrange)
