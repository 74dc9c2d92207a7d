"""The sparse gamma deep exponential family: layers of positive numbers above a table of counts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.seeding import near_mean
from ...inference.nn.networks import check_sizes
from ...inference.pair import Pair
from ..registry import register


@register(
    family="topics",
    summary="counts from layers of positive numbers, most of them near 0: factors of factors",
    data="a table of counts (N, V): documents and words, users and items; NaN is missing",
    inference=("svi",),
    references=("Ranganath, Tang, Charlin and Blei (2015), Deep Exponential Families, AISTATS 18, 762-771",),
    checks=(
        "one layer: the bound and the scores of gamma_poisson_factorization, step by step",
        "two layers: scores of rows beside averages over draws from the prior",
    ),
    example="digit_lines",
    size="units",
    examples=({"units": (4, 2)},),
)
def sparse_gamma_def(
    units: tuple[int, ...] = (10, 5),
    shape: float = 0.3,
    rate: float = 0.3,
    weight_shape: float = 0.3,
    weight_rate: float = 0.3,
) -> Pair:
    r"""Sparse gamma deep exponential family with Poisson counts (Ranganath et al. 2015), of L layers.

    .. math::

        w^{(l)}_{kj} &\sim \mathrm{Gamma}(c, d) \\
        z^{(L)}_{nk} &\sim \mathrm{Gamma}(a, b) \\
        z^{(l)}_{nj} \mid z^{(l+1)} &\sim
            \mathrm{Gamma}\Big(a, \; a \Big/ \textstyle\sum_k z^{(l+1)}_{nk} w^{(l)}_{kj}\Big) \\
        x_{nv} \mid z^{(1)} &\sim \mathrm{Poisson}\Big(\textstyle\sum_k z^{(1)}_{nk} w^{(0)}_{kv}\Big)

    ============================  ==============================================================================
    ``w0`` (K_1, V)               :math:`w^{(0)}`, profiles of the columns
    ``w1`` (K_2, K_1), ...        :math:`w^{(1)}` and on: which units of the layer below each unit brings
    ``z1`` (N, K_1), ...          :math:`z^{(1)}` and on: layers of each row
    ``x`` (N, V)                  observed counts
    ============================  ==============================================================================

    ``units`` are K_1, K_2, ..., from the layer next to the counts upwards. ``shape`` and ``rate`` are a and b,
    ``weight_shape`` and ``weight_rate`` are c and d. A unit's mean is what the layer above makes it, whatever the
    shape; a shape far below 1 keeps most units near 0. With one layer this is `gamma_poisson_factorization`.
    """
    if not units:
        raise OptionError("units: met none, expected the number of units of each layer")
    for number, size in enumerate(units, 1):
        check_sizes(**{f"units (layer {number})": size})
    given = {"shape": shape, "rate": rate, "weight_shape": weight_shape, "weight_rate": weight_rate}
    for name, value in given.items():
        if not value > 0:
            raise OptionError(f"{name}: met {value!r}, expected a positive number")
    top = len(units)

    def model(x: Tensor) -> None:
        sizes = [x.shape[1], *units]
        weights = [
            pyro.sample(f"w{number}", dist.Gamma(weight_shape * torch.ones(above, below), weight_rate).to_event(2))
            for number, (below, above) in enumerate(itertools.pairwise(sizes))
        ]
        with pyro.plate("data", len(x)):
            z = pyro.sample(f"z{top}", dist.Gamma(shape * torch.ones(units[-1]), rate).to_event(1))
            for number in range(top - 1, 0, -1):
                mean = z @ weights[number]  # (N, K_l)
                z = pyro.sample(f"z{number}", dist.Gamma(shape, shape / mean).to_event(1))
            pyro.sample("x", dist.Poisson(z @ weights[0]).to_event(1), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        return {"w0": near_mean(x, units[0], generator)}

    return Pair(model, initialize=initialize)
