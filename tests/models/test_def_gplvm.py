"""The sparse gamma deep exponential family and the Gaussian process latent variable model."""

import math

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import PCA
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from latentzoo import zoo
from latentzoo.inference.base.errors import OptionError
from latentzoo.inference.trace.handlers import Bind, engine_state

pytestmark = pytest.mark.filterwarnings("ignore::latentzoo.inference.base.errors.ConvergenceWarning")

LINES = load_digits().data[:150].reshape(-1, 8, 8).sum(2)  # ink in each of 8 lines
IRIS, SPECIES = load_iris(return_X_y=True)
IRIS = (IRIS - IRIS.mean(0)) / IRIS.std(0)


# --- deep exponential family ------------------------------------------------------------------------------------------


def test_one_layer_is_gamma_poisson_factorization():
    options = {"inference": "svi", "num_steps": 100, "tol": 0, "seed": 2}
    ours = zoo.fit("sparse_gamma_def", LINES, units=(3,), **options)
    theirs = zoo.fit("gamma_poisson_factorization", LINES, num_factors=3, **options)
    torch.testing.assert_close(ours.history, theirs.history)
    torch.testing.assert_close(ours.score(), theirs.score())
    torch.testing.assert_close(ours.params["w0"], theirs.params["beta"])


def test_its_density_is_the_product_of_its_layers():
    """Beside scipy's densities, a layer at a time."""
    pair = zoo.create("sparse_gamma_def", units=(3, 2), shape=0.5, rate=0.7, weight_shape=0.4, weight_rate=0.6)
    torch.manual_seed(0)
    x = torch.poisson(torch.full((4, 5), 3.0))
    trace = poutine.trace(pair.model).get_trace(x)
    value = {name: trace.nodes[name]["value"].double().numpy() for name in ("w0", "w1", "z1", "z2")}
    wanted = sum(stats.gamma.logpdf(value[name], 0.4, scale=1 / 0.6).sum() for name in ("w0", "w1"))
    wanted += stats.gamma.logpdf(value["z2"], 0.5, scale=1 / 0.7).sum()
    wanted += stats.gamma.logpdf(value["z1"], 0.5, scale=value["z2"] @ value["w1"] / 0.5).sum()
    wanted += stats.poisson.logpmf(x.numpy(), value["z1"] @ value["w0"]).sum()
    assert float(trace.log_prob_sum()) == pytest.approx(wanted, rel=1e-4)


def test_scores_of_two_layers_are_those_of_draws_from_the_prior():
    torch.manual_seed(0)
    x = torch.poisson(torch.tensor([[1.0, 2.0, 0.5]]).repeat(30, 1)).numpy()
    fit = zoo.fit("sparse_gamma_def", x, units=(2, 2), num_steps=700, tol=0)
    assert fit.log_likelihood < float(fit.score(x).sum())
    draws = fit.shared_draws(60)
    generator = np.random.default_rng(0)
    each = []
    for s in range(60):
        w0, w1 = draws["w0"][s].numpy(), draws["w1"][s].numpy()
        z2 = generator.gamma(0.3, 1 / 0.3, (3000, 2))
        z1 = generator.gamma(0.3, 1.0, (3000, 2)) * (z2 @ w1) / 0.3
        rate = np.maximum(z1 @ w0, 1e-300)
        log_p = stats.poisson.logpmf(x[:, None], rate).sum(-1)  # (N, 3000)
        each.append(torch.from_numpy(log_p).logsumexp(1) - math.log(3000))
    wanted = torch.stack(each).logsumexp(0) - math.log(60)
    away = fit.score(x) - wanted  # a bound of 200 draws, beside an estimate with noise of its own
    assert away.abs().max() < 1
    assert -0.5 < away.mean() < 0.1


def test_missing_counts_are_foretold_better_than_by_the_mean_of_their_column():
    hidden = np.random.default_rng(0).random(LINES.shape) < 0.1
    holes = np.where(hidden, np.nan, LINES)
    fit = zoo.fit("sparse_gamma_def", holes, units=(4, 2), num_steps=500, tol=0)
    away = np.abs(np.asarray(fit.impute(holes)) - LINES)[hidden].mean()
    assert away < 0.93 * np.abs(np.nanmean(holes, 0) - LINES)[hidden].mean()
    again = np.asarray(fit.reconstruct(holes))
    assert np.abs(again - LINES)[~hidden].mean() < 0.6 * np.abs(LINES.mean(0) - LINES)[~hidden].mean()


def test_layers_that_are_none_are_refused():
    for units, message in (((), "units: met none"), ((3, 0), r"units \(layer 2\): met 0")):
        with pytest.raises(OptionError, match=message):
            zoo.create("sparse_gamma_def", units=units)
    with pytest.raises(OptionError, match="weight_rate: met 0, expected a positive number"):
        zoo.create("sparse_gamma_def", weight_rate=0)


# --- Gaussian processes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curves():
    return zoo.fit("gplvm", IRIS, num_inducing=10, num_steps=600, tol=0)


def test_a_linear_kernel_finds_the_subspace_of_principal_components():
    fit = zoo.fit("gplvm", IRIS, kernel="linear", num_inducing=6, num_steps=500, tol=0)
    found = fit.latents()["z"].mean.numpy()
    bases = [np.linalg.qr(one - one.mean(0))[0] for one in (found, PCA(2).fit_transform(IRIS))]
    assert np.linalg.svd(bases[0].T @ bases[1])[1].min() > 0.995
    best = zoo.fit("probabilistic_pca", IRIS, num_factors=2)
    assert best.params["scale"] == pytest.approx(float(fit.params["scale"]), rel=0.15)
    assert fit.log_likelihood < best.log_likelihood + 1


def test_its_latents_tell_the_species_apart_as_principal_components_do(curves):
    found = curves.latents()["z"].mean.numpy()
    ours, theirs = (
        cross_val_score(KNeighborsClassifier(5), one, SPECIES, cv=5).mean()
        for one in (found, PCA(2).fit_transform(IRIS))
    )
    assert ours > theirs - 0.03


def test_the_values_at_a_point_are_those_of_a_conditioned_normal(curves):
    """Mean and variance of x given z and u, by the joint normal of the functions there and at the inducing points."""
    part = {name: value.double() for name, value in curves.params.items()}
    z = torch.tensor([[0.3, -0.8], [1.5, 0.2]], dtype=torch.float64)
    x = torch.zeros(2, 4, dtype=torch.float64)
    with engine_state(0), poutine.trace() as tracer, poutine.condition(data={"z": z}), Bind(part):
        curves.pair.model(x)
    found = tracer.trace.nodes["x"]["fn"].base_dist

    def kernel(a, b):
        away = (a[:, None] - b[None]) / part["lengthscale"]
        return part["variance"] * torch.exp(-0.5 * (away**2).sum(-1))

    inducing = part["inducing"]
    inner = kernel(inducing, inducing) + 1e-5 * torch.eye(len(inducing))
    values = part["u"] @ torch.linalg.cholesky(inner).mT  # (D, M) of the functions themselves
    gain = kernel(z, inducing) @ inner.inverse()
    torch.testing.assert_close(found.loc, gain @ values.mT + part["loc"], atol=1e-5, rtol=1e-4)
    variance = part["variance"] - (gain * kernel(z, inducing)).sum(1) + part["scale"] ** 2
    torch.testing.assert_close(found.scale**2, variance.unsqueeze(1).expand(2, 4), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_rows_that_it_has_not_seen_find_their_latents(curves):
    """New rows that are those of the fit lie where these lie; and missing cells are foretold by the others."""
    known = curves.latents()["z"].mean
    moved = IRIS[:20] + 1e-6
    again = curves.latents(moved)["z"].mean
    assert (again - known[:20]).abs().mean() < 0.1
    hidden = np.random.default_rng(0).random(IRIS[::5].shape) < 0.15
    filled = np.asarray(curves.impute(np.where(hidden, np.nan, IRIS[::5])))
    assert np.abs(filled - IRIS[::5])[hidden].mean() < 0.6 * np.abs(IRIS[::5])[hidden].mean()


def test_rows_without_a_structure_are_fitted():
    """Nothing is there for the functions to say, so their variance falls."""
    noise = np.random.default_rng(0).normal(size=(60, 4))
    fit = zoo.fit("gplvm", noise, num_inducing=8, num_steps=200, tol=0)
    assert 0 < fit.params["variance"] < 1
    assert 0.5 < fit.params["scale"] < 1.2
    assert fit.history.isfinite().all()


def test_no_other_kernel_is_known():
    with pytest.raises(OptionError, match="kernel: met 'matern', expected one of rbf, linear"):
        zoo.create("gplvm", kernel="matern")


def test_pictures_show_where_rows_lie_and_what_units_bring(curves):
    layered = zoo.fit("sparse_gamma_def", LINES, units=(3, 2), num_steps=20, tol=0)
    panels = [axes for axes in layered.plot().axes if axes.images]
    shown = [np.asarray(axes.images[0].get_array()) for axes in panels]
    assert [one.shape for one in shown] == [(2, 3), (3, 8)]
    wanted = layered.params["w0"] / layered.params["w0"].sum(1, keepdim=True)
    np.testing.assert_allclose(shown[1], wanted.numpy())
    with pytest.raises(OptionError, match="kind: met 'units', but it has no layers of positive weights"):
        curves.plot("units")
    figure = curves.plot()
    assert "posterior means" in figure.axes[0].get_title(loc="left")
