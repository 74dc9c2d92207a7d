"""Conditionally conjugate models as users write them, with data drawn for them."""

from __future__ import annotations

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .base import COUNTS, ENUMERATE, SIGNS, TABLE, Story

CONJUGATE: dict[str, Story] = {}


class Rated(NamedTuple):
    item: Tensor  # (N,)
    rater: Tensor  # (N,)
    y: Tensor  # (N,)


def _rated() -> Rated:
    item, rater = torch.cartesian_prod(torch.arange(5), torch.arange(4)).unbind(1)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(20, generator=generator, dtype=torch.float64)
    return Rated(item, rater, item * 1.0 - 0.5 * rater + 0.3 * noise)


def conjugate(data):
    def enter(model):
        CONJUGATE[model.__name__] = Story(model, data)
        return model

    return enter


@conjugate(_rated())
def two_ways(data: Rated) -> None:
    """Items and raters add up."""
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    spread = pyro.sample("spread", dist.Gamma(2.0, 1.0))
    item = pyro.sample("item", dist.Normal(0.0, spread**-0.5).expand([5]).to_event(1))
    rater = pyro.sample("rater", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    with pyro.plate("data", len(data.y)):
        pyro.sample("y", dist.Normal(item[data.item] + rater[data.rater], tau**-0.5), obs=data.y)


@conjugate(COUNTS)
def rates_of_rates(x: Tensor) -> None:
    """The rate of a gamma prior is gamma too."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    beta = pyro.sample("beta", dist.Gamma(2.0, 1.0).expand([3]).to_event(1))
    rate = pyro.sample("rate", dist.Gamma(2.0, beta).expand([2, 3]).to_event(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
        pyro.sample("x", dist.Poisson(2.0 * rate[z]).to_event(1), obs=x)


@conjugate(TABLE)
def variances(x: Tensor) -> None:
    """Variances, rather than precisions."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3) / 3))
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([3, 3]).to_event(2))
    var = pyro.sample("var", dist.InverseGamma(2.0, 1.0).expand([3, 3]).to_event(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
        pyro.sample("x", dist.Normal(loc[z], var[z].sqrt()).to_event(1), obs=x)


@conjugate(SIGNS)
def two_latents(x: Tensor) -> None:
    """A latent that depends on another; the answers on both."""
    first = pyro.sample("first", dist.Dirichlet(torch.ones(2)))
    second = pyro.sample("second", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    probs = pyro.sample("probs", dist.Beta(torch.ones(2, 2, 3), 2.0).to_event(3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(first), infer=ENUMERATE)
        u = pyro.sample("u", dist.Categorical(second[z]), infer=ENUMERATE)
        pyro.sample("x", dist.Bernoulli(probs[z, u]).to_event(1), obs=x)


@conjugate(TABLE)
def one_matrix(x: Tensor) -> None:
    """Clusters that share a precision matrix, their centres drawn around one of their own."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    center = pyro.sample("center", dist.MultivariateNormal(torch.zeros(3), torch.eye(3)))
    loc = pyro.sample("loc", dist.MultivariateNormal(center, 2.0 * torch.eye(3)).expand([2]).to_event(1))
    matrix = pyro.sample("matrix", dist.Wishart(torch.tensor(5.0), precision_matrix=torch.eye(3)))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
        pyro.sample("x", dist.MultivariateNormal(loc[z], precision_matrix=matrix), obs=x)


@conjugate(TABLE.abs())
def waits(x: Tensor) -> None:
    """Exponential times, of rates with a learned prior."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    rate = pyro.sample("rate", dist.Gamma(2.0, scale).expand([2, 3]).to_event(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
        pyro.sample("x", dist.Exponential(rate[z]).to_event(1), obs=x)
