"""The variational autoencoder whose prior is a mixture of its own encoder's posteriors."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.data.seeding import near_rows
from ...inference.nn.likelihoods import likelihood_of
from ...inference.nn.networks import Networks, check_option, check_sizes, filled, mlp, normal_of
from ...inference.pair import Pair
from ..registry import register


@register(
    family="deep",
    summary="a variational autoencoder whose prior is learned: what its encoder says of some rows that it makes up",
    data="a table (N, D) of 0 and 1, categories, numbers or counts, as the likelihood says; NaN is missing",
    inference=("svi",),
    references=("Tomczak and Welling (2018), VAE with a VampPrior, AISTATS",),
    checks=(
        "the prior's log density beside a mixture written by hand",
        "digits: a better importance-weighted bound of new rows than vae of the same sizes",
    ),
    example="binary_digits",
    size="num_pseudo_inputs",
    examples=({"num_pseudo_inputs": 10, "hidden": (32,)},),
)
def vampprior_vae(
    num_pseudo_inputs: int = 50,
    latent_dim: int = 2,
    likelihood: str = "bernoulli",
    hidden: tuple[int, ...] = (128,),
    covariance: str = "learned",
    num_categories: int = 2,
    mixture: str = "learned",
) -> Pair:
    r"""Variational autoencoder with a variational mixture of posteriors for its prior (Tomczak and Welling 2018).

    .. math::

        z_n &\sim \textstyle\sum_c w_c \, q(z \mid u_c) \\
        x_n \mid z_n &\sim p(x_n \mid f_\theta(z_n)) \\
        q(z \mid x) &= \mathcal{N}(\mu_\phi(x), \mathrm{diag}(\sigma_\phi^2(x)))

    ==========================  ===========================================================================
    ``pseudo_inputs`` (C, D)    :math:`u_c`, rows that the prior is made of
    ``mixture`` (C,)            their weights w; with ``mixture="uniform"`` they are all 1 / C
    ``decoder``                 network :math:`f_\theta`, (K,) to the outputs that the likelihood needs
    ``encoder``                 network, (D,) to :math:`\mu_\phi, \sigma_\phi`: of the guide and of the prior
    ``scale`` (D,)              of a gaussian likelihood with ``covariance="learned"``
    ``concentration`` (D,)      of a negative binomial likelihood
    ``z`` (N, K)                latent of each row
    ``x`` (N, D)                observed
    ==========================  ===========================================================================

    The prior that raises the bound most is the mean of all rows' posteriors; a mixture over a few learned rows stands
    for it. These start at rows of the data, and are free numbers: what the encoder takes, not what the data can be.
    """
    C, K = num_pseudo_inputs, latent_dim
    check_sizes(num_pseudo_inputs=C, latent_dim=K)
    check_option("mixture", mixture, ("learned", "uniform"))
    law = likelihood_of(likelihood, covariance, num_categories)

    networks = Networks(
        decoder=lambda D: mlp(K, hidden[::-1], law.num_outputs(D)), encoder=lambda D: mlp(D, hidden, 2 * K)
    )

    def model(x: Tensor) -> None:
        D = x.shape[1]
        weights = torch.full((C,), 1 / C)
        if mixture == "learned":
            weights = pyro.param("mixture", weights, constraint=constraints.simplex)
        pseudo_inputs = pyro.param("pseudo_inputs", torch.zeros(C, D))
        encode, decode = networks.use("encoder", D), networks.use("decoder", D)
        prior = dist.MixtureSameFamily(dist.Categorical(weights), normal_of(encode(pseudo_inputs), K))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", law.of(decode(z), D), obs=x)

    def guide(x: Tensor) -> None:
        encode = networks.use("encoder", x.shape[1])
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal_of(encode(filled(x)), K))

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        start = networks.start(x.shape[1], generator, decoder=law.start(x))
        return {**start, "pseudo_inputs": near_rows(x, C, generator)}

    return Pair(model, guide, initialize)
