"""The variational autoencoder."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ...inference.data.schema import Schema
from ...inference.nn.likelihoods import Likelihood, likelihood_of
from ...inference.nn.networks import Networks, check_sizes, mlp
from ...inference.nn.posteriors import posterior_of
from ...inference.nn.tabular import Kinds, columns_of, tabular
from ...inference.pair import Pair
from ..registry import register


@register(
    family="deep",
    summary="rows are computed by a network from a few normal numbers of each, which another network infers",
    data="a table (N, D) of 0 and 1, categories, numbers, counts or all of these, by the likelihood; NaN is missing",
    inference=("svi",),
    references=(
        "Kingma and Welling (2014), Auto-Encoding Variational Bayes, ICLR",
        "Rezende, Mohamed and Wierstra (2014), Stochastic Backpropagation, ICML",
        "Murphy (2023), Probabilistic Machine Learning: Advanced Topics, section 21.2",
        "Durkan, Bekasov, Murray and Papamakarios (2019), Neural Spline Flows, NeurIPS (the flow)",
    ),
    checks=(
        "the bound of a hand-written PyTorch loop with the same networks, optimizer, batches and seed",
        "mixed tables: densities of rows as sums of scipy's",
    ),
    example="binary_digits",
    size="latent_dim",
    examples=({"hidden": (32,)},),
)
@tabular
def vae(
    latent_dim: int = 2,
    likelihood: str | Likelihood = "bernoulli",
    hidden: tuple[int, ...] = (128,),
    covariance: str = "learned",
    posterior: str = "diagonal",
    num_categories: int = 2,
    scale: float = 1.0,
    rank: int = 1,
    components: int = 4,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    kinds: Kinds | None = None,
    schema: Schema | None = None,
) -> Pair:
    r"""Variational autoencoder (Kingma and Welling 2014).

    .. math::

        z_n &\sim \mathcal{N}(0, I_K) \\
        x_n \mid z_n &\sim p(x_n \mid f_\theta(z_n)) \\
        q(z_n \mid x_n) &= \mathcal{N}(\mu_\phi(x_n), \Sigma_\phi(x_n)) \text{, or a mixture, or a flow}

    ==========================  ===========================================================================
    ``decoder``                 network :math:`f_\theta`, (K,) to the outputs that the likelihood needs
    ``encoder``                 network, (D,) to what q needs: 2 K outputs, or K + K (K + 1) / 2 for "full",
                                C (2 K + 1) for a mixture of C ``components``, 2 K + 16 for a flow
    ``flow``                    network of a flow, in two layers of splines (Durkan et al. 2019)
    ``scale`` (D,)              of a gaussian likelihood with ``covariance="learned"``; of mixed, of numeric columns
    ``concentration`` (D,)      of a negative binomial likelihood; of mixed, of columns of counts
    ``center``, ``unit`` (D,)   of mixed columns: what they are standardised by, measured and not learned
    ``z`` (N, K)                latent of each row
    ``x`` (N, D)                observed
    ==========================  ===========================================================================

    ``likelihood`` is "bernoulli", "categorical" (of codes 0 to ``num_categories`` - 1), "gaussian", "poisson",
    "negative_binomial", "mixed", or a `Likelihood` of your own. The covariance of a gaussian one is "fixed" (at
    ``scale``), "learned" (a number a column), or computed by the decoder: "diagonal", "low_rank" (of rank ``rank``) or
    "full". ``posterior`` is the family of q: "diagonal" or "full" (normal), "mixture" (of diagonal normals) or "flow".
    ``encoder`` and ``decoder`` take any torch modules in place of the perceptrons with ``hidden`` units. The encoder
    sees missing cells as 0.

    "mixed" gives each column a distribution of its kind, as the column's type says: two labels or booleans are binary,
    other labels categorical, whole numbers counts (negative binomial), any others numeric (normal, standardised
    inside). ``kinds={"age": "numeric"}`` says otherwise (pandas holds whole numbers with gaps as fractions: say
    "count", or give them as Int64). Codes without labels have ``num_categories`` values. Categories enter the encoder
    one-hot, and scores are densities of the table's own units.
    """
    K = latent_dim
    check_sizes(latent_dim=K)
    family = posterior_of(posterior, K, components)
    columns = columns_of(schema, kinds, num_categories)
    law = likelihood_of(likelihood, covariance, num_categories, scale, rank, columns=columns)

    networks = Networks(
        decoder=decoder or (lambda D: mlp(K, hidden[::-1], law.num_outputs(D))),
        encoder=encoder or (lambda D: mlp(law.num_inputs(D), hidden, family.num_stats)),
        **family.networks,
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
            pyro.sample("z", family.of(encode(law.inputs(x))))

    return Pair(model, guide, networks.initialize(params=law.params, decoder=law.start, **family.starts))
