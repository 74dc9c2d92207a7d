"""The autoencoder: a code of each row, from which the row is computed again."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ...inference.base.errors import OptionError
from ...inference.nn.networks import Networks, Noise, check_sizes, filled, mlp
from ...inference.pair import Pair
from ..registry import register


@register(
    family="deep",
    summary="a network squeezes each row into a few numbers, another computes the row from them: least squares",
    data="a table of numbers (N, D), standardised where units differ; NaN is missing",
    inference=("svi",),
    references=(
        "Hinton and Salakhutdinov (2006), Reducing the Dimensionality of Data with Neural Networks, Science 313",
        "Baldi and Hornik (1989), Neural Networks and Principal Component Analysis, Neural Networks 2, 53-58",
        "Vincent, Larochelle, Bengio and Manzagol (2008), Extracting and Composing Robust Features, ICML",
    ),
    checks=("linear, iris, 2 numbers: the squared error of principal components",),
    example="iris",
    size="code_dim",
    examples=({"hidden": ()},),
)
def autoencoder(
    code_dim: int = 2,
    hidden: tuple[int, ...] = (32,),
    noise: float = 0.0,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
) -> Pair:
    r"""Autoencoder, D / K / D.

    .. math::

        z_n &= g_\phi(x_n + \epsilon_n) \\
        x_n &\sim \mathcal{N}(f_\theta(z_n), I_D)

    ==========================  =====================================================================
    ``encoder``                 network :math:`g_\phi`, (D,) to (K,)
    ``decoder``                 network :math:`f_\theta`, (K,) to (D,)
    ``z`` (N, K)                code of each row, computed
    ``x`` (N, D)                observed
    ==========================  =====================================================================

    The code is computed, not drawn: there is no prior, so the model scores rows given their own codes and makes no new
    ones. With unit variance the log-likelihood is minus half the squared error, up to a constant. ``hidden=()`` is
    linear, and finds the subspace of principal components (Baldi and Hornik 1989). ``noise`` is the standard deviation
    of the noise :math:`\epsilon` of a denoising autoencoder (Vincent et al. 2008), there while it learns.
    """
    K = code_dim
    check_sizes(code_dim=K)
    if noise < 0:
        raise OptionError(f"noise: met {noise!r}, expected a number of at least 0")

    def noisy(network: nn.Module) -> nn.Module:
        return nn.Sequential(Noise(noise), network) if noise else network

    networks = Networks(
        encoder=noisy(encoder) if encoder else lambda D: noisy(mlp(D, hidden, K)),
        decoder=decoder or (lambda D: mlp(K, hidden[::-1], D)),
    )

    def model(x: Tensor) -> None:
        encode = networks.use("encoder", x.shape[1])
        decode = networks.use("decoder", x.shape[1])
        with pyro.plate("data", len(x)):
            z = pyro.deterministic("z", encode(filled(x)), event_dim=1)
            pyro.sample("x", dist.Normal(decode(z), 1.0).to_event(1), obs=x)

    return Pair(model, initialize=networks.initialize(decoder=lambda x: x.nanmean(0)))
