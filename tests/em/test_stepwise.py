"""Coordinate ascent by minibatches, beside what all rows give."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from latentzoo import Pair, cavi, em, zoo
from latentzoo.inference.base.errors import OptionError
from latentzoo.inference.optimize.minibatches import Schedule

RANDOM = np.random.default_rng(0)
CENTERS = np.array([[0.0, 0.0], [4.0, 1.0], [-3.0, 3.0]])
X = CENTERS[RANDOM.integers(3, size=3000)] + RANDOM.normal(size=(3000, 2))


def mean_of(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 0.5), obs=x)


def counts(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


@pytest.mark.parametrize("batch_size", [10, 50, 200])
@pytest.mark.parametrize("weights", [False, True])
def test_natural_steps_find_a_conjugate_posterior_at_any_batch_size(batch_size, weights):
    x = torch.from_numpy(RANDOM.normal(1.0, 0.5, size=200))
    share = torch.from_numpy(RANDOM.integers(1, 3, size=200)).double() if weights else torch.ones(200).double()
    found = cavi(Pair(mean_of), x, batch_size=batch_size, weights=share, schedule=Schedule(1.0, 1.0), max_iters=200)
    precision = 0.25 + float(share.sum()) / 0.25
    mean = float((share * x).sum()) / 0.25 / precision
    factor = found.posterior("mu")
    assert float(factor.stddev) == pytest.approx(precision**-0.5, rel=0.02)
    assert float(factor.mean) == pytest.approx(mean, abs=0.3 * precision**-0.5)


def test_one_step_on_all_rows_is_a_sweep():
    x = torch.tensor([3.0, 1.0, 4.0, 2.0, 0.0])
    one = cavi(Pair(counts), x, batch_size=5, schedule=Schedule(0.0, 1.0), max_iters=1, tol=0)
    exact = cavi(Pair(counts), x, max_iters=1, tol=0)
    torch.testing.assert_close(one.history, exact.history)
    assert float(one.posterior("rate").rate) == 6.0
    assert float(one.posterior("rate").concentration) == 12.0


def test_stepwise_em_ends_where_em_does():
    pair = zoo.create("gaussian_mixture", num_components=3, covariance="full")
    start = em(pair, X, max_iters=3, tol=0).params
    by_batch = em(pair, X, batch_size=100, start=start)
    exact = em(pair, X, start=start)
    assert exact.log_likelihood - by_batch.log_likelihood < 0.01 * len(X) / 100
    assert len(by_batch.history) < len(exact.history)


def test_natural_steps_end_where_sweeps_do():
    pair = zoo.create("bayesian_gaussian_mixture", num_components=3)
    start = cavi(pair, X, max_iters=10, tol=0).params
    by_batch = cavi(pair, X, batch_size=100, start=start, schedule=Schedule(10.0, 0.9))
    exact = cavi(pair, X, start=start)
    assert float(exact.history[-1] - by_batch.history[-1]) < 0.01 * len(X) / 100


def test_the_same_seed_gives_the_same_bits():
    pair = zoo.create("poisson_mixture", num_components=2)
    x = RANDOM.poisson(RANDOM.choice([1.0, 6.0], size=500))
    one, two, other = (em(pair, x, batch_size=50, seed=seed, max_iters=5, tol=0) for seed in (1, 1, 2))
    assert torch.equal(one.history, two.history)
    assert not torch.equal(one.history, other.history)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 4000}, "from 1 to 3000"),
        ({"batch_size": 10, "schedule": None, "model": "mixture_of_factor_analyzers"}, "batch_size"),
    ],
)
def test_batches_that_cannot_be(options, words):
    model = options.pop("model", "gaussian_mixture")
    sizes = {"num_components": 2} | ({"num_factors": 1} if "factor" in model else {})
    with pytest.raises(OptionError, match=words):
        zoo.fit(model, X, inference="em", **sizes, **options)


@pytest.mark.parametrize("forgetting", [0.5, 1.1])
def test_steps_that_would_not_converge(forgetting):
    with pytest.raises(OptionError, match="forgetting"):
        Schedule(1.0, forgetting)
