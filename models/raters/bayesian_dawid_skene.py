"""The model of Dawid and Skene with priors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.columns import num_categories
from ...inference.pair import Pair
from ..registry import register
from .table import around_votes, confusion_start, one_coin, ratings, require_known


@register(
    family="raters",
    summary="the true class of each item behind labels from several raters, with a posterior of each rater's errors",
    data="a long table with a rating a row and columns item, rater, label: raters and labels as text or codes 0, 1, "
    "...; a label may be missing, an item be rated by any of the raters, and several times by one",
    inference=("cavi", "svi", "em"),
    references=(
        "Dawid and Skene (1979), Journal of the Royal Statistical Society C 28, 20-28",
        "Kim and Ghahramani (2012), Bayesian Classifier Combination, AISTATS, PMLR 22, 619-627",
        "Simpson, Roberts, Psorakis and Smith (2013), Dynamic Bayesian Combination of Multiple Imperfect Classifiers",
    ),
    checks=("anaesthetists: the classes of 44 of the 45 patients are those of the most probable raters",),
    example="anesthesia",
    examples=({}, {"strength": 1.0, "expected": 0.5}),
)
def bayesian_dawid_skene(strength: float = 5.0, expected: float = 0.7, concentration: float = 1.0) -> Pair:
    r"""Observer error rates with priors (Kim and Ghahramani 2012, independent classifiers).

    .. math::

        \pi &\sim \mathrm{Dirichlet}(\alpha, \dots, \alpha) \\
        \theta_{jk} &\sim \mathrm{Dirichlet}(1 + s \, \beta_k), \qquad
            \beta_{kl} = b \text{ if } l = k, \quad (1 - b) / (K - 1) \text{ if not} \\
        z_i &\sim \mathrm{Categorical}(\pi) \\
        x_{im} \mid z_i = k, \text{rater } j &\sim \mathrm{Categorical}(\theta_{jk}), \qquad m = 1, \dots, M_i

    ===========================  ==============================================================================
    ``weights`` (K,)             :math:`\pi`, on the simplex
    ``confusion`` (J, K, K)      :math:`\theta_{jkl}`: rater j, class k, label l; on the simplex
    ``z`` (N,)                   class of each item, enumerated
    ``label`` (N, M)             observed; M is the most labels of any item, and the rest are missing
    ===========================  ==============================================================================

    The raters are drawn from one population, which speaks for those who rated little: of its members a share
    `expected` (b) of the labels is right, which counts as much as `strength` (s) labels do. It also says which class is
    which. `concentration` (:math:`\alpha`) is what each class counts before any item is seen. The most probable
    parameters (``inference="em"``) with :math:`\alpha = 1` are those of ``dawid_skene`` in its hierarchical variant.
    """
    for name, value in (("strength", strength), ("concentration", concentration)):
        if not value > 0:
            raise OptionError(f"{name}: met {value}, expected a number above 0")
    if not 0 < expected < 1:
        raise OptionError(f"expected: met {expected}, expected a share between 0 and 1")

    def model(x: Tensor) -> None:
        rater, label = x[..., 0], x[..., 1]  # (N, M)
        J, K = num_categories(rater), num_categories(label)
        population = one_coin(torch.tensor(expected), K)  # (K, K)
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((K,), concentration)))
        prior = dist.Dirichlet(1 + strength * population).expand([J, K]).to_event(2)
        confusion = pyro.sample("confusion", prior)  # (J, K, K)
        require_known(rater, len(confusion), "rater")
        rater = rater.nan_to_num(nan=0.0).long()  # where it is padding the label is missing
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("label", dist.Categorical(confusion[rater, z.unsqueeze(-1)]).to_event(1), obs=label)

    def initialize(x: Tensor, generator: torch.Generator) -> Iterator[Mapping[str, Tensor]]:
        """What the majority vote says of classes and raters; then votes drawn anew around it."""
        for vote in around_votes(x, generator):
            yield confusion_start(x, vote, strength * one_coin(torch.tensor(expected), vote.shape[1]))

    return Pair(model, initialize=initialize, arrange=ratings, by="item")
