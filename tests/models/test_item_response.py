"""Item response models against ltm's published fits, another integral, and answers drawn from known items."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit

from latentzoo import em, zoo
from latentzoo.inference.base.errors import DataError, OptionError
from latentzoo.inference.data.adapt import adapt
from latentzoo.inference.data.bundled.tables import load_bundled
from latentzoo.inference.em.plan import make_plan
from latentzoo.inference.optimize.newton import newton
from latentzoo.inference.plots.items import read_scale
from latentzoo.inference.program.compiler import compile_program
from latentzoo.inference.trace.handlers import engine_state
from latentzoo.inference.trace.structure import read

GRID = np.linspace(-8, 8, 2001)
DENSITY = np.exp(-(GRID**2) / 2) / np.exp(-(GRID**2) / 2).sum()


@pytest.fixture(scope="module")
def lsat():
    return adapt("lsat6").values.double()


def drawn(rows, slope, difficulty, seed=0, guessing=0.0):
    """Answers of people whose abilities are standard normal."""
    generator = np.random.default_rng(seed)
    ability = generator.normal(size=(rows, 1))
    probs = guessing + (1 - guessing) * expit(slope * (ability - difficulty))
    return ability[:, 0], (generator.random(probs.shape) < probs).astype(float)


def log_likelihood(x, probs):
    """Rows' log p(x) from the probabilities (G, J) of a 1 along a fine grid of abilities: another integral."""
    ones = np.where(np.isnan(x)[:, None], 1.0, np.where(x[:, None] == 1, probs, 1 - probs))
    return np.log((ones.prod(-1) * DENSITY).sum(1))


# --- published numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "published", "free"),
    [("rasch", -2473.054, 5), ("common_slope", -2466.938, 6), ("two_parameter", -2466.653, 10)],
)
def test_lsat6_reaches_the_published_likelihood(lsat, model, published, free):
    fit = zoo.fit("item_response", lsat, model=model)
    assert fit.log_likelihood == pytest.approx(published, abs=1e-3)
    assert fit.num_parameters == free
    assert fit.converged


def test_lsat6_with_one_slope_has_the_published_items(lsat):
    params = zoo.fit("item_response", lsat, model="common_slope").params
    assert params["slope"].item() == pytest.approx(0.7551, abs=2e-3)
    published = [-3.6153, -1.3224, -0.3176, -1.7301, -2.7802]
    assert params["difficulty"].tolist() == pytest.approx(published, abs=2e-3)


def test_lsat6_with_two_parameters_has_the_published_items(lsat):
    params = zoo.fit("item_response", lsat).params
    assert params["difficulty"].tolist() == pytest.approx([-3.3597, -1.3696, -0.2799, -1.8659, -3.1236], abs=5e-3)
    assert params["slope"].tolist() == pytest.approx([0.8254, 0.7229, 0.8905, 0.6886, 0.6575], abs=5e-3)


def test_the_bundled_answers_are_the_published_ones(lsat, shared_data):
    published = pd.read_csv(shared_data("lsat6.csv"), comment="#").to_numpy()
    assert Counter(map(tuple, lsat.int().tolist())) == Counter(map(tuple, published.tolist()))
    assert set(load_bundled("lsat6").stack()) == {"wrong", "right"}


# --- the integral, the curves, the abilities --------------------------------------------------------------------------


def test_scores_are_an_integral_over_ability_with_answers_missing():
    _, x = drawn(60, np.array([0.7, 1.0, 1.5, 2.0]), np.array([-1.0, 0.0, 0.5, 1.0]))
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    for model in ("rasch", "common_slope", "two_parameter", "three_parameter"):
        fit = zoo.fit("item_response", torch.tensor(x), model=model, max_iters=5, tol=0)
        p = {name: value.numpy() for name, value in fit.params.items()}
        curve = expit(p.get("slope", 1.0) * (GRID[:, None] - p["difficulty"]))
        curve = p.get("guessing", 0.0) + (1 - p.get("guessing", 0.0)) * curve
        np.testing.assert_allclose(fit.score().numpy(), log_likelihood(x, curve), rtol=1e-5, atol=1e-9)


def test_abilities_are_posterior_means_and_deviations(lsat):
    fit = zoo.fit("item_response", lsat)
    rows = torch.tensor([[0.0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 1, torch.nan, 0]]).double()
    found = fit.latents(rows)["ability"]
    p = {name: value.numpy() for name, value in fit.params.items()}
    curve = expit(p["slope"] * (GRID[:, None] - p["difficulty"]))
    for n, row in enumerate(rows.numpy()):
        ones = np.where(np.isnan(row), 1.0, np.where(row == 1, curve, 1 - curve)).prod(-1) * DENSITY
        ones /= ones.sum()
        mean = (ones * GRID).sum()
        assert found.mean[n].item() == pytest.approx(mean, abs=1e-6)
        assert found.sd[n].item() == pytest.approx(np.sqrt((ones * (GRID - mean) ** 2).sum()), abs=1e-6)


def test_items_and_people_are_found_again():
    slope, difficulty = np.linspace(0.8, 2.0, 20), np.linspace(-2, 2, 20)[np.random.default_rng(3).permutation(20)]
    ability, x = drawn(4000, slope, difficulty)
    fit = zoo.fit("item_response", x)
    assert np.corrcoef(fit.params["slope"], slope)[0, 1] > 0.95
    np.testing.assert_allclose(fit.params["difficulty"], difficulty, atol=0.25)
    found = fit.latents()["ability"]
    error = (found.mean.numpy() - ability) / found.sd.numpy()
    assert np.sqrt((error**2).mean()) == pytest.approx(1.0, abs=0.05)  # the standard deviations are honest


def test_an_item_keyed_the_wrong_way_has_a_negative_slope():
    _, x = drawn(2000, np.full(8, 1.5), np.linspace(-1.5, 1.5, 8))
    turned = x.copy()
    turned[:, ::2] = 1 - turned[:, ::2]  # half of them, so that a sum score says nothing
    for model in ("two_parameter", "graded"):
        one, two = (zoo.fit("item_response", table, model=model) for table in (x, turned))
        assert two.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-9)
        sign = torch.tensor([-1.0, 1.0]).repeat(4).double() * two.params["slope"][1].sign()
        torch.testing.assert_close(two.params["slope"], sign * one.params["slope"], rtol=1e-4, atol=1e-4)


# --- answers in grades ------------------------------------------------------------------------------------------------


def test_graded_answers_of_two_values_are_the_two_parameter_model(lsat):
    two, graded = (zoo.fit("item_response", lsat, model=model) for model in ("two_parameter", "graded"))
    assert graded.log_likelihood == pytest.approx(two.log_likelihood, rel=1e-10)
    for j in range(5):
        threshold = graded.params[f"thresholds_{j}"].item()
        assert threshold == pytest.approx((two.params["slope"] * two.params["difficulty"])[j].item(), abs=1e-4)


def grades(rows=1500):
    """Items of 3, 4 and 5 grades, drawn by cutting a logistic variable."""
    generator = np.random.default_rng(5)
    slope = np.array([0.8, 1.2, 1.6, 2.0, 1.0])
    cuts = [np.linspace(-1.5, 1.0, 2 + j % 3) for j in range(5)]
    latent = slope * generator.normal(size=(rows, 1)) + generator.logistic(size=(rows, 5))
    return slope, cuts, np.stack([(latent[:, j : j + 1] >= cut).sum(1) for j, cut in enumerate(cuts)], 1).astype(float)


def test_grades_are_found_again_each_item_with_its_own_number_of_them():
    slope, cuts, x = grades()
    fit = zoo.fit("item_response", x, model="graded")
    assert [fit.params[f"thresholds_{j}"].numel() for j in range(5)] == [2, 3, 4, 2, 3]
    for j, cut in enumerate(cuts):
        np.testing.assert_allclose(fit.params[f"thresholds_{j}"], cut, atol=0.3)
    np.testing.assert_allclose(fit.params["slope"], slope, atol=0.35)
    known = np.array([-np.inf, *fit.params["thresholds_2"], np.inf])
    above = expit(fit.params["slope"][2].item() * GRID[:, None] - known)
    share = (DENSITY @ (above[:, :-1] - above[:, 1:])).tolist()
    assert np.bincount(x[:, 2].astype(int)) / len(x) == pytest.approx(share, abs=0.02)


def test_guessing_is_found_where_there_is_some():
    _, x = drawn(6000, np.full(12, 2.0), np.linspace(-1, 2, 12), guessing=0.25)
    plain, guessed = (zoo.fit("item_response", x, model=model) for model in ("two_parameter", "three_parameter"))
    assert guessed.log_likelihood > plain.log_likelihood + 50
    assert guessed.params["guessing"][4:].mean().item() == pytest.approx(0.25, abs=0.05)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["rasch", "common_slope", "two_parameter", "three_parameter", "graded"])
@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_an_item_that_all_answer_alike_is_named(model, answer):
    _, x = drawn(80, 1.0, np.zeros(4))
    x[:, 2] = answer
    frame = pd.DataFrame(x, columns=list("abcd"))
    with pytest.raises(DataError, match=f"column 'c' holds {answer:g} in every row.*run off to infinity: drop the col"):
        zoo.fit("item_response", frame, model=model)
    x[5, 2] = np.nan
    with pytest.raises(DataError, match=f"column 2 holds {answer:g} in every row"):
        zoo.fit("item_response", x, model=model)
    words = frame.replace({0.0: "no", 1.0: "yes"}).astype(pd.CategoricalDtype(["no", "yes"]))
    with pytest.raises(DataError, match=f"column 'c' holds '{'yes' if answer else 'no'}'"):
        zoo.fit("item_response", words, model=model)


def test_what_a_param_of_other_columns_holds_back_does_not_run_off():
    import pyro
    import pyro.distributions as dist

    from latentzoo import Pair

    def model(x):
        easy = pyro.param("easy", torch.zeros(()))  # one for all columns
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample(
                "x", dist.Bernoulli(logits=(easy + 2.0 * z).unsqueeze(-1).expand(*z.shape, 3)).to_event(1), obs=x
            )

    x = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]).double()
    assert torch.isfinite(em(Pair(model), x).params["easy"])


def test_options_are_checked():
    with pytest.raises(OptionError, match=r"model: met 'four_parameter', expected one of rasch, .*graded"):
        zoo.create("item_response", model="four_parameter")
    with pytest.raises(OptionError, match="num_nodes: met 1, expected at least 2"):
        zoo.create("item_response", num_nodes=1)


# --- how it climbs ----------------------------------------------------------------------------------------------------


def blocks_of(model, x):
    with engine_state(0):
        structure = read(zoo.create("item_response", model=model).model, x)
        return make_plan(compile_program(zoo.create("item_response", model=model).model, x, structure), 0).blocks


def test_the_numbers_of_one_item_are_a_block(lsat):
    assert blocks_of("rasch", lsat).tolist() == [[0, 1, 2, 3, 4]]  # few enough to be one
    _, x = drawn(60, 1.0, np.zeros(30))
    found = blocks_of("two_parameter", torch.tensor(x))
    assert sorted(map(sorted, found.tolist())) == [[j, 30 + j] for j in range(30)]
    assert blocks_of("common_slope", torch.tensor(x)) is None  # all items meet in the slope


def test_newton_on_blocks_finds_the_top_of_hills_that_are_not_concave():
    def height(free):
        a, b = free["a"], free["b"]
        return -((a**2 - b) ** 2 + 0.1 * (b - torch.arange(1.0, 6.0).double()) ** 2).sum()

    free = {"a": torch.linspace(0.1, 2, 5).double(), "b": torch.full((5,), -3.0).double()}
    blocks = torch.stack([torch.arange(5), 5 + torch.arange(5)], 1)
    reached = newton(free, height, blocks, 50)
    assert reached.value.item() == pytest.approx(0.0, abs=1e-12)
    one = newton(free, height, blocks, 1)
    assert one.value >= height(free)


def test_every_iteration_rises_and_people_do_not_slow_the_m_step():
    _, x = drawn(400, np.linspace(0.5, 2, 30), np.linspace(-2, 2, 30))
    fit = zoo.fit("item_response", x, max_iters=60, tol=1e-9)
    assert (np.diff(fit.history) >= -1e-9 * (1 + abs(fit.log_likelihood))).all()
    pair = zoo.create("item_response")
    with engine_state(0):
        program = compile_program(pair.model, torch.tensor(x), read(pair.model, torch.tensor(x)))
        args = program.computed(program.trace({n: p.value.unsqueeze(0) for n, p in program.structure.params.items()}))
        assert program.stands_on_one_row
        assert args["x"]["logits"].shape == (41, 30)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_curves_and_information_are_those_of_the_formulas(lsat):
    fit = zoo.fit("item_response", lsat)
    scale = read_scale(fit)
    p = {name: value.numpy() for name, value in fit.params.items()}
    curve = expit(p["slope"] * (scale.grid[:, None] - p["difficulty"]))
    assert scale.name == "ability"
    np.testing.assert_allclose(np.stack([probs[:, 1] for probs in scale.probs], 1), curve, atol=1e-4)
    np.testing.assert_allclose(scale.information.T, p["slope"] ** 2 * curve * (1 - curve), atol=2e-3)
    figure = fit.plot()
    np.testing.assert_allclose(figure.axes[0].lines[2].get_ydata(), scale.probs[2][:, 1])
    total, error = fit.plot("information").axes
    np.testing.assert_allclose(total.lines[-1].get_ydata(), scale.information.sum(0))
    np.testing.assert_allclose(error.lines[0].get_ydata(), scale.information.sum(0) ** -0.5)


def test_the_curves_of_grades_are_those_of_the_formulas():
    _, _, x = grades(400)
    fit = zoo.fit("item_response", pd.DataFrame(x.astype(int), columns=list("abcde")), model="graded")
    figure = fit.plot()
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()] == list("abcde")
    line = figure.axes[1].lines[3]
    slope, cut = fit.params["slope"][1].item(), fit.params["thresholds_1"][2].item()
    np.testing.assert_allclose(line.get_ydata(), expit(slope * line.get_xdata() - cut), atol=2e-3)
