"""Gaussian mixture."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.columns import center_and_variance
from ...inference.data.seeding import kmeans_plusplus
from ...inference.pair import Pair
from ..registry import register

COVARIANCES = ("full", "tied", "diagonal", "spherical")


@register(
    family="mixtures",
    summary="clusters of numeric rows, each a normal distribution",
    data="a table of numbers (N, D), or one column (N,); NaN is missing",
    references=(
        "Bishop (2006), Pattern Recognition and Machine Learning, section 9.2",
        "McLachlan and Peel (2000), Finite Mixture Models",
    ),
    checks=(
        "faithful waiting, K=2: log-likelihood -1034.002 (mixtools)",
        "galaxies, K=3: -203.1792; acidity, K=2 tied: -185.9493 (mclust)",
        "iris: BIC 574.0178 (full, K=2), 580.839 (full, K=3), 857.5515 (diagonal, K=2), 688.0972 (tied, K=2) (mclust)",
    ),
    example="iris",
    size="num_components",
    examples=tuple({"num_components": 3, "covariance": name} for name in COVARIANCES),
)
def gaussian_mixture(num_components: int = 3, covariance: str = "full") -> Pair:
    r"""Gaussian mixture (Bishop 2006, section 9.2).

    .. math::

        z_n &\sim \mathrm{Categorical}(\pi) \\
        x_n \mid z_n = k &\sim \mathcal{N}(\mu_k, \Sigma_k)

    ======================  ===============================================================
    ``weights`` (K,)        :math:`\pi`, on the simplex
    ``loc`` (K, D)          :math:`\mu_k`
    ``covariance``          full (K, D, D); tied (D, D), one for all components
    ``scale``               standard deviations: diagonal (K, D); spherical (K,)
    ``z`` (N,)              latent of each row, enumerated
    ``x`` (N, D)            observed
    ======================  ===============================================================

    A single column (N,) is a mixture of univariate normals: ``loc`` (K,), ``scale`` (K,), or () where tied.
    Learned variances stay above 1e-6 of their column's variance (the driver's ``variance_floor``).
    """
    if covariance not in COVARIANCES:
        raise OptionError(f"covariance: met {covariance!r}, expected one of {', '.join(COVARIANCES)}")
    if num_components < 1:
        raise OptionError(f"num_components: met {num_components}, expected at least 1")
    K = num_components

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
        loc = pyro.param("loc", lambda: x[torch.arange(K) % len(x)].double().nan_to_num())  # (K, D)
        noise = likelihood(x, loc)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", noise(z), obs=x)

    def likelihood(x: Tensor, loc: Tensor):  # type: ignore[no-untyped-def]
        D = x.shape[1:]
        if x.dim() > 1 and covariance in ("full", "tied"):
            shape = (*D, *D) if covariance == "tied" else (K, *D, *D)
            matrix = pyro.param(
                "covariance", lambda: torch.eye(*D).expand(shape).clone(), constraint=constraints.positive_definite
            )
            if covariance == "tied":
                return lambda z: dist.MultivariateNormal(loc[z], matrix)
            return lambda z: dist.MultivariateNormal(loc[z], matrix[z])
        shape = {"tied": (), "spherical": (K,)}.get(covariance, (K, *D))
        scale = pyro.param("scale", lambda: torch.ones(shape), constraint=constraints.positive)
        if x.dim() == 1:
            return lambda z: dist.Normal(loc[z], scale if covariance == "tied" else scale[z])
        if covariance == "spherical":
            return lambda z: dist.Normal(loc[z], scale[z].unsqueeze(-1)).to_event(1)
        return lambda z: dist.Normal(loc[z], scale[z]).to_event(1)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """k-means++ seeds, and the spread of the whole table for every component."""
        table = x.reshape(len(x), -1)
        variance = center_and_variance(table)[1]
        loc = kmeans_plusplus(table, K, generator).reshape(K, *x.shape[1:])
        if x.dim() > 1 and covariance in ("full", "tied"):
            matrix = torch.diag(variance)
            return {"loc": loc, "covariance": matrix if covariance == "tied" else matrix.expand(K, -1, -1)}
        if x.dim() == 1:
            return {
                "loc": loc,
                "scale": variance.sqrt().squeeze() if covariance == "tied" else variance.sqrt().expand(K),
            }
        return {
            "loc": loc,
            "scale": variance.mean().sqrt().expand(K) if covariance == "spherical" else variance.sqrt().expand(K, -1),
        }

    return Pair(model, initialize=initialize)
