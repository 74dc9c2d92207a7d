"""Derived updates beside those of textbooks, and models whose posterior and evidence have closed forms."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import digamma, multigammaln
from scipy.stats import multivariate_normal, nbinom
from sklearn.datasets import load_iris
from torch.distributions import kl_divergence

from latentzoo import Pair, cavi

IRIS = load_iris().data
K, SWEEPS = 3, 12
ENUMERATE = {"enumerate": "parallel"}


# --- one latent: the factor is the posterior, the bound the log evidence ----------------------------------------------

GENERATOR = torch.Generator().manual_seed(0)
REAL = 1.0 + torch.randn(12, generator=GENERATOR, dtype=torch.float64)
COUNTS = torch.poisson(torch.full((12,), 3.0, dtype=torch.float64), generator=GENERATOR)
SIGNS = (REAL > 1).double()
CODES = COUNTS.clamp_max(3).long()
VECTORS = torch.randn(12, 3, generator=GENERATOR, dtype=torch.float64)
N, ONES = len(REAL), torch.ones(3, dtype=torch.float64)
MATRIX = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.5]], dtype=torch.float64)


def tensor(value):
    return torch.as_tensor(value, dtype=torch.float64)


def posterior_of_mean():
    precision = ONES.diag() + N * MATRIX
    loc = torch.linalg.solve(precision, MATRIX @ VECTORS.sum(0))
    return dist.MultivariateNormal(loc, precision_matrix=precision)


EXACT = {  # prior, noise, data, posterior
    "Normal, known variance": (
        dist.Normal(0.0, 2.0),
        lambda t: dist.Normal(t, 1.5),
        REAL,
        dist.Normal(REAL.sum() / 2.25 / (0.25 + N / 2.25), tensor(0.25 + N / 2.25) ** -0.5),
    ),
    "LogNormal, known variance": (
        dist.Normal(0.0, 2.0),
        lambda t: dist.LogNormal(t, 1.5),
        REAL.exp(),
        dist.Normal(REAL.sum() / 2.25 / (0.25 + N / 2.25), tensor(0.25 + N / 2.25) ** -0.5),
    ),
    "shifted and scaled mean": (
        dist.Normal(0.0, 2.0),
        lambda t: dist.Normal(3.0 - 2.0 * t, 1.5),
        REAL,
        dist.Normal((3.0 - REAL).sum() * 2 / 2.25 / (0.25 + 4 * N / 2.25), tensor(0.25 + 4 * N / 2.25) ** -0.5),
    ),
    "precision of a Normal": (
        dist.Gamma(2.0, 3.0),
        lambda t: dist.Normal(1.0, t**-0.5),
        REAL,
        dist.Gamma(tensor(2.0 + N / 2), 3.0 + ((REAL - 1) ** 2).sum() / 2),
    ),
    "precision of a Normal by rsqrt": (
        dist.Gamma(2.0, 3.0),
        lambda t: dist.Normal(1.0, 1 / t.sqrt()),
        REAL,
        dist.Gamma(tensor(2.0 + N / 2), 3.0 + ((REAL - 1) ** 2).sum() / 2),
    ),
    "variance of a Normal": (
        dist.InverseGamma(2.0, 3.0),
        lambda t: dist.Normal(1.0, t.sqrt()),
        REAL,
        dist.InverseGamma(tensor(2.0 + N / 2), 3.0 + ((REAL - 1) ** 2).sum() / 2),
    ),
    "Gamma and Poisson": (
        dist.Gamma(2.0, 0.5),
        dist.Poisson,
        COUNTS,
        dist.Gamma(2.0 + COUNTS.sum(), tensor(0.5 + N)),
    ),
    "Gamma and Exponential": (
        dist.Gamma(2.0, 0.5),
        dist.Exponential,
        REAL.abs(),
        dist.Gamma(tensor(2.0 + N), 0.5 + REAL.abs().sum()),
    ),
    "Gamma and Gamma": (
        dist.Gamma(2.0, 0.5),
        lambda t: dist.Gamma(3.0, t),
        REAL.abs(),
        dist.Gamma(tensor(2.0 + 3 * N), 0.5 + REAL.abs().sum()),
    ),
    "Beta and Bernoulli": (
        dist.Beta(2.0, 0.5),
        dist.Bernoulli,
        SIGNS,
        dist.Beta(2.0 + SIGNS.sum(), 0.5 + N - SIGNS.sum()),
    ),
    "Beta and Binomial": (
        dist.Beta(2.0, 0.5),
        lambda t: dist.Binomial(10, t),
        COUNTS,
        dist.Beta(2.0 + COUNTS.sum(), 0.5 + 10 * N - COUNTS.sum()),
    ),
    "Beta and Geometric": (
        dist.Beta(2.0, 0.5),
        dist.Geometric,
        COUNTS,
        dist.Beta(tensor(2.0 + N), 0.5 + COUNTS.sum()),
    ),
    "Dirichlet and Categorical": (
        dist.Dirichlet(torch.tensor([1.0, 2.0, 0.5, 0.3])),
        dist.Categorical,
        CODES,
        dist.Dirichlet(tensor([1.0, 2.0, 0.5, 0.3]) + torch.bincount(CODES, minlength=4)),
    ),
    "vector, known precision": (
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        lambda t: dist.MultivariateNormal(t, precision_matrix=MATRIX),
        VECTORS,
        posterior_of_mean(),
    ),
    "normal cells of a vector": (
        dist.Normal(0.0, torch.ones(3)).to_event(1),
        lambda t: dist.MultivariateNormal(t, precision_matrix=MATRIX),
        VECTORS,
        posterior_of_mean(),
    ),
    "precision of a vector": (
        dist.Wishart(torch.tensor(4.0), precision_matrix=torch.eye(3)),
        lambda t: dist.MultivariateNormal(torch.zeros(3), precision_matrix=t),
        VECTORS,
        dist.Wishart(tensor(4.0 + N), precision_matrix=ONES.diag() + VECTORS.mT @ VECTORS),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_factor_is_the_posterior_and_the_bound_the_evidence(name):
    prior, noise, data, posterior = EXACT[name]
    prior = prior_in_double(prior)

    def model(x):
        theta = pyro.sample("theta", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", noise(theta), obs=x)

    fit = cavi(Pair(model), data)
    factor = fit.posterior("theta")
    points = [posterior.mean * share for share in ((1.0, 0.9, 0.8) if name != "Dirichlet and Categorical" else (1.0,))]
    for theta in points:
        assert float(factor.log_prob(theta)) == pytest.approx(float(posterior.log_prob(theta)), abs=1e-9)
        evidence = noise(theta).log_prob(data).sum() + prior.log_prob(theta).sum() - posterior.log_prob(theta)
        assert fit.history[-1].item() == pytest.approx(evidence.item(), abs=1e-9)


def prior_in_double(fn):
    """The prior with float64 arguments, as the engine takes it."""
    if isinstance(fn, dist.Independent):
        return prior_in_double(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MultivariateNormal | dist.Wishart):
        keys = ("loc", "covariance_matrix") if isinstance(fn, dist.MultivariateNormal) else ("df", "precision_matrix")
        return type(fn)(**{key: getattr(fn, key).double() for key in keys})
    return type(fn)(**{key: getattr(fn, key).double() for key in fn.arg_constraints if key not in ("probs", "logits")})


def test_scores_average_the_closed_form_predictive():
    """Gamma and Poisson: the predictive of a new count is negative binomial."""

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    fit = cavi(Pair(model), COUNTS)
    shape, rate = 2.0 + COUNTS.sum().item(), 0.5 + N
    new = torch.arange(8).double()
    expected = nbinom.logpmf(new.numpy(), shape, rate / (1 + rate))
    each = dist.Poisson(fit.posterior("rate").sample((100_000, 1))).log_prob(new).exp()
    error = each.std(0) / each.mean(0) / 100**0.5  # of the log of a mean of 100 draws
    assert ((fit.score(new) - torch.from_numpy(expected)).abs() <= 4 * error).all()
    drawn = fit.generate(20_000, seed=1)
    mean, sd = nbinom.stats(shape, rate / (1 + rate))[0], nbinom.std(shape, rate / (1 + rate))
    assert abs(drawn.mean().item() - mean) <= 4 * (sd / 20_000**0.5 + (shape / rate**2 / 50) ** 0.5)


# --- Gaussian mixtures beside hand-written updates --------------------------------------------------------------------


def expected_log_weights(alpha):
    return digamma(alpha) - digamma(alpha.sum())


def normalised(log_rho):
    """Responsibilities (N, K) and the sum of the logs of their normalisers."""
    top = log_rho.max(1, keepdims=True)
    log_sum = top + np.log(np.exp(log_rho - top).sum(1, keepdims=True))
    return np.exp(log_rho - log_sum), log_sum.sum()


def of_dirichlet(alpha, prior):
    return kl_divergence(dist.Dirichlet(tensor(alpha)), dist.Dirichlet(tensor(prior))).item()


def diagonal_by_hand(x, loc, tau, sweeps):
    """Blei et al. (2017), algorithm 1, for pi ~ Dir(1), mu ~ N(0, 5^2), tau ~ Gamma(2, 1), from points loc and tau.

    Yields the factors after each sweep, and the bound with the responsibilities that follow.
    """

    def responsibilities(log_pi, e_mu, v_mu, e_tau, e_log_tau):
        squares = (x[:, None] - e_mu) ** 2 + v_mu  # (N, K, D)
        return normalised(log_pi + 0.5 * (e_log_tau - e_tau * squares - math.log(2 * math.pi)).sum(-1))

    e_tau = tau
    r, _ = responsibilities(np.log(np.full(K, 1 / K)), loc, 0.0, tau, np.log(tau))
    for _ in range(sweeps):
        count = r.sum(0)[:, None]
        alpha = 1.0 + r.sum(0)
        v_mu = 1 / (1 / 25 + count * e_tau)
        e_mu = v_mu * e_tau * (r.T @ x)
        squares = (x[:, None] - e_mu) ** 2 + v_mu
        a, b = np.tile(2.0 + count / 2, (1, loc.shape[1])), 1.0 + 0.5 * (r[..., None] * squares).sum(0)
        e_tau = a / b
        r, log_evidence = responsibilities(expected_log_weights(alpha), e_mu, v_mu, e_tau, digamma(a) - np.log(b))
        of_mu = kl_divergence(dist.Normal(tensor(e_mu), tensor(v_mu) ** 0.5), dist.Normal(tensor(0.0), tensor(5.0)))
        of_tau = kl_divergence(dist.Gamma(tensor(a), tensor(b)), dist.Gamma(tensor(2.0), tensor(1.0)))
        kl = of_dirichlet(alpha, np.ones(K)) + of_mu.sum().item() + of_tau.sum().item()
        yield {"weights": alpha, "loc": (e_mu, v_mu), "tau": (a, b)}, log_evidence - kl


def test_every_sweep_of_a_diagonal_mixture_is_that_of_the_textbook():
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K)))
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([K, 4]).to_event(2))
        tau = pyro.sample("tau", dist.Gamma(2.0, 1.0).expand([K, 4]).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
            pyro.sample("x", dist.Normal(loc[z], tau[z] ** -0.5).to_event(1), obs=x)

    loc, tau = IRIS[[0, 60, 120]], np.full((K, 4), 2.0)
    start = {"loc": tensor(loc), "tau": tensor(tau), "weights": tensor(np.full(K, 1 / K))}
    for sweep, (factors, bound) in enumerate(diagonal_by_hand(IRIS, loc, tau, SWEEPS)):
        fit = cavi(Pair(model), IRIS, start=start, max_iters=sweep, tol=0)
        assert fit.history[-1].item() == pytest.approx(bound, rel=1e-8)
        found = fit.posterior("loc"), fit.posterior("tau")
        np.testing.assert_allclose(fit.posterior("weights").concentration, factors["weights"], rtol=1e-8)
        np.testing.assert_allclose(found[0].mean, factors["loc"][0], rtol=1e-8)
        np.testing.assert_allclose(found[0].variance, factors["loc"][1], rtol=1e-8)
        np.testing.assert_allclose(found[1].concentration, factors["tau"][0], rtol=1e-8)
        np.testing.assert_allclose(found[1].rate, factors["tau"][1], rtol=1e-8)
    assert sweep == SWEEPS - 1


def of_wishart(df, scale, df0, scale0):
    """KL of two Wisharts (Bishop 2006, B.78 to B.82)."""
    size = len(scale)

    def log_b(nu, w):
        return -nu / 2 * np.linalg.slogdet(w)[1] - nu * size / 2 * math.log(2) - multigammaln(nu / 2, size)

    log_det = digamma((df - np.arange(size)) / 2).sum() + size * math.log(2) + np.linalg.slogdet(scale)[1]
    cross = (df - df0) / 2 * log_det - df * size / 2 + df / 2 * np.trace(np.linalg.solve(scale0, scale))
    return log_b(df, scale) - log_b(df0, scale0) + cross


def full_by_hand(x, loc, matrix, sweeps):
    """Bishop (2006), section 10.2, for independent mu ~ N(0, 5^2 I) and Lambda ~ Wishart(6, I)."""
    D = x.shape[1]
    prior = dist.MultivariateNormal(torch.zeros(D).double(), 25.0 * torch.eye(D).double())

    def responsibilities(log_pi, e_mu, v_mu, e_mat, log_det):
        away = x[:, None] - e_mu
        quadratic = np.einsum("nkd,kde,nke->nk", away, e_mat, away) + np.einsum("kde,kde->k", e_mat, v_mu)
        return normalised(log_pi + 0.5 * (log_det - quadratic - D * math.log(2 * math.pi)))

    e_mat = matrix
    flat = np.log(np.full(K, 1 / K))
    r, _ = responsibilities(flat, loc, np.zeros((K, D, D)), matrix, np.linalg.slogdet(matrix)[1])
    for _ in range(sweeps):
        count = r.sum(0)
        alpha = 1.0 + count
        v_mu = np.linalg.inv(np.eye(D) / 25 + count[:, None, None] * e_mat)
        e_mu = np.einsum("kde,kef,kf->kd", v_mu, e_mat, r.T @ x)
        away = x[:, None] - e_mu
        scatter = np.einsum("nk,nkd,nke->kde", r, away, away) + count[:, None, None] * v_mu
        df, scale = 6.0 + count, np.linalg.inv(np.eye(D) + scatter)
        e_mat = df[:, None, None] * scale
        log_det = np.array([digamma((nu - np.arange(D)) / 2).sum() for nu in df])
        log_det += D * math.log(2) + np.linalg.slogdet(scale)[1]
        r, log_evidence = responsibilities(expected_log_weights(alpha), e_mu, v_mu, e_mat, log_det)
        kl = of_dirichlet(alpha, np.ones(K))
        kl += kl_divergence(dist.MultivariateNormal(tensor(e_mu), tensor(v_mu)), prior).sum().item()
        kl += sum(of_wishart(df[k], scale[k], 6.0, np.eye(D)) for k in range(K))
        yield {"weights": alpha, "loc": (e_mu, v_mu), "matrix": (df, scale)}, log_evidence - kl


@pytest.mark.parametrize("cells", ["normal", "multivariate"])
def test_every_sweep_of_a_full_mixture_is_that_of_the_textbook(cells):
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K)))
        prior = dist.Normal(0.0, 5.0).expand([K, 4]).to_event(2)
        if cells == "multivariate":
            prior = dist.MultivariateNormal(torch.zeros(4), 25.0 * torch.eye(4)).expand([K]).to_event(1)
        loc = pyro.sample("loc", prior)
        wishart = dist.Wishart(torch.tensor(6.0), precision_matrix=torch.eye(4)).expand([K]).to_event(1)
        matrix = pyro.sample("matrix", wishart)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
            pyro.sample("x", dist.MultivariateNormal(loc[z], precision_matrix=matrix[z]), obs=x)

    loc, matrix = IRIS[[0, 60, 120]], np.stack([np.eye(4) * 3] * K)
    start = {"loc": tensor(loc), "matrix": tensor(matrix), "weights": tensor(np.full(K, 1 / K))}
    for sweep, (factors, bound) in enumerate(full_by_hand(IRIS, loc, matrix, SWEEPS)):
        fit = cavi(Pair(model), IRIS, start=start, max_iters=sweep, tol=0)
        assert fit.history[-1].item() == pytest.approx(bound, rel=1e-8)
        found = fit.posterior("loc"), fit.posterior("matrix")
        np.testing.assert_allclose(fit.posterior("weights").concentration, factors["weights"], rtol=1e-8)
        np.testing.assert_allclose(found[0].mean, factors["loc"][0], rtol=1e-8)
        np.testing.assert_allclose(found[0].covariance_matrix, factors["loc"][1], rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(found[1].df, factors["matrix"][0], rtol=1e-8)
        np.testing.assert_allclose(found[1].covariance_matrix, factors["matrix"][1], rtol=1e-7, atol=1e-10)
    assert sweep == SWEEPS - 1


# --- mean field of a normal: what Bishop's figure 10.2 shows ----------------------------------------------------------


def test_the_mean_field_of_a_normal_posterior_has_its_means_and_conditional_variances():
    """Two effects that add up in every row: the posterior is normal and correlated (Bishop, eq. 10.13 to 10.15)."""
    rows = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [0, 0]])
    y = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)

    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a[rows[:, 0]] + b[rows[:, 1]], 0.5), obs=y)

    design = np.concatenate([np.eye(2)[rows[:, 0]], np.eye(2)[rows[:, 1]]], 1)
    precision = np.diag([0.25, 0.25, 1.0, 1.0]) + design.T @ design / 0.25
    exact = np.linalg.solve(precision, design.T @ y.numpy() / 0.25)
    fit = cavi(Pair(model), y, tol=1e-14)
    means = torch.cat([fit.params["a"], fit.params["b"]]).numpy()
    variances = torch.cat([fit.posterior("a").variance, fit.posterior("b").variance]).numpy()
    np.testing.assert_allclose(means, exact, atol=1e-6)
    np.testing.assert_allclose(variances, 1 / np.diag(precision), rtol=1e-9)
    noise = design @ np.diag([4.0, 4.0, 1.0, 1.0]) @ design.T + 0.25 * np.eye(5)
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])  # KL of the two normals
    assert fit.history[-1].item() == pytest.approx(multivariate_normal.logpdf(y, np.zeros(5), noise) - gap, abs=1e-8)
