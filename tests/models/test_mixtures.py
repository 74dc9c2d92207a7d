"""The mixtures beyond the Gaussian, against EM written out in numpy, scipy, statsmodels, and the truth of the data."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch
from scipy.optimize import minimize
from scipy.special import gammaln, log_expit, logsumexp
from scipy.stats import multivariate_normal, multivariate_t, nbinom, norm
from statsmodels.discrete.count_model import ZeroInflatedPoisson

from latentzoo import em, zoo
from latentzoo.inference.base.errors import DataError, OptionError
from latentzoo.inference.data.bundled.tables import load_bundled

CARS = load_bundled("cars")


def never_falls(fit):
    history = fit.history.numpy()
    assert (np.diff(history) >= -1e-9 * (1 + np.abs(history[:-1]))).all()
    return True


def numpy_params(fit):
    return {name: value.numpy() for name, value in fit.params.items()}


# --- columns of mixed kinds -------------------------------------------------------------------------------------------


def test_each_column_is_taken_by_its_type():
    fit = zoo.fit("mixed_mixture", CARS, restarts=3)
    assert {name: tuple(value.shape) for name, value in fit.params.items()} == {
        "weights": (2,), "loc": (2, 4), "scale": (2, 4), "chance": (2, 2), "probs_0": (2, 3), "probs_1": (2, 3),
        "rate": (2, 1),
    }  # fmt: skip
    assert never_falls(fit)


def test_numbers_alone_are_a_diagonal_gaussian_mixture():
    x = CARS[["mpg", "weight"]]
    one = zoo.fit(zoo.create("mixed_mixture", num_components=2), x, restarts=5)
    start = {name: one.start[name] for name in ("weights", "loc", "scale")}
    other = em(zoo.create("gaussian_mixture", num_components=2, covariance="diagonal"), x, start=start)
    assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-9)


def test_the_density_is_the_product_of_the_kinds():
    fit = zoo.fit(zoo.create("mixed_mixture", categorical=("carburettors",)), CARS, restarts=2)
    assert fit.params["probs_2"].shape == (2, 9)
    fit = zoo.fit("mixed_mixture", CARS, restarts=2)
    p, rows = numpy_params(fit), CARS.iloc[:6]
    total = np.log(p["weights"])[None, :].repeat(6, 0)
    for d, column in enumerate(("mpg", "displacement", "weight", "quarter_mile")):
        total += norm.logpdf(rows[column].to_numpy()[:, None], p["loc"][:, d], p["scale"][:, d])
    with np.errstate(divide="ignore"):
        for b, column in enumerate(("engine", "transmission")):
            code = rows[column].cat.codes.to_numpy()[:, None]
            total += np.log(np.where(code == 1, p["chance"][:, b], 1 - p["chance"][:, b]))
        for c, column in enumerate(("cylinders", "gears")):
            total += np.log(p[f"probs_{c}"])[:, rows[column].cat.codes.to_numpy()].T
    counts = rows["carburettors"].to_numpy()[:, None]
    total += counts * np.log(p["rate"][:, 0]) - p["rate"][:, 0] - gammaln(counts + 1)
    np.testing.assert_allclose(fit.score(rows).numpy(), logsumexp(total, 1), rtol=1e-10)


def test_a_table_comes_back_with_its_labels_and_whole_numbers():
    fit = zoo.fit("mixed_mixture", CARS, restarts=2)
    drawn = fit.generate(20, seed=1)
    assert list(drawn.dtypes) == list(CARS.dtypes)
    assert set(drawn["cylinders"]) <= {"4", "6", "8"}
    holes = CARS.copy()
    holes.loc[5, ["mpg", "engine"]] = None
    filled = fit.impute(holes)
    p = fit.latents(holes)["z"][5]
    assert filled.loc[5, "mpg"] == pytest.approx((p @ fit.params["loc"][:, 0]).item())
    assert filled.loc[5, "engine"] == ("V", "straight")[int(p @ fit.params["chance"][:, 0] > 0.5)]
    pd.testing.assert_frame_equal(filled.drop(index=5), CARS.drop(index=5), check_dtype=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"counts": ("engine",)}, "column 'engine' holds labels, which can only be categorical"),
        ({"numeric": ("speed",)}, "numeric: met 'speed', which is no column of the data; there are 'mpg'"),
        ({"numeric": "gears", "categorical": "gears"}, "'gears'"),
    ],
)
def test_columns_that_cannot_be_taken_so_are_named(options, words):
    with pytest.raises(DataError, match=words):
        zoo.fit(zoo.create("mixed_mixture", **options), CARS)


def test_a_bare_array_is_numeric_but_for_what_is_named():
    x = np.column_stack([np.random.default_rng(0).normal(size=40), np.arange(40) % 3, np.arange(40) % 5])
    fit = zoo.fit(zoo.create("mixed_mixture", categorical=(1,), counts=(2,)), x)
    assert {name: tuple(v.shape) for name, v in fit.params.items()} == {
        "weights": (2,), "loc": (2, 1), "scale": (2, 1), "probs_0": (2, 3), "rate": (2, 1),
    }  # fmt: skip


# --- regressions ------------------------------------------------------------------------------------------------------


def crossing_lines(seed=0, size=400):
    """Two lines that cross; which one a row lies on depends on its covariate g."""
    generator = np.random.default_rng(seed)
    x, g = generator.uniform(-2, 2, size), generator.normal(size=size)
    z = generator.random(size) < 1 / (1 + np.exp(-(0.5 + 1.5 * g)))
    y = np.where(z, 1.0 + 2.0 * x, -0.5 - 1.0 * x) + np.where(z, 0.3, 0.5) * generator.normal(size=size)
    return pd.DataFrame({"x": x, "g": g, "y": y}), z


def em_of_regressions(x, y, weights, coefficients, scale, iterations):
    """De Veaux (1989): responsibilities, then weighted least squares."""
    design = np.column_stack([np.ones(len(y)), x])
    for _ in range(iterations):
        log_joint = np.log(weights) + norm.logpdf(y[:, None], design @ coefficients.T, scale)
        r = np.exp(log_joint - logsumexp(log_joint, 1, keepdims=True))
        weights = r.mean(0)
        for k in range(len(weights)):
            root = np.sqrt(r[:, k])
            coefficients[k] = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
            scale[k] = math.sqrt((r[:, k] * (y - design @ coefficients[k]) ** 2).sum() / r[:, k].sum())
    log_joint = np.log(weights) + norm.logpdf(y[:, None], design @ coefficients.T, scale)
    return weights, coefficients, scale, logsumexp(log_joint, 1).sum()


def test_each_iteration_is_that_of_weighted_least_squares():
    data, _ = crossing_lines()
    start = {
        "weights": [0.4, 0.6], "intercept": [0.3, -0.3], "slopes": [[1.0, 0.1], [-0.5, 0.0]], "scale": [1.0, 0.8],
    }  # fmt: skip
    start = {name: torch.tensor(value, dtype=torch.float64) for name, value in start.items()}
    first = np.column_stack([start["intercept"], start["slopes"]])
    x, y = data[["x", "g"]].to_numpy(), data["y"].to_numpy()
    for iterations in (1, 7):
        fit = em(zoo.create("mixture_of_regressions"), data, start=start, max_iters=iterations, tol=0)
        found = numpy_params(fit)
        weights, coefficients, scale, bound = em_of_regressions(
            x, y, start["weights"].numpy(), first.copy(), start["scale"].numpy().copy(), iterations
        )
        assert fit.log_likelihood == pytest.approx(bound, rel=1e-10)
        np.testing.assert_allclose(found["weights"], weights, rtol=1e-8)
        np.testing.assert_allclose(found["intercept"], coefficients[:, 0], rtol=1e-8)
        np.testing.assert_allclose(found["slopes"], coefficients[:, 1:], rtol=1e-7)
        np.testing.assert_allclose(found["scale"], scale, rtol=1e-8)


def test_one_component_is_ordinary_least_squares():
    data, _ = crossing_lines()
    fit = em(zoo.create("mixture_of_regressions", num_components=1, response="g"), data)
    known = sm.OLS(data["g"], sm.add_constant(data[["x", "y"]])).fit()
    assert fit.log_likelihood == pytest.approx(known.llf, rel=1e-9)
    np.testing.assert_allclose(fit.params["slopes"][0], known.params[1:], rtol=1e-8)


def test_starts_that_end_with_other_labels_are_one_optimum():
    data, _ = crossing_lines()
    fit = zoo.fit("mixture_of_regressions", data, restarts=8)
    ends = [mode for mode in fit.mode_map if abs(mode.bound - fit.mode_map[0].bound) < 1e-4]
    assert len(ends) == 1
    assert ends[0].count >= 4


def test_a_gate_is_found_with_the_lines():
    data, truth = crossing_lines(size=2000)
    fit = zoo.fit(zoo.create("mixture_of_regressions", weights_on=("g",)), data, restarts=4)
    assert never_falls(fit)
    high = int(fit.params["slopes"][:, 0].argmax())
    sign = 1 if high == 1 else -1
    assert fit.params["slopes"][high].item() == pytest.approx(2.0, abs=0.05)
    assert fit.params["scale"][high].item() == pytest.approx(0.3, abs=0.04)
    assert sign * fit.params["gate_slopes"].item() == pytest.approx(1.5, abs=0.3)
    assert sign * fit.params["gate_intercept"].item() == pytest.approx(0.5, abs=0.2)
    assert ((fit.clusters() == high).numpy() == truth).mean() > 0.9
    plain = zoo.fit(zoo.create("mixture_of_regressions"), data.drop(columns="g"), restarts=4)
    assert fit.log_likelihood > plain.log_likelihood + 100


def test_experts_climb_to_where_no_slope_is_left():
    """The gradient of log p written out in numpy vanishes at the estimate."""
    data, _ = crossing_lines()
    fit = zoo.fit(zoo.create("mixture_of_experts"), data, restarts=3)
    assert never_falls(fit)
    names = ("gate_intercept", "gate_slopes", "intercept", "slopes", "scale")
    sizes = [fit.params[name].numel() for name in names]
    design, y = np.column_stack([np.ones(len(data)), data[["x", "g"]]]), data["y"].to_numpy()

    def log_p(flat):
        a, c, b, beta, scale = np.split(flat, np.cumsum(sizes)[:-1])
        gate = np.column_stack([np.zeros(len(y)), design @ np.concatenate([a, c])])
        loc = design @ np.column_stack([b, beta.reshape(2, 2)]).T
        return logsumexp(gate - logsumexp(gate, 1, keepdims=True) + norm.logpdf(y[:, None], loc, scale), 1).sum()

    flat = np.concatenate([fit.params[name].numpy().ravel() for name in names])
    assert log_p(flat) == pytest.approx(fit.log_likelihood, rel=1e-10)
    steps = 1e-5 * np.eye(len(flat))
    slope = np.array([(log_p(flat + step) - log_p(flat - step)) / 2e-5 for step in steps])
    assert np.abs(slope).max() < 1e-3
    far = [log_p(flat + 0.1 * step / 1e-5) for step in np.vstack([steps, -steps])]
    assert max(far) < fit.log_likelihood


def test_the_picture_shows_the_lines_that_were_found():
    data, _ = crossing_lines(size=80)
    fit = zoo.fit("mixture_of_regressions", data[["x", "y"]], restarts=4)
    axes = fit.plot().axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x", "y")
    assert len(axes.lines) == 2
    for k, line in enumerate(axes.lines):
        slope = np.polyfit(line.get_xdata(), line.get_ydata(), 1)[0]
        assert slope == pytest.approx(fit.params["slopes"][k, 0].item(), rel=1e-6)
    points = sum(len(found.get_offsets()) for found in axes.collections)
    assert points == 80
    with pytest.raises(OptionError, match="same in every row"):
        zoo.fit("gaussian_mixture", data["y"], num_components=2).plot("regressions")


def test_a_missing_response_is_imputed_and_a_missing_input_refused():
    data, _ = crossing_lines()
    holes = data.copy()
    holes.loc[3, "y"] = None
    fit = zoo.fit(zoo.create("mixture_of_regressions"), holes, restarts=2)
    loc = fit.params["intercept"] + fit.params["slopes"] @ torch.tensor(data.loc[3, ["x", "g"]].to_numpy(dtype=float))
    assert fit.impute(holes).loc[3, "y"] == pytest.approx((fit.latents()["z"][3] @ loc).item())
    assert fit.score(holes)[3].item() == pytest.approx(0.0, abs=1e-12)
    holes.loc[7, "x"] = None
    with pytest.raises(DataError, match=r"^column 'x' has missing cells, .* leave out those rows or the column$"):
        fit.score(holes)
    with pytest.raises(DataError, match=r"^column 'x' has missing cells"):
        zoo.fit(zoo.create("mixture_of_experts"), holes)


def test_labels_are_inputs_as_indicators():
    fit = em(zoo.create("mixture_of_regressions", num_components=1, response="mpg"), CARS[["mpg", "cylinders"]])
    means = CARS.groupby("cylinders", observed=True)["mpg"].mean()
    found = fit.params["intercept"].item() + np.array([0.0, *fit.params["slopes"][0]])
    np.testing.assert_allclose(found, means.to_numpy(), rtol=1e-10)


def test_inputs_that_repeat_each_other_are_borne():
    data = CARS[["weight", "mpg"]].assign(again=2 * CARS["weight"] + 1)[["weight", "again", "mpg"]]
    fit = em(zoo.create("mixture_of_regressions", num_components=1), data)
    known = sm.OLS(CARS["mpg"], sm.add_constant(CARS["weight"])).fit()
    assert fit.log_likelihood == pytest.approx(known.llf, rel=1e-9)


# --- Student's t ------------------------------------------------------------------------------------------------------


def heavy(seed=0, size=200):
    generator = np.random.default_rng(seed)
    tails = np.sqrt(generator.chisquare(4, size) / 4)[:, None]
    noise = generator.normal(size=(size, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]]) / tails
    return torch.tensor(noise + np.where(np.arange(size)[:, None] % 2 == 0, [0.0, 0.0], [8.0, 4.0]))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_log_p_rises_from_twenty_starts(covariance):
    x = heavy()
    pair = zoo.create("student_t_mixture", covariance=covariance)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        start = dict(pair.initialize(x, generator))
        start["df"] = 2.5 + 30 * torch.rand(2, generator=generator)
        start["loc"] = start["loc"] + torch.randn(2, 2, generator=generator)
        fit = em(pair, x, start=start, max_iters=8, tol=0)
        assert never_falls(fit)
        assert fit.history[-1] > fit.history[0]


def test_one_component_of_fixed_tails_is_what_scipy_maximises():
    x = heavy()[::2]
    fit = em(zoo.create("student_t_mixture", num_components=1, df=3.0), x)

    def loss(flat):
        tril = np.array([[math.exp(flat[2]), 0.0], [flat[3], math.exp(flat[4])]])
        return -multivariate_t(flat[:2], tril @ tril.T, df=3.0).logpdf(x.numpy()).sum()

    known = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-6})
    assert fit.log_likelihood == pytest.approx(-known.fun, abs=1e-7)
    np.testing.assert_allclose(fit.params["loc"][0], known.x[:2], atol=1e-5)


def test_learned_tails_are_where_the_profile_peaks():
    x = heavy()[::2]
    fit = em(zoo.create("student_t_mixture", num_components=1), x)
    df = fit.params["df"].item()
    fixed = [zoo.create("student_t_mixture", num_components=1, df=df + step) for step in (-0.3, 0.0, 0.3)]
    below, at, above = (em(pair, x).log_likelihood for pair in fixed)
    assert fit.log_likelihood == pytest.approx(at, abs=1e-8)
    assert max(below, above) < at


def test_outliers_do_not_move_the_locs():
    x = heavy()
    far = torch.tensor([[60.0, -80.0], [-70.0, 50.0], [90.0, 40.0], [-40.0, -60.0], [10.0, 95.0]], dtype=torch.float64)
    spoiled = torch.cat([x, far])
    moves = {}
    for name in ("student_t_mixture", "gaussian_mixture"):
        pair = zoo.create(name, num_components=2)
        clean, again = em(pair, x, restarts=3), em(pair, spoiled, restarts=3)
        distance = torch.cdist(again.params["loc"], clean.params["loc"])
        moves[name] = distance.min(0).values.max().item()
    assert moves["student_t_mixture"] < 0.4
    assert moves["gaussian_mixture"] > 2.0


def test_the_density_of_what_is_seen_of_a_row_is_that_of_the_margin():
    x = heavy()
    holes = x.clone()
    holes[::5, 0] = torch.nan
    holes[2::7, 1] = torch.nan
    fit = em(zoo.create("student_t_mixture"), holes, restarts=2)
    assert never_falls(fit)
    p = numpy_params(fit)
    score = fit.score().numpy()
    for row in (0, 1, 2):
        seen = ~np.isnan(holes[row].numpy())
        terms = []
        for k in range(2):
            shape = (p["scale_tril"][k] @ p["scale_tril"][k].T)[np.ix_(seen, seen)]
            density = multivariate_t(p["loc"][k][seen], shape, df=p["df"][k])
            terms.append(math.log(p["weights"][k]) + density.logpdf(holes[row].numpy()[seen]))
        assert score[row] == pytest.approx(logsumexp(terms), rel=1e-10)
    # the regression of a t on its other cells is that of the normal with its scale
    shape = p["scale_tril"] @ p["scale_tril"].transpose(0, 2, 1)
    guess = p["loc"][:, 0] + shape[:, 0, 1] / shape[:, 1, 1] * (holes[0, 1].item() - p["loc"][:, 1])
    assert fit.impute()[0, 0].item() == pytest.approx(float(fit.latents()["z"][0].numpy() @ guess))


def test_missing_cells_are_learned_from_as_quasi_newton_steps_do():
    x = heavy()[::2].clone()
    x[::3, 0] = torch.nan
    fit = em(zoo.create("student_t_mixture", num_components=1, df=5.0), x)

    def loss(flat):
        tril = np.array([[math.exp(flat[2]), 0.0], [flat[3], math.exp(flat[4])]])
        shape, y = tril @ tril.T, x.numpy()
        whole = ~np.isnan(y[:, 0])
        margin = multivariate_t(flat[1:2], shape[1:, 1:], df=5.0).logpdf(y[~whole, 1:])
        return -multivariate_t(flat[:2], shape, df=5.0).logpdf(y[whole]).sum() - margin.sum()

    known = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-6})
    assert fit.log_likelihood == pytest.approx(-known.fun, abs=1e-7)


# --- counts -----------------------------------------------------------------------------------------------------------


def test_movements_of_a_fetal_lamb_have_the_published_zeros():
    x = load_bundled("fetal_lamb")
    fit = zoo.fit("zero_inflated_poisson", x)
    one = np.ones((len(x), 1))
    known = ZeroInflatedPoisson(x["movements"].to_numpy(), one, exog_infl=one).fit(disp=False, method="bfgs")
    assert fit.log_likelihood == pytest.approx(known.llf, abs=1e-6)
    assert fit.params["rate"].item() == pytest.approx(math.exp(known.params[1]), rel=1e-4)
    # at the maximum the mean of the positive counts is that of a Poisson cut off at 0
    rate = fit.params["rate"].item()
    positive = x["movements"][x["movements"] > 0].mean()
    assert rate / (1 - math.exp(-rate)) == pytest.approx(positive, rel=1e-6)
    chance = fit.params["gate"].item() / (fit.params["gate"].item() + (1 - fit.params["gate"].item()) * math.exp(-rate))
    expected = np.where(x["movements"] == 0, chance, 0.0)
    np.testing.assert_allclose(fit.latents()["structural"][:, 1], expected, atol=1e-9)


def test_columns_of_counts_have_gates_of_their_own():
    generator = np.random.default_rng(0)
    x = generator.poisson([2.0, 5.0, 0.7], (500, 3)) * (generator.random((500, 3)) > [0.5, 0.1, 0.3])
    together = zoo.fit("zero_inflated_poisson", x, restarts=2)
    apart = [zoo.fit("zero_inflated_poisson", x[:, d]) for d in range(3)]
    assert never_falls(together)
    assert together.log_likelihood == pytest.approx(sum(fit.log_likelihood for fit in apart), rel=1e-9)
    assert together.latents()["structural"].shape == (500, 3, 2)
    for d, alone in enumerate(apart):
        mine = together.latents()["structural"][:, d]
        torch.testing.assert_close(mine, alone.latents()["structural"], rtol=1e-5, atol=1e-6)
    holes = x.astype(float)
    holes[0, 2] = np.nan
    fit = zoo.fit("zero_inflated_poisson", holes)
    guess = (1 - fit.params["gate"][2]) * fit.params["rate"][2]
    assert fit.impute()[0, 2] == pytest.approx(guess.item())
    assert fit.sample_posterior(4)["structural"].shape == (4, 500, 3)


def test_mites_on_apple_leaves_are_bliss_and_fishers():
    x = load_bundled("red_mites")
    fit = zoo.fit("negative_binomial_mixture", x, num_components=1)
    assert fit.params["mean"].item() == pytest.approx(172 / 150, rel=1e-8)
    assert fit.params["concentration"].item() == pytest.approx(1.02459, abs=1e-5)
    mean, r = fit.params["mean"].item(), fit.params["concentration"].item()
    assert fit.log_likelihood == pytest.approx(nbinom(r, r / (r + mean)).logpmf(x["mites"]).sum(), rel=1e-10)


def test_overdispersed_groups_are_told_apart():
    generator = np.random.default_rng(1)
    z = generator.random(600) < 0.4
    x = generator.poisson(np.where(z, 20.0, 2.0) * generator.gamma(np.where(z, 8.0, 3.0)) / np.where(z, 8.0, 3.0))
    fit = zoo.fit("negative_binomial_mixture", x, restarts=2, tol=1e-9)
    assert never_falls(fit)
    p = {name: value[fit.params["mean"].argsort()] for name, value in numpy_params(fit).items()}
    np.testing.assert_allclose(p["mean"], [2.0, 20.0], rtol=0.15)
    np.testing.assert_allclose(p["weights"], [0.6, 0.4], atol=0.06)

    def loss(flat):
        weight, mean, r = 1 / (1 + math.exp(-flat[0])), np.exp(flat[1:3]), np.exp(flat[3:])
        terms = nbinom(r, r / (r + mean)).logpmf(x[:, None]) + np.log([weight, 1 - weight])
        return -logsumexp(terms, 1).sum()

    start = np.concatenate([[0.4], np.log(p["mean"]) + 0.1, np.log(p["concentration"]) - 0.1])
    known = minimize(loss, start, method="BFGS", options={"gtol": 1e-5})
    assert fit.log_likelihood == pytest.approx(-known.fun, abs=1e-4)


def test_shares_of_rows_of_any_total_go_as_written_out():
    generator = np.random.default_rng(0)
    shares = np.array([[0.6, 0.3, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]])
    totals = generator.integers(1, 60, 80)
    x = np.stack([generator.multinomial(m, shares[n % 2]) for n, m in enumerate(totals)])
    weights, probs = np.array([0.5, 0.5]), np.array([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]])
    start = {"weights": torch.tensor(weights), "probs": torch.tensor(probs)}
    fit = em(zoo.create("multinomial_mixture", num_components=2), x, start=start, max_iters=6, tol=0)
    constant = gammaln(totals + 1) - gammaln(x + 1).sum(1)
    for iteration in range(7):
        log_joint = np.log(weights) + x @ np.log(probs).T + constant[:, None]
        assert fit.history[iteration].item() == pytest.approx(logsumexp(log_joint, 1).sum(), rel=1e-10)
        r = np.exp(log_joint - logsumexp(log_joint, 1, keepdims=True))
        weights, probs = r.mean(0), r.T @ x / (r.T @ x).sum(1, keepdims=True)
        probs = np.maximum(probs, 2.3e-16)
    drawn = fit.generate(160, seed=0)
    assert (drawn.sum(1) == np.concatenate([totals, totals])).all()
    assert np.allclose(fit.reconstruct().sum(1), totals)


def test_part_of_a_row_of_shares_cannot_be_missing():
    x = torch.randint(0, 9, (30, 4)).double()
    x[2, 1] = torch.nan
    with pytest.raises(ValueError, match="only some cells missing"):
        zoo.fit("multinomial_mixture", x)
    x[2] = torch.nan
    fit = zoo.fit("multinomial_mixture", x, num_components=2)
    assert fit.score()[2].item() == pytest.approx(0.0, abs=1e-12)


# --- latent classes with covariates -----------------------------------------------------------------------------------


def test_cheating_depends_on_the_grade_as_polca_says(shared_data):
    x = pd.read_csv(shared_data("cheating.csv"), comment="#").dropna()
    x.iloc[:, :4] -= 1
    fit = zoo.fit(zoo.create("latent_class", covariates=("GPA",)), x, restarts=5)
    assert never_falls(fit)
    assert (len(x), fit.num_parameters) == (315, 10)
    assert fit.log_likelihood == pytest.approx(-429.6384, abs=1e-4)
    design = sm.add_constant(x["GPA"].to_numpy(dtype=float))
    answers = x.iloc[:, :4].to_numpy(dtype=int)

    def loss(flat):
        gate = np.column_stack([np.zeros(len(x)), design @ flat[:2]])
        odds = flat[2:].reshape(2, 4)
        terms = answers @ log_expit(odds).T + (1 - answers) @ log_expit(-odds).T
        return -logsumexp(gate - logsumexp(gate, 1, keepdims=True) + terms, 1).sum()

    best = min(
        (minimize(loss, np.random.default_rng(seed).normal(size=10), method="BFGS") for seed in range(6)),
        key=lambda one: one.fun,
    )
    assert fit.log_likelihood == pytest.approx(-best.fun, abs=1e-4)
    assert abs(fit.params["slopes"].item()) == pytest.approx(abs(best.x[1]), abs=1e-2)


def test_without_covariates_all_is_closed_and_never_run_again():
    from latentzoo.inference.em.plan import make_plan
    from latentzoo.inference.program.compiler import compile_program
    from latentzoo.inference.trace.handlers import engine_state
    from latentzoo.inference.trace.structure import read

    x = torch.randint(0, 3, (50, 4)).double()
    pair = zoo.create("latent_class")
    assert pair.arrange is None
    with engine_state(0):
        program = compile_program(pair.model, x, read(pair.model, x))
        plan = make_plan(program, 1e-6)
    assert not program.runs_model
    assert not plan.climbed
    assert not plan.regressed


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mixture_of_experts", {"num_experts": 1}),
        ("mixture_of_regressions", {"num_components": 1, "weights_on": ("x",)}),
        ("latent_class", {"num_classes": 1, "covariates": ("x",)}),
        ("student_t_mixture", {"covariance": "tied"}),
        ("student_t_mixture", {"df": -1.0}),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options):
    with pytest.raises(OptionError, match="met"):
        zoo.create(name, **options)


def test_gaussians_are_the_limit_of_light_tails():
    x = heavy()
    fit = em(zoo.create("student_t_mixture", num_components=1, df=1e7), x)
    known = multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(x).sum()
    assert fit.log_likelihood == pytest.approx(known, rel=1e-5)
