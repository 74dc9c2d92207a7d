"""The model of Dawid and Skene."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.columns import num_categories
from ...inference.pair import Pair
from ..registry import register
from .table import (
    around_votes,
    confusion_counts,
    confusion_start,
    one_coin,
    ratings,
    require_comparable,
    require_known,
    shares,
)

VARIANTS = ("full", "one_coin", "hierarchical")


@register(
    family="raters",
    summary="the true class of each item behind labels from several raters, and the errors of each rater",
    data="a long table with a rating a row and columns item, rater, label: raters and labels as text or codes 0, 1, "
    "...; a label may be missing, an item be rated by any of the raters, and several times by one",
    references=(
        "Dawid and Skene (1979), Journal of the Royal Statistical Society C 28, 20-28",
        "Paun et al. (2018), Transactions of the Association for Computational Linguistics 6, 571-585",
    ),
    checks=(
        "anaesthetists: class shares and five error matrices to two decimals, from the majority vote (Dawid and Skene)",
        "anaesthetists: log-likelihood -192.8909 there, and -191.5689 at a better optimum",
    ),
    example="anesthesia",
    examples=tuple({"variant": name} for name in VARIANTS),
)
def dawid_skene(variant: str = "full", strength: float = 5.0, expected: float = 0.7) -> Pair:
    r"""Observer error rates (Dawid and Skene 1979).

    .. math::

        z_i &\sim \mathrm{Categorical}(\pi) \\
        x_{im} \mid z_i = k, \text{rater } j &\sim \mathrm{Categorical}(\theta_{jk}), \qquad m = 1, \dots, M_i

    In ``one_coin`` a rater is right with one probability, whatever the class, and wrong in all ways alike:

    .. math::

        \theta_{jkl} = a_j \text{ if } l = k, \qquad (1 - a_j) / (K - 1) \text{ if not}

    In ``hierarchical`` the raters are drawn from one population, which speaks for those who rated little (Paun et al.
    2018, with a population that is given): of its members a share ``expected`` of the labels is right, which counts as
    much as ``strength`` labels do, and the estimate is the most probable one (MAP).

    .. math::

        \theta_{jk} \sim \mathrm{Dirichlet}(1 + s \, \beta_k), \qquad
        \beta_{kl} = b \text{ if } l = k, \quad (1 - b) / (K - 1) \text{ if not}

    ===========================  ==============================================================================
    ``weights`` (K,)             :math:`\pi`, on the simplex
    ``confusion`` (J, K, K)      :math:`\theta_{jkl}`: rater j, class k, label l; on the simplex
    ``accuracy`` (J,)            :math:`a_j`, in one_coin
    ``z`` (N,)                   class of each item, enumerated
    ``label`` (N, M)             observed; M is the most labels of any item, and the rest are missing
    ===========================  ==============================================================================

    The first start is the majority vote, as in the paper: the share of each label among an item's votes. Further
    restarts draw these shares at random around the votes, so that class k stays that which raters call k.
    """
    if variant not in VARIANTS:
        raise OptionError(f"variant: met {variant!r}, expected one of {', '.join(VARIANTS)}")
    if not strength >= 0:
        raise OptionError(f"strength: met {strength}, expected a number of at least 0")
    if not 0 < expected < 1:
        raise OptionError(f"expected: met {expected}, expected a share between 0 and 1")

    def model(x: Tensor) -> None:
        rater, label = x[..., 0], x[..., 1]  # (N, M)
        J, K = num_categories(rater), num_categories(label)
        weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
        errors = confusion(J, len(weights))  # (J, K, K)
        require_known(rater, len(errors), "rater")
        rater = rater.nan_to_num(nan=0.0).long()  # where it is padding the label is missing
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("label", dist.Categorical(errors[rater, z.unsqueeze(-1)]).to_event(1), obs=label)

    def confusion(J: int, K: int) -> Tensor:
        if variant == "one_coin":
            accuracy = pyro.param("accuracy", torch.full((J,), 0.7), constraint=constraints.unit_interval)
            return one_coin(accuracy.unsqueeze(-1).unsqueeze(-1), K)
        population = one_coin(torch.tensor(expected), K)  # (K, K)
        if variant == "full":
            return pyro.param("confusion", population.expand(J, K, K).clone(), constraint=constraints.simplex)
        return pyro.sample("confusion", dist.Dirichlet(1 + strength * population).expand([J, K]).to_event(2))

    def initialize(x: Tensor, generator: torch.Generator) -> Iterator[Mapping[str, Tensor]]:
        """What the majority vote says of classes and raters; then votes drawn anew around it."""
        require_comparable(x)
        for vote in around_votes(x, generator):
            yield start(x, vote)

    def start(x: Tensor, vote: Tensor) -> Mapping[str, Tensor]:
        J, K = num_categories(x[..., 0]), vote.shape[1]
        if variant == "hierarchical":
            return confusion_start(x, vote, strength * one_coin(torch.tensor(expected), K))
        if variant == "full":
            return confusion_start(x, vote, 0.0)
        classes = shares(vote)
        counts = confusion_counts(x, classes, J)
        right = counts.diagonal(dim1=1, dim2=2).sum(1)
        return {"weights": classes.mean(0), "accuracy": (right + 1) / (counts.sum((1, 2)) + 2)}

    return Pair(model, initialize=initialize, arrange=ratings, by="item")
