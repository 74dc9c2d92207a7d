"""Stochastic block model."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from ...inference.data.graph import Graph
from ...inference.pair import Pair
from ..registry import register
from .between import between_blocks, check


@register(
    family="graphs",
    summary="a graph whose nodes fall into blocks, edges by the blocks of both nodes",
    data="a graph: networkx, an adjacency matrix (dense or sparse), or a list of edges; pairs may be missing",
    inference=("cavi",),
    references=(
        "Holland, Laskey and Leinhardt (1983), Social Networks 5, 109-137",
        "Daudin, Picard and Robin (2008), Statistics and Computing 18, 173-183",
        "Latouche, Birmele and Ambroise (2012), Statistical Modelling 12, 93-115",
    ),
    checks=("splits Zachary's karate club by degree, not by faction (Karrer and Newman 2011, figure 1a)",),
    example="karate_club",
    size="num_blocks",
    examples=({"num_blocks": 2}, {"num_blocks": 2, "directed": True}),
)
def stochastic_block_model(
    num_blocks: int = 2,
    directed: bool = False,
    concentration: float = 1.0,
    edge_prior: float = 1.0,
    no_edge_prior: float = 1.0,
) -> Pair:
    r"""Stochastic block model (Holland, Laskey and Leinhardt 1983; with these priors Latouche et al. 2012).

    .. math::

        \pi &\sim \mathrm{Dirichlet}(\alpha, \dots, \alpha) \\
        B_{kl} &\sim \mathrm{Beta}(a, b) \\
        z_n \mid \pi &\sim \mathrm{Categorical}(\pi) \\
        A_{ij} \mid z, B &\sim \mathrm{Bernoulli}(B_{z_i z_j}), \qquad i < j

    ==========================  =============================================================================
    ``weights`` (K,)            :math:`\pi`
    ``probs`` (K (K + 1) / 2,)  :math:`B_{kl}` for :math:`k \le l`, row by row; ``directed``: all, (K K,)
    ``z`` (N,)                  blocks of the nodes, summed out under a mean field over nodes
    ``edges`` (P,)              observed, 0 or 1: the pairs i < j, or with ``directed`` all i, j that differ
    ==========================  =============================================================================

    The mean field is over the nodes too, for their blocks meet in pairs. The bound it ends at, ``fit.history[-1]``,
    compares numbers of blocks (the criterion ILvb of Latouche et al.).

    ``concentration`` is :math:`\alpha`, ``edge_prior`` and ``no_edge_prior`` are a and b.

    Where degrees differ much within what one would call a group, this model parts the nodes by their degrees instead:
    see ``degree_corrected_block_model``.
    """
    check(num_blocks, concentration=concentration, edge_prior=edge_prior, no_edge_prior=no_edge_prior)
    K = num_blocks
    place = between_blocks(K, directed)  # (K, K)

    def model(graph: Graph) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(concentration * torch.ones(K)))
        shape = edge_prior * torch.ones(int(place.max()) + 1)
        probs = pyro.sample("probs", dist.Beta(shape, no_edge_prior).to_event(1))
        with pyro.plate("data", graph.num_nodes):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})  # (N,)
        with pyro.plate("pairs", len(graph.edges)):
            edge = probs[place[z[graph.first], z[graph.second]]]  # (P,)
            pyro.sample("edges", dist.Bernoulli(edge), obs=graph.edges)

    return Pair(model, graph="directed" if directed else "undirected")
