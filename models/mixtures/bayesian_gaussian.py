"""Gaussian mixture with priors."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.columns import location_and_variance
from ...inference.data.seeding import kmeans_plusplus
from ...inference.families.factors import Wishart
from ...inference.pair import Pair
from ..registry import register
from .weights import check_prior, mixture_weights

COVARIANCES = ("full", "diagonal")


@register(
    family="mixtures",
    summary="clusters of numeric rows with a posterior of every parameter; surplus components empty by themselves",
    data="a table of numbers (N, D), or one column (N,); NaN is missing (with covariance='diagonal')",
    inference=("cavi", "svi"),
    references=(
        "Bishop (2006), Pattern Recognition and Machine Learning, section 10.2",
        "Blei and Jordan (2006), Bayesian Analysis 1, 121-143 (Dirichlet process)",
        "Blei, Kucukelbir and McAuliffe (2017), JASA 112, 859-877",
    ),
    checks=(
        "every sweep is that of Bishop's updates, for independent priors, to 1e-8",
        "a change of units moves the bound by the logarithm of the units, and nothing else",
    ),
    example="iris",
    size="num_components",
    examples=(
        {"num_components": 3},
        {"num_components": 3, "covariance": "full"},
        {"num_components": 6, "prior": "dirichlet_process"},
    ),
)
def bayesian_gaussian_mixture(
    num_components: int = 6, covariance: str = "diagonal", prior: str = "dirichlet", concentration: float = 1.0
) -> Pair:
    r"""Gaussian mixture with priors (Bishop 2006, section 10.2), or a Dirichlet process of them (Blei and Jordan 2006).

    .. math::

        \pi &\sim \mathrm{Dirichlet}(\alpha / K, \dots, \alpha / K) \quad\text{or}\quad
            \pi_k = v_k \prod_{i < k} (1 - v_i),\ v_k \sim \mathrm{Beta}(1, \alpha) \\
        \mu_k &\sim \mathcal{N}(m, \mathrm{diag}(s^2)), \qquad
        \Lambda_k \sim \mathrm{Wishart}(D, \mathrm{diag}(s^2)^{-1}) \quad\text{or}\quad
            \tau_{kd} \sim \mathrm{Gamma}(D / 2, s_d^2 / 2) \\
        z_n &\sim \mathrm{Categorical}(\pi), \qquad
        x_n \mid z_n = k \sim \mathcal{N}(\mu_k, \Lambda_k^{-1}) \quad\text{or}\quad
            \mathcal{N}(\mu_k, \mathrm{diag}(\tau_k)^{-1})

    ========================  ===================================================================================
    ``weights`` (K,)          :math:`\pi`; of a Dirichlet process computed from the ``sticks`` (K - 1,), :math:`v`
    ``loc`` (K, D)            :math:`\mu_k`
    ``precision``             full (K, D, D), :math:`\Lambda_k`; diagonal (K, D), :math:`\tau_k`
    ``z`` (N,)                latent of each row, enumerated
    ``x`` (N, D)              observed
    ========================  ===================================================================================

    The priors are scaled by the data, as scikit-learn's are by default: m and :math:`s^2` are mean and variance of each
    column over its observed cells (a constant column counts as of variance 1), so a change of units changes nothing.
    A component expects about 1 / D of a column's variance, and the prior weighs as much as D rows.
    :math:`\alpha`, the `concentration`, is the total of the Dirichlet: where it is at most K, components that the data
    do not need empty. A single column (N,) is a mixture of univariate normals: ``loc`` and ``precision`` (K,).
    """
    if covariance not in COVARIANCES:
        raise OptionError(f"covariance: met {covariance!r}, expected one of {', '.join(COVARIANCES)}")
    check_prior(prior, concentration, num_components)
    K = num_components

    def model(x: Tensor) -> None:
        center, variance = location_and_variance(x)  # (D,)
        shares = mixture_weights(prior, K, concentration)
        events = x.dim() - 1
        loc = pyro.sample("loc", dist.Normal(center, variance.sqrt()).expand([K, *x.shape[1:]]).to_event(1 + events))
        noise = likelihood(x, loc, variance)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(shares), infer={"enumerate": "parallel"})
            pyro.sample("x", noise(z), obs=x)

    def likelihood(x: Tensor, loc: Tensor, variance: Tensor):  # type: ignore[no-untyped-def]
        D, events = max(variance.numel(), 1), x.dim() - 1
        if covariance == "full" and events:
            spread = Wishart(torch.tensor(float(D)), precision_matrix=torch.diag(variance))
            precision = pyro.sample("precision", spread.expand([K]).to_event(1))  # (K, D, D)
            return lambda z: dist.MultivariateNormal(loc[z], precision_matrix=precision[z])
        gamma = dist.Gamma(D / 2, variance / 2).expand([K, *x.shape[1:]])
        precision = pyro.sample("precision", gamma.to_event(1 + events))  # (K, D)
        return lambda z: dist.Normal(loc[z], precision[z] ** -0.5).to_event(events)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """k-means++ seeds, and precisions of the whole table for every component."""
        variance = location_and_variance(x)[1]
        loc = kmeans_plusplus(x.reshape(len(x), -1), K, generator).reshape(K, *x.shape[1:])
        if covariance == "full" and x.dim() > 1:
            return {"loc": loc, "precision": torch.diag(1 / variance).expand(K, -1, -1)}
        return {"loc": loc, "precision": (1 / variance).expand(K, *x.shape[1:])}

    return Pair(model, initialize=initialize)
