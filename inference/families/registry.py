"""Finding the exponential family of a distribution's class, and the conjugate share of a prior."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import pyro.distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor

from ..trace.provenance import symbols_of
from .base import Family, Ratio
from .continuous import (
    BetaFamily,
    ExponentialFamily,
    GammaFamily,
    LogNormalFamily,
    MultivariateNormalFamily,
    MultivariateStudentTFamily,
    NormalFamily,
    StudentTFamily,
)
from .discrete import (
    BernoulliFamily,
    BinomialFamily,
    CategoricalFamily,
    GeometricFamily,
    MaskedFamily,
    MultinomialFamily,
    OneHotFamily,
    PoissonFamily,
)


@singledispatch
def family(fn: object) -> Family | None:
    """The exponential family of a distribution's class, or None: then the site is scored as it stands."""
    return None


for _cls, _family in {
    dist.Normal: NormalFamily(),
    dist.LogNormal: LogNormalFamily(),
    dist.MultivariateNormal: MultivariateNormalFamily(),
    dist.Categorical: CategoricalFamily(),
    dist.OneHotCategorical: OneHotFamily(),
    dist.Multinomial: MultinomialFamily(),
    dist.Bernoulli: BernoulliFamily(),
    dist.Binomial: BinomialFamily(),
    dist.Poisson: PoissonFamily(),
    dist.Exponential: ExponentialFamily(),
    dist.Gamma: GammaFamily(),
    dist.Beta: BetaFamily(),
    dist.Geometric: GeometricFamily(),
    dist.StudentT: StudentTFamily(),
    dist.MultivariateStudentT: MultivariateStudentTFamily(),
}.items():
    family.register(_cls, lambda fn, _family=_family: _family)


@family.register(dist.MaskedMixture)
def _(fn: Any) -> Family | None:
    first = family(fn.component0)
    plain = first is not None and first.event_dim == 0 and not first.augmented and not symbols_of(fn.component1)
    return MaskedFamily(first) if first is not None and plain else None


@family.register(ExpandedDistribution)
def _(fn: Any) -> Family | None:
    """What Pyro wraps a distribution in that cannot be expanded itself."""
    return family(fn.base_dist) if isinstance(fn.base_dist, dist.MaskedMixture) else None


@singledispatch
def prior_ratio(fn: object, value: Tensor) -> Ratio | None:
    """A prior's share in the ratio of the param it is the conjugate prior of: the mode counts, or None."""
    return None


@prior_ratio.register(dist.Dirichlet)
def _(fn: Any, value: Tensor) -> Ratio:
    excess = fn.concentration - 1
    return Ratio("simplex", excess, excess.sum(-1, keepdim=True))


@prior_ratio.register(dist.Beta)
def _(fn: Any, value: Tensor) -> Ratio:
    return Ratio("proportion", fn.concentration1 - 1, fn.concentration1 + fn.concentration0 - 2)


@prior_ratio.register(dist.Gamma)
def _(fn: Any, value: Tensor) -> Ratio:
    return Ratio("rate", fn.concentration - 1, fn.rate)


@prior_ratio.register(dist.Normal)
def _(fn: Any, value: Tensor) -> Ratio:
    precision = fn.scale**-2
    return Ratio("mean", precision * fn.loc, precision)
