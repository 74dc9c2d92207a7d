"""Coordinate-ascent variational inference (`fit.fit_cavi`): the mean field derived from a model (`derivation`), its
updates as gradients of expectations (`mean_field`, `moments`), products of latents (`bilinear`), sticks of Dirichlet
processes; latents that counts multiply (`counts`) and labels that meet in pairs (`graphs`) in folders of their own.
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "climb": "CAVIOptions",
        "fit": "fit_cavi",
    },
)
