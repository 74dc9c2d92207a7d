"""One latent per row, and a site of each family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .base import CODES, COUNTS, SIGNS, TABLE, K, definite, label, mixture, positive, real, simplex, story, unit


def family(name: str, data: Tensor, smooth: bool = False) -> Callable[[Any], None]:
    """Enter a mixture of one family, whose site is built from params."""

    def enter(build: Callable[[], Callable[[Tensor], Any]]) -> None:
        def model(x: Tensor) -> None:
            mixture(x, build())

        model.__name__ = name
        story(data, smooth)(model)

    return enter


def _columns(name: str, cls: Any, data: Tensor, smooth: bool = False, **args: Any) -> None:
    """Columns independent given z: `args` says how each argument (K, 3) is declared."""

    def build() -> Callable[[Tensor], Any]:
        params = {key: make(key, K, 3) for key, make in args.items()}
        fixed = {"total_count": 12} if cls is dist.Binomial else {}
        return lambda z: cls(**fixed, **{key: value[z] for key, value in params.items()}).to_event(1)

    family(name, data, smooth)(build)


_columns("normal", dist.Normal, TABLE, loc=real, scale=positive)
_columns("lognormal", dist.LogNormal, TABLE.exp(), loc=real, scale=positive)
_columns("bernoulli", dist.Bernoulli, SIGNS, probs=unit)
_columns("bernoulli_logits", dist.Bernoulli, SIGNS, logits=real)
_columns("binomial", dist.Binomial, COUNTS.clamp(max=12), probs=unit)
_columns("poisson", dist.Poisson, COUNTS, rate=positive)
_columns("exponential", dist.Exponential, COUNTS + 0.5, rate=positive)
_columns("geometric", dist.Geometric, COUNTS, probs=unit)
_columns("gamma", dist.Gamma, TABLE.exp(), smooth=True, concentration=positive, rate=positive)
_columns("beta", dist.Beta, TABLE.sigmoid(), smooth=True, concentration1=positive, concentration0=positive)
_columns("student", dist.StudentT, TABLE, smooth=True, df=positive, loc=real, scale=positive)


@family("normal_spherical", TABLE)
def _():
    loc, scale = real("loc", K, 3), positive("scale", K)
    return lambda z: dist.Normal(loc[z], scale[z].unsqueeze(-1)).to_event(1)


@family("normal_tied", TABLE)
def _():
    loc, scale = real("loc", K, 3), positive("scale")
    return lambda z: dist.Normal(loc[z], scale).to_event(1)


@family("mvn_full", TABLE)
def _():
    loc, covariance = real("loc", K, 3), definite("covariance", K, 3)
    return lambda z: dist.MultivariateNormal(loc[z], covariance[z])


@family("mvn_tied", TABLE)
def _():
    loc, covariance = real("loc", K, 3), definite("covariance", 3)
    return lambda z: dist.MultivariateNormal(loc[z], covariance)


@family("mvn_tril", TABLE)
def _():
    loc = real("loc", K, 3)
    tril = pyro.param("tril", torch.eye(3).expand(K, 3, 3).clone(), constraint=constraints.lower_cholesky)
    return lambda z: dist.MultivariateNormal(loc[z], scale_tril=tril[z])


@family("mvn_precision", TABLE)
def _():
    loc, precision = real("loc", K, 3), definite("precision", K, 3)
    return lambda z: dist.MultivariateNormal(loc[z], precision_matrix=precision[z])


@family("multinomial", COUNTS)
def _():
    probs = simplex("probs", K, 3)
    return lambda z: dist.Multinomial(total_count=30, probs=probs[z])


@family("multinomial_logits", COUNTS)
def _():
    logits = real("logits", K, 3)
    return lambda z: dist.Multinomial(total_count=30, logits=logits[z])


@family("one_hot", torch.nn.functional.one_hot(CODES[:, 0], 3).double())
def _():
    probs = simplex("probs", K, 3)
    return lambda z: dist.OneHotCategorical(probs=probs[z])


@story(CODES)
def categorical_columns(x):
    weights, probs = simplex("weights", K), [simplex(f"probs_{j}", K, 3) for j in range(3)]
    with pyro.plate("data", len(x)):
        z = label("z", dist.Categorical(weights))
        for j, column in enumerate(probs):
            pyro.sample(f"x_{j}", dist.Categorical(column[z]), obs=x[:, j])


@story(TABLE)
def mixed_columns(x):
    weights, loc, scale, rate = simplex("weights", K), real("loc", K), positive("scale", K), positive("rate", K)
    logits, probs = real("logits", K, 3), unit("probs", K)
    with pyro.plate("data", len(x)):
        z = label("z", dist.Categorical(weights))
        pyro.sample("number", dist.Normal(loc[z], scale[z]), obs=x[:, 0])
        pyro.sample("count", dist.Poisson(rate[z]), obs=x[:, 1].abs().floor())
        pyro.sample("code", dist.Categorical(logits=logits[z]), obs=(2 * x[:, 2].sigmoid()).round())
        pyro.sample("flag", dist.Bernoulli(probs[z]), obs=(x[:, 2] > x[:, 1]).double())
