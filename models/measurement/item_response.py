"""Item response theory."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from numpy.polynomial.hermite_e import hermegauss
from pyro.distributions import constraints
from torch import Tensor

from ...inference.base.errors import DataError, OptionError
from ...inference.data.columns import center_and_variance, num_categories
from ...inference.pair import Pair
from ..registry import register

WIDER = (1 + 1 / 1.7**2) ** 0.5  # the logistic curve is nearly the normal one of sd 1.7 (Birnbaum 1968)
MODELS = ("rasch", "common_slope", "two_parameter", "three_parameter", "graded")


@register(
    family="measurement",
    summary="the ability of each person behind the answers to a test, and how each item measures it",
    data="a table of answers (N, J): 0 and 1, or codes 0, 1, ... in order for graded; NaN is missing",
    references=(
        "Rasch (1960), Probabilistic Models for Some Intelligence and Attainment Tests",
        "Birnbaum (1968), in Lord and Novick, Statistical Theories of Mental Test Scores",
        "Samejima (1969), Psychometrika Monograph 17",
        "Bock and Aitkin (1981), Psychometrika 46, 443-459",
        "Rizopoulos (2006), ltm, Journal of Statistical Software 17(5)",
    ),
    checks=(
        "LSAT section 6: log-likelihood -2473.054 (rasch), -2466.938 (common_slope), -2466.653 (two_parameter) (ltm)",
        "LSAT section 6, two_parameter: slopes 0.8254 0.7229 0.8905 0.6886 0.6575, difficulties -3.3597 -1.3696 "
        "-0.2799 -1.8659 -3.1236 (ltm)",
    ),
    example="lsat6",
    examples=tuple({"model": name} for name in MODELS if name != "three_parameter"),  # its ridges make it slow
)
def item_response(model: str = "two_parameter", num_nodes: int = 41) -> Pair:
    r"""Item response theory (Birnbaum 1968), ability integrated out on Gauss-Hermite nodes (Bock and Aitkin 1981).

    .. math::

        \theta_n &\sim \mathcal{N}(0, 1) \\
        x_{nj} \mid \theta_n &\sim \mathrm{Bernoulli}\big(c_j + (1 - c_j)\, \sigma(a_j (\theta_n - b_j))\big)

    with :math:`\theta_n = t_{z_n}` one of Q nodes :math:`t_q` of weight :math:`w_q`. Graded answers (Samejima 1969):

    .. math::

        P(x_{nj} \ge k \mid \theta_n) = \sigma(a_j \theta_n - d_{jk}), \qquad k = 1, \dots, C_j - 1

    ==========================  =============================================================================
    ``slope`` (J,)              :math:`a_j`; () in common_slope, fixed at 1 in rasch
    ``difficulty`` (J,)         :math:`b_j`, of answers 0 and 1
    ``guessing`` (J,)           :math:`c_j`, in three_parameter; 0 elsewhere
    ``thresholds_j`` (C_j - 1)  :math:`d_{jk}`, ascending, of graded answers: from ability :math:`d_{jk} / a_j` on,
                                an answer of k or more is the likelier
    ``z`` (N,)                  the node of each row, enumerated
    ``ability`` (N,)            :math:`\theta_n`, computed from it
    ``x`` (N, J)                observed
    ==========================  =============================================================================

    Slopes may be negative (an item keyed the wrong way); their signs start as those of the items' correlations with
    the rest of the test, which tells :math:`\theta` from :math:`-\theta`.
    """
    if model not in MODELS:
        raise OptionError(f"model: met {model!r}, expected one of {', '.join(MODELS)}")
    if num_nodes < 2:
        raise OptionError(f"num_nodes: met {num_nodes}, expected at least 2")
    nodes, weights = (torch.from_numpy(part) for part in hermegauss(num_nodes))  # of exp(-t^2 / 2)
    log_weights = (weights / weights.sum()).log()

    def ability(x: Tensor) -> Tensor:
        z = pyro.sample("z", dist.Categorical(logits=log_weights.to(x.device)), infer={"enumerate": "parallel"})
        return pyro.deterministic("ability", nodes.to(x.device)[z], event_dim=0)

    def right_or_wrong(x: Tensor) -> None:
        J = x.shape[1]
        difficulty = pyro.param("difficulty", torch.zeros(J))
        slope = torch.ones(())
        if model == "common_slope":
            slope = pyro.param("slope", torch.ones(()), constraint=constraints.positive)
        elif model != "rasch":
            slope = pyro.param("slope", torch.ones(J))
        guessing = torch.zeros(())
        if model == "three_parameter":
            guessing = pyro.param("guessing", torch.full((J,), 0.1), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            logits = slope * (ability(x).unsqueeze(-1) - difficulty)  # (..., J)
            answer = dist.Bernoulli(logits=logits)
            if model == "three_parameter":
                answer = dist.Bernoulli(guessing + (1 - guessing) * logits.sigmoid())
            pyro.sample("x", answer.to_event(1), obs=x)

    def graded(x: Tensor) -> None:
        J = x.shape[1]
        slope = pyro.param("slope", torch.ones(J))
        thresholds = []  # (C_j - 1,) each
        for j in range(J):
            spread = torch.linspace(-1.0, 1.0, num_answers(x[:, j]) - 1)
            thresholds.append(pyro.param(f"thresholds_{j}", spread, constraint=constraints.ordered_vector))
            if len(spread) > len(thresholds[j]):
                raise DataError(f"column {j} holds answers above {len(thresholds[j])}, the highest met in training")
        cuts = torch.nn.utils.rnn.pad_sequence(thresholds, batch_first=True, padding_value=torch.inf)  # (J, C - 1)
        with pyro.plate("data", len(x)):
            theta = ability(x)[..., None, None]
            above = (slope.unsqueeze(-1) * theta - cuts).sigmoid()  # (..., J, C - 1)
            edge = torch.ones_like(above[..., :1])
            probs = torch.cat([edge, above], -1) - torch.cat([above, 0 * edge], -1)  # (..., J, C)
            pyro.sample("x", dist.Categorical(probs).to_event(1), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Slopes near 1 in size, signed as the loadings of the first principal component; the rest from the shares."""
        center, variance = center_and_variance(x)
        score = ((x - center) / variance.sqrt()).nan_to_num(0.0)
        loading = torch.linalg.eigh(score.mT @ score)[1][:, -1]
        sign = torch.where(loading * loading.sum() < 0, -1.0, 1.0)
        slope = sign * torch.empty(x.shape[1]).log_normal_(0.0, 0.2, generator=generator)
        if model == "graded":
            return {"slope": slope} | {f"thresholds_{j}": steps(x[:, j]) for j in range(x.shape[1])}
        difficulty = torch.cat([steps(column) for column in x.unbind(1)])
        if model in ("rasch", "common_slope"):
            return {"difficulty": difficulty}
        return {"difficulty": difficulty / slope, "slope": slope}

    def num_answers(column: Tensor) -> int:
        return max(2, num_categories(column)) if model == "graded" else 2

    def steps(column: Tensor) -> Tensor:
        """Logits of the shares of answers below 1, 2, ..., widened as ability of variance 1 flattens them (C - 1,)."""
        answers = column[~column.isnan()] if column.is_floating_point() else column
        first = torch.arange(1, num_answers(column))
        below = (answers < first.unsqueeze(-1)).double().mean(-1)
        return WIDER * below.logit(1e-3)

    return Pair(graded if model == "graded" else right_or_wrong, initialize=initialize)
