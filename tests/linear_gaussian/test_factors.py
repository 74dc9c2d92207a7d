"""Models with normal latents of the rows, summed out: against closed forms, brute force, and published numbers."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.decomposition import PCA, FactorAnalysis

from latentzoo import Pair, em, zoo
from latentzoo.inference.base.errors import ModelError
from latentzoo.inference.data.bundled.tables import load_bundled
from latentzoo.inference.linear_gaussian.loadings import em_step, find_factored, sums_of
from latentzoo.inference.linear_gaussian.posterior import varimax
from latentzoo.inference.posterior.exact import program_on
from latentzoo.inference.program.estep import expectations
from latentzoo.inference.trace.handlers import engine_state

IRIS = torch.tensor(load_iris().data)
WINE = torch.tensor(load_wine().data)
WINE = (WINE - WINE.mean(0)) / WINE.std(0, unbiased=False)
PHENOLS = WINE[:, [5, 6, 8, 11]]  # four columns of one factor


def with_holes(x, share=0.2, seed=0):
    holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    holes[:5] = False
    return torch.where(holes, torch.nan, x)


def moments_of(fit, k=None):
    """Mean and covariance of x (of component k) from the learned params."""
    loc, load, scale = (
        fit.params[n] if k is None or fit.params[n].dim() == (n == "scale") else fit.params[n][k]
        for n in ("loc", "load", "scale")
    )
    return loc, load @ load.mT + torch.diag((scale**2).expand(len(loc))), load, scale.expand(len(loc))


def log_density(row, mean, covariance):
    seen = ~np.isnan(row)
    if not seen.any():
        return 0.0
    return multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(row[seen])


# --- published numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "factors", "log_likelihood"),
    [
        (IRIS, 2, -404.9628),
        (WINE, 2, -2875.6363),
        (WINE, 10, -2614.4640),
        (torch.tensor(load_digits().data), 10, -287508.7350),
    ],
    ids=["iris", "wine", "wine", "digits"],
)
def test_probabilistic_pca_reaches_the_closed_form(x, factors, log_likelihood):
    fit = zoo.fit(zoo.create("probabilistic_pca", num_factors=factors), x)
    assert fit.log_likelihood == pytest.approx(log_likelihood, abs=1e-3)
    assert fit.log_likelihood == pytest.approx(PCA(factors).fit(x).score(x) * len(x), abs=3)  # divides by N - 1


def test_pca_from_a_random_start_finds_the_principal_subspace():
    start = {"load": torch.randn(13, 3, generator=torch.Generator().manual_seed(3)), "loc": torch.ones(13)}
    fit = zoo.fit("probabilistic_pca", WINE, num_factors=3, start=start)
    values, vectors = torch.linalg.eigh(torch.cov(WINE.T, correction=0))
    noise = values[:-3].mean()
    assert fit.params["scale"].item() ** 2 == pytest.approx(noise.item(), rel=1e-6)
    cosines = torch.linalg.svdvals(torch.linalg.qr(fit.params["load"])[0].mT @ vectors[:, -3:])
    torch.testing.assert_close(cosines, torch.ones(3, dtype=torch.float64))
    lengths = fit.params["load"].square().sum(0)
    torch.testing.assert_close(lengths, values.flip(0)[:3] - noise, rtol=1e-5, atol=1e-8)


def test_factor_analysis_of_wine():
    fit = zoo.fit("factor_analysis", WINE, num_factors=2)
    assert fit.log_likelihood == pytest.approx(-2747.1911, abs=2e-3)
    peer = FactorAnalysis(2, tol=1e-10, max_iter=5000, svd_method="lapack").fit(WINE)
    assert fit.log_likelihood >= peer.score(WINE) * len(WINE) - 1e-6
    np.testing.assert_allclose(fit.params["scale"] ** 2, peer.noise_variance_, rtol=1e-3)


def test_factor_analysis_of_iris_has_the_published_maximum_and_a_higher_one():
    fit = zoo.fit("factor_analysis", IRIS, num_factors=2, restarts=10)
    assert any(abs(mode.bound + 389.8749) < 2e-3 for mode in fit.mode_map)
    best = fit.mode_map[0]
    loc, covariance, *_ = moments_of(fit)
    direct = multivariate_normal(loc, covariance).logpdf(IRIS).sum()
    assert best.bound == pytest.approx(direct, abs=1e-6)
    assert best.bound > -389.8749


CHI_SQUARES = [(1, 611.44), (2, 75.74), (3, 22.81), (4, 4.63)]


@pytest.mark.parametrize(("factors", "published"), CHI_SQUARES)
def test_chi_square_of_the_girls(factors, published):
    """R's factanal keeps uniquenesses above 0.005, and so does the floor here."""
    x = load_bundled("girls")
    fit = zoo.fit("factor_analysis", x, num_factors=factors, restarts=5, variance_floor=0.005)
    n, p = x.shape
    saturated = -0.5 * n * (p * math.log(2 * math.pi) + np.linalg.slogdet(np.cov(x.T, ddof=0))[1] + p)
    chi_square = (n - 1 - (2 * p + 5) / 6 - 2 * factors / 3) * 2 * (saturated - fit.log_likelihood) / n
    assert chi_square == pytest.approx(published, abs=6e-3)
    assert fit.num_parameters == p + p * factors - factors * (factors - 1) // 2 + p


def test_uniquenesses_of_the_girls():
    fit = zoo.fit("factor_analysis", "girls", num_factors=1)
    published = [0.158, 0.135, 0.190, 0.187, 0.760, 0.829, 0.877, 0.801]
    assert (fit.params["scale"] ** 2).tolist() == pytest.approx(published, abs=6e-4)


def test_rows_of_the_girls_have_the_published_correlations(shared_data):
    published = pd.read_csv(shared_data("harman23_cor.csv"), comment="#").iloc[:, 1:9].to_numpy()
    np.testing.assert_allclose(np.cov(load_bundled("girls").T, ddof=0), published, atol=1e-12)


# --- against closed forms and brute force -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["probabilistic_pca", "factor_analysis"])
def test_scores_and_latents_are_those_of_the_closed_form(name):
    x = with_holes(WINE)
    fit = zoo.fit(name, x, num_factors=2, max_iters=30, tol=0)
    mean, covariance, load, scale = moments_of(fit)
    score = [log_density(row, mean.numpy(), covariance.numpy()) for row in x.numpy()]
    np.testing.assert_allclose(fit.score(), score, rtol=1e-9)
    found, normal = fit.latents()["u"], fit.posterior("u")
    for n in (0, 7, 50, 100):
        seen = ~x[n].isnan()
        precision = torch.eye(2, dtype=torch.float64) + load[seen].mT @ (load[seen] / scale[seen, None] ** 2)
        wanted = torch.linalg.inv(precision)
        center = wanted @ load[seen].mT @ ((x[n] - mean)[seen] / scale[seen] ** 2)
        torch.testing.assert_close(found.mean[n], center)
        torch.testing.assert_close(found.sd[n], wanted.diagonal().sqrt())
        torch.testing.assert_close(normal.covariance_matrix[n], wanted)
    drawn = fit.sample_posterior(4000, seed=1)["u"]
    error = found.sd / 4000**0.5
    assert ((drawn.mean(0) - found.mean).abs() <= 5 * error).all()
    assert ((drawn.std(0) / found.sd - 1).abs() < 0.08).all()


def test_imputed_cells_are_conditional_means_and_beat_the_column_mean():
    x = with_holes(WINE, seed=2)
    fit = zoo.fit("factor_analysis", x, num_factors=2)
    filled, holes = fit.impute(), x.isnan()
    mean, covariance = (t.numpy() for t in moments_of(fit)[:2])
    for n in range(0, len(x), 9):
        gone = holes[n].numpy()
        weights = np.linalg.solve(covariance[np.ix_(~gone, ~gone)], (x[n].numpy() - mean)[~gone])
        wanted = mean[gone] + covariance[np.ix_(gone, ~gone)] @ weights
        np.testing.assert_allclose(np.asarray(filled)[n][gone], wanted, atol=1e-9)
    filled = torch.as_tensor(filled)
    simple = x.nanmean(0).expand_as(x)
    own, theirs = (((t - WINE)[holes] ** 2).mean() for t in (filled, simple))
    assert own < 0.7 * theirs


def test_missing_cells_are_fitted_to_the_maximum_of_what_is_left():
    """At the maximum the gradient of the observed-data likelihood, computed row by row, is 0."""
    x = with_holes(WINE[:, 7:13])
    fit = zoo.fit("factor_analysis", x, num_factors=1)
    free = {n: v.clone().requires_grad_() for n, v in fit.params.items()}
    covariance = free["load"] @ free["load"].mT + torch.diag(free["scale"] ** 2)
    total = torch.zeros((), dtype=torch.float64)
    for row in x:
        seen = ~row.isnan()
        part = torch.distributions.MultivariateNormal(free["loc"][seen], covariance[seen][:, seen])
        total = total + part.log_prob(row[seen])
    assert total.item() == pytest.approx(fit.log_likelihood, rel=1e-10)
    for slope in torch.autograd.grad(total, list(free.values())):
        assert slope.abs().max() < 1e-2
    assert (np.diff(fit.history) >= -1e-9 * (1 + abs(fit.log_likelihood))).all()


@pytest.mark.parametrize("holes", [False, True])
def test_a_mixture_is_the_sum_over_its_components(holes):
    x = with_holes(IRIS, 0.15) if holes else IRIS
    fit = zoo.fit("mixture_of_factor_analyzers", x, num_components=3, num_factors=1, max_iters=20, tol=0)
    parts = []
    for k in range(3):
        mean, covariance, *_ = moments_of(fit, k)
        own = np.array([log_density(row, mean.numpy(), covariance.numpy()) for row in x.numpy()])
        parts.append(math.log(fit.params["weights"][k]) + own)
    joint = torch.tensor(np.stack(parts, 1))
    torch.testing.assert_close(fit.score(), joint.logsumexp(1))
    share = joint.softmax(1)
    found = fit.latents()
    torch.testing.assert_close(found["z"], share)
    means, squares = [], []
    for k in range(3):
        mean, covariance, load, scale = moments_of(fit, k)
        for row in x:
            seen = ~row.isnan()
            spread = torch.linalg.inv(1 + load[seen].mT @ (load[seen] / scale[seen, None] ** 2))
            center = spread @ load[seen].mT @ ((row - mean)[seen] / scale[seen] ** 2)
            means.append(center)
            squares.append(spread[0] + center**2)
    means, squares = (torch.stack(part).reshape(3, len(x)) for part in (means, squares))
    mean = (share.mT * means).sum(0)
    torch.testing.assert_close(found["u"].mean[:, 0], mean)
    torch.testing.assert_close(found["u"].sd[:, 0], ((share.mT * squares).sum(0) - mean**2).sqrt())
    torch.testing.assert_close(fit.posterior("u").mean[:, 0], mean)
    drawn = fit.sample_posterior(3000, seed=2)
    assert ((drawn["u"].mean(0)[:, 0] - mean).abs() < 0.15).all()


def test_one_component_is_factor_analysis():
    one = zoo.fit("mixture_of_factor_analyzers", WINE, num_components=1, num_factors=2)
    assert one.log_likelihood == pytest.approx(-2747.1911, abs=2e-3)


# --- EM ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [("factor_analysis", {"num_factors": 3}), ("mixture_of_factor_analyzers", {"num_components": 2, "num_factors": 1})],
)
def test_em_never_falls(name, options):
    pair = zoo.create(name, **options)
    x = with_holes(WINE[:90, :6], 0.05)
    for seed in range(20):
        start = dict(zoo.fit(pair, x, restarts=2, seed=seed, max_iters=0, tol=0).mode_map[-1].params)
        fit = zoo.fit(pair, x, start=start, max_iters=5, tol=0)
        assert (np.diff(fit.history) >= -1e-9 * (1 + abs(fit.log_likelihood))).all()


@pytest.mark.parametrize("expand", [False, True])
def test_one_step_is_the_textbook_step(expand):
    """Bishop (2006) 12.56, 12.57 and their factor analysis twins, 12.66 to 12.69, from the rows themselves."""
    from dataclasses import replace

    fit = zoo.fit("factor_analysis", WINE, num_factors=2, max_iters=2, tol=0)
    with engine_state(0), torch.no_grad():
        program, params = program_on(fit, fit.adapted(None))
        (one,) = find_factored(program, dict.fromkeys(fit.params, ""), 0.0)
        site = program.products["x"]
        sums = sums_of(site, expectations(program, params))
        found, _ = em_step(site, replace(one, expand=expand), params, sums)
        load, scale, away = params["load"][0], params["scale"][0], WINE - params["loc"][0]
        spread = torch.linalg.inv(torch.eye(2) + load.mT @ (load / scale[:, None] ** 2))
        latent = away @ (load / scale[:, None] ** 2) @ spread  # E[u], (N, 2)
        design = torch.cat([latent, torch.ones(len(WINE), 1)], 1)
        gram = design.mT @ design
        gram[:2, :2] += len(WINE) * spread
        slopes = torch.linalg.solve(gram, design.mT @ WINE).mT  # (D, 3)
        left = (WINE**2).mean(0) - (slopes * (WINE.mT @ design)).sum(1) / len(WINE)
        torch.testing.assert_close(found["scale"][0] ** 2, left)
        if not expand:
            torch.testing.assert_close(found["load"][0], slopes[:, :2])
            torch.testing.assert_close(found["loc"][0], slopes[:, 2])
        else:  # of the same likelihood as the textbook's step with the covariance of u put back
            mean = latent.mean(0)
            covariance = gram[:2, :2] / len(WINE) - torch.outer(mean, mean)
            product = found["load"][0] @ found["load"][0].mT
            torch.testing.assert_close(product, slopes[:, :2] @ covariance @ slopes[:, :2].mT)
            torch.testing.assert_close(found["loc"][0], slopes[:, 2] + slopes[:, :2] @ mean)


def test_restarts_that_reach_one_maximum_are_one_mode_whatever_their_rotation():
    fit = zoo.fit("factor_analysis", WINE, num_factors=2, restarts=6)
    assert fit.mode_map[0].count == 6
    load, scale = fit.params["load"], fit.params["scale"]
    inner = load.mT @ (load / scale[:, None] ** 2)
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-6 * inner.max()


def test_weights_are_repeated_rows():
    weights = torch.arange(len(WINE)) % 3
    one = zoo.fit("factor_analysis", WINE, num_factors=2, weights=weights)
    two = zoo.fit("factor_analysis", WINE.repeat_interleave(weights, 0), num_factors=2)
    assert one.log_likelihood == pytest.approx(two.log_likelihood, rel=1e-9)


# --- what a person may write ------------------------------------------------------------------------------------------


def story(mean, scale=None, prior=None, site=None, x=IRIS):
    """A pair whose row latent u (1,) goes into `mean(u)`."""

    def model(x):
        load = pyro.param("load", lambda: torch.linspace(0.5, 1, 4).reshape(4, 1))
        loc = pyro.param("loc", lambda: torch.arange(4.0))
        noise = pyro.param("scale", torch.ones(4), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(1), 1.0).to_event(1) if prior is None else prior())
            fn = site or (lambda m, s: dist.Normal(m, s).to_event(1))
            pyro.sample("x", fn(mean(u, load, loc), noise if scale is None else scale(u, noise)), obs=x)

    return Pair(model)


def plain(u, load, loc):
    return u @ load.T + loc


def by_columns(u, load, loc):
    return torch.stack([(u * load[d]).sum(-1) for d in range(4)], -1) + loc


@pytest.mark.parametrize(
    "pair",
    [
        story(by_columns),
        story(plain, prior=lambda: dist.MultivariateNormal(torch.zeros(1), torch.eye(1))),
        story(lambda u, load, loc: torch.einsum("...k,dk->...d", u, load) + loc),
    ],
    ids=["by columns", "mvn prior", "einsum"],
)
def test_ways_of_writing_factor_analysis(pair):
    """All are found to be the same gather of loadings, with the same maximum."""
    reached = em(pair, PHENOLS).log_likelihood
    assert reached == pytest.approx(em(story(plain), PHENOLS).log_likelihood, abs=1e-6)


def test_what_is_no_gather_is_climbed():
    """Loadings in another scale, a prior of another scale and mean, and noise of full covariance: same density."""
    x = PHENOLS
    best = em(story(plain), x).log_likelihood

    def halved(u, load, loc):
        return u @ (load / 2).T + loc

    assert em(story(halved), x).log_likelihood == pytest.approx(best, abs=1e-5)
    moved = story(plain, prior=lambda: dist.Normal(torch.tensor([1.0]), 3.0).to_event(1))
    assert em(moved, x).log_likelihood == pytest.approx(best, abs=1e-5)
    full = story(plain, site=lambda m, s: dist.MultivariateNormal(m, scale_tril=torch.diag_embed(s)))
    assert em(full, x).log_likelihood == pytest.approx(best, abs=1e-5)


def test_fixed_and_tied_loadings():
    """Spearman's one factor with equal loadings, and a fixed mean: against a direct optimum of the likelihood."""
    x = WINE[:, :4]

    def model(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        scale = pyro.param("scale", torch.ones(4), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(u.unsqueeze(-1) * slope.expand(4), scale).to_event(1), obs=x)

    fit = em(Pair(model), x)
    free = [fit.params["slope"].clone().requires_grad_(), fit.params["scale"].clone().requires_grad_()]
    covariance = free[0] ** 2 * torch.ones(4, 4) + torch.diag(free[1] ** 2)
    total = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), covariance).log_prob(x).sum()
    assert total.item() == pytest.approx(fit.log_likelihood, rel=1e-12)
    assert max(g.abs().max() for g in torch.autograd.grad(total, free)) < 1e-3
    assert fit.posterior("u").batch_shape == (len(x),)


def test_means_that_depend_on_covariates():
    """A regression with correlated errors: the mean varies by row, and is scored row by row, exactly."""
    table = torch.cat([WINE[:, :4], WINE[:, 5:6]], 1)

    def model(table):
        x, c = table[:, :4], table[:, 4:]
        beta = pyro.param("beta", torch.zeros(1, 4))
        load = pyro.param("load", torch.ones(4, 1) / 2)
        scale = pyro.param("scale", torch.ones(4), constraint=constraints.positive)
        with pyro.plate("data", len(table)):
            u = pyro.sample("u", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(u @ load.T + c @ beta, scale).to_event(1), obs=x)

    fit = em(Pair(model), table)
    p = fit.params
    covariance = (p["load"] @ p["load"].T + torch.diag(p["scale"] ** 2)).numpy()
    left = (table[:, :4] - table[:, 4:] @ p["beta"]).numpy()
    np.testing.assert_allclose(fit.score(), multivariate_normal(np.zeros(4), covariance).logpdf(left), rtol=1e-9)
    wanted = np.linalg.solve(covariance, left.T).T @ p["load"].numpy()
    np.testing.assert_allclose(fit.latents()["u"].mean, wanted, atol=1e-9)


def test_auto_picks_em_for_a_pair_of_ones_own():
    fit = zoo.fit(story(plain), IRIS, max_iters=3, tol=0)
    assert fit.inference == "em"
    assert "'u'" in fit.reason
    assert "EM is exact" in fit.reason


def scaled_by(u, noise):
    return noise * (1 + u[..., :1] ** 2)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (story(lambda u, load, loc: (u @ load.T) ** 2 + loc), ("'x'", "'u'", "not affine")),
        (story(plain, scale=scaled_by), ("'x'", "'u'", "scale that depends")),
        (story(plain, prior=lambda: dist.Gamma(torch.ones(1), 1.0).to_event(1)), ("'u'", "Gamma", "only normal")),
        (story(plain, site=lambda m, s: dist.Poisson(m.exp()).to_event(1)), ("'x'", "Poisson", "'u'")),
        (story(plain, site=lambda m, s: dist.Laplace(m, s).to_event(1)), ("'x'", "Laplace", "'u'")),
    ],
)
def test_what_cannot_be_summed_out_is_told_plainly(pair, words):
    with pytest.raises(ModelError) as caught:
        em(pair, IRIS.round())
    assert all(word in str(caught.value) for word in (*words, 'inference="svi"'))
    assert "\n" not in str(caught.value)


def test_two_sites_that_share_a_latent_are_one_vector():
    def model(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Normal(u, 1.0), obs=x[:, 0])
            pyro.sample("b", dist.Normal(u, 1.0), obs=x[:, 1])

    wanted = multivariate_normal([0, 0], [[2, 1], [1, 2]]).logpdf(IRIS[:, :2])
    np.testing.assert_allclose(em(Pair(model), IRIS).score(), wanted, rtol=1e-9)


# --- rotations and pictures -------------------------------------------------------------------------------------------


def spread_of_squares(loadings):
    rows = loadings / loadings.norm(dim=1, keepdim=True)
    return rows.square().var(0, correction=0).sum().item()


def test_varimax_is_the_best_of_all_rotations():
    """In the plane every rotation can be tried; and loadings that were simple and then turned are found again."""
    load = zoo.fit("factor_analysis", "girls", num_factors=2).params["load"]
    found = varimax(load)
    torch.testing.assert_close(found.rotation @ found.rotation.mT, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(load @ found.rotation, found.loadings)
    angles = torch.linspace(0, math.pi, 2000, dtype=torch.float64)
    tried = [load @ torch.stack([torch.stack([a.cos(), -a.sin()]), torch.stack([a.sin(), a.cos()])]) for a in angles]
    assert spread_of_squares(found.loadings) >= max(map(spread_of_squares, tried)) - 1e-9
    simple = torch.tensor([[0.9, 0, 0], [0.8, 0, 0], [0, 0.7, 0], [0, 0.6, 0], [0, 0, 0.5], [0, 0, 0.4]]).double()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    torch.testing.assert_close(varimax(simple @ turn).loadings, simple, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "panels"),
    [
        ("probabilistic_pca", {"num_factors": 2}, 1),
        ("factor_analysis", {"num_factors": 1}, 2),
        ("mixture_of_factor_analyzers", {"num_components": 3, "num_factors": 2}, 3),
    ],
)
def test_the_picture_shows_rows_and_columns(name, options, panels):
    fit = zoo.fit(name, load_iris(as_frame=True).data, max_iters=5, tol=0, **options)
    figure = fit.plot()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == panels
    words = {text.get_text() for axes in shown for text in (*axes.texts, *axes.get_yticklabels())}
    assert "sepal width (cm)" in words
    if options["num_factors"] > 1:
        drawn = sum(len(c.get_offsets()) for axes in shown for c in axes.collections)
        assert drawn == 150


def test_bars_are_the_correlations_of_columns_with_turned_factors():
    fit = zoo.fit("factor_analysis", "girls", num_factors=2)
    figure = fit.plot("loadings")
    width = np.array([[bar.get_width() for bar in axes.patches] for axes in figure.axes])[:, ::-1]
    np.testing.assert_allclose((width[:2] ** 2).sum(0) + width[2], 1, atol=1e-9)
    np.testing.assert_allclose(width[2], fit.params["scale"] ** 2, atol=1e-4)  # variances of 1


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_summary_says_which_columns_go_with_each_turned_factor(tmp_path):
    fit = zoo.fit("factor_analysis", "girls", num_factors=2)
    load, noise = fit.params["load"], fit.params["scale"] ** 2
    total = load.square().sum(1) + noise
    turned = varimax(load / total.sqrt().unsqueeze(1)).loadings
    page = fit.summary()
    for k in range(2):
        best = int(turned[:, k].abs().argmax())
        share = turned[:, k].square().mean()
        line = f"factor {k + 1} ({share:.0%} of variance): {fit.schema.columns[best]} {turned[best, k]:.2f}, "
        assert line in page
    assert f"noise ({(noise / total).mean():.0%} of variance)" in page
    fit.save(tmp_path / "run")
    assert zoo.load(tmp_path / "run").summary() == page


def test_a_summary_turns_no_factors_that_stand_beside_other_latents():
    fit = zoo.fit("probabilistic_matrix_factorization", "iris", num_factors=2, layout="wide", max_iters=3, tol=0)
    assert "varimax" not in fit.summary()
    assert "varimax" not in zoo.fit("gaussian_mixture", "iris", num_components=2).summary()
