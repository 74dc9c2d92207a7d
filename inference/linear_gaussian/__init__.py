"""Normal latents in which a model is linear: found by reading it and summed out (`marginalize.read_exact`), the EM of
their loadings (`loadings_plan`, `loadings_em`), their posterior (`posterior`), closed forms of principal components
(`ppca`) and rotations of factors (`rotation`).
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "distribution": "FactorNormal",
        "marginalize": "Marginal read_exact sum_out",
        "posterior": "Loadings loadings_of normal_posterior",
        "ppca": "principal",
        "rotation": "varimax",
    },
)
