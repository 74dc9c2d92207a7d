"""Published numbers: fits of well-known data end where the papers, and other packages, say that they end."""

import math

import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from stories import STORIES

from latentzoo import Pair, em, zoo


@pytest.fixture
def table(shared_data):
    """A published file as a tensor of the columns asked for."""

    def read(name, columns=None):
        frame = pd.read_csv(shared_data(name), comment="#")
        return torch.tensor(frame[columns or list(frame.columns)].to_numpy(), dtype=torch.float64)

    return read


def mixture(x, restarts=20, **hyperparameters):
    return em(zoo.create("gaussian_mixture", **hyperparameters), x, restarts=restarts)


def in_order(fit, key):
    """The params with components in the order of one of them."""
    order = fit.params[key].argsort()
    return {name: value[order] if value.dim() else value for name, value in fit.params.items()}


# --- Dempster, Laird and Rubin (1977), table 1 ------------------------------------------------------------------------


def test_genetic_linkage(table):
    counts, model = table("dlr_genetic_linkage.csv", ["count"]).flatten(), STORIES["linkage"].model
    published = "0.608247423 0.624321051 0.626488879 0.626777323 0.626815632 0.626820719 0.626821395 0.626821484"
    options = dict(weights=counts, start={"chance": torch.tensor(0.5)}, tol=0)
    for iters, expected in enumerate(map(float, published.split()), 1):
        fit = em(Pair(model), torch.arange(4), max_iters=iters, **options)
        assert fit.params["chance"].item() == pytest.approx(expected, abs=1e-9)
    fit = em(Pair(model), torch.arange(4), max_iters=30, **options)
    assert fit.params["chance"].item() == pytest.approx((15 + math.sqrt(53809)) / 394, abs=1e-9)


# --- Hasselblad (1969) ------------------------------------------------------------------------------------------------


def test_deaths_of_women_over_80_are_two_poissons(table):
    frequencies = table("hasselblad_deaths.csv")
    pair = zoo.create("poisson_mixture", num_components=2)
    fit = em(pair, frequencies[:, 0], weights=frequencies[:, 1], restarts=5)
    found = in_order(fit, "rate")
    assert fit.num_rows == 1096
    assert found["weights"][0].item() == pytest.approx(0.3599, abs=3e-4)
    assert found["rate"].tolist() == pytest.approx([1.2561, 2.6634], abs=3e-4)
    assert fit.log_likelihood == pytest.approx(-1989.946, abs=6e-4)
    days = frequencies[:, 0].repeat_interleave(frequencies[:, 1].long())
    assert em(pair, days, restarts=5).log_likelihood == pytest.approx(fit.log_likelihood, rel=1e-9)


# --- mixtools (Benaglia et al. 2009) and mclust -----------------------------------------------------------------------


def test_waiting_times_of_old_faithful_are_two_normals(table):
    x = table("faithful.csv", ["waiting"]).flatten()
    fit = mixture(x, num_components=2)
    found = in_order(fit, "loc")
    assert fit.log_likelihood == pytest.approx(-1034.002, abs=6e-4)
    numbers = [found["weights"][0].item(), *found["loc"].tolist(), *found["scale"].tolist()]
    assert numbers == pytest.approx([0.360887, 54.614893, 80.091093, 5.871245, 5.867716], abs=1e-4)


def test_waiting_times_of_old_faithful_are_two_normals_of_one_variance(table):
    x = table("faithful.csv", ["waiting"]).flatten()
    fit = mixture(x, num_components=2, covariance="tied")
    found = in_order(fit, "loc")
    assert fit.log_likelihood == pytest.approx(-1034.002, abs=6e-4)
    numbers = [found["weights"][0].item(), *found["loc"].tolist(), found["scale"].item()]
    assert numbers == pytest.approx([0.36085, 54.61364, 80.09031, 5.86909], abs=1e-4)


def test_velocities_of_galaxies_are_three_normals(table):
    fit = mixture(table("galaxies.csv", ["dat"]).flatten() / 1000, num_components=3)
    assert fit.log_likelihood == pytest.approx(-203.1792, abs=2e-3)


def test_acidity_of_lakes_is_two_normals_of_one_variance(table):
    fit = mixture(table("acidity.csv").flatten(), num_components=2, covariance="tied")
    assert fit.log_likelihood == pytest.approx(-185.9493, abs=2e-3)


@pytest.mark.parametrize(
    ("components", "covariance", "bic"),
    [(2, "full", 574.0178), (3, "full", 580.839), (2, "diagonal", 857.5515), (2, "tied", 688.0972)],
)
def test_iris_by_the_table_of_mclust(components, covariance, bic):
    x = torch.tensor(load_iris()["data"])
    fit = mixture(x, num_components=components, covariance=covariance)
    assert fit.bic == pytest.approx(bic, abs=2e-3)


# --- poLCA; Agresti (2002), Goodman (1974), Dayton (1998) -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "log_likelihood", "tolerance"),
    [
        ("carcinoma", 2, -317.2568, 6e-4),
        ("carcinoma", 3, -293.705, 6e-4),
        ("carcinoma", 4, -289.2858, 6e-4),
        ("stouffer_toby", 1, -543.6498, 3e-4),
        ("stouffer_toby", 2, -504.4677, 3e-4),
        ("stouffer_toby", 3, -503.3011, 3e-4),
        ("cheating", 2, -440.0271, 1e-4),
    ],
)
def test_latent_classes_reach_the_published_likelihood(table, name, classes, log_likelihood, tolerance):
    columns = ["LIEEXAM", "LIEPAPER", "FRAUD", "COPYEXAM"] if name == "cheating" else None
    x = table(f"{name}.csv", columns) - 1
    fit = em(zoo.create("latent_class", num_classes=classes), x, restarts=40, tol=1e-9)
    assert fit.log_likelihood == pytest.approx(log_likelihood, abs=tolerance)


def test_carcinoma_with_three_classes_fits_as_published(table):
    x = table("carcinoma.csv") - 1
    fit = em(zoo.create("latent_class", num_classes=3), x, restarts=20)
    assert (fit.aic, fit.bic) == pytest.approx((633.41, 697.1357), abs=1e-3)
    assert sorted(fit.params["weights"].tolist()) == pytest.approx([0.1817, 0.3736, 0.4447], abs=1e-3)
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 7)
    observed = (x.unsqueeze(1) == patterns).all(-1).double().sum(0)
    expected = len(x) * fit.score(patterns).exp()
    assert expected.sum().item() == pytest.approx(len(x), rel=1e-12)
    assert 2 * torch.xlogy(observed, observed / expected).sum().item() == pytest.approx(15.26171, abs=1e-3)
    assert ((observed - expected) ** 2 / expected).sum().item() == pytest.approx(20.50336, abs=1e-3)
