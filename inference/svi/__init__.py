"""Stochastic variational inference of pairs without networks (`fit.plain_svi`): normal guides and guides of the user's
own, the bound with discrete latents summed out (`elbo`), an ascent that stops by itself, checkpoints.
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "annealing": "FreeBits Warmup",
        "checkpoints": "Checkpoints",
        "fit": "plain_svi",
        "options": "SVIOptions",
    },
)
