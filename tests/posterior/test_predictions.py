"""What products of latents foretell: means and deviations by hand, beside draws, and with gaps."""

import numpy as np
import pandas as pd
import pytest
import torch

from latentzoo import zoo
from latentzoo.inference.base.errors import OptionError
from latentzoo.inference.posterior.conjugate import predictions

RANDOM = np.random.default_rng(0)
TRUTH = RANDOM.normal(size=(60, 2)) @ RANDOM.normal(size=(2, 6)) + 2.0 + 0.3 * RANDOM.normal(size=(60, 6))
HIDDEN = RANDOM.random(TRUTH.shape) < 0.25
GAPS = np.where(HIDDEN, np.nan, TRUTH)


def fitted(name="bayesian_pca", **options):
    return zoo.fit(name, GAPS, num_factors=2, inference="cavi", **{"max_iters": 60, "tol": 0, **options})


def ratings(table):
    user, item = np.indices(table.shape)
    return pd.DataFrame({"user": user.ravel(), "item": item.ravel(), "rating": table.ravel()})


def test_principal_components_are_filled_in_by_the_means_of_the_factors():
    fit = fitted()
    z, w, mu = fit.posterior("z"), fit.posterior("loadings"), fit.posterior("loc")
    expected = (z.mean @ w.mean.mT + mu.mean).numpy()
    filled = fit.impute()
    np.testing.assert_allclose(fit.reconstruct(), expected, rtol=1e-10)
    np.testing.assert_allclose(filled[HIDDEN], expected[HIDDEN], rtol=1e-10)
    assert np.array_equal(filled[~HIDDEN], TRUTH[~HIDDEN])
    by_column = np.broadcast_to(np.nanmean(GAPS, 0), TRUTH.shape)
    assert np.square(filled - TRUTH)[HIDDEN].mean() < 0.25 * np.square(by_column - TRUTH)[HIDDEN].mean()


def test_deviations_are_those_of_a_product_of_independent_vectors():
    """Var z.w = m'Tm + n'Sn + tr ST of vectors with means m, n and covariances S, T."""
    fit = fitted()
    z, w, mu = fit.posterior("z"), fit.posterior("loadings"), fit.posterior("loc")
    m, S, n, T = z.mean, z.covariance_matrix, w.mean, w.covariance_matrix
    variance = torch.einsum("ni,dij,nj->nd", m, T, m) + torch.einsum("di,nij,dj->nd", n, S, n)
    variance = variance + torch.einsum("nij,dji->nd", S, T) + mu.variance
    found = predictions(fit)
    torch.testing.assert_close(found.sd, variance.sqrt())
    assert found.sd[torch.from_numpy(HIDDEN)].mean() > 1.05 * found.sd[torch.from_numpy(~HIDDEN)].mean()


def test_ratings_are_foretold_from_a_table_and_from_a_list_of_them_alike():
    start = {"traits": torch.from_numpy(np.random.default_rng(5).normal(size=(6, 2)))}
    options = {"start": start, "max_iters": 50, "tol": 0}
    wide = fitted("probabilistic_matrix_factorization", layout="wide", **options)
    listed = zoo.fit("probabilistic_matrix_factorization", ratings(GAPS), num_factors=2, inference="cavi", **options)
    table, lines = predictions(wide), predictions(listed)
    torch.testing.assert_close(lines.mean, table.mean.flatten())
    torch.testing.assert_close(lines.sd, table.sd.flatten())
    np.testing.assert_allclose(listed.impute()["rating"], wide.impute().ravel(), rtol=1e-8)

    draws = wide.sample_posterior(4000, seed=1)
    drawn = torch.einsum("snk,sdk->snd", draws["tastes"], draws["traits"])
    drawn = drawn + draws["user_bias"].unsqueeze(-1) + draws["item_bias"].unsqueeze(1)
    assert ((drawn.mean(0) - table.mean).abs() < 6 * table.sd / 4000**0.5).all()
    torch.testing.assert_close(drawn.std(0), table.sd, rtol=0.15, atol=0)


def test_new_rows_are_foretold_from_the_cells_they_have():
    fit = fitted()
    new = TRUTH[:3].copy()
    new[:, 0] = np.nan
    sure = predictions(fit, new)
    new[:, 1:4] = np.nan
    torch.testing.assert_close(torch.from_numpy(fit.impute(new)[:, 0]), predictions(fit, new).mean[:, 0])
    assert (predictions(fit, new).sd[:, 0] > sure.sd[:, 0]).all()


def test_a_fit_without_such_a_posterior_is_refused():
    with pytest.raises(OptionError, match="without a mean field over products"):
        predictions(zoo.fit("probabilistic_pca", TRUTH, num_factors=2))
