"""The variational autoencoder whose latents come in clusters."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ...inference.data.schema import Schema
from ...inference.nn.likelihoods import Likelihood, likelihood_of
from ...inference.nn.networks import Networks, check_sizes, mlp, normal_of, positive
from ...inference.nn.tabular import Kinds, columns_of, tabular
from ...inference.pair import Pair
from ..registry import register


@register(
    family="deep",
    summary="a variational autoencoder whose latents are a Gaussian mixture: clusters of rows of any shape",
    data="a table (N, D) of 0 and 1, categories, numbers, counts or all of these, by the likelihood; NaN is missing",
    inference=("svi",),
    references=(
        "Jiang, Zheng, Tan, Tang and Zhou (2017), Variational Deep Embedding, IJCAI",
        "Dilokthanakul et al. (2016), Deep Unsupervised Clustering with Gaussian Mixture VAEs, arXiv 1611.02648",
    ),
    checks=(
        "the exact sum over components beside sums by quadrature",
        "digits, five seeds, from the paper's start: adjusted Rand index 0.61 (sd 0.01); k-means of pixels 0.58, of "
        "codes of `vae` 0.56; from a random start 0.50",
    ),
    example="binary_digits",
    size="num_components",
    examples=({"num_components": 3, "hidden": (16,)},),
)
@tabular
def gaussian_mixture_vae(
    num_components: int = 10,
    latent_dim: int = 2,
    likelihood: str | Likelihood = "bernoulli",
    hidden: tuple[int, ...] = (128,),
    covariance: str = "learned",
    num_categories: int = 2,
    kinds: Kinds | None = None,
    schema: Schema | None = None,
) -> Pair:
    r"""Gaussian mixture variational autoencoder (Jiang et al. 2017).

    .. math::

        y_n &\sim \mathrm{Categorical}(\pi) \\
        z_n \mid y_n &\sim \mathcal{N}(\mu_{y_n}, \mathrm{diag}(\sigma_{y_n}^2)) \\
        x_n \mid z_n &\sim p(x_n \mid f_\theta(z_n))

    ==========================  ===========================================================================
    ``weights`` (C,)            :math:`\pi`
    ``loc`` (C, K)              :math:`\mu`
    ``spread`` (C, K)           :math:`\sigma`, above a floor, by softplus
    ``decoder``                 network :math:`f_\theta`, (K,) to the outputs that the likelihood needs
    ``encoder``                 network, (D,) to the mean and the standard deviations of q(z)
    ``y`` (N,)                  component of each row, summed out exactly
    ``z`` (N, K)                latent of each row
    ``x`` (N, D)                observed
    ==========================  ===========================================================================

    The guide has no factor of y: given z its posterior is exact. From weights drawn at random the components settle on
    what the first steps show them. The paper starts at a fitted autoencoder and at clusters of its codes; so can a fit,
    by the networks' weights and ``weights``, ``loc``, ``spread`` in ``start``.
    """
    C, K = num_components, latent_dim
    check_sizes(num_components=C, latent_dim=K)
    columns = columns_of(schema, kinds, num_categories)
    law = likelihood_of(likelihood, covariance, num_categories, columns=columns)

    networks = Networks(
        decoder=lambda D: mlp(K, hidden[::-1], law.num_outputs(D)),
        encoder=lambda D: mlp(law.num_inputs(D), hidden, 2 * K),
    )

    def model(x: Tensor) -> None:
        D = x.shape[1]
        weights = pyro.param("weights", torch.full((C,), 1 / C), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.zeros(C, K))
        spread = pyro.param("spread", torch.zeros(C, K))
        decode = networks.use("decoder", D)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(loc[y], positive(spread)[y]).to_event(1))
            pyro.sample("x", law.of(decode(z), D), obs=x)

    def guide(x: Tensor) -> None:
        encode = networks.use("encoder", x.shape[1])
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal_of(encode(law.inputs(x)), K))

    def initialize(x: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        start = networks.start(x.shape[1], generator, decoder=law.start(x))
        return {**start, **law.params(x), "loc": torch.randn(C, K, generator=generator)}

    return Pair(model, guide, initialize)
