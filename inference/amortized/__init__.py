"""Stochastic variational inference of pairs with networks, and of encoders that the engine derives
(`fit.deep_svi`): the pair read (`reader`), the bounds of its rows (`bounds`, `objective`), raised by the ascent of
`svi`.
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "bounds": "elbo importance_bound",
        "fit": "deep_svi has_networks",
        "reader": "Story read_story",
    },
)
