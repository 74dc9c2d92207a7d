"""Exponential families: natural parameters, statistics and closed-form estimates of observed sites (`continuous`,
`discrete`), conjugate factors of latents with their moments (`factors`), and what a density is expected to be under
such factors (`expected`). One small record each, looked up by Pyro's class (`registry`).
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "expected": "expected_family observed_family",
        "factors": "factor_family",
        "registry": "family prior_ratio",
    },
)
