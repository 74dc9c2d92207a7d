"""Mean fields over latents that multiply: Bayesian PCA, matrix factorization, regression."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.special import digamma
from scipy.stats import multivariate_normal
from torch import Tensor

from latentzoo import Pair, cavi, zoo
from latentzoo.inference.base.errors import DataError, ModelError
from latentzoo.inference.cavi.derivation import mean_field
from latentzoo.inference.trace.handlers import engine_state
from latentzoo.inference.trace.structure import read

RANDOM = np.random.default_rng(0)
N, D, K = 40, 5, 3
TABLE = RANDOM.normal(size=(N, 2)) @ RANDOM.normal(size=(2, D)) + 0.3 * RANDOM.normal(size=(N, D)) + 1.0
START = {
    "W": torch.from_numpy(RANDOM.normal(size=(D, K))),
    "mu": torch.zeros(D).double(),
    "alpha": torch.ones(K).double(),
    "tau": torch.tensor(1.0).double(),
}


def principal(x: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Gamma(torch.full((K,), 0.5), 0.2).to_event(1))
    W = pyro.sample("W", dist.Normal(torch.zeros(D, K), alpha**-0.5).to_event(2))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(D), 3.0).to_event(1))
    tau = pyro.sample("tau", dist.Gamma(2.0, 0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W.T + mu, tau**-0.5).to_event(1), obs=x)


def textbook(x, sweeps):
    """Bishop (1999), equations for q(z), q(alpha), q(W), q(mu), q(tau) in turn; cells of NaN are left out."""
    seen, y = ~np.isnan(x), np.nan_to_num(x)
    W, mu, alpha, tau = (START[name].numpy() for name in ("W", "mu", "alpha", "tau"))
    WW = W[:, :, None] * W[:, None, :]
    for _ in range(sweeps):
        z, zz = np.empty((N, K)), np.empty((N, K, K))
        for n in range(N):
            cov = np.linalg.inv(np.eye(K) + tau * (seen[n][:, None, None] * WW).sum(0))
            z[n] = cov @ (tau * W.T @ (seen[n] * (y[n] - mu)))
            zz[n] = cov + np.outer(z[n], z[n])
        a, b = 0.5 + D / 2, 0.2 + 0.5 * WW.diagonal(axis1=1, axis2=2).sum(0)
        alpha = a / b
        W, WW = np.empty((D, K)), np.empty((D, K, K))
        for d in range(D):
            cov = np.linalg.inv(np.diag(alpha) + tau * (seen[:, d][:, None, None] * zz).sum(0))
            W[d] = cov @ (tau * z.T @ (seen[:, d] * (y[:, d] - mu[d])))
            WW[d] = cov + np.outer(W[d], W[d])
        precision = 1 / 9 + tau * seen.sum(0)
        mu = tau * (seen * (y - z @ W.T)).sum(0) / precision
        mumu = mu**2 + 1 / precision
        loc = z @ W.T
        square = np.einsum("nij,dij->nd", zz, WW) + 2 * loc * mu + mumu
        shape = 2.0 + 0.5 * seen.sum()
        rate = 0.5 + 0.5 * (seen * (y**2 - 2 * y * (loc + mu) + square)).sum()
        tau = shape / rate
    return {"W": W, "mu": mu, "alpha": alpha, "tau": tau}


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("sweeps", [1, 2, 7])
def test_the_derived_updates_are_those_of_the_textbook(missing, sweeps):
    x = TABLE.copy()
    x[np.random.default_rng(1).random(x.shape) < missing] = np.nan
    fit = cavi(Pair(principal), x, start=START, max_iters=sweeps - 1, tol=0, accelerate=False)
    for name, value in textbook(x, sweeps).items():
        np.testing.assert_allclose(fit.params[name].numpy(), value, rtol=1e-8, atol=1e-8)


def bound_by_draws(model, data, fit, draws=1000):
    """E_q[log p - log q] by Monte Carlo, and its standard error, from what the fit says of each factor."""
    factors = {name: fit.posterior(name) for name in [*fit.params, *fit.latents()]}
    found = []
    with engine_state(0), torch.no_grad():
        for _ in range(draws):
            values = {name: factor.sample() for name, factor in factors.items()}
            log_q = sum(factor.log_prob(values[name]).sum() for name, factor in factors.items())
            shaped = {n: v.reshape(fit.params[n].shape) if n in fit.params else v for n, v in values.items()}
            trace = poutine.trace(poutine.condition(model, data=shaped)).get_trace(data)
            found.append(float(trace.log_prob_sum() - log_q))
    return np.mean(found), np.std(found) / draws**0.5


def test_the_bound_is_the_expectation_it_stands_for():
    x = torch.from_numpy(TABLE)
    fit = cavi(Pair(principal), x, start=START, max_iters=5, tol=0)
    mean, error = bound_by_draws(principal, x, fit)
    assert float(fit.history[-1]) == pytest.approx(mean, abs=4 * error)


@pytest.mark.parametrize("accelerate", [False, True])
def test_the_bound_never_falls_from_any_start(accelerate):
    x = TABLE.copy()
    x[np.random.default_rng(2).random(x.shape) < 0.2] = np.nan
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        start = {name: value + 0.5 * torch.rand(value.shape, generator=generator) for name, value in START.items()}
        fit = cavi(Pair(principal), x, start=start, max_iters=15, tol=0, accelerate=accelerate)
        assert float(fit.history.diff().min()) >= -1e-9 * (1 + abs(float(fit.history[-1])))


def test_leaps_end_higher_than_as_many_sweeps():
    plain = cavi(Pair(principal), TABLE, start=START, max_iters=90, tol=0, accelerate=False)
    leaping = cavi(Pair(principal), TABLE, start=START, max_iters=30, tol=0, accelerate=True)
    assert float(leaping.history[-1]) >= float(plain.history[-1])


class Regression(NamedTuple):
    x: Tensor
    y: Tensor


def regression(data: Regression) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("data", len(data.y)):
        pyro.sample("y", dist.Normal(data.x @ slope, 0.5), obs=data.y)


def test_linear_regression_has_its_exact_posterior_and_evidence():
    x = torch.from_numpy(RANDOM.normal(size=(30, 3)))
    y = x @ torch.tensor([1.0, -2.0, 0.5]).double() + 0.5 * torch.from_numpy(RANDOM.normal(size=30))
    fit = cavi(Pair(regression), Regression(x, y))
    precision = x.T @ x / 0.25 + torch.eye(3).double() / 4
    slope = fit.posterior("slope")
    torch.testing.assert_close(slope.loc, torch.linalg.solve(precision, x.T @ y / 0.25))
    torch.testing.assert_close(slope.precision_matrix, precision)
    covariance = (4 * x @ x.T + 0.25 * torch.eye(30).double()).numpy()
    evidence = multivariate_normal(np.zeros(30), covariance).logpdf(y.numpy())
    assert float(fit.history[-1]) == pytest.approx(evidence, abs=1e-9)


def ratings_of(table):
    """A table with NaN as a rating a row."""
    user, item = np.nonzero(~np.isnan(table))
    return pd.DataFrame({"user": user, "item": item, "rating": table[user, item]})


def simulated(users=60, items=40, noise=0.3, seed=3):
    random = np.random.default_rng(seed)
    return (
        3 + random.normal(size=(users, 2)) @ random.normal(size=(2, items)) + noise * random.normal(size=(users, items))
    )


def test_a_table_and_its_long_form_are_one():
    table = simulated(12, 8)
    table[np.random.default_rng(4).random(table.shape) < 0.3] = np.nan
    start = {"traits": torch.from_numpy(np.random.default_rng(5).normal(size=(8, 2)))}
    options = {"num_factors": 2, "inference": "cavi", "start": start, "max_iters": 6, "tol": 0}
    wide = zoo.fit("probabilistic_matrix_factorization", table, layout="wide", **options)
    long = zoo.fit("probabilistic_matrix_factorization", ratings_of(table), **options)
    torch.testing.assert_close(wide.history, long.history)
    torch.testing.assert_close(wide.params["traits"], long.params["traits"])


def test_held_out_ratings_are_predicted_as_well_as_the_noise_allows():
    table = simulated()
    hidden = np.random.default_rng(6).random(table.shape) < 0.4
    seen = np.where(hidden, np.nan, table)
    fit = zoo.fit("probabilistic_matrix_factorization", ratings_of(seen), num_factors=2)
    found = fit.latents()
    predicted = (
        found["tastes"].mean @ fit.params["traits"].T + found["user_bias"].mean[:, None] + fit.params["item_bias"]
    )
    error = ((predicted.numpy() - table)[hidden] ** 2).mean() ** 0.5
    by_item = (np.nanmean(seen, 0) - table)[hidden]
    assert error < 0.4  # the noise is 0.3
    assert error < 0.5 * (by_item**2).mean() ** 0.5


def test_surplus_factors_are_emptied():
    random = np.random.default_rng(7)
    x = random.normal(size=(300, 2)) @ random.normal(size=(2, 8)) + 0.5 * random.normal(size=(300, 8))
    fit = zoo.fit("bayesian_pca", x, num_factors=5)
    size = fit.params["loadings"].square().sum(0).sqrt()
    assert int((size > 0.1).sum()) == 2
    assert float(fit.params["precision"] ** -0.5) == pytest.approx(0.5, rel=0.05)


def test_latents_of_new_rows_are_those_of_the_posterior():
    """Given point-like shared latents q(z) is the exact posterior of a linear Gaussian model."""
    fit = zoo.fit("bayesian_pca", np.repeat(TABLE, 200, axis=0), num_factors=2)
    new = torch.from_numpy(TABLE[:4] + 0.1)
    load, loc, precision = (fit.params[name] for name in ("loadings", "loc", "precision"))
    inner = torch.eye(2).double() + precision * load.T @ load
    expected = torch.linalg.solve(inner, precision * load.T @ (new - loc).T).T
    torch.testing.assert_close(fit.latents(new)["z"].mean, expected, atol=2e-3, rtol=2e-3)


def test_fits_are_saved_scored_and_exported(tmp_path):
    fit = cavi(Pair(principal), TABLE, start=START, max_iters=20, tol=0)
    fit.save(tmp_path / "run")
    loaded = zoo.load(tmp_path / "run", pair=Pair(principal))
    assert torch.equal(loaded.latents(TABLE)["z"].mean, fit.latents()["z"].mean)
    assert fit.score_kind == "importance-weighted bound"
    assert fit.score().shape == (N,)
    assert fit.sample_posterior(7)["z"].shape == (7, N, K)
    assert fit.to_arviz(num_draws=10).posterior["z"].shape == (1, 10, N, K)
    assert fit.generate(3).shape == (3, D)


def twice(x: Tensor) -> None:
    u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(u[0] * u[1], 1.0), obs=x)


def cubic(x: Tensor) -> None:
    a, b, c = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "abc")
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(a * b * c, 1.0), obs=x)


def gamma_slope(x: Tensor) -> None:
    slope, size = pyro.sample("slope", dist.Gamma(1.0, 1.0)), pyro.sample("size", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(slope * size, 1.0), obs=x)


@pytest.mark.parametrize("layout", ["wide", "long"])
def test_a_user_without_ratings_is_named(layout):
    table = np.random.default_rng(0).normal(3, 1, (6, 4))
    table[2] = np.nan
    if layout == "long":
        table = pd.DataFrame([(f"u{i}", f"i{j}", table[i, j]) for i in range(6) for j in range(4)])
        table.columns = ["user", "item", "rating"]
    with pytest.raises(DataError, match=r"row 2 .* has no value at all, .* 'tastes'"):
        zoo.fit("probabilistic_matrix_factorization", table, layout=layout)


def test_items_may_have_names():
    table = pd.DataFrame({"user": list("uuvvw"), "item": list("ababb"), "rating": [1.0, 2.0, 3.0, 4.0, 2.0]})
    named = zoo.fit("probabilistic_matrix_factorization", table, num_factors=1, seed=1)
    coded = zoo.fit("probabilistic_matrix_factorization", table.assign(item=[0, 1, 0, 1, 1]), num_factors=1, seed=1)
    assert named.history[-1] == pytest.approx(float(coded.history[-1]))


@pytest.mark.parametrize(
    ("model", "words"),
    [(twice, "'u' enters site 'x' twice"), (cubic, "not bilinear"), (gamma_slope, "only normal latents")],
)
def test_what_is_not_bilinear_is_refused_in_plain_words(model, words):
    x = torch.ones(5).double()
    with engine_state(0), pytest.raises(ModelError, match=words) as caught:
        mean_field(model, x, read(model, x))
    assert 'inference="svi"' in str(caught.value)


def test_the_expected_logarithm_of_a_precision_enters_the_bound():
    """One row, one column, no latents but the precision: the bound is its expectation under the factor, by hand."""

    def model(x: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(1), 1e-6).to_event(1))
        tau = pyro.sample("tau", dist.Gamma(3.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.ones(len(x), 1) @ slope, tau**-0.5), obs=x)

    y = torch.tensor([0.3, -1.0]).double()
    fit = cavi(Pair(model), y, tol=1e-14)
    a, b = 4.0, 2.0 + 0.5 * float((y**2).sum())
    prior = 3 * np.log(2.0) - np.log(2.0) + 2 * (digamma(a) - np.log(b)) - 2 * a / b  # log gamma(3) = log 2
    entropy = a - np.log(b) + np.log(6.0) + (1 - a) * digamma(a)  # log gamma(4) = log 6
    likelihood = digamma(a) - np.log(b) - np.log(2 * np.pi) - 0.5 * a / b * float((y**2).sum())
    assert float(fit.history[-1]) == pytest.approx(prior + entropy + likelihood, abs=1e-5)
