"""Topics by amortization: documents as products of topics."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ...inference.base.errors import OptionError
from ...inference.distributions.row_multinomial import RowMultinomial, log_shares
from ...inference.nn.networks import Networks, check_sizes, filled, mlp, normal_of
from ...inference.pair import Pair
from ..registry import register


@register(
    family="topics",
    summary="documents as products of topics, whose shares in a document a network infers from its words",
    data="counts of words (N, V), a table or a sparse matrix, or documents as lists of words",
    inference=("svi",),
    references=("Srivastava and Sutton (2017), Autoencoding Variational Inference for Topic Models, ICLR",),
    checks=(
        "two topics: the importance-weighted bound beside an integral by quadrature",
        "documentation, 20 topics: more coherent than those of lda with dropout 0.5, a lower perplexity of new "
        "documents than that of lda with none",
    ),
    example="docstrings",
    size="num_topics",
    examples=({"num_topics": 4, "hidden": (32,)},),
)
def prodlda(
    num_topics: int = 10,
    concentration: float = 1.0,
    hidden: tuple[int, ...] = (100, 100),
    dropout: float = 0.2,
) -> Pair:
    r"""ProdLDA (Srivastava and Sutton 2017).

    .. math::

        z_n &\sim \mathcal{N}(0, \tfrac{1}{\alpha} (1 - \tfrac{1}{K}) I_K) \\
        \theta_n &= \mathrm{softmax}(z_n) \\
        x_n \mid \theta_n &\sim \mathrm{Multinomial}(m_n, \mathrm{softmax}(b + \mathrm{norm}(\theta_n B))),
            \qquad m_n = \textstyle\sum_v x_{nv} \\
        q(z_n \mid x_n) &= \mathcal{N}(\mu_\phi(x_n), \mathrm{diag}(\sigma_\phi^2(x_n)))

    ====================  =====================================================================================
    ``background`` (V,)   b, of the words that all documents have
    ``decoder``           network: B (K, V), then batch norm of the V numbers
    ``encoder``           network, (V,) to :math:`\mu_\phi, \sigma_\phi`: softplus layers, batch norm of the outputs
    ``z`` (N, K)          latent of each document
    ``theta`` (N, K)      :math:`\theta_n`, shares of the topics in a document, on the simplex, computed
    ``words`` (N, V)      observed counts
    ====================  =====================================================================================

    The prior is the Laplace approximation, in the softmax basis, of a Dirichlet whose K concentrations are all
    :math:`\alpha`, ``concentration``. In `lda` a document's words are a mixture of its topics' words, here they are
    the product of powers of them, so that topics can rule words out. ``dropout`` is that of the encoder's last layer
    and of :math:`\theta`, while it learns: with none new documents are foretold best, with much topics are coherent.

    What a topic says is what a document of that topic alone would: ``inference/diagnose/topics.py`` lists its
    words, measures coherence and perplexity. Lengths :math:`m_n` are given, not modelled, as in `lda`.
    """
    K = num_topics
    check_sizes(num_topics=K, **{f"hidden[{place}]": size for place, size in enumerate(hidden)})
    if K < 2:
        raise OptionError(f"num_topics: met {K}, expected at least 2: of one topic every document has all")
    if not concentration > 0:
        raise OptionError(f"concentration: met {concentration!r}, expected a positive number")
    if not 0 <= dropout < 1:
        raise OptionError(f"dropout: met {dropout!r}, expected a number from 0 to below 1")
    spread = ((1 - 1 / K) / concentration) ** 0.5

    networks = Networks(
        decoder=lambda V: nn.Sequential(
            nn.Dropout(dropout), nn.Linear(K, V, bias=False), nn.BatchNorm1d(V, affine=False)
        ),
        encoder=lambda V: nn.Sequential(mlp(V, hidden, 2 * K, nn.Softplus, dropout), nn.BatchNorm1d(2 * K)),
    )

    def model(docs: Tensor) -> None:
        V = docs.shape[1]
        background = pyro.param("background", torch.zeros(V))
        decode = networks.use("decoder", V)
        with pyro.plate("data", len(docs)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), spread).to_event(1))
            theta = pyro.deterministic("theta", z.softmax(-1), event_dim=1)  # (N, K)
            pyro.sample("words", RowMultinomial(docs.sum(-1), logits=background + decode(theta)), obs=docs)

    def guide(docs: Tensor) -> None:
        encode = networks.use("encoder", docs.shape[1])
        with pyro.plate("data", len(docs)):
            pyro.sample("z", normal_of(encode(filled(docs)), K))

    def initialize(docs: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        return {**networks.start(docs.shape[1], generator), "background": log_shares(docs)}

    return Pair(model, guide, initialize)
