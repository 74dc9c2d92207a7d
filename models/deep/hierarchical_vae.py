"""The variational autoencoder of two layers of latents."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.data.schema import Schema
from ...inference.nn.likelihoods import Likelihood, likelihood_of
from ...inference.nn.networks import Networks, check_sizes, mlp, normal_of
from ...inference.nn.tabular import Kinds, columns_of, tabular
from ...inference.pair import Pair
from ..registry import register


@register(
    family="deep",
    summary="a variational autoencoder of two layers: a few numbers of a row decide how its other numbers lie",
    data="a table (N, D) of 0 and 1, categories, numbers, counts or all of these, by the likelihood; NaN is missing",
    inference=("svi",),
    references=(
        "Rezende, Mohamed and Wierstra (2014), Stochastic Backpropagation, ICML",
        "Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, ICLR",
    ),
    checks=(
        "linear networks: the importance-weighted bound beside the log density of a normal distribution",
        "linear networks: the mean and the covariance of rows it makes",
        "digits: with a warm-up a better importance-weighted bound of new rows than vae with as many numbers",
    ),
    example="binary_digits",
    size="latent_dim",
    examples=({"latent_dim": 4, "hidden": (32,)},),
)
@tabular
def hierarchical_vae(
    latent_dim: int = 8,
    top_dim: int = 2,
    likelihood: str | Likelihood = "bernoulli",
    hidden: tuple[int, ...] = (128,),
    covariance: str = "learned",
    num_categories: int = 2,
    kinds: Kinds | None = None,
    schema: Schema | None = None,
) -> Pair:
    r"""Variational autoencoder of two layers of latents (Burda et al. 2016, with two stochastic layers).

    .. math::

        y_n &\sim \mathcal{N}(0, I_T) \\
        z_n \mid y_n &\sim \mathcal{N}(\mu_\psi(y_n), \mathrm{diag}(\sigma_\psi^2(y_n))) \\
        x_n \mid z_n &\sim p(x_n \mid f_\theta(z_n)) \\
        q(z_n, y_n \mid x_n) &= \mathcal{N}(\mu_\phi(x_n), \mathrm{diag}(\sigma_\phi^2(x_n))) \,
            \mathcal{N}(\mu_\chi(z_n), \mathrm{diag}(\sigma_\chi^2(z_n)))

    ==========================  ===========================================================================
    ``top_decoder``             network, (T,) to :math:`\mu_\psi, \sigma_\psi`
    ``decoder``                 network :math:`f_\theta`, (K,) to the outputs that the likelihood needs
    ``encoder``                 network, (D,) to :math:`\mu_\phi, \sigma_\phi`
    ``top_encoder``             network, (K,) to :math:`\mu_\chi, \sigma_\chi`
    ``scale`` (D,)              of a gaussian likelihood with ``covariance="learned"``; of mixed, of numeric columns
    ``concentration`` (D,)      of a negative binomial likelihood; of mixed, of columns of counts
    ``center``, ``unit`` (D,)   of mixed columns: what they are standardised by, measured and not learned
    ``top`` (N, T)              y, latent of each row, of the upper layer
    ``z`` (N, K)                latent of each row, of the lower layer
    ``x`` (N, D)                observed
    ==========================  ===========================================================================

    The upper layer falls out of use easily: z alone can say all there is to say of a row, and then y costs. Let it
    into the bound by and by: ``warmup=Warmup(steps)``. ``likelihood="mixed"`` takes each column by its type, as in
    `vae`, or as ``kinds`` says.
    """
    K, T = latent_dim, top_dim
    check_sizes(latent_dim=K, top_dim=T)
    law = likelihood_of(likelihood, covariance, num_categories, columns=columns_of(schema, kinds, num_categories))

    networks = Networks(
        top_decoder=lambda D: mlp(T, hidden[::-1], 2 * K),
        decoder=lambda D: mlp(K, hidden[::-1], law.num_outputs(D)),
        encoder=lambda D: mlp(law.num_inputs(D), hidden, 2 * K),
        top_encoder=lambda D: mlp(K, hidden, 2 * T),
    )

    def model(x: Tensor) -> None:
        D = x.shape[1]
        decode_top, decode = networks.use("top_decoder", D), networks.use("decoder", D)
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(torch.zeros(T), 1.0).to_event(1))
            z = pyro.sample("z", normal_of(decode_top(top), K))
            pyro.sample("x", law.of(decode(z), D), obs=x)

    def guide(x: Tensor) -> None:
        D = x.shape[1]
        encode, encode_top = networks.use("encoder", D), networks.use("top_encoder", D)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal_of(encode(law.inputs(x)), K))
            pyro.sample("top", normal_of(encode_top(z), T))

    return Pair(model, guide, networks.initialize(params=law.params, decoder=law.start))
