"""The linear variational autoencoder: probabilistic principal components with an encoder."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.nn.networks import Networks, check_option, check_sizes, filled, mlp, positive, tril_of
from ...inference.pair import Pair
from ..registry import register


@register(
    family="deep",
    summary="a variational autoencoder whose networks are linear: its best bound is that of probabilistic PCA",
    data="a table of numbers (N, D), standardised where units differ; NaN is missing",
    inference=("svi",),
    references=(
        "Lucas, Tucker, Grosse and Norouzi (2019), Don't Blame the ELBO! A Linear VAE Perspective, NeurIPS",
        "Tipping and Bishop (1999), Probabilistic Principal Component Analysis, JRSS B 61, 611-622",
    ),
    checks=("iris, 2 latents: ELBO -404.96; wine, standardised: -2875.64 (closed form of probabilistic PCA)",),
    example="iris",
    size="latent_dim",
    examples=({"latent_dim": 2},),
)
def linear_vae(latent_dim: int = 2, posterior: str = "full") -> Pair:
    r"""Linear variational autoencoder (Lucas et al. 2019).

    .. math::

        z_n &\sim \mathcal{N}(0, I_K) \\
        x_n \mid z_n &\sim \mathcal{N}(W z_n + \mu, \sigma^2 I_D) \\
        q(z_n \mid x_n) &= \mathcal{N}(V x_n + b, S)

    ==========================  ===================================================================
    ``decoder``                 linear layer, :math:`W` and :math:`\mu`
    ``encoder``                 linear layer, :math:`V` and :math:`b`
    ``scale`` ()                :math:`\sigma`
    ``spread``                  of the guide: :math:`S`, one for all rows, "full" or "diagonal"
    ``z`` (N, K)                latent of each row
    ``x`` (N, D)                observed
    ==========================  ===================================================================

    The true posterior is of the guide's family, so at the optimum the bound is the likelihood itself, that of
    `probabilistic_pca`. With a diagonal :math:`S` it still is, after a rotation: then the columns of :math:`W` are
    orthogonal, the principal directions themselves.
    """
    K = latent_dim
    check_sizes(latent_dim=K)
    check_option("posterior", posterior, ("full", "diagonal"))

    networks = Networks(decoder=lambda D: mlp(K, (), D), encoder=lambda D: mlp(D, (), K))

    def model(x: Tensor) -> None:
        decode = networks.use("decoder", x.shape[1])
        scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        encode = networks.use("encoder", x.shape[1])
        spread = pyro.param("spread", torch.zeros(K if posterior == "diagonal" else K * (K + 1) // 2))
        with pyro.plate("data", len(x)):
            loc = encode(filled(x))
            if posterior == "diagonal":
                pyro.sample("z", dist.Normal(loc, positive(spread)).to_event(1))
            else:
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril_of(spread, K)))

    return Pair(model, guide, networks.initialize(decoder=lambda x: x.nanmean(0)))
