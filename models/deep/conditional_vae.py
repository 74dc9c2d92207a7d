"""The conditional variational autoencoder."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.data import DataError
from ...inference.likelihoods import likelihood_of
from ...inference.networks import Networks, check_sizes, filled, mlp, normal_of
from ...inference.pair import Pair
from ..registry import register


@register(
    family="deep",
    summary="a variational autoencoder of some columns given others: rows are made for any conditions",
    data="a table (N, C + D): C columns of conditions, none missing, then D cells as the likelihood says",
    inference=("svi",),
    references=(
        "Sohn, Lee and Yan (2015), Learning Structured Output Representation using Deep Conditional Generative "
        "Models, NeurIPS",
    ),
    checks=("rows made under given conditions follow the conditions",),
    example="iris",
    size="latent_dim",
    examples=({"hidden": (16,)},),
)
def conditional_vae(
    latent_dim: int = 2,
    num_conditions: int = 1,
    likelihood: str = "gaussian",
    hidden: tuple[int, ...] = (128,),
    covariance: str = "learned",
    num_categories: int = 2,
) -> Pair:
    r"""Conditional variational autoencoder (Sohn et al. 2015).

    .. math::

        z_n &\sim \mathcal{N}(0, I_K) \\
        x_n \mid z_n, c_n &\sim p(x_n \mid f_\theta(z_n, c_n)) \\
        q(z_n \mid x_n, c_n) &= \mathcal{N}(\mu_\phi(x_n, c_n), \sigma_\phi^2(x_n, c_n))

    ==========================  ===========================================================================
    ``decoder``                 network :math:`f_\theta`, (K + C,) to the outputs that the likelihood needs
    ``encoder``                 network, (C + D,) to :math:`\mu_\phi, \sigma_\phi`
    ``scale`` (D,)              of a gaussian likelihood with ``covariance="learned"``
    ``concentration`` (D,)      of a negative binomial likelihood
    ``z`` (N, K)                latent of each row
    ``x`` (N, D)                observed: the columns after the first ``num_conditions``
    ==========================  ===========================================================================

    New rows have the conditions of the data's rows in turn, or those that are given by the names (or numbers) of their
    columns: ``fit.generate(5, given={"sepal length (cm)": 6.0})``.
    """
    K, C = latent_dim, num_conditions
    check_sizes(latent_dim=K, num_conditions=C)
    law = likelihood_of(likelihood, covariance, num_categories)

    networks = Networks(
        decoder=lambda D: mlp(K + C, hidden[::-1], law.num_outputs(D)), encoder=lambda D: mlp(C + D, hidden, 2 * K)
    )

    def model(table: Tensor) -> None:
        c, x = table[:, :C], table[:, C:]
        D = x.shape[1]
        if D < 1:
            raise DataError(f"num_conditions: met {C} with data of {table.shape[1]} columns: none are left to model")
        if c.isnan().any():
            raise DataError(f"data: one of the first {C} columns, which are conditions, has missing cells: fill them")
        decode = networks.use("decoder", D)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", law.of(decode(torch.cat([z, c], -1)), D), obs=x)

    def guide(table: Tensor) -> None:
        encode = networks.use("encoder", table.shape[1] - C)
        with pyro.plate("data", len(table)):
            pyro.sample("z", normal_of(encode(filled(table)), K))

    return Pair(model, guide, networks.initialize(lambda table: table[:, C:], decoder=law.start))
