"""Multinomial mixture."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.distributions.row_multinomial import RowMultinomial
from ...inference.pair import Pair
from ..registry import register


@register(
    family="mixtures",
    summary="clusters of rows of counts by their shares, whatever the totals of the rows",
    data="a table of counts (N, V), rows of any totals, such as words of documents; a row is whole, or wholly missing",
    references=(
        "Nigam, McCallum, Thrun and Mitchell (2000), Machine Learning 39, 103-134",
        "Rigouste, Cappe and Yvon (2007), Information Processing and Management 43, 1260-1280",
    ),
    checks=("iterate by iterate the EM of Nigam et al. written out in numpy",),
    example="digit_lines",
    size="num_components",
    examples=({"num_components": 3},),
)
def multinomial_mixture(num_components: int = 3) -> Pair:
    r"""Mixture of multinomials (Nigam et al. 2000).

    .. math::

        z_n &\sim \mathrm{Categorical}(\pi) \\
        x_n \mid z_n = k &\sim \mathrm{Multinomial}(m_n, \theta_k), \qquad m_n = \textstyle\sum_v x_{nv}

    ====================  =====================================================
    ``weights`` (K,)      :math:`\pi`, on the simplex
    ``probs`` (K, V)      :math:`\theta_k`, on the simplex
    ``z`` (N,)            latent of each row, enumerated
    ``x`` (N, V)          observed counts
    ====================  =====================================================

    The totals :math:`m_n` are given, not modelled: generated rows take those of the rows of the data, in their order
    and begun again from the first.
    """
    if num_components < 1:
        raise OptionError(f"num_components: met {num_components}, expected at least 1")
    K = num_components

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
        flat = torch.full((K, x.shape[1]), 1.0 / x.shape[1])
        probs = pyro.param("probs", flat, constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", RowMultinomial(x.sum(-1), probs[z]), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Shares of K rows drawn at random, half way to those of the whole table, so that none is 0."""
        rows = x[~x.isnan().any(-1)] if x.is_floating_point() else x
        whole = rows.double().sum(0) + 1.0
        chosen = rows[torch.randperm(len(rows), generator=generator)[torch.arange(K) % len(rows)]].double() + 1e-3
        return {"probs": 0.5 * chosen / chosen.sum(-1, keepdim=True) + 0.5 * whole / whole.sum()}

    return Pair(model, initialize=initialize)
