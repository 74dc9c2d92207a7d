"""The importance-weighted autoencoder of incomplete data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.likelihoods import likelihood_of
from ...inference.networks import Networks, check_sizes, mlp, normal_of, with_mask
from ...inference.pair import Pair
from ..registry import register


@register(
    family="deep",
    summary="a variational autoencoder of rows with missing cells, whose encoder sees which were observed",
    data="a table (N, D) of 0 and 1, categories, numbers or counts, as the likelihood says; NaN is missing",
    inference=("svi",),
    references=(
        "Mattei and Frellsen (2019), MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets, ICML",
    ),
    checks=("a quarter of the cells of iris hidden: imputed with less than half the error of column means",),
    example="iris",
    size="latent_dim",
    examples=({"hidden": (16,)},),
)
def missing_data_vae(
    latent_dim: int = 2,
    likelihood: str = "gaussian",
    hidden: tuple[int, ...] = (128,),
    covariance: str = "learned",
    num_categories: int = 2,
) -> Pair:
    r"""MIWAE (Mattei and Frellsen 2019), for cells missing at random.

    .. math::

        z_n &\sim \mathcal{N}(0, I_K) \\
        x_n^{\mathrm{obs}} \mid z_n &\sim p(x_n^{\mathrm{obs}} \mid f_\theta(z_n)) \\
        q(z_n \mid x_n^{\mathrm{obs}}) &= \mathcal{N}(\mu_\phi(\iota(x_n), m_n), \sigma_\phi^2(\iota(x_n), m_n))

    with :math:`\iota` missing cells at 0 and :math:`m_n` which cells were observed.

    ==========================  ===========================================================================
    ``decoder``                 network :math:`f_\theta`, (K,) to the outputs that the likelihood needs
    ``encoder``                 network, (2 D,) to :math:`\mu_\phi, \sigma_\phi`
    ``scale`` (D,)              of a gaussian likelihood with ``covariance="learned"``
    ``concentration`` (D,)      of a negative binomial likelihood
    ``z`` (N, K)                latent of each row
    ``x`` (N, D)                observed, NaN where missing
    ==========================  ===========================================================================

    Fit it with ``objective="iwae"``, or "dreg", for the bound of the paper; ``fit.impute`` weighs draws as it does.
    """
    K = latent_dim
    check_sizes(latent_dim=K)
    law = likelihood_of(likelihood, covariance, num_categories)

    networks = Networks(
        decoder=lambda D: mlp(K, hidden[::-1], law.num_outputs(D)), encoder=lambda D: mlp(2 * D, hidden, 2 * K)
    )

    def model(x: Tensor) -> None:
        D = x.shape[1]
        decode = networks.use("decoder", D)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", law.of(decode(z), D), obs=x)

    def guide(x: Tensor) -> None:
        encode = networks.use("encoder", x.shape[1])
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal_of(encode(with_mask(x)), K))

    return Pair(model, guide, networks.initialize(decoder=law.start))
