"""The importance-weighted autoencoder of incomplete data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.data.schema import Schema
from ...inference.nn.likelihoods import Likelihood, likelihood_of
from ...inference.nn.networks import Networks, check_sizes, mlp, normal_of, observed
from ...inference.nn.tabular import Kinds, columns_of, tabular
from ...inference.pair import Pair
from ..registry import register


@register(
    family="deep",
    summary="a variational autoencoder of rows with missing cells, whose encoder sees which were observed",
    data="a table (N, D) of 0 and 1, categories, numbers, counts or all of these, by the likelihood; NaN is missing",
    inference=("svi",),
    references=(
        "Mattei and Frellsen (2019), MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets, ICML",
    ),
    checks=(
        "a quarter of the cells of iris hidden: imputed with less than half the error of column means",
        "a fifth of the cells of a mixed survey hidden: numbers and counts better than by the mean, jobs by the mode",
    ),
    example="cars",
    size="latent_dim",
    examples=({"hidden": (16,)},),
)
@tabular
def missing_data_vae(
    latent_dim: int = 2,
    likelihood: str | Likelihood = "mixed",
    hidden: tuple[int, ...] = (128,),
    covariance: str = "learned",
    num_categories: int = 2,
    kinds: Kinds | None = None,
    schema: Schema | None = None,
) -> Pair:
    r"""MIWAE (Mattei and Frellsen 2019), for cells missing at random.

    .. math::

        z_n &\sim \mathcal{N}(0, I_K) \\
        x_n^{\mathrm{obs}} \mid z_n &\sim p(x_n^{\mathrm{obs}} \mid f_\theta(z_n)) \\
        q(z_n \mid x_n^{\mathrm{obs}}) &= \mathcal{N}(\mu_\phi(\iota(x_n), m_n), \sigma_\phi^2(\iota(x_n), m_n))

    with :math:`\iota` missing cells at 0 and :math:`m_n` which cells were observed.

    ==========================  ===========================================================================
    ``decoder``                 network :math:`f_\theta`, (K,) to the outputs that the likelihood needs
    ``encoder``                 network, (2 D,), or more with categories, to :math:`\mu_\phi, \sigma_\phi`
    ``scale`` (D,)              of a gaussian likelihood with ``covariance="learned"``; of mixed, of numeric columns
    ``concentration`` (D,)      of a negative binomial likelihood; of mixed, of columns of counts
    ``center``, ``unit`` (D,)   of mixed columns: what they are standardised by, measured and not learned
    ``z`` (N, K)                latent of each row
    ``x`` (N, D)                observed, NaN where missing
    ==========================  ===========================================================================

    Fit it with ``objective="iwae"``, or "dreg", for the bound of the paper; ``fit.impute`` weighs draws as it does.
    ``likelihood="mixed"`` takes each column by its type, as in `vae`, or as ``kinds`` says.
    """
    K = latent_dim
    check_sizes(latent_dim=K)
    columns = columns_of(schema, kinds, num_categories)
    law = likelihood_of(likelihood, covariance, num_categories, columns=columns)

    networks = Networks(
        decoder=lambda D: mlp(K, hidden[::-1], law.num_outputs(D)),
        encoder=lambda D: mlp(law.num_inputs(D) + D, hidden, 2 * K),
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
            pyro.sample("z", normal_of(encode(torch.cat([law.inputs(x), observed(x)], -1)), K))

    return Pair(model, guide, networks.initialize(params=law.params, decoder=law.start))
