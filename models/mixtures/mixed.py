"""Mixture of columns of mixed kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.columns import (
    BINARY,
    CATEGORICAL,
    COUNT,
    NUMERIC,
    center_and_variance,
    column_kinds,
    num_categories,
)
from ...inference.data.schema import Schema
from ...inference.data.seeding import kmeans_plusplus
from ...inference.pair import Pair
from ..registry import register


class Mixed(NamedTuple):
    """Columns by what they hold; a part that the data do not have has no columns."""

    numeric: Tensor  # (N, D)
    binary: Tensor  # (N, B) 0 or 1
    categorical: Tensor  # (N, C) codes 0, 1, ...
    counts: Tensor  # (N, M)


@register(
    family="mixtures",
    summary="clusters of rows of numbers, labels and counts together (latent profile analysis)",
    data="a DataFrame: numbers, booleans, labels and whole numbers, each column by its type; NaN is missing",
    references=(
        "Everitt (1988), Statistics and Probability Letters 6, 305-309",
        "McLachlan and Peel (2000), Finite Mixture Models, section 5.2",
        "Vermunt and Magidson (2002), in Applied Latent Class Analysis, 89-106",
    ),
    checks=("numbers alone are gaussian_mixture (diagonal), labels alone latent_class, counts alone poisson_mixture",),
    example="cars",
    size="num_components",
    examples=({"num_components": 2},),
)
def mixed_mixture(
    num_components: int = 2,
    categorical: Sequence[str | int] = (),
    counts: Sequence[str | int] = (),
    numeric: Sequence[str | int] = (),
) -> Pair:
    r"""Mixture of columns of mixed kinds, independent given the component (Everitt 1988).

    .. math::

        z_n &\sim \mathrm{Categorical}(\pi) \\
        x_{nd} \mid z_n = k &\sim \mathcal{N}(\mu_{kd}, \sigma_{kd}^2), \mathrm{Bernoulli}(p_{kd}),
        \mathrm{Categorical}(\theta_{kd}) \text{ or } \mathrm{Poisson}(\lambda_{kd})

    =========================  ==============================================================================
    ``weights`` (K,)           :math:`\pi`, on the simplex
    ``loc`` (K, D)             :math:`\mu_{kd}` of the D numeric columns
    ``scale`` (K, D)           :math:`\sigma_{kd}`
    ``chance`` (K, B)          :math:`p_{kd}` of the second label of the B columns of two labels
    ``probs_c`` (K, C_c)       :math:`\theta_{kc}`, on the simplex, of the c-th categorical column
    ``rate`` (K, M)            :math:`\lambda_{kd}` of the M columns of counts
    ``z`` (N,)                 latent of each row, enumerated
    ``numeric`` (N, D)         observed, and so ``binary`` (N, B), ``category_c`` (N,) and ``counts`` (N, M)
    =========================  ==============================================================================

    The type of a column says what it holds: two labels or booleans are binary, other labels categorical, whole numbers
    counts, any others numeric. `categorical`, `counts` and `numeric` say otherwise, by name, or by number for a bare
    array, whose other columns are numeric.
    """
    if num_components < 1:
        raise OptionError(f"num_components: met {num_components}, expected at least 1")
    K = num_components

    def model(x: Mixed) -> None:
        D, B, C, M = (part.shape[1] for part in x)
        weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
        if D:
            loc = pyro.param("loc", torch.zeros(K, D))
            scale = pyro.param("scale", torch.ones(K, D), constraint=constraints.positive)
        if B:
            chance = pyro.param("chance", torch.full((K, B), 0.5), constraint=constraints.unit_interval)
        probs = []  # (K, C_c) each
        for c in range(C):
            flat = torch.ones(K, num_categories(x.categorical[:, c])).softmax(-1)
            probs.append(pyro.param(f"probs_{c}", flat, constraint=constraints.simplex))
        if M:
            rate = pyro.param("rate", torch.ones(K, M), constraint=constraints.positive)
        with pyro.plate("data", len(x.numeric)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            if D:
                pyro.sample("numeric", dist.Normal(loc[z], scale[z]).to_event(1), obs=x.numeric)
            if B:
                pyro.sample("binary", dist.Bernoulli(chance[z]).to_event(1), obs=x.binary)
            for c, column in enumerate(probs):
                pyro.sample(f"category_{c}", dist.Categorical(column[z]), obs=x.categorical[:, c])
            if M:
                pyro.sample("counts", dist.Poisson(rate[z]).to_event(1), obs=x.counts)

    def initialize(x: Mixed, generator: torch.Generator) -> Mapping[str, Tensor]:
        """k-means++ seeds over all columns at once, half way to the whole table where they are probabilities."""
        D, B, C, M = (part.shape[1] for part in x)
        codes = [torch.nn.functional.one_hot(x.categorical[:, c].nan_to_num().long()) for c in range(C)]
        table = torch.cat([part.double() for part in (x.numeric, x.binary, x.counts, *codes)], 1)
        seeds = kmeans_plusplus(table, K, generator)
        numbers, flags, rates, *answers = seeds.split([D, B, M, *(part.shape[1] for part in codes)], 1)
        start = {f"probs_{c}": 0.5 * one + 0.5 / one.shape[1] for c, one in enumerate(answers)}
        if D:
            scale = center_and_variance(x.numeric)[1].sqrt()
            start |= {"loc": numbers, "scale": scale.expand(K, D)}
        if B:
            start["chance"] = 0.5 * flags + 0.25
        if M:
            start["rate"] = rates + 0.1
        return start

    def arrange(table: Tensor, schema: Schema) -> Mixed:
        kinds = column_kinds(schema, table.shape[1], categorical, counts, numeric)
        return Mixed(
            *(
                table[:, [place for place, met in enumerate(kinds) if met == kind]]
                for kind in (NUMERIC, BINARY, CATEGORICAL, COUNT)
            )
        )

    return Pair(model, initialize=initialize, arrange=arrange)
