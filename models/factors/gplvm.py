"""The Gaussian process latent variable model, with inducing points."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.contrib import gp
from pyro.distributions import constraints
from torch import Tensor

from ...inference.linear_gaussian.posterior import check_factors, covariance_of, filled, principal
from ...inference.nn.networks import check_option, check_sizes
from ...inference.pair import Pair
from ..registry import register

JITTER = 1e-5  # on the diagonal of the kernel's matrix


@register(
    family="factors",
    summary="columns are smooth functions of a few normal numbers of each row, drawn from a Gaussian process",
    data="a table of numbers (N, D) with more columns than latents, standardised; NaN is missing",
    inference=("svi",),
    references=(
        "Lawrence (2005), Probabilistic Non-linear Principal Component Analysis with Gaussian Process Latent Variable "
        "Models, JMLR 6, 1783-1816",
        "Titsias and Lawrence (2010), Bayesian Gaussian Process Latent Variable Model, AISTATS 13, 844-851",
        "Snelson and Ghahramani (2006), Sparse Gaussian Processes using Pseudo-inputs, NeurIPS 18 (the approximation)",
    ),
    checks=(
        "linear kernel: the subspace of principal components",
        "iris, 2 latents: nearest neighbours name the species as well as among principal components",
    ),
    example="iris",
    size="latent_dim",
    examples=({"num_inducing": 8},),
)
def gplvm(latent_dim: int = 2, num_inducing: int = 15, kernel: str = "rbf") -> Pair:
    r"""Gaussian process latent variable model (Lawrence 2005; Titsias and Lawrence 2010), its functions known by their
    values at M inducing points (Snelson and Ghahramani 2006).

    .. math::

        f_d &\sim \mathcal{GP}(0, k), \quad u_d = L^{-1} f_d(Z), \quad L L^T = k(Z, Z) \\
        z_n &\sim \mathcal{N}(0, I_K) \\
        x_{nd} \mid z_n, u &\sim \mathcal{N}\big(\mu_d + \mathbb{E}[f_d(z_n) \mid u_d], \;
            \mathrm{Var}[f_d(z_n) \mid u_d] + \sigma^2\big)

    ==========================  =====================================================================
    ``loc`` (D,)                :math:`\mu`
    ``inducing`` (M, K)         :math:`Z`
    ``variance`` ()             of the kernel k
    ``lengthscale`` (K,)        of it, where it is "rbf": :math:`k = v \exp(-|(z - z') / l|^2 / 2)`
    ``scale`` ()                :math:`\sigma`
    ``u`` (D, M)                whitened values of the functions at the inducing points
    ``z`` (N, K)                latent of each row
    ``x`` (N, D)                observed
    ==========================  =====================================================================

    ``kernel`` is "rbf" or "linear". Given the values at the inducing points rows are independent, so they come in
    batches, and new rows find their latents by themselves.
    """
    K, M = latent_dim, num_inducing
    check_sizes(latent_dim=K, num_inducing=M)
    check_option("kernel", kernel, ("rbf", "linear"))
    covariance = gp.kernels.RBF(K, lengthscale=torch.full((K,), 2.0)) if kernel == "rbf" else gp.kernels.Linear(K)

    def model(x: Tensor) -> None:
        check_factors(x, K)
        D = x.shape[1]
        loc = pyro.param("loc", torch.zeros(D))
        inducing = pyro.param("inducing", torch.zeros(M, K))
        scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
        u = pyro.sample("u", dist.Normal(torch.zeros(D, M), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            mean, variance = gp.util.conditional(z, inducing, covariance, u, whiten=True, jitter=JITTER)  # (D, N)
            pyro.sample("x", dist.Normal(mean.mT + loc, (variance.mT + scale**2).sqrt()).to_event(1), obs=x)

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Functions that are the first principal components, near which curves begin."""
        rows, center, _ = filled(x)
        load, noise = principal(covariance_of(rows), K)
        inducing = torch.randn(M, K, generator=generator, dtype=load.dtype)
        with torch.no_grad():
            tril = torch.linalg.cholesky(covariance(inducing) + 1e-3 * torch.eye(M))
        u = torch.linalg.solve_triangular(tril, inducing @ load.mT, upper=False).mT  # (D, M)
        return {"loc": center, "inducing": inducing, "scale": noise, "u": u}

    return Pair(model, initialize=initialize)
