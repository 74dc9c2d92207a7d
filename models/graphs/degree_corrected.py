"""Degree-corrected stochastic block model."""

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
    summary="a graph whose nodes fall into blocks, whatever their degrees; edges may be counts",
    data="a graph: networkx, an adjacency matrix (dense or sparse), or a list of edges; counts; pairs may be missing",
    inference=("cavi",),
    references=(
        "Karrer and Newman (2011), Physical Review E 83, 016107",
        "Zhu, Yan and Moore (2014), Journal of Complex Networks 2, 1-18 (directed)",
    ),
    checks=("finds the factions of Zachary's karate club but for one member (Karrer and Newman 2011, figure 1b)",),
    example="karate_club",
    size="num_blocks",
    examples=({"num_blocks": 2},),
)
def degree_corrected_block_model(
    num_blocks: int = 2,
    directed: bool = False,
    concentration: float = 1.0,
    shape: float = 1.0,
    rate: float = 1.0,
) -> Pair:
    r"""Degree-corrected stochastic block model (Karrer and Newman 2011).

    .. math::

        \pi &\sim \mathrm{Dirichlet}(\alpha, \dots, \alpha) \\
        \omega_{kl} &\sim \mathrm{Gamma}(a, b) \\
        z_n \mid \pi &\sim \mathrm{Categorical}(\pi) \\
        A_{ij} \mid z, \omega &\sim \mathrm{Poisson}(\omega_{z_i z_j}\, d_i d_j / \textstyle\sum_n d_n), \qquad i < j

    ==========================  =============================================================================
    ``weights`` (K,)            :math:`\pi`
    ``rates`` (K (K + 1) / 2,)  :math:`\omega_{kl}` for :math:`k \le l`, row by row; ``directed``: all, (K K,)
    ``z`` (N,)                  blocks of the nodes, summed out under a mean field over nodes
    ``edges`` (P,)              observed counts: the pairs i < j, or with ``directed`` all i, j that differ
    ==========================  =============================================================================

    The degrees :math:`d` are those observed, given and not modelled: with all :math:`\omega = 1` edges fall by chance
    among the nodes as their degrees have it, and :math:`\omega_{kl}` says how many times as many there are between two
    blocks. That keeps the model conjugate, and is no restriction where :math:`\omega` is free: the rates of Karrer and
    Newman at their maximum, :math:`d_i d_j m_{kl} / (\kappa_k \kappa_l)` with :math:`m_{kl}` the edges between two
    blocks and :math:`\kappa_k` the sum of degrees in one, are of this form. With ``directed`` :math:`d_i d_j` is the
    degree out of i times that into j (Zhu, Yan and Moore 2014).

    The mean field is over the nodes too, for their blocks meet in pairs. The bound it ends at, ``fit.history[-1]``,
    compares numbers of blocks.

    ``concentration`` is :math:`\alpha`, ``shape`` and ``rate`` are a and b. Edges that are only 0 or 1 are taken as
    counts, which is near the truth where the graph is sparse.
    """
    check(num_blocks, concentration=concentration, shape=shape, rate=rate)
    K = num_blocks
    place = between_blocks(K, directed)  # (K, K)

    def model(graph: Graph) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(concentration * torch.ones(K)))
        rates = pyro.sample("rates", dist.Gamma(shape * torch.ones(int(place.max()) + 1), rate).to_event(1))
        with pyro.plate("data", graph.num_nodes):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})  # (N,)
        by_chance = graph.out_degree[graph.first] * graph.in_degree[graph.second] / graph.out_degree.sum()  # (P,)
        with pyro.plate("pairs", len(graph.edges)):
            expected = rates[place[z[graph.first], z[graph.second]]] * by_chance
            pyro.sample("edges", dist.Poisson(expected), obs=graph.edges)

    return Pair(model, graph="directed" if directed else "undirected")
