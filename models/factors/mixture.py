"""Mixture of factor analysers."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.seeding import kmeans_plusplus
from ...inference.linear_gaussian.posterior import check_factors, covariance_of, filled, principal
from ...inference.pair import Pair
from ..registry import register


@register(
    family="factors",
    summary="clusters of numeric rows, each spread along a few directions of its own",
    data="a table of numbers (N, D) with more columns than factors; NaN is missing",
    inference=("em",),
    references=(
        "Ghahramani and Hinton (1996), The EM algorithm for mixtures of factor analyzers, CRG-TR-96-1, Toronto",
        "McLachlan and Peel (2000), Finite Mixture Models, chapter 8",
    ),
    checks=("1 component is factor analysis; no factor would be a Gaussian mixture of tied diagonal covariance",),
    example="wine",
    size="num_components",
    examples=({"num_components": 2, "num_factors": 1},),
)
def mixture_of_factor_analyzers(num_components: int = 3, num_factors: int = 2) -> Pair:
    r"""Mixture of factor analysers (Ghahramani and Hinton 1996).

    .. math::

        z_n &\sim \mathrm{Categorical}(\pi) \\
        u_n &\sim \mathcal{N}(0, I_Q) \\
        x_n \mid z_n = k, u_n &\sim \mathcal{N}(W_k u_n + \mu_k, \mathrm{diag}(\psi))

    ======================  ===============================================================
    ``weights`` (K,)        :math:`\pi`, on the simplex
    ``loc`` (K, D)          :math:`\mu_k`
    ``load`` (K, D, Q)      :math:`W_k`, each up to a rotation; the strongest factor first
    ``scale`` (D,)          :math:`\sqrt{\psi}`, one noise for all components
    ``z`` (N,)              latent of each row, enumerated
    ``u`` (N, Q)            latent of each row, summed out exactly
    ``x`` (N, D)            observed
    ======================  ===============================================================

    So each component is normal with covariance :math:`W_k W_k^\top + \mathrm{diag}(\psi)`, of far fewer numbers than a
    full one has where there are many columns.
    """
    if num_components < 1:
        raise OptionError(f"num_components: met {num_components}, expected at least 1")
    if num_factors < 1:
        raise OptionError(f"num_factors: met {num_factors}, expected at least 1")
    K, Q = num_components, num_factors

    def model(x: Tensor) -> None:
        check_factors(x, Q)
        D = x.shape[1]
        weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
        loc = pyro.param("loc", lambda: x[torch.arange(K) % len(x)].double().nan_to_num())  # (K, D)
        load = pyro.param("load", lambda: torch.eye(D, Q).expand(K, D, Q).clone())
        scale = pyro.param("scale", torch.ones(D), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            u = pyro.sample("u", dist.Normal(torch.zeros(Q), 1.0).to_event(1))
            mean = (load[z] @ u.unsqueeze(-1)).squeeze(-1) + loc[z]
            pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """k-means++ seeds, and principal components of the rows around each, of standardised columns."""
        rows, _, variance = filled(x)
        unit = variance.sqrt().clamp_min(1e-300)
        loc = kmeans_plusplus(x, K, generator)
        nearest = torch.cdist(rows / unit, loc / unit).argmin(1)
        spread = [covariance_of(rows[nearest == k] / unit) for k in range(K)]
        share = nearest.bincount(minlength=K) / len(rows)
        within = sum(own * part for own, part in zip(share, spread, strict=True))
        few = nearest.bincount(minlength=K) <= x.shape[1]  # such rows tell no directions of their own
        load = torch.stack([principal(within if few[k] else spread[k], Q).loadings for k in range(K)])
        left = within.diagonal() - (share[:, None] * load.square().sum(2)).sum(0)
        scale = left.maximum(0.1 * within.diagonal()).clamp_min(1e-6).sqrt()
        return {"loc": loc, "load": unit.unsqueeze(1) * load, "scale": unit * scale}

    return Pair(model, initialize=initialize)
