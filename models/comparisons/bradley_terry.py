"""The model of Bradley and Terry."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.base.errors import DataError
from ...inference.data.schema import Schema
from ...inference.pair import Pair
from ..registry import register
from .table import Comparisons, comparisons, require_connected


@register(
    family="comparisons",
    summary="the strength of each player behind who beat whom",
    data="a table of contests (N, 3) with columns first, second, result: two players, as text or codes 0, 1, ...; and "
    "loss or win of the first, as words or codes 0, 1 (with ties: loss, tie, win or 0, 1, 2). A result may be missing",
    references=(
        "Bradley and Terry (1952), Biometrika 39, 324-345",
        "Davidson (1970), Journal of the American Statistical Association 65, 317-328",
        "Hunter (2004), Annals of Statistics 32, 384-406",
    ),
    checks=(
        "American League 1987, log strengths over Baltimore's: Milwaukee 1.5814, Detroit 1.4364, Toronto 1.2945, "
        "New York 1.2476, Boston 1.1077, Cleveland 0.6839 (BradleyTerry2, Turner and Firth 2012)",
    ),
    example="baseball",
)
def bradley_terry(ties: bool = False) -> Pair:
    r"""Paired comparisons (Bradley and Terry 1952), with ties as Davidson (1970) has them.

    .. math::

        P(i \text{ beats } j) &\propto \lambda_i \\
        P(j \text{ beats } i) &\propto \lambda_j \\
        P(i \text{ ties } j) &\propto \nu \sqrt{\lambda_i \lambda_j}

    Without ties: two runners set out, and i arrives after a time that is exponential of rate :math:`\lambda_i`; the
    first to arrive has won. With the time :math:`t_n` of the first arrival in contest n as its latent, EM is

    .. math::

        E[t_n] = \frac{1}{\lambda_{i_n} + \lambda_{j_n}}, \qquad
        \lambda_i \leftarrow \frac{\text{wins of } i}{\sum_{n \ni i} E[t_n]},

    the minorisation that Hunter (2004) took further: here a step of MM is a step of EM. No one times the runners, and
    the time can be integrated out by hand, which leaves the probabilities above; the driver climbs these, to the same
    maximum.

    =====================  =====================================================================
    ``strength`` (P,)      :math:`\lambda`, on the simplex, for only ratios matter
    ``tie`` ()             :math:`\nu`, how common ties are; with ``ties=True``
    ``result`` (N,)        observed
    =====================  =====================================================================
    """

    def model(x: Comparisons) -> None:
        P = players(x)
        strength = pyro.param("strength", torch.ones(P) / P, constraint=constraints.simplex)
        if len(strength) < P:
            raise DataError(f"met player {P - 1}: in training they were 0 to {len(strength) - 1}")
        log_first, log_second = strength.log()[x.first], strength.log()[x.second]  # (N,)
        logits = [log_second, log_first]  # a loss, a win
        if ties:
            tie = pyro.param("tie", torch.ones(()), constraint=constraints.positive)
            logits.insert(1, tie.log() + (log_first + log_second) / 2)
        kind = x.outcome if ties else x.outcome // 2
        with pyro.plate("data", len(x.first)):
            pyro.sample("result", dist.Categorical(logits=torch.stack(logits, -1)[:, kind]), obs=x.result)

    def players(x: Comparisons) -> int:
        return len(x.names) or int(torch.maximum(x.first.max(), x.second.max())) + 1

    def initialize(x: Comparisons, generator: torch.Generator) -> Mapping[str, Tensor]:
        """The share of points of each player, a win being two and a tie one."""
        codes = x.result.nan_to_num(nan=-1.0).long() if x.result.is_floating_point() else x.result
        outcome = torch.where(codes < 0, -1, x.outcome[codes.clamp_min(0)])
        require_connected(x, outcome, players(x))
        if ties and not (outcome == 1).any():
            raise DataError("column 'result' holds no tie: create the model with ties=False")
        seen = outcome >= 0
        points, games = torch.ones(players(x)), torch.full((players(x),), 2.0)
        for player, won in ((x.first[seen], outcome[seen]), (x.second[seen], 2 - outcome[seen])):
            points = points.index_add(0, player, won.double())
            games = games.index_add(0, player, torch.full_like(won, 2).double())
        share = points / games
        return {"strength": share / share.sum()}

    def arrange(table: Tensor, schema: Schema) -> Comparisons:
        return comparisons(table, schema, ties)

    return Pair(model, initialize=initialize, arrange=arrange)
