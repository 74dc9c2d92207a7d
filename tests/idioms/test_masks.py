"""Masks: what they leave out adds nothing, and a masked latent is summed with its prior, as Pyro sums it."""

import math
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import by_pyro
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import config_enumerate

from latentzoo import Pair, em, svi, zoo
from latentzoo.inference.base.errors import ModelError

ENUMERATE = {"enumerate": "parallel"}
GENERATOR = torch.Generator().manual_seed(0)
X = torch.cat([torch.randn(60, generator=GENERATOR), torch.randn(60, generator=GENERATOR) + 4]).double()
X = X[torch.randperm(120, generator=GENERATOR)]
SEEN = torch.rand(120, generator=GENERATOR) < 0.5


def mixture():
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    means = pyro.param("means", torch.tensor([0.0, 3.0]))
    return weights, means


def observed_by_data(x):
    weights, means = mixture()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
        with poutine.mask(mask=x > -0.5):
            pyro.sample("x", dist.Normal(means[z], 1.0), obs=x)


def observed_by_method(x):
    weights, means = mixture()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
        pyro.sample("x", dist.Normal(means[z], 1.0).mask(x > -0.5), obs=x)


def by_a_latent(x):
    """Rows of the first class have a second measurement."""
    weights, means = mixture()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
        pyro.sample("x", dist.Normal(means[z], 1.0), obs=x)
        with poutine.mask(mask=z == 0):
            pyro.sample("y", dist.Normal(pyro.param("other", torch.tensor(0.0)), 1.0), obs=x / 2)


def log_linear_by_a_latent(x):
    weights, means = mixture()
    slope = pyro.param("slope", torch.tensor([0.0, 0.1]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
        pyro.sample("x", dist.Normal(means[z], 1.0), obs=x)
        with poutine.mask(mask=z == 1):
            pyro.sample("y", dist.Poisson((slope[0] + slope[1] * x).exp()), obs=x.abs().round())


def latent(x):
    weights, means = mixture()
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=x > 0):
            z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
        pyro.sample("x", dist.Normal(means[z], 1.0), obs=x)


def lengths(x):
    """Chains of lengths that differ."""
    weights, means = mixture()
    moves = pyro.param("moves", torch.tensor([[0.7, 0.3], [0.2, 0.8]]), constraint=constraints.simplex)
    x = x.reshape(-1, 4)
    ends = 1 + torch.arange(len(x)) % 4
    with pyro.plate("data", len(x)):
        z = pyro.sample("z0", dist.Categorical(weights), infer=ENUMERATE)
        for t in pyro.markov(range(4)):
            with poutine.mask(mask=t < ends):
                z = pyro.sample(f"z{t + 1}", dist.Categorical(moves[z]), infer=ENUMERATE)
                pyro.sample(f"x{t}", dist.Normal(means[z], 1.0), obs=x[:, t])


def mixed_by_a_latent(x):
    weights, means = mixture()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(weights[0]), infer=ENUMERATE)
        first, second = dist.Normal(means[0], 1.0).expand([len(x)]), dist.Normal(means[1], 1.0).expand([len(x)])
        pyro.sample("x", dist.MaskedMixture(z.bool(), first, second), obs=x)


@pytest.mark.parametrize(
    "model",
    [observed_by_data, observed_by_method, by_a_latent, log_linear_by_a_latent, latent, lengths, mixed_by_a_latent],
)
def test_masked_sites_are_scored_as_pyro_scores_them(model):
    data = X.reshape(-1, 4) if model is lengths else X
    start = em(Pair(model), data, max_iters=0, tol=0, progress=False)
    assert start.log_likelihood == pytest.approx(by_pyro(model, data, start.params), rel=1e-9)
    fit = em(Pair(model), data, progress=False)
    assert fit.log_likelihood == pytest.approx(by_pyro(model, data, fit.params), rel=1e-9)
    assert min(b - a for a, b in zip(fit.history, fit.history[1:], strict=False)) > -1e-9 * abs(fit.history[-1])
    near = {name: value + 1e-3 for name, value in fit.params.items() if name in ("means", "slope", "other")}
    for name, value in near.items():
        assert by_pyro(model, data, {**fit.params, name: value}) < fit.log_likelihood, name


class Labelled(NamedTuple):
    y: torch.Tensor
    labels: torch.Tensor
    known: torch.Tensor


@config_enumerate
def some_labels_known(d):
    weights, means = mixture()
    with pyro.plate("data", len(d.y)):
        z = pyro.sample("z", dist.Categorical(weights), obs=d.labels, obs_mask=d.known.bool())
        pyro.sample("y", dist.Normal(means[z], 1.0), obs=d.y)


def test_known_labels_are_kept_and_the_others_summed_out():
    data = Labelled(X, (X > 2).long(), SEEN.long())
    fit = em(Pair(some_labels_known), data, max_iters=0, tol=0, progress=False)
    log_joint = torch.stack([math.log(w) + dist.Normal(m, 1.0).log_prob(X) for w, m in ((0.4, 0.0), (0.6, 3.0))])
    known = log_joint[data.labels, torch.arange(120)]
    right = torch.where(SEEN, known, log_joint.logsumexp(0))
    assert fit.score().numpy() == pytest.approx(right.numpy(), abs=1e-6)
    found = em(Pair(some_labels_known), data, progress=False)
    assert found.log_likelihood == pytest.approx(by_pyro(some_labels_known, data, found.params), rel=1e-9)


def some_numbers_known(d):
    """A normal measured in some rows, and a sum that holds it."""
    mean, spread = pyro.param("mean", torch.tensor(0.0)), 2.0
    with pyro.plate("data", len(d.y)):
        u = pyro.sample("u", dist.Normal(mean, spread), obs=d.labels.double(), obs_mask=d.known.bool())
        pyro.sample("y", dist.Normal(u, 1.0), obs=d.y)


def test_known_numbers_are_kept_and_the_others_integrated_out():
    """Or refused by EM: SVI, whose guide is right for normals, gives the value."""
    data = Labelled(X, torch.ones(120), SEEN.long())
    fit = svi(Pair(some_numbers_known), data, progress=False, seed=0, num_steps=4000)
    mean = fit.params["mean"]
    u = torch.ones(120).double()
    seen = dist.Normal(mean, 2.0).log_prob(u) + dist.Normal(u, 1.0).log_prob(X)
    right = torch.where(SEEN, seen, dist.Normal(mean, 5.0**0.5).log_prob(X)).sum()
    assert float(fit.history[-1]) == pytest.approx(float(right), abs=0.5)


def test_a_masked_prior_of_what_rows_share_is_refused():
    def model(x):
        with poutine.mask(mask=torch.tensor(False)):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    for inference in ("em", "cavi", "svi"):
        with pytest.raises(ModelError, match="latent 'mean', which all rows share, is masked"):
            zoo.fit(Pair(model), X, inference=inference, progress=False)


def test_a_mask_on_what_is_observed_once_counts():
    def model(x):
        mean = pyro.param("mean", torch.tensor(0.5))
        with poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("once", dist.Normal(mean, 1.0).expand([2]), obs=torch.tensor([1.0, 100.0]))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    fit = em(Pair(model), X, progress=False)
    assert float(fit.params["mean"]) == pytest.approx(float((X.sum() + 1) / 121), abs=1e-6)


def test_a_masked_or_scaled_factor_of_a_guide_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(u, 1.0), obs=x)

    def guided(handler):
        def guide(x):
            loc = pyro.param("loc", torch.zeros(len(x)))
            with pyro.plate("data", len(x)), handler:
                pyro.sample("u", dist.Normal(loc, 1.0))

        return guide

    for handler in (poutine.mask(mask=SEEN), poutine.scale(scale=0.5)):
        with pytest.raises(ModelError, match="guide: site 'u' is scaled or masked"):
            svi(Pair(model, guided(handler)), X, progress=False)
    whole = svi(Pair(model, guided(poutine.mask(mask=True))), X, progress=False, num_steps=10, tol=0)
    assert whole.params == {}


def test_a_mark_for_enumeration_that_pyro_loses_is_asked_for():
    def model(d):
        weights, means = mixture()
        with pyro.plate("data", len(d.y)):
            z = pyro.sample("z", dist.Categorical(weights), obs=d.labels, obs_mask=d.known.bool(), infer=ENUMERATE)
            pyro.sample("y", dist.Normal(means[z], 1.0), obs=d.y)

    with pytest.raises(ModelError, match=r"'z_unobserved' .*config_enumerate"):
        em(Pair(model), Labelled(X, (X > 2).long(), SEEN.long()), progress=False)
