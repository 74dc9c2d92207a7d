"""Where a bound stands: its standard error is true and small, and it is never above log p(x) by more than that."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from latentzoo import Pair, zoo
from latentzoo.inference.amortized.encoder import Amortized
from latentzoo.inference.svi.training import ERROR, FEWEST, measured

pytestmark = pytest.mark.filterwarnings("error")
COLUMN = 3 + 2 * torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BELOW_ALL = 5.0  # standard errors


def test_estimates_are_made_until_their_error_is_small_and_that_error_is_true():
    generator = torch.Generator().manual_seed(0)

    def draw(sd):
        return float(sd * torch.randn((), generator=generator))

    away = []
    for _ in range(200):
        level = measured([lambda: 1.0 + draw(0.1), lambda: 2.0 + draw(0.15)], 10_000)
        assert level.error <= ERROR
        away.append((level.bound - 3.0) / level.error)
    assert 0.8 < torch.tensor(away).std() < 1.3


def test_what_cannot_be_had_costs_no_more_than_what_tells_so():
    calls = []
    level = measured([lambda: calls.append(0) or 100.0 * (-1) ** len(calls)], 1_000)
    assert len(calls) == FEWEST
    assert level.error > ERROR


def chain(x):
    """A mean that another hangs on: the posterior is no product of factors."""
    center = pyro.sample("center", dist.Normal(0.0, 3.0))
    mu = pyro.sample("mu", dist.Normal(center, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 2.0), obs=x)


def of_rows(x):
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(3.0 + u, 1.5), obs=x)


COVARIANCES = {
    "chain": (chain, 0.0, 10.0 + 4.0 * torch.eye(60).double()),
    "of rows": (of_rows, 3.0, (1 + 1.5**2) * torch.eye(60).double()),
}


@pytest.mark.parametrize(("name", "guide"), [("chain", "mean_field"), ("of rows", "full_rank"), ("chain", "low_rank")])
def test_the_bound_is_not_above_the_evidence(name, guide, tmp_path):
    model, mean, covariance = COVARIANCES[name]
    evidence = dist.MultivariateNormal(torch.full((60,), mean).double(), covariance).log_prob(COLUMN).item()
    fit = zoo.fit(Pair(model), COLUMN, inference="svi", guide=guide)
    assert fit.bound_error <= ERROR
    assert fit.history[-1].item() <= evidence + BELOW_ALL * fit.bound_error + 1e-9
    assert fit.history[-1].item() >= evidence - 1.0
    fit.save(tmp_path / "run")
    assert zoo.load(tmp_path / "run", Pair(model)).bound_error == fit.bound_error
    assert "±" in fit.summary()


def test_a_bound_without_noise_has_no_error():
    fit = zoo.fit("gaussian_mixture", COLUMN.unsqueeze(1), num_components=2, inference="svi", num_steps=300, tol=0)
    assert fit.bound_error == 0
    assert fit.history[-1].item() == pytest.approx(fit.log_likelihood, abs=1e-6)


def test_the_error_of_a_bound_that_weighs_its_draws_and_of_batches():
    options = {"inference": "svi", "num_steps": 400, "tol": 0}
    exact = dist.Normal(3.0, math.sqrt(1 + 1.5**2)).log_prob(COLUMN).sum().item()
    for more in ({"alpha": 0.0, "num_particles": 10}, {"batch_size": 20}):
        fit = zoo.fit(Pair(of_rows), COLUMN, **options, **more)
        assert 0 <= fit.bound_error < 1
        assert fit.history[-1].item() <= exact + BELOW_ALL * fit.bound_error + 1e-9


def test_the_bound_of_an_encoder_is_that_of_other_draws_and_not_above_the_evidence():
    options = {"inference": "svi", "learning_rate": 0.02, "num_steps": 1_000, "tol": 0}
    fit = zoo.fit("probabilistic_pca", "iris", guide=Amortized("full", hidden=()), **options)
    assert 0 < fit.bound_error < 1
    again = float(fit.gaps(num_steps=1, num=2_000).encoder.sum())
    assert fit.log_likelihood == pytest.approx(again, abs=BELOW_ALL * fit.bound_error + 0.5)
    best = zoo.fit("probabilistic_pca", "iris", inference="em").log_likelihood
    assert fit.log_likelihood <= best + BELOW_ALL * fit.bound_error
