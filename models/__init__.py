"""The models: one a file, grouped by family. Importing this package registers them all."""

from .mixtures import gaussian, latent_class, poisson
from .registry import register

__all__ = ["gaussian", "latent_class", "poisson", "register"]
