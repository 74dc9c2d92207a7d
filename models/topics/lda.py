"""Latent Dirichlet allocation."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.seeding import near_mean
from ...inference.distributions.row_multinomial import RowMultinomial
from ...inference.pair import Pair
from ..registry import register


@register(
    family="topics",
    summary="documents as mixtures of topics, each a distribution over the words",
    data="counts of words (N, V), a table or a sparse matrix, or documents as lists of words",
    inference=("cavi", "svi"),
    references=(
        "Blei, Ng and Jordan (2003), Journal of Machine Learning Research 3, 993-1022",
        "Hoffman, Blei, Wang and Paisley (2013), Journal of Machine Learning Research 14, 1303-1347",
    ),
    checks=("sweep by sweep the updates of Blei et al. (2003), written out in numpy",),
    example="docstrings",
    size="num_topics",
    examples=({"num_topics": 4}, {"num_topics": 3, "point_topics": True}),
)
def lda(
    num_topics: int = 10,
    concentration: float = 0.1,
    topic_concentration: float = 0.05,
    point_topics: bool = False,
) -> Pair:
    r"""Latent Dirichlet allocation (Blei, Ng and Jordan 2003), the topic of each word summed out.

    .. math::

        \beta_k &\sim \mathrm{Dirichlet}(\eta, \dots, \eta) \\
        \theta_n &\sim \mathrm{Dirichlet}(\alpha, \dots, \alpha) \\
        x_n \mid \theta_n &\sim \mathrm{Multinomial}(m_n, \theta_n \beta), \qquad m_n = \textstyle\sum_v x_{nv}

    ====================  =====================================================================
    ``topics`` (K, V)     :math:`\beta_k`, on the simplex; with ``point_topics`` a param
    ``theta`` (N, K)      :math:`\theta_n`, shares of the topics in a document, on the simplex
    ``words`` (N, V)      observed counts
    ====================  =====================================================================

    ``concentration`` is :math:`\alpha`, ``topic_concentration`` is :math:`\eta`. With ``point_topics`` the topics have
    no prior, and are learned as a point (the variational EM of Blei et al., section 5).

    Lengths :math:`m_n` are given, not modelled: generated documents are as long as those of the data, in their order
    and begun again from the first.
    """
    if num_topics < 1:
        raise OptionError(f"num_topics: met {num_topics}, expected at least 1")
    for name, value in (("concentration", concentration), ("topic_concentration", topic_concentration)):
        if not value > 0:
            raise OptionError(f"{name}: met {value!r}, expected a positive number")
    K = num_topics

    def model(docs: Tensor) -> None:
        V = docs.shape[1]
        if point_topics:
            topics = pyro.param("topics", torch.ones(K, V) / V, constraint=constraints.simplex)
        else:
            topics = pyro.sample("topics", dist.Dirichlet(topic_concentration * torch.ones(K, V)).to_event(1))
        with pyro.plate("data", len(docs)):
            theta = pyro.sample("theta", dist.Dirichlet(concentration * torch.ones(K)))  # (N, K)
            pyro.sample("words", RowMultinomial(docs.sum(-1), theta @ topics), obs=docs)

    def initialize(docs: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        topics = near_mean(docs, K, generator)
        return {"topics": topics / topics.sum(-1, keepdim=True)}

    return Pair(model, initialize=initialize)
