"""The models: one a file, grouped by family. Importing this package registers them all."""

from .comparisons import bradley_terry
from .factors import bayesian_pca, matrix_factorization
from .measurement import item_response
from .mixtures import (
    experts,
    gaussian,
    latent_class,
    mixed,
    multinomial,
    negative_binomial,
    poisson,
    regressions,
    student_t,
    zero_inflated_poisson,
)
from .raters import dawid_skene
from .registry import register
from .topics import gamma_poisson_factorization, lda

__all__ = [
    "bayesian_pca",
    "bradley_terry",
    "dawid_skene",
    "experts",
    "gamma_poisson_factorization",
    "gaussian",
    "item_response",
    "latent_class",
    "lda",
    "matrix_factorization",
    "mixed",
    "multinomial",
    "negative_binomial",
    "poisson",
    "register",
    "regressions",
    "student_t",
    "zero_inflated_poisson",
]
