"""Normal latents in which a model is linear: those of rows, found by reading it and summed out
(`marginalize.read_exact`), and those that rows share, such as the effects of groups (`groups.find_mixed`); the EM of
loadings (`loadings`), the posterior (`posterior`), closed forms of principal components and
rotations of factors beside it.
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "distribution": "FactorNormal",
        "groups": "Mixed find_mixed",
        "marginalize": "Marginal read_exact sum_out",
        "posterior": "Loadings loadings_of normal_posterior principal varimax",
    },
)
