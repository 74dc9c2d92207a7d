"""Registered models with priors beside closed forms, quadrature, and the maximum of the likelihood."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import betaln, gammaln
from scipy.stats import gamma, multivariate_normal

from latentzoo import zoo
from latentzoo.inference.base.errors import OptionError
from latentzoo.inference.data.bundled.tables import load_bundled


def test_one_component_of_counts_has_the_bound_of_its_evidence():
    """Gamma and Poisson, column by column (Gelman et al. 2013, section 2.6)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(torch.tensor([[2.0, 5.0, 0.5]]).expand(40, 3).double(), generator=generator)
    fit = zoo.fit("gamma_poisson_mixture", x, num_components=1, shape=1.5)
    total, mean = x.sum(0).numpy(), x.mean(0).numpy()
    shape, rate = 1.5, 1.5 / mean
    evidence = shape * np.log(rate) - gammaln(shape) + gammaln(shape + total)
    evidence -= (shape + total) * np.log(rate + len(x)) + gammaln(x.numpy() + 1).sum(0)
    assert fit.history[-1].item() == pytest.approx(evidence.sum(), abs=1e-9)


def test_one_class_has_the_bound_of_its_evidence():
    """Two answers each: Beta and Bernoulli, item by item."""
    table = load_bundled("carcinoma")
    fit = zoo.fit("bayesian_latent_class", table, num_classes=1, strength=0.5)
    yes = (table == "yes").sum().to_numpy()
    evidence = betaln(0.5 + yes, 0.5 + len(table) - yes) - betaln(0.5, 0.5)
    assert fit.history[-1].item() == pytest.approx(evidence.sum(), abs=1e-9)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_change_of_units_changes_the_density_alone(covariance):
    """The priors of a Gaussian mixture are scaled by the data: the bound moves by the log of the units."""
    x = torch.from_numpy(load_bundled("iris").to_numpy(copy=True))
    units = torch.tensor([10.0, 0.01, 3.0, 1e4], dtype=torch.float64)
    pair = zoo.create("bayesian_gaussian_mixture", num_components=4, covariance=covariance)
    one, two = (zoo.fit(pair, data, seed=3, tol=1e-11) for data in (x, x * units + 5.0))
    assert two.history[-1].item() == pytest.approx(one.history[-1].item() - 150 * units.log().sum().item(), abs=1e-5)
    torch.testing.assert_close(two.latents()["z"], one.latents()["z"], rtol=1e-4, atol=1e-4)


def test_a_constant_column_is_no_trouble():
    x = torch.from_numpy(load_bundled("iris").to_numpy(copy=True))
    x[:, 2] = 3.0
    for covariance in ("full", "diagonal"):
        fit = zoo.fit("bayesian_gaussian_mixture", x, num_components=2, covariance=covariance)
        assert torch.isfinite(fit.score()).all()


def evidence_of_schools(effect, error):
    """log p(y), means of the schools and of the population, by quadrature over the variance between them."""
    center, variance = effect.mean(), effect.var()

    def given(between):
        noise = np.diag(error**2 + 1 / between) + variance
        prior = np.full((8, 8), variance) + np.eye(8) / between  # covariance of the means of the schools
        means = center + prior @ np.linalg.solve(noise, effect - center)
        return multivariate_normal.pdf(effect, np.full(8, center), noise), means

    def weight(log_between):
        between = math.exp(log_between)
        return gamma.pdf(between, 0.5, scale=2 / variance) * between

    def mean(log_between, school):
        density, means = given(math.exp(log_between))
        return weight(log_between) * density * means[school]

    low, high = -14.0, 2.0
    total = quad(lambda t: weight(t) * given(math.exp(t))[0], low, high, epsabs=0)[0]
    means = [quad(mean, low, high, args=(school,), epsabs=0)[0] for school in range(8)]
    return math.log(total), np.array(means) / total


def test_eight_schools_beside_quadrature():
    """The mean field lies below the evidence, by little, and its means are near."""
    table = load_bundled("eight_schools")
    fit = zoo.fit("hierarchical_normal", table, scale="standard_error")
    effect, error = table["effect"].to_numpy(), table["standard_error"].to_numpy()
    evidence, means = evidence_of_schools(effect, error)
    assert evidence - 1.2 < fit.history[-1].item() < evidence
    assert np.abs(fit.params["group_mean"].numpy() - means).max() < 0.2


def test_dyestuff_has_the_published_variance_within_batches():
    """2451 grams squared (Davies and Goldsmith 1972), and means drawn towards that of all."""
    table = load_bundled("dyestuff")
    fit = zoo.fit("hierarchical_normal", table)
    factor, raw = fit.posterior("within"), table.groupby("batch")["yield"].mean().to_numpy()
    assert (factor.rate / factor.concentration).item() == pytest.approx(2451.25, rel=0.02)
    shrunk = fit.params["group_mean"].numpy()
    assert (np.abs(shrunk - 1527.5) < np.abs(raw - 1527.5)).all()
    assert fit.params["mean"].item() == pytest.approx(1527.5, abs=1e-6)


def test_the_most_probable_raters_are_those_of_the_hierarchical_variant():
    """A uniform prior of the weights adds the log of its density, and changes nothing else."""
    one = zoo.fit("dawid_skene", "anesthesia", variant="hierarchical")
    two = zoo.fit("bayesian_dawid_skene", "anesthesia", inference="em")
    assert two.history[-1].item() == pytest.approx(one.history[-1].item() + math.lgamma(4), abs=1e-6)
    torch.testing.assert_close(two.params["confusion"], one.params["confusion"], rtol=1e-4, atol=1e-5)


def test_the_classes_of_the_patients_are_those_of_the_most_probable_raters():
    """But for one, on whom the mean field is undecided."""
    point = zoo.fit("dawid_skene", "anesthesia", variant="hierarchical").latents()["z"]
    found = zoo.fit("bayesian_dawid_skene", "anesthesia", restarts=5).latents()["z"]
    other = found.argmax(1) != point.argmax(1)
    assert other.sum() == 1
    assert found[other].max() < 0.6


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bayesian_gaussian_mixture", {"prior": "uniform"}, "prior: met 'uniform', expected one of"),
        ("bayesian_gaussian_mixture", {"covariance": "tied"}, "covariance: met 'tied', expected one of"),
        ("bayesian_gaussian_mixture", {"concentration": 0.0}, "concentration: met 0.0, expected a number above 0"),
        ("gamma_poisson_mixture", {"shape": -1.0}, "shape: met -1.0, expected a number above 0"),
        ("bayesian_latent_class", {"prior": "dirichlet_process", "num_classes": 1}, "met 1, expected at least 2"),
        ("bayesian_dawid_skene", {"expected": 1.0}, "expected: met 1.0, expected a share between 0 and 1"),
        ("hierarchical_normal", {"strength": 0.0}, "strength: met 0.0, expected a number above 0"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(OptionError, match=message):
        zoo.create(name, **options)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t, {}, "met 2 columns of values beside column 'school' of groups, expected one"),
        (lambda t: t.assign(standard_error=-1.0), {"scale": "standard_error"}, "expected numbers above 0"),
        (lambda t: t.assign(school=[0.5] * 8), {"scale": "standard_error"}, "'school' holds groups"),
        (lambda t: t, {"scale": "sd"}, "scale: met 'sd', which is no column"),
    ],
)
def test_tables_that_hold_no_groups_are_refused(change, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.fit("hierarchical_normal", change(load_bundled("eight_schools")), **options)
