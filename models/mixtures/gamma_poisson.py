"""Poisson mixture with priors."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.columns import center_and_variance
from ...inference.data.seeding import kmeans_plusplus
from ...inference.pair import Pair
from ..registry import register
from .weights import check_prior, mixture_weights


@register(
    family="mixtures",
    summary="clusters of counts with a posterior of every rate; surplus components empty by themselves",
    data="counts (N,), or a table of counts (N, D), independent given the component; NaN is missing",
    inference=("cavi", "svi"),
    references=(
        "Gelman et al. (2013), Bayesian Data Analysis, sections 2.6 and 22.2",
        "Blei and Jordan (2006), Bayesian Analysis 1, 121-143 (Dirichlet process)",
    ),
    checks=("one component: the evidence lower bound is the log evidence, a product of negative binomials, to 1e-9",),
    example="hasselblad_deaths",
    size="num_components",
    examples=({"num_components": 3}, {"num_components": 4, "prior": "dirichlet_process"}),
)
def gamma_poisson_mixture(
    num_components: int = 4, prior: str = "dirichlet", concentration: float = 1.0, shape: float = 1.0
) -> Pair:
    r"""Poisson mixture with priors, the rates being gamma (Gelman et al. 2013).

    .. math::

        \pi &\sim \mathrm{Dirichlet}(\alpha / K, \dots, \alpha / K) \quad\text{or}\quad
            \pi_k = v_k \prod_{i < k} (1 - v_i),\ v_k \sim \mathrm{Beta}(1, \alpha) \\
        \lambda_{kd} &\sim \mathrm{Gamma}(a, a / m_d) \\
        z_n &\sim \mathrm{Categorical}(\pi), \qquad
        x_{nd} \mid z_n = k \sim \mathrm{Poisson}(\lambda_{kd})

    ========================  ===================================================================================
    ``weights`` (K,)          :math:`\pi`; of a Dirichlet process computed from the ``sticks`` (K - 1,), :math:`v`
    ``rate`` (K, D)           :math:`\lambda_{kd}`; (K,) for a single column
    ``z`` (N,)                latent of each row, enumerated
    ``x`` (N, D)              observed counts
    ========================  ===================================================================================

    The prior of a rate has the mean :math:`m_d` of its column over observed cells (1 where all counts are 0), and
    counts as `shape` (a) events: 1 is exponential. :math:`\alpha`, the `concentration`, is the total of the Dirichlet.
    """
    check_prior(prior, concentration, num_components)
    if not shape > 0:
        raise OptionError(f"shape: met {shape}, expected a number above 0")
    K = num_components

    def model(x: Tensor) -> None:
        mean = center_and_variance(x)[0]  # (D,)
        mean = torch.where(mean > 0, mean, 1.0)
        shares = mixture_weights(prior, K, concentration)
        events = x.dim() - 1
        about = dist.Gamma(shape, shape / mean).expand([K, *x.shape[1:]]).to_event(1 + events)
        rate = pyro.sample("rate", about)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(shares), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Poisson(rate[z]).to_event(events), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """k-means++ seeds, kept off 0 so that no component starts impossible."""
        seeds = kmeans_plusplus(x.reshape(len(x), -1), K, generator)
        return {"rate": (seeds + 0.1).reshape(K, *x.shape[1:])}

    return Pair(model, initialize=initialize)
