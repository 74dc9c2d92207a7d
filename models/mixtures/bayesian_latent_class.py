"""Latent class analysis with priors."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.columns import num_categories
from ...inference.pair import Pair
from ..registry import register
from .latent_class import profiles
from .weights import check_prior, mixture_weights


@register(
    family="mixtures",
    summary="classes of rows of categorical answers with a posterior of every share; surplus classes empty",
    data="a table of codes 0, 1, ... (N, J), or of text; each column has its own number of categories; NaN is missing",
    inference=("cavi", "svi"),
    references=(
        "White and Murphy (2014), BayesLCA, Journal of Statistical Software 61(13)",
        "Dunson and Xing (2009), JASA 104, 1042-1051 (Dirichlet process)",
    ),
    checks=("one class: the evidence lower bound is the log evidence, Dirichlet-multinomial, to 1e-9",),
    example="carcinoma",
    size="num_classes",
    examples=({"num_classes": 2}, {"num_classes": 4, "prior": "dirichlet_process"}),
)
def bayesian_latent_class(
    num_classes: int = 4, prior: str = "dirichlet", concentration: float = 1.0, strength: float = 1.0
) -> Pair:
    r"""Latent class analysis with priors (White and Murphy 2014), or a Dirichlet process of classes (Dunson and Xing
    2009).

    .. math::

        \pi &\sim \mathrm{Dirichlet}(\alpha / K, \dots, \alpha / K) \quad\text{or}\quad
            \pi_k = v_k \prod_{i < k} (1 - v_i),\ v_k \sim \mathrm{Beta}(1, \alpha) \\
        \theta_{jk} &\sim \mathrm{Dirichlet}(s, \dots, s), \qquad j = 1, \dots, J \\
        z_n &\sim \mathrm{Categorical}(\pi), \qquad
        x_{nj} \mid z_n = k \sim \mathrm{Categorical}(\theta_{jk})

    ========================  ===================================================================================
    ``weights`` (K,)          :math:`\pi`; of a Dirichlet process computed from the ``sticks`` (K - 1,), :math:`v`
    ``probs_j`` (K, C_j)      :math:`\theta_{jk}`, one site per column
    ``z`` (N,)                latent of each row, enumerated
    ``x_j`` (N,)              observed, column j
    ========================  ===================================================================================

    `strength` (s) is what each answer counts before any is seen: 1 is uniform. :math:`\alpha`, the `concentration`, is
    the total of the Dirichlet.
    """
    check_prior(prior, concentration, num_classes)
    if not strength > 0:
        raise OptionError(f"strength: met {strength}, expected a number above 0")
    K = num_classes

    def model(x: Tensor) -> None:
        shares = mixture_weights(prior, K, concentration)
        probs = []  # (K, C_j) each
        for j in range(x.shape[1]):
            profile = dist.Dirichlet(torch.full((num_categories(x[:, j]),), strength)).expand([K]).to_event(1)
            probs.append(pyro.sample(f"probs_{j}", profile))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(shares), infer={"enumerate": "parallel"})
            for j, column in enumerate(probs):
                pyro.sample(f"x_{j}", dist.Categorical(column[z]), obs=x[:, j])

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        return profiles(x, K, generator)

    return Pair(model, initialize=initialize)
