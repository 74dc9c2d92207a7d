"""Latent class analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.columns import inputs, num_categories, places
from ...inference.data.schema import Schema
from ...inference.pair import Pair
from ..registry import register


class Answers(NamedTuple):
    """Rows of a table by the parts that its columns play."""

    x: Tensor  # (N, J) codes
    covariates: Tensor  # (N, Q)


@register(
    family="mixtures",
    summary="classes of rows of categorical answers, independent given the class",
    data="a table of codes 0, 1, ... (N, J), or of text; each column has its own number of categories; NaN is missing "
    "(in an answer, not in a covariate)",
    references=(
        "Goodman (1974), Biometrika 61, 215-231",
        "Bandeen-Roche, Miglioretti, Zeger and Rathouz (1997), JASA 92, 1375-1386 (covariates)",
        "Linzer and Lewis (2011), poLCA, Journal of Statistical Software 42(10)",
    ),
    checks=(
        "carcinoma: log-likelihood -317.2568, -293.705, -289.2858 for 2, 3, 4 classes (poLCA; Agresti 2002)",
        "carcinoma, 3 classes: AIC 633.41, BIC 697.1357, shares 0.3736 0.1817 0.4447 (poLCA)",
        "Stouffer and Toby: -543.6498, -504.4677, -503.3011 for 1, 2, 3 classes (Goodman 1974)",
        "cheating, GPA as covariate, 2 classes: -429.6384 (poLCA)",
        "cheating: -440.0271 for 2 classes (Dayton 1998)",
    ),
    example="carcinoma",
    size="num_classes",
    examples=({"num_classes": 2}, {"num_classes": 2, "covariates": ("A",)}),
)
def latent_class(num_classes: int = 2, covariates: Sequence[str | int] = ()) -> Pair:
    r"""Latent class analysis (Goodman 1974), with covariates of the class if asked for (Bandeen-Roche et al. 1997).

    .. math::

        z_n &\sim \mathrm{Categorical}(\pi) \quad\text{or}\quad
            \mathrm{Categorical}(\mathrm{softmax}_k(a_k + c_n^\top b_k)), \qquad a_1 = 0,\ b_1 = 0 \\
        x_{nj} \mid z_n = k &\sim \mathrm{Categorical}(\theta_{jk}), \qquad j = 1, \dots, J

    ========================  ===================================================================
    ``weights`` (K,)          :math:`\pi`, on the simplex; without covariates
    ``intercept`` (K - 1)     :math:`a_k` of the classes after the first; with covariates
    ``slopes`` (K - 1, Q)     :math:`b_k`: log odds of class k against the first, per unit
    ``probs_j`` (K, C_j)      :math:`\theta_{jk}`, on the simplex, one param per column
    ``z`` (N,)                latent of each row, enumerated
    ``x_j`` (N,)              observed, column j of the answers
    ========================  ===================================================================

    The columns `covariates` are :math:`c_n`, taken as given: numbers, or labels as indicators. All others are answers.
    """
    if num_classes < 1 + bool(covariates):
        raise OptionError(f"num_classes: met {num_classes}, expected at least {1 + bool(covariates)}")
    K = num_classes

    def model(data: Tensor | Answers) -> None:
        if isinstance(data, Answers):
            x = data.x
            intercept = pyro.param("intercept", torch.zeros(K - 1))
            slopes = pyro.param("slopes", torch.zeros(K - 1, data.covariates.shape[1]))
            lines = intercept + data.covariates @ slopes.mT  # (N, K - 1)
            weights = torch.nn.functional.pad(lines, (1, 0)).softmax(-1)
        else:
            x = data
            weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
        probs = []  # (K, C_j) each
        for j in range(x.shape[1]):
            flat = torch.full((K, num_categories(x[:, j])), 1.0).softmax(-1)
            probs.append(pyro.param(f"probs_{j}", flat, constraint=constraints.simplex))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            for j, column in enumerate(probs):
                pyro.sample(f"x_{j}", dist.Categorical(column[z]), obs=x[:, j])

    def initialize(data: Tensor | Answers, generator: torch.Generator) -> Mapping[str, Tensor]:
        return profiles(data.x if isinstance(data, Answers) else data, K, generator)

    def arrange(table: Tensor, schema: Schema) -> Answers:
        given = places(schema, table.shape[1], covariates, "covariates")
        answers = [place for place in range(table.shape[1]) if place not in given]
        return Answers(table[:, answers], inputs(table, schema, given, "a covariate"))

    return Pair(model, initialize=initialize, arrange=arrange if covariates else None)


def profiles(x: Tensor, classes: int, generator: torch.Generator) -> Mapping[str, Tensor]:
    """Class profiles drawn at random, ``probs_j`` (K, C_j) for each column of answers."""
    sizes = [num_categories(column) for column in x.unbind(1)]
    drawn = [torch.empty(classes, size).exponential_(generator=generator).pow(0.5).softmax(-1) for size in sizes]
    return {f"probs_{j}": profile for j, profile in enumerate(drawn)}
