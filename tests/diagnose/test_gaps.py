"""Exact scores of linear models with encoders, and the gaps of their bounds, beside closed forms and EM."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from sklearn.datasets import load_wine
from torch import nn

from latentzoo import Pair, zoo

pytestmark = pytest.mark.filterwarnings("ignore::latentzoo.inference.base.errors.ConvergenceWarning")

WINE = load_wine().data
WINE = (WINE - WINE.mean(0)) / WINE.std(0)
HOLES = np.where(np.random.default_rng(0).random(WINE.shape) < 0.1, np.nan, WINE)
SHORT = {"num_steps": 300, "learning_rate": 0.02, "tol": 0}


def by_covariance(x, loc, cov):
    """log N(x_n | loc, cov) of the cells that are there."""
    out = []
    for row in torch.as_tensor(x):
        seen = ~row.isnan()
        normal = torch.distributions.MultivariateNormal(loc[seen], cov[seen][:, seen])
        out.append(normal.log_prob(row[seen]))
    return torch.stack(out)


@pytest.mark.parametrize("x", [WINE, HOLES], ids=["whole", "holes"])
def test_scores_of_a_linear_decoder_are_exact(x, tmp_path):
    fit = zoo.fit("linear_vae", x, latent_dim=3, **SHORT)
    load, loc = (fit.params[f"decoder$$$0.{name}"].double() for name in ("weight", "bias"))
    cov = load @ load.mT + fit.params["scale"].double() ** 2 * torch.eye(len(loc))
    torch.testing.assert_close(fit.score(x), by_covariance(x, loc, cov), atol=1e-3, rtol=0)
    assert fit.score_kind.startswith("exact")
    fit.save(tmp_path / "run")
    again = zoo.load(tmp_path / "run")
    assert again.score_kind == fit.score_kind
    assert torch.equal(again.score(x), fit.score(x))


def test_priors_and_scales_of_any_values_are_read():
    """A prior away from 0, correlated, and a scale for each column, in a model of the user's own."""
    load, center = torch.tensor([[1.0, 0.5], [-1.0, 2.0], [0.3, 0.1]]), torch.tensor([0.5, -1.0])
    tril, scale = torch.tensor([[1.5, 0.0], [0.4, 0.7]]), torch.tensor([0.3, 1.0, 2.0])

    def model(x):
        shift = pyro.param("shift", torch.ones(3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(center, scale_tril=tril))
            pyro.sample("x", dist.Normal(z @ load.to(z).mT + shift, scale).to_event(1), obs=x)

    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    fit = zoo.fit(Pair(model), x, inference="svi", guide="amortized", num_steps=5, tol=0)
    loc = (load @ center + fit.params["shift"]).double()
    both = (load @ tril).double()
    cov = both @ both.mT + torch.diag(scale.double() ** 2)
    torch.testing.assert_close(fit.score(x), by_covariance(x.double(), loc, cov), atol=1e-4, rtol=0)


def curved(kind):
    """Models that are not linear and normal, each for one reason."""

    def model(x):
        decode = pyro.module("decoder", network)
        with pyro.plate("data", len(x)):
            prior = dist.Laplace if kind == "prior" else dist.Normal
            z = pyro.sample("z", prior(torch.zeros(2), 1.0).to_event(1))
            mean = decode(z)
            scale = 1.0 + (z[..., :1] ** 2 if kind == "scale" else 0.0)
            noise = dist.StudentT(5.0, mean, 1.0) if kind == "noise" else dist.Normal(mean, scale)
            pyro.sample("x", noise.to_event(1), obs=x)

    torch.manual_seed(0)
    layers = [nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 3)] if kind == "mean" else [nn.Linear(2, 3)]
    network = nn.Sequential(*layers)
    return Pair(model)


@pytest.mark.parametrize("kind", ["mean", "prior", "scale", "noise"])
def test_models_that_are_not_linear_and_normal_are_found_out(kind):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    fit = zoo.fit(curved(kind), x, num_steps=5, tol=0)
    assert fit.score_kind == "importance-weighted bound of 100 draws"
    assert torch.equal(fit.score(x), fit.importance(x, num=100).log_prob)
    assert fit.gaps(x, num_steps=2, num=20).optimum is None if kind != "prior" else True
    linear = zoo.fit(curved(""), x, num_steps=5, tol=0)
    assert linear.score_kind.startswith("exact")


@pytest.mark.parametrize(("x", "latents", "best"), [(WINE, 2, -2875.6363), (WINE, 10, -2614.4640), (HOLES, 2, None)])
def test_the_gap_of_the_params_ends_at_the_maximum_of_the_likelihood(x, latents, best):
    """Tipping and Bishop's closed form; with holes where EM ends."""
    if best is None:
        best = zoo.fit("probabilistic_pca", x, num_factors=latents, tol=1e-10, max_iters=3000).log_likelihood
    fit = zoo.fit("linear_vae", x, latent_dim=latents, **SHORT)
    before = {name: value.clone() for name, value in fit.params.items()}
    found = fit.gaps(x, num_steps=100, num=100)
    assert float(found.optimum.sum()) == pytest.approx(best, abs=0.01)
    assert found.optimization > 0
    assert torch.equal(found.log_prob, fit.score(x))
    assert all(torch.equal(fit.params[name], value) for name, value in before.items())
    lost = found.optimization + found.approximation + found.amortization
    assert lost == pytest.approx((best - float(found.encoder.sum())) / len(x), abs=1e-3)
    assert "optimization" in str(found)
    assert fit.gaps(x[:50], num_steps=2, num=20).optimum is None  # of other rows nobody asks


def test_it_ends_there_for_a_scale_of_each_column_too():
    best = zoo.fit("factor_analysis", WINE, num_factors=2, tol=1e-10, max_iters=5000)
    options = {"inference": "svi", "guide": "amortized", **SHORT}
    found = zoo.fit("factor_analysis", WINE, num_factors=2, **options).gaps(num_steps=20, num=50)
    assert float(found.optimum.sum()) == pytest.approx(best.log_likelihood, abs=0.05)


def test_weights_of_rows_count_in_the_optimum():
    def model(x):
        scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
        shift = pyro.param("shift", torch.zeros(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * torch.tensor([1.0, 0.0]) + shift, scale).to_event(1), obs=x)

    x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [1.0, -1.0], [4.0, 2.0]])
    few = zoo.fit(Pair(model), x, inference="svi", guide="amortized", weights=[3, 1, 1, 1], num_steps=20, tol=0)
    many = zoo.fit(Pair(model), x[[0, 0, 0, 1, 2, 3]], inference="svi", guide="amortized", num_steps=20, tol=0)
    one, two = (fit.gaps(num_steps=5, num=10).optimum for fit in (few, many))
    torch.testing.assert_close(one, two[[0, 3, 4, 5]], atol=1e-3, rtol=0)
    assert math.isfinite(float(one.sum()))
