"""Which family of factors a prior is conjugate to."""

from __future__ import annotations

from functools import singledispatch

import pyro.distributions as dist

from .factor_vectors import MultivariateNormalFactor, WishartFactor
from .factors import BetaFactor, DirichletFactor, FactorFamily, GammaFactor, InverseGammaFactor, NormalFactor


@singledispatch
def factor_family(fn: object) -> FactorFamily | None:
    """The family that is conjugate to itself as a prior of this class; None where there is none."""
    return None


for _cls, _family in {
    dist.Normal: NormalFactor(),
    dist.MultivariateNormal: MultivariateNormalFactor(),
    dist.Gamma: GammaFactor(),
    dist.InverseGamma: InverseGammaFactor(),
    dist.Beta: BetaFactor(),
    dist.Dirichlet: DirichletFactor(),
    dist.Wishart: WishartFactor(),
}.items():
    factor_family.register(_cls, lambda fn, _family=_family: _family)
