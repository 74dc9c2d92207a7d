"""Mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
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


class Task(NamedTuple):
    """Rows of a table by the parts that its columns play."""

    inputs: Tensor  # (N, P) of the gate and of every expert
    response: Tensor  # (N,)


@register(
    family="mixtures",
    summary="regression lines that hand over to each other as the inputs change",
    data="a table of numbers: a response, which may be missing (NaN), and its inputs, which may not; labels as input "
    "are indicators",
    references=(
        "Jacobs, Jordan, Nowlan and Hinton (1991), Neural Computation 3, 79-87",
        "Jordan and Jacobs (1994), Neural Computation 6, 181-214",
    ),
    checks=("the optimum of EM by iteratively reweighted least squares written out in numpy, from the same start",),
    example="iris",
    size="num_experts",
    examples=({"num_experts": 2},),
)
def mixture_of_experts(num_experts: int = 2, response: str | int = -1) -> Pair:
    r"""Mixture of linear experts (Jordan and Jacobs 1994).

    .. math::

        z_n &\sim \mathrm{Categorical}(\mathrm{softmax}_k(a_k + x_n^\top c_k)), \qquad a_1 = 0,\ c_1 = 0 \\
        y_n \mid z_n = k &\sim \mathcal{N}(b_k + x_n^\top \beta_k, \sigma_k^2)

    ==========================  =====================================================================
    ``gate_intercept`` (K - 1)  :math:`a_k` of the experts after the first
    ``gate_slopes`` (K - 1, P)  :math:`c_k`
    ``intercept`` (K,)          :math:`b_k`
    ``slopes`` (K, P)           :math:`\beta_k`
    ``scale`` (K,)              :math:`\sigma_k`
    ``z`` (N,)                  latent of each row, enumerated: which expert
    ``y`` (N,)                  observed, the column `response` (the last, unless it says otherwise)
    ==========================  =====================================================================
    """
    if num_experts < 2:
        raise OptionError(f"num_experts: met {num_experts}, expected at least 2")
    K = num_experts

    def model(data: Task) -> None:
        P = data.inputs.shape[1]
        gate_intercept = pyro.param("gate_intercept", torch.zeros(K - 1))
        gate_slopes = pyro.param("gate_slopes", torch.zeros(K - 1, P))
        intercept = pyro.param("intercept", torch.zeros(K))
        slopes = pyro.param("slopes", torch.zeros(K, P))
        scale = pyro.param("scale", torch.ones(K), constraint=constraints.positive)
        gate = torch.nn.functional.pad(gate_intercept + data.inputs @ gate_slopes.mT, (1, 0))  # (N, K)
        with pyro.plate("data", len(data.response)):
            z = pyro.sample("z", dist.Categorical(logits=gate), infer={"enumerate": "parallel"})
            loc = intercept[z] + (slopes[z] * data.inputs).sum(-1)
            pyro.sample("y", dist.Normal(loc, scale[z]), obs=data.response)

    def initialize(data: Task, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Lines through small random samples of rows."""
        intercept, slopes, scale = random_regressions(data.inputs, data.response, K, generator)
        return {"intercept": intercept, "slopes": slopes, "scale": scale.expand(K)}

    def arrange(table: Tensor, schema: Schema) -> Task:
        (own,) = places(schema, table.shape[1], (response,), "response")
        others = [place for place in range(table.shape[1]) if place != own]
        return Task(inputs(table, schema, others, "an input"), table[:, own])

    return Pair(model, initialize=initialize, arrange=arrange)
