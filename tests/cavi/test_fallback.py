"""Coordinate ascent with what is not conjugate fitted by gradient, beside quadrature."""

from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import halfcauchy, norm
from torch import Tensor

from latentzoo import Pair, cavi, zoo
from latentzoo.inference.base.errors import ModelError, OptionError
from latentzoo.inference.trace.handlers import engine_state

GENERATOR = torch.Generator().manual_seed(0)
X = 3 + 2 * torch.randn(60, generator=GENERATOR, dtype=torch.float64)
COUNTS = torch.poisson(torch.tensor([1.0, 9.0], dtype=torch.float64).repeat(30), generator=GENERATOR)


def half_cauchy(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def gamma_on_a_scale(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def robust_parent(x):
    center = pyro.sample("center", dist.Normal(0.0, 1.0))
    loc = pyro.sample("loc", dist.StudentT(4.0, center, 1.0))
    tau = pyro.sample("tau", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, tau**-0.5), obs=x)


def log_normal_rates(x):
    level = pyro.sample("level", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Poisson(level[z].exp()), obs=x)


def loc_is_scale(x):
    loc = pyro.sample("loc", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, loc), obs=x)


class Trials(NamedTuple):
    x: Tensor
    y: Tensor


def logistic(data):
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with pyro.plate("data", len(data.y)):
        pyro.sample("y", dist.Bernoulli(logits=data.x @ slope), obs=data.y)


DESIGN = torch.randn(60, 3, generator=GENERATOR, dtype=torch.float64)
CHANCE = torch.sigmoid(DESIGN @ torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64))
TRIALS = Trials(DESIGN, torch.bernoulli(CHANCE, generator=GENERATOR))

LINES = Trials(DESIGN, DESIGN[:, 0] * torch.tensor([3.0, -3.0]).repeat(30) + 0.3 * DESIGN[:, 1] ** 2)


def mixture_of_lines(data):
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0).expand([2, 3]).to_event(2))
    tau = pyro.sample("tau", dist.Gamma(1.0, 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("data", len(data.y)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal((data.x * slope[z]).sum(-1), tau**-0.5), obs=data.y)


def matrix_of_a_student(x):
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(3.0), torch.eye(2)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateStudentT(4.0, torch.zeros(2), torch.linalg.cholesky(precision)), obs=x)


CASES = {
    "mixture_of_lines": (mixture_of_lines, LINES, {"slope", "tau"}),
    "half_cauchy": (half_cauchy, X, {"scale"}),
    "gamma_on_a_scale": (gamma_on_a_scale, X, {"scale"}),
    "robust_parent": (robust_parent, X, {"loc", "center"}),
    "log_normal_rates": (log_normal_rates, COUNTS, {"level"}),
    "loc_is_scale": (loc_is_scale, X.abs(), {"loc"}),
    "logistic": (logistic, TRIALS, {"slope"}),
}
EVERY = pytest.mark.parametrize("name", CASES)


@EVERY
def test_without_it_the_site_is_named_and_the_way_out(name):
    model, data, drawn = CASES[name]
    with pytest.raises(ModelError, match='or fallback="svi"') as caught:
        cavi(Pair(model), data)
    assert any(f"'{site}'" in str(caught.value) for site in (*drawn, "x", "y"))


@EVERY
def test_only_what_is_not_conjugate_is_fitted_by_gradient(name):
    model, data, drawn = CASES[name]
    fit = cavi(Pair(model), data, fallback="svi", tol=1e-9)
    assert fit.converged
    assert (fit.history.diff() >= -1e-9 * (1 + fit.history[-1].abs())).all()
    factors = {site: fit.posterior(site) for site in fit.params}
    base = {site: one.base_dist if isinstance(one, dist.Independent) else one for site, one in factors.items()}
    assert all(isinstance(base[site], dist.Normal | dist.LogNormal) for site in drawn)
    closed = {"tau": dist.Gamma, "weights": dist.Dirichlet, "loc": dist.Normal}
    assert all(isinstance(one, closed[site]) for site, one in base.items() if site not in drawn)


@EVERY
def test_the_bound_is_what_fresh_draws_say(name):
    """Plain runs of the model at draws of its own, other than those that the fit was made with."""
    model, data, _ = CASES[name]
    fit = cavi(Pair(model), data, fallback="svi")
    factors = {site: fit.posterior(site) for site in fit.params}
    rows = {site: dist.Categorical(probs) for site, probs in fit.latents().items()}
    terms = []
    with engine_state(0), torch.no_grad():
        for _ in range(400):
            values = {site: factor.sample() for site, factor in {**factors, **rows}.items()}
            log_q = sum(factor.log_prob(values[site]).sum() for site, factor in {**factors, **rows}.items())
            trace = poutine.trace(poutine.condition(model, data=values)).get_trace(data)
            terms.append(float(trace.log_prob_sum() - log_q))
    error = np.std(terms) / len(terms) ** 0.5
    assert fit.history[-1].item() == pytest.approx(np.mean(terms), abs=4 * error + 0.02)


def test_a_half_cauchy_scale_is_near_its_exact_posterior():
    x = X.numpy()
    loc, log_scale = np.meshgrid(np.linspace(1, 6, 401), np.linspace(-0.5, 2, 401), indexing="ij")
    scale = np.exp(log_scale)
    log_p = norm.logpdf(loc, 0, 10) + halfcauchy.logpdf(scale) + log_scale
    for one in x:
        log_p = log_p + norm.logpdf(one, loc, scale)
    evidence = logsumexp(log_p) + np.log(5 / 400 * 2.5 / 400)
    weights = np.exp(log_p - logsumexp(log_p))
    fit = cavi(Pair(half_cauchy), X, fallback="svi", tol=1e-9)
    assert evidence - 0.1 < fit.history[-1].item() < evidence + 0.01
    mean = (weights * scale).sum()
    assert fit.params["scale"].item() == pytest.approx(mean, rel=0.01)
    assert fit.params["loc"].item() == pytest.approx((weights * loc).sum(), rel=0.01)
    sd = ((weights * scale**2).sum() - mean**2) ** 0.5
    assert fit.posterior("scale").variance.sqrt().item() == pytest.approx(sd, rel=0.1)


def test_logistic_regression_is_the_optimum_by_quadrature():
    """Under q a row's x @ b is normal, so its expected log likelihood is an integral of one number."""
    x, sign = TRIALS.x.numpy(), 2 * TRIALS.y.numpy() - 1
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)

    def negative_bound(free):
        mean, scale = free[:3], np.exp(free[3:])
        z = (x @ mean)[:, None] + ((x**2 @ scale**2) ** 0.5)[:, None] * nodes
        fits = -np.logaddexp(0, -sign[:, None] * z) @ weights / np.sqrt(2 * np.pi)
        divergence = (np.log(2 / scale) + (scale**2 + mean**2) / 8 - 0.5).sum()
        return divergence - fits.sum()

    best = minimize(negative_bound, np.zeros(6))
    fit = cavi(Pair(logistic), TRIALS, fallback="svi", tol=1e-10)
    factor = fit.posterior("slope").base_dist
    assert fit.history[-1].item() == pytest.approx(-best.fun, abs=0.05)
    np.testing.assert_allclose(factor.loc.numpy(), best.x[:3], atol=0.05)
    np.testing.assert_allclose(factor.scale.log().numpy(), best.x[3:], atol=0.05)


def test_such_a_fit_is_saved_scored_and_drawn_from(tmp_path):
    pair = Pair(log_normal_rates)
    fit = zoo.fit(pair, COUNTS, inference="cavi", fallback="svi", restarts=2)
    fit.save(tmp_path / "run")
    loaded = zoo.load(tmp_path / "run", pair=pair)
    assert torch.equal(loaded.score(COUNTS), fit.score())
    assert torch.equal(loaded.posterior("level", COUNTS).mean, fit.posterior("level").mean)
    assert fit.latents()["z"].shape == (60, 2)
    assert float(fit.generate(500, seed=1).double().mean()) == pytest.approx(float(COUNTS.mean()), abs=0.7)


def test_what_it_does_not_take():
    def gradient_of_a_row(x):
        scale = pyro.sample("scale", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.StudentT(4.0, 0.0, 1.0))
            pyro.sample("x", dist.Normal(u, scale), obs=x)

    with pytest.raises(ModelError, match="'u'"):
        cavi(Pair(gradient_of_a_row), X, fallback="svi")
    with pytest.raises(ModelError, match="'precision' is a matrix"):
        cavi(Pair(matrix_of_a_student), torch.stack([X, X.roll(1)], 1), fallback="svi")
    with pytest.raises(OptionError, match=r"fallback: met 'em', expected \"svi\""):
        cavi(Pair(half_cauchy), X, fallback="em")
    with pytest.raises(OptionError, match="batch_size"):
        cavi(Pair(half_cauchy), X, fallback="svi", batch_size=10)
