"""The models: one a file, grouped by family. Importing this package registers them all."""

from .comparisons import bradley_terry
from .deep import (
    autoencoder,
    beta_vae,
    conditional_vae,
    gaussian_mixture_vae,
    hierarchical_vae,
    linear_vae,
    missing_data_vae,
    semi_supervised_vae,
    vae,
    vampprior_vae,
)
from .factors import analysis, bayesian_pca, gplvm, matrix_factorization, mixture, pca
from .graphs import degree_corrected, stochastic_block
from .hierarchical import normal as hierarchical_normal
from .measurement import item_response
from .mixtures import (
    bayesian_gaussian,
    bayesian_latent_class,
    experts,
    gamma_poisson,
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
from .raters import bayesian_dawid_skene, dawid_skene
from .registry import register
from .topics import gamma_poisson_factorization, lda, prodlda, sparse_gamma

__all__ = [
    "analysis",
    "autoencoder",
    "bayesian_dawid_skene",
    "bayesian_gaussian",
    "bayesian_latent_class",
    "bayesian_pca",
    "beta_vae",
    "bradley_terry",
    "conditional_vae",
    "dawid_skene",
    "degree_corrected",
    "experts",
    "gamma_poisson",
    "gamma_poisson_factorization",
    "gaussian",
    "gaussian_mixture_vae",
    "gplvm",
    "hierarchical_normal",
    "hierarchical_vae",
    "item_response",
    "latent_class",
    "lda",
    "linear_vae",
    "matrix_factorization",
    "missing_data_vae",
    "mixed",
    "mixture",
    "multinomial",
    "negative_binomial",
    "pca",
    "poisson",
    "prodlda",
    "register",
    "regressions",
    "semi_supervised_vae",
    "sparse_gamma",
    "stochastic_block",
    "student_t",
    "vae",
    "vampprior_vae",
    "zero_inflated_poisson",
]
