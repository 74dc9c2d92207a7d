"""The beta-VAE: a variational autoencoder whose divergence weighs more, or less."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ...inference.base.errors import OptionError
from ...inference.data.schema import Schema
from ...inference.nn.likelihoods import Likelihood, likelihood_of
from ...inference.nn.networks import Networks, check_sizes, mlp, normal_of
from ...inference.nn.tabular import Kinds, columns_of, tabular
from ...inference.pair import Pair
from ..registry import register


@register(
    family="deep",
    summary="a variational autoencoder whose KL divergence weighs beta, for latents that each carry one thing",
    data="a table (N, D) of 0 and 1, categories, numbers, counts or all of these, by the likelihood; NaN is missing",
    inference=("svi",),
    references=(
        "Higgins et al. (2017), beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework, "
        "ICLR",
    ),
    checks=("with beta = 1 the bound of vae, bit for bit",),
    example="binary_digits",
    size="latent_dim",
    examples=({"hidden": (16,)},),
)
@tabular
def beta_vae(
    latent_dim: int = 2,
    beta: float = 4.0,
    likelihood: str | Likelihood = "bernoulli",
    hidden: tuple[int, ...] = (128,),
    covariance: str = "learned",
    num_categories: int = 2,
    kinds: Kinds | None = None,
    schema: Schema | None = None,
) -> Pair:
    r"""beta-VAE (Higgins et al. 2017): the `vae` fitted to

    .. math::

        \mathbb{E}_q \log p(x_n \mid z_n) - \beta \, \mathrm{KL}(q(z_n \mid x_n) \,\|\, \mathcal{N}(0, I_K))

    ==========================  ===========================================================================
    ``decoder``                 network, (K,) to the outputs that the likelihood needs
    ``encoder``                 network, (D,) to the mean and the standard deviations of q
    ``scale`` (D,)              of a gaussian likelihood with ``covariance="learned"``; of mixed, of numeric columns
    ``concentration`` (D,)      of a negative binomial likelihood; of mixed, of columns of counts
    ``center``, ``unit`` (D,)   of mixed columns: what they are standardised by, measured and not learned
    ``z`` (N, K)                latent of each row
    ``x`` (N, D)                observed
    ==========================  ===========================================================================

    Both densities of z are scaled by beta in the bound; scores of rows are of the model itself, without it.
    """
    K = latent_dim
    check_sizes(latent_dim=K)
    if not beta >= 0:
        raise OptionError(f"beta: met {beta!r}, expected a number of at least 0")
    columns = columns_of(schema, kinds, num_categories)
    law = likelihood_of(likelihood, covariance, num_categories, columns=columns)

    networks = Networks(
        decoder=lambda D: mlp(K, hidden[::-1], law.num_outputs(D)),
        encoder=lambda D: mlp(law.num_inputs(D), hidden, 2 * K),
    )

    def model(x: Tensor) -> None:
        D = x.shape[1]
        decode = networks.use("decoder", D)
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", law.of(decode(z), D), obs=x)

    def guide(x: Tensor) -> None:
        encode = networks.use("encoder", x.shape[1])
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", normal_of(encode(law.inputs(x)), K))

    return Pair(model, guide, networks.initialize(params=law.params, decoder=law.start))
