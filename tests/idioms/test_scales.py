"""`poutine.scale`: of rows whose latents are summed out it stands outside the sum, as Pyro has it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import by_pyro
from pyro import poutine
from pyro.distributions import constraints

from latentzoo import Pair, em, svi, zoo
from latentzoo.inference.base.errors import ModelError

ENUMERATE = {"enumerate": "parallel"}
X = torch.tensor([-2.0, -1.5, -2.5, 0.0, 0.5, 1.5, 2.0], dtype=torch.float64)


def scaled(scale, of_latent=None):
    def model(x):
        means = pyro.param("means", torch.tensor([-1.0, 1.0]))
        weights = pyro.param("weights", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=scale if of_latent is None else of_latent):
                z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
            with poutine.scale(scale=scale):
                pyro.sample("x", dist.Normal(means[z], 1.0), obs=x)

    return model


@pytest.mark.parametrize("number", [2.0, 0.5])
@pytest.mark.parametrize("natural", [True, False])
def test_rows_scaled_by_a_number(number, natural):
    model = scaled(number)
    start = em(Pair(model), X, max_iters=0, tol=0, natural=natural, progress=False)
    assert start.log_likelihood == pytest.approx(by_pyro(model, X, start.params), rel=1e-9)
    fit = em(Pair(model), X, natural=natural, progress=False)
    assert fit.log_likelihood == pytest.approx(by_pyro(model, X, fit.params), rel=1e-9)
    plain = em(Pair(scaled(1.0)), X, progress=False)
    assert fit.log_likelihood == pytest.approx(number * plain.log_likelihood, rel=1e-8)


def test_rows_scaled_by_a_tensor_count_as_weights_do():
    scale = torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0])
    fit = em(Pair(scaled(scale)), X, progress=False)
    weighted = em(Pair(scaled(1.0)), X, weights=scale, progress=False)
    assert fit.log_likelihood == pytest.approx(weighted.log_likelihood, rel=1e-9)
    assert fit.params["means"].numpy() == pytest.approx(weighted.params["means"].numpy(), abs=1e-6)
    both = em(Pair(scaled(scale)), X, weights=scale, progress=False)
    squared = em(Pair(scaled(1.0)), X, weights=scale**2, progress=False)
    assert both.log_likelihood == pytest.approx(squared.log_likelihood, rel=1e-9)


def test_svi_scales_the_rows_too():
    fit = svi(Pair(scaled(2.0)), X, progress=False)
    assert float(fit.history[-1]) == pytest.approx(em(Pair(scaled(2.0)), X, progress=False).log_likelihood, abs=1e-3)


def test_sites_scaled_apart_are_refused():
    for inference in ("em", "svi"):
        with pytest.raises(ModelError, match="sites 'z' and 'x' are scaled differently"):
            zoo.fit(Pair(scaled(2.0, 1.0)), X, inference=inference, progress=False)
    with pytest.raises(ModelError, match=r"scaled by a tensor of shape \(7, 1\)"):
        em(Pair(scaled(torch.full((7, 1), 2.0))), X, progress=False)


def test_a_site_without_latents_is_scaled_by_itself():
    def model(x):
        mean = pyro.param("mean", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
            with poutine.scale(scale=torch.arange(7.0) + 1):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=x + 1)

    fit = em(Pair(model), X, progress=False)
    assert fit.log_likelihood == pytest.approx(by_pyro(model, X, fit.params), rel=1e-9)
    weights = torch.arange(7.0).double() + 1
    assert float(fit.params["mean"]) == pytest.approx(float((X.sum() + (weights * (X + 1)).sum()) / (7 + 28)), abs=1e-6)


def test_a_scaled_latent_that_is_continuous_is_refused():
    def model(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=2.0):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(u, pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)), obs=x)

    for inference in ("em", "cavi", "svi"):
        with pytest.raises(ModelError, match="'u' is a continuous latent of each row: let rows count by weights="):
            zoo.fit(Pair(model), X, inference=inference, progress=False)


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_a_prior_that_is_scaled_weighs_so_much_more(inference):
    def model(x):
        with poutine.scale(scale=3.0):
            mean = pyro.sample("mean", dist.Normal(1.0, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    fit = zoo.fit(Pair(model), X, inference=inference, progress=False)
    assert float(fit.params["mean"]) == pytest.approx(float((X.sum() + 12) / (7 + 12)), abs=1e-5)
