"""Stochastic variational inference of pairs without networks (`fit.plain_svi`): normal guides and guides of the user's
own, the bound with discrete latents summed out (`objective`). And what every ascent by gradient has, with networks
too: its steps (`ascent`), when it is at rest (`plateau`), the race of its starts (`training`), steps that are recorded
and replayed (`replay`), its state on disk (`checkpoints`), and where its bound stands (`training`).
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "checkpoints": "Checkpoints",
        "fit": "plain_svi",
        "options": "FreeBits SVIOptions Warmup",
    },
)
