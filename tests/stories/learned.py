"""How params are learned: tied over sites and cells, by gradient where there is no closed form, under priors."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints

from .base import (
    CODES,
    COLUMN,
    COUNTS,
    POSITIVE,
    SIGNS,
    TABLE,
    XY,
    K,
    definite,
    label,
    mixture,
    positive,
    real,
    simplex,
    story,
    unit,
)

# --- tied -------------------------------------------------------------------------------------------------------------


@story(TABLE)
def shared_means(x):
    weights, loc, here, there = simplex("weights", K), real("loc", K), positive("here", K), positive("there")
    with pyro.plate("data", len(x)):
        z = label("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], here[z]), obs=x[:, 0])
        pyro.sample("y", dist.Normal(loc[z], there), obs=x[:, 1])
        pyro.sample("w", dist.LogNormal(loc[z], here[z]), obs=x[:, 2].exp())


@story(COUNTS)
def one_rate_for_all(x):
    rate = positive("rate")
    mixture(x, lambda z: dist.Poisson(rate.expand(3)).to_event(1))


@story(COUNTS)
def rates_in_pairs(x):
    rate, pairs = (
        pyro.param("rate", torch.tensor([1.0, 2.0, 3.0]), constraint=POSITIVE),
        torch.tensor([[0, 0, 1], [1, 2, 2]]),
    )
    mixture(x, lambda z: dist.Poisson(rate[pairs[z]]).to_event(1))


@story(COUNTS)
def weights_of_two_latents(x):
    weights, probs = simplex("weights", K), simplex("probs", K, 3)
    with pyro.plate("data", len(x)):
        for j in range(2):
            z = label(f"z_{j}", dist.Categorical(weights))
            pyro.sample(f"x_{j}", dist.Categorical(probs[z]), obs=x[:, j].clamp(max=2))


@story(COUNTS)
def bounded_rates(x):
    rate = pyro.param("rate", torch.full((K, 3), 2.0), constraint=constraints.interval(1.5, 2.5))
    mixture(x, lambda z: dist.Poisson(rate[z]).to_event(1))


@story(CODES[:, 0], smooth=True)
def transposed_probs(x):
    probs = pyro.param("probs", torch.tensor([[0.2, 0.5], [0.3, 0.2], [0.5, 0.3]]), constraint=POSITIVE)
    mixture(x, lambda z: dist.Categorical(probs.mT[z]))


@story(CODES, smooth=True)
def parts_of_probs(x):
    weights, probs = simplex("weights", K), simplex("probs", K, 3)
    with pyro.plate("data", len(x)):
        z = label("z", dist.Categorical(weights))
        pyro.sample("x", dist.Categorical(probs[z]), obs=x[:, 0])
        pyro.sample("y", dist.Categorical(probs[z][..., :2]), obs=x[:, 1].clamp(max=1))


@story(TABLE, smooth=True)
def mean_of_two_covariances(x):
    weights, loc, first, second = (
        simplex("weights", K),
        real("loc", K, 2),
        definite("first", K, 2),
        definite("second", K, 2),
    )
    with pyro.plate("data", len(x)):
        z = label("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], first[z]), obs=x[:, :2])
        pyro.sample("y", dist.MultivariateNormal(loc[z], second[z]), obs=x[:, 1:])


@story(TABLE, smooth=True)
def mean_equal_over_columns(x):
    loc, covariance = real("loc", K), definite("covariance", 3)
    mixture(x, lambda z: dist.MultivariateNormal(loc[z].unsqueeze(-1).expand(*z.shape, 3), covariance))


@story(TABLE, smooth=True)
def mean_equal_over_components(x):
    loc, covariance = real("loc", 3), definite("covariance", K, 3)
    mixture(x, lambda z: dist.MultivariateNormal(loc, covariance[z]))


# --- by gradient ------------------------------------------------------------------------------------------------------


@story(XY)
def regressions(data):
    """A regression in each component."""
    weights, slopes, scale = simplex("weights", K), real("slopes", K, 2), positive("scale", K)
    with pyro.plate("data", len(data.x)):
        z = label("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal((data.x * slopes[z]).sum(-1), scale[z]), obs=data.y)


@story(XY)
def experts(data):
    """The component depends on the row's covariates."""
    gates, loc, scale = real("gates", 2, K), real("loc", K), positive("scale", K)
    with pyro.plate("data", len(data.x)):
        z = label("z", dist.Categorical(logits=data.x @ gates))
        pyro.sample("y", dist.Normal(loc[z], scale[z]), obs=data.y)


@story(COLUMN, smooth=True)
def log_scales(x):
    loc, log_scale = real("loc", K), real("log_scale", K)
    mixture(x, lambda z: dist.Normal(loc[z], log_scale.exp()[z]))


@story(COLUMN, smooth=True)
def two_effects(x):
    weights, others, first, second = simplex("weights", K), simplex("others", K), real("first", K), real("second", K)
    with pyro.plate("data", len(x)):
        a, b = label("a", dist.Categorical(weights)), label("b", dist.Categorical(others))
        pyro.sample("x", dist.Normal(first[a] + second[b], 1.0), obs=x)


@story(COLUMN, smooth=True)
def first_mean_at_zero(x):
    free, loc = real("free", K - 1), torch.zeros(K)
    loc[1:] = free
    mixture(x, lambda z: dist.Normal(loc[z], 1.0))


@story(COLUMN, smooth=True)
def ordered_means(x):
    loc = real("loc", K).sort().values
    mixture(x, lambda z: dist.Normal(loc[z], 1.0))


@story(COUNTS[:, 0], smooth=True)
def many_zeros(x):
    chance, rate = unit("chance"), positive("rate")
    with pyro.plate("data", len(x)):
        never = label("never", dist.Bernoulli(chance))
        pyro.sample("x", dist.Poisson(torch.where(never == 1, 1e-30, rate)), obs=(x - 2).clamp(min=0))


@story(COUNTS[:, 0])
def trials_by_component(x):
    chance, trials = unit("chance", K), torch.tensor([12.0, 20.0])
    mixture(x.clamp(max=12), lambda z: dist.Binomial(trials[z], chance[z]))


@story(COLUMN, smooth=True)
def masked(x):
    weights, loc, scale = simplex("weights", K), real("loc", K), positive("scale", K)
    with pyro.plate("data", len(x)):
        z = label("z", dist.Categorical(weights))
        with poutine.mask(mask=x > -1):
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


@story(torch.arange(40) % 7 // 2, smooth=True)
def linkage(x):
    """Five cells of which two are seen as one (Dempster, Laird and Rubin 1977)."""
    chance = unit("chance")
    cells = torch.stack([torch.tensor(0.5), chance / 4, (1 - chance) / 4, (1 - chance) / 4, chance / 4])
    seen_as = torch.eye(4)[[0, 0, 1, 2, 3]]
    with pyro.plate("data", len(x)):
        cell = label("cell", dist.Categorical(cells))
        pyro.sample("x", dist.Categorical(seen_as[cell]), obs=x)


# --- with priors ------------------------------------------------------------------------------------------------------


@story(COUNTS[:, 0], prior=True)
def conjugate_counts(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((K,), 2.0)))
    with pyro.plate("components", K):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    mixture(x, lambda z: dist.Poisson(rate[z]), weights)


@story(SIGNS, prior=True)
def conjugate_flags(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((K,), 2.0)))
    probs = pyro.sample("probs", dist.Beta(2.0, 3.0).expand([K, 3]).to_event(2))
    mixture(x, lambda z: dist.Bernoulli(probs[z]).to_event(1), weights)


@story(TABLE, prior=True)
def conjugate_means(x):
    loc, scale = pyro.sample("loc", dist.Normal(0.0, 2.0).expand([K, 3]).to_event(2)), positive("scale", K, 3)
    mixture(x, lambda z: dist.Normal(loc[z], scale[z]).to_event(1))


@story(TABLE, prior=True, smooth=True)
def prior_of_a_vector_mean(x):
    loc, covariance = pyro.sample("loc", dist.Normal(0.0, 1.0).expand([K, 3]).to_event(2)), definite("covariance", 3)
    mixture(x, lambda z: dist.MultivariateNormal(loc[z], covariance))


@story(COLUMN, prior=True, smooth=True)
def heavy_tailed_priors(x):
    loc = pyro.sample("loc", dist.StudentT(4.0, 0.0, 1.0).expand([K]).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5).expand([K]).to_event(1))
    mixture(x, lambda z: dist.Normal(loc[z], scale[z]))


@story(COLUMN, prior=True, smooth=True)
def prior_of_a_prior(x):
    top = pyro.sample("top", dist.Normal(0.0, 3.0))
    loc = pyro.sample("loc", dist.Normal(top, 1.0).expand([K]).to_event(1))
    mixture(x, lambda z: dist.Normal(loc[z], 1.0))


@story(COLUMN, smooth=True)
def penalty_and_earlier_data(x):
    loc = real("loc", K)
    pyro.factor("penalty", -((loc[1] - loc[0]) ** 2))
    pyro.sample("earlier", dist.Normal(loc[0], 0.5), obs=torch.tensor(1.0))
    mixture(x, lambda z: dist.Normal(loc[z], 1.0))
