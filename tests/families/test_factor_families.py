"""Every family of factors against torch's and scipy's distributions, and against its own log normaliser."""

import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from latentzoo.inference.families.factors import (
    BetaFactor,
    DirichletFactor,
    GammaFactor,
    InverseGammaFactor,
    MultivariateNormalFactor,
    NormalFactor,
    WishartFactor,
    factor_family,
)


def definite(*shape, size=3):
    root = torch.randn(*shape, size, size + 2, dtype=torch.float64)
    return root @ root.mT / size


def packed(matrix):
    """The lower triangle, cells off the diagonal twice: the coefficients of the cells of a symmetric matrix."""
    rows, cols = torch.tril_indices(matrix.shape[-1], matrix.shape[-1])
    return matrix[..., rows, cols] * torch.where(rows == cols, 1.0, 2.0)


def draw(size, low=0.5):
    return low + 3 * torch.rand(size, dtype=torch.float64)


def cases():
    """Family, natural parameters (2, 4, T), and the distribution (2, 4) that they should be."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loc, scale, a, b = torch.randn(2, 4).double(), draw((2, 4)), draw((2, 4), 1.2), draw((2, 4))
        vector, precision, inverse = torch.randn(2, 4, 3).double(), definite(2, 4), definite(2, 4)
        shares, df = draw((2, 4, 5)), draw((2, 4), 3.1)
    shift = (precision @ vector.unsqueeze(-1)).squeeze(-1)
    return {
        "Normal": (NormalFactor(), [loc / scale**2, -0.5 / scale**2], dist.Normal(loc, scale)),
        "MultivariateNormal": (
            MultivariateNormalFactor(),
            [*shift.unbind(-1), *(-0.5 * packed(precision)).unbind(-1)],
            dist.MultivariateNormal(vector, precision_matrix=precision),
        ),
        "Gamma": (GammaFactor(), [a - 1, -b], dist.Gamma(a, b)),
        "InverseGamma": (InverseGammaFactor(), [-a - 1, -b], dist.InverseGamma(a, b)),
        "Beta": (BetaFactor(), [a - 1, b - 1], dist.Beta(a, b)),
        "Dirichlet": (DirichletFactor(), (shares - 1).unbind(-1), dist.Dirichlet(shares)),
        "Wishart": (
            WishartFactor(),
            [(df - 4) / 2, *(-0.5 * packed(inverse)).unbind(-1)],
            dist.Wishart(df, precision_matrix=inverse),
        ),
    }


CASES = cases()
EACH = pytest.mark.parametrize("name", CASES)


def case(name):
    family, parts, fn = CASES[name]
    return family, torch.stack(list(parts), -1), fn


def values(name, num):
    """Draws from the distribution, (num, 2, 4, ...)."""
    family, eta, fn = case(name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return family.distribution(eta).sample((num,)) if name == "Wishart" else fn.sample((num,))


@EACH
def test_means_are_the_gradient_of_the_log_normalizer(name):
    family, eta, _ = case(name)
    leaf = eta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(family.log_normalizer(leaf).sum(), leaf)
    torch.testing.assert_close(family.mean(eta), gradient, rtol=1e-9, atol=1e-9)


@EACH
def test_density_is_that_of_the_distribution(name):
    family, eta, fn = case(name)
    theta = values(name, 20)
    log_prob = (family.statistics(theta) * eta).sum(-1) - family.log_normalizer(eta)
    torch.testing.assert_close(log_prob, fn.log_prob(theta), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(family.distribution(eta).log_prob(theta), fn.log_prob(theta), rtol=1e-9, atol=1e-9)


@EACH
def test_entropy_and_mean_are_those_of_the_distribution(name):
    family, eta, fn = case(name)
    entropy = family.log_normalizer(eta) - (eta * family.mean(eta)).sum(-1)
    expected = fn.entropy()
    if name == "Wishart":
        pairs = zip(fn.df.flatten(), fn.covariance_matrix.reshape(-1, 3, 3), strict=True)
        known = [stats.wishart(float(df), scale.numpy()).entropy() for df, scale in pairs]
        expected = torch.tensor(known, dtype=torch.float64).reshape(2, 4)
    torch.testing.assert_close(entropy, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(family.center(eta), fn.mean, rtol=1e-9, atol=1e-9)


@EACH
def test_moments_are_averages_over_draws(name):
    """Powers, logarithms and determinants as a site would ask for them, against 20,000 draws, to 6 standard errors."""
    family, eta, _ = case(name)
    mu, theta = family.mean(eta), values(name, 20_000)
    found = {
        "1": (family.power(mu, 1.0), theta),
        "2": (family.power(mu, 2.0), theta**2),
        "-1": (family.power(mu, -1.0), theta**-1 if theta.dim() == 3 else None),
        "log": (family.log(mu), theta.abs().log()),
        "log1m": (family.log1m(mu), (1 - theta).abs().log()),
        "log_det": (family.log_det(mu), theta.logdet() if name == "Wishart" else None),
    }
    known = {key: pair for key, pair in found.items() if pair[0] is not None}
    assert known
    for moment, draws in known.values():
        error = draws.std(0) / len(draws) ** 0.5
        assert ((moment - draws.mean(0)).abs() <= 6 * error).all()
    if name == "MultivariateNormal":
        torch.testing.assert_close(family.covariance(mu), CASES[name][2].covariance_matrix, rtol=1e-8, atol=1e-8)


@EACH
def test_what_is_no_distribution_is_seen(name):
    family, eta, fn = case(name)
    assert family.proper(eta).all()
    assert family.size(fn.event_shape) == eta.shape[-1]
    assert not family.proper(-eta.abs() * 0 + (2.0 if name not in ("Beta", "Dirichlet") else -3.0)).any()
    assert type(factor_family(fn)) is type(family)


def test_the_mean_of_an_inverse_gamma_that_has_none_is_its_mode():
    eta = torch.tensor([[-1.5, -2.0]], dtype=torch.float64)  # shape 0.5, rate 2
    assert InverseGammaFactor().center(eta).item() == pytest.approx(2.0 / 1.5)
