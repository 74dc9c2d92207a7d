"""Latent class analysis."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.columns import num_categories
from ...inference.errors import OptionError
from ...inference.pair import Pair
from ..registry import register


@register(
    family="mixtures",
    summary="classes of rows of categorical answers, independent given the class",
    data="a table of codes 0, 1, ... (N, J), or of text; each column has its own number of categories; NaN is missing",
    references=(
        "Goodman (1974), Biometrika 61, 215-231",
        "Linzer and Lewis (2011), poLCA, Journal of Statistical Software 42(10)",
    ),
    checks=(
        "carcinoma: log-likelihood -317.2568, -293.705, -289.2858 for 2, 3, 4 classes (poLCA; Agresti 2002)",
        "carcinoma, 3 classes: AIC 633.41, BIC 697.1357, shares 0.3736 0.1817 0.4447 (poLCA)",
        "Stouffer and Toby: -543.6498, -504.4677, -503.3011 for 1, 2, 3 classes (Goodman 1974)",
        "cheating: -440.0271 for 2 classes (Dayton 1998)",
    ),
    example="carcinoma",
    size="num_classes",
    examples=({"num_classes": 2},),
)
def latent_class(num_classes: int = 2) -> Pair:
    r"""Latent class analysis (Goodman 1974).

    .. math::

        z_n &\sim \mathrm{Categorical}(\pi) \\
        x_{nj} \mid z_n = k &\sim \mathrm{Categorical}(\theta_{jk}), \qquad j = 1, \dots, J

    ========================  ==========================================================
    ``weights`` (K,)          :math:`\pi`, on the simplex
    ``probs_j`` (K, C_j)      :math:`\theta_{jk}`, on the simplex, one param per column
    ``z`` (N,)                latent of each row, enumerated
    ``x_j`` (N,)              observed, column j of the data
    ========================  ==========================================================
    """
    if num_classes < 1:
        raise OptionError(f"num_classes: met {num_classes}, expected at least 1")
    K = num_classes

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
        probs = []  # (K, C_j) each
        for j in range(x.shape[1]):
            flat = torch.full((K, num_categories(x[:, j])), 1.0).softmax(-1)
            probs.append(pyro.param(f"probs_{j}", flat, constraint=constraints.simplex))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            for j, column in enumerate(probs):
                pyro.sample(f"x_{j}", dist.Categorical(column[z]), obs=x[:, j])

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Class profiles drawn at random, uniform on the simplex."""
        return {
            f"probs_{j}": torch.empty(K, num_categories(x[:, j])).exponential_(generator=generator).pow(0.5).softmax(-1)
            for j in range(x.shape[1])
        }

    return Pair(model, initialize=initialize)
