"""The conditional variational autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ...inference.data.schema import Schema
from ...inference.nn.likelihoods import Likelihood, likelihood_of
from ...inference.nn.networks import Networks, check_sizes, mlp, normal_of
from ...inference.nn.tabular import Kinds, check_conditions, columns_of, split, tabular
from ...inference.pair import Pair
from ..registry import register


@register(
    family="deep",
    summary="a variational autoencoder of some columns given others: rows are made for any conditions",
    data="a table (N, C + D): C columns of conditions, none missing, and D cells as the likelihood says",
    inference=("svi",),
    references=(
        "Sohn, Lee and Yan (2015), Learning Structured Output Representation using Deep Conditional Generative "
        "Models, NeurIPS",
    ),
    checks=(
        "rows made under given conditions follow the conditions",
        "digits made under a label and a weight: read as that label, with that much ink",
    ),
    example="iris",
    size="latent_dim",
    examples=({"hidden": (16,)},),
)
@tabular
def conditional_vae(
    latent_dim: int = 2,
    conditions: int | str | Sequence[str | int] = 1,
    likelihood: str | Likelihood = "gaussian",
    hidden: tuple[int, ...] = (128,),
    covariance: str = "learned",
    num_categories: int = 2,
    kinds: Kinds | None = None,
    schema: Schema | None = None,
) -> Pair:
    r"""Conditional variational autoencoder (Sohn et al. 2015).

    .. math::

        z_n &\sim \mathcal{N}(0, I_K) \\
        x_n \mid z_n, c_n &\sim p(x_n \mid f_\theta(z_n, c_n)) \\
        q(z_n \mid x_n, c_n) &= \mathcal{N}(\mu_\phi(x_n, c_n), \sigma_\phi^2(x_n, c_n))

    ==========================  ===========================================================================
    ``decoder``                 network :math:`f_\theta`, (K + C,) to the outputs that the likelihood needs
    ``encoder``                 network, (C + D,) to :math:`\mu_\phi, \sigma_\phi`
    ``scale`` (D,)              of a gaussian likelihood with ``covariance="learned"``; of mixed, of numeric columns
    ``concentration`` (D,)      of a negative binomial likelihood; of mixed, of columns of counts
    ``center``, ``unit`` (D,)   of mixed columns: what they are standardised by, measured and not learned;
                                ``condition_center``, ``condition_unit`` (C,) those of the conditions
    ``z`` (N, K)                latent of each row
    ``x`` (N, D)                observed: the columns that are no conditions
    ==========================  ===========================================================================

    ``conditions`` are so many columns from the first, or columns by name; numbers enter the networks standardised,
    labels one-hot (of codes say so: ``kinds={"digit": "categorical"}, num_categories=10``). New rows have the
    conditions of the data's rows in turn, or those that are given by the names (or numbers) of their columns, labels
    by name: ``fit.generate(5, given={"species": "setosa", "sepal length (cm)": 6.0})``.
    """
    conditions = (conditions,) if isinstance(conditions, str) else conditions
    K, C = latent_dim, conditions if isinstance(conditions, int) else len(conditions)
    check_sizes(latent_dim=K, conditions=C)
    columns = columns_of(schema, kinds, num_categories)
    first, rest = split(schema, conditions)
    given = columns.at(first, "condition_")
    law = likelihood_of(likelihood, covariance, num_categories, columns=columns.at(rest))

    networks = Networks(
        decoder=lambda W: mlp(K + given.num_features(C), hidden[::-1], law.num_outputs(W - C)),
        encoder=lambda W: mlp(given.num_features(C) + law.num_inputs(W - C), hidden, 2 * K),
    )

    def model(table: Tensor) -> None:
        c, x = table[:, first], table[:, rest]
        check_conditions(c, x, given)
        decode = networks.use("decoder", table.shape[1])
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", law.of(decode(torch.cat([z, given.features(c)], -1)), x.shape[1]), obs=x)

    def guide(table: Tensor) -> None:
        encode = networks.use("encoder", table.shape[1])
        with pyro.plate("data", len(table)):
            seen = torch.cat([given.features(table[:, first]), law.inputs(table[:, rest])], -1)
            pyro.sample("z", normal_of(encode(seen), K))

    def initialize(table: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        c, x = table[:, first], table[:, rest]
        weights = networks.start(table.shape[1], generator, decoder=law.start(x))
        return {**weights, **given.params(c), **law.params(x)}

    return Pair(model, guide, initialize)
