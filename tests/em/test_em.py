"""EM as a whole: log p(x) never falls, from any start, and ends where other programs and closed forms end."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import bound, random_values
from pyro.nn import PyroModule, PyroParam
from sklearn.mixture import GaussianMixture
from stories import SMOOTH, STORIES
from stories.base import COUNTS, SIGNS, TABLE, XY, positive, real

from latentzoo import Pair, em, zoo
from latentzoo.inference.base.errors import ConvergenceWarning, FitError
from latentzoo.inference.em.mstep import m_step
from latentzoo.inference.em.plan import make_plan
from latentzoo.inference.program.compiler import compile_program
from latentzoo.inference.program.estep import expectations
from latentzoo.inference.program.objective import log_prior
from latentzoo.inference.trace.handlers import engine_state
from latentzoo.inference.trace.structure import read
from latentzoo.models.registry import ENTRIES

TABLES = {
    "gaussian_mixture": TABLE,
    "poisson_mixture": COUNTS,
    "latent_class": COUNTS.clamp(max=3),
    "item_response": SIGNS,
}
REGISTERED = [(name, example) for name in TABLES for example in ENTRIES[name].examples]


@pytest.fixture(autouse=True)
def fixed_numbers_of_iterations():
    """Most runs here stop before they converge."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "em: stopped after", ConvergenceWarning)
        yield


def trajectories(model, data, starts, iters, steps=5):
    """Bounds (iters + 1, R) of EM from each of the starts, and the params where they end."""
    stacked = {name: torch.stack([start[name] for start in starts]) for name in starts[0]}
    with engine_state(0), torch.no_grad():
        program = compile_program(model, data, read(model, data))
        plan = make_plan(program, 1e-6)
        alone = program.runs_model or plan.climbed
        batches = [{n: v[r : r + 1] for n, v in stacked.items()} for r in range(len(starts))] if alone else [stacked]
        found, ends = [], []
        for params in batches:
            rows = []
            for iteration in range(iters + 1):
                expected = expectations(program, params)
                rows.append(expected.log_prob + log_prior(program, params))
                params = m_step(program, plan, params, expected, steps) if iteration < iters else params
            found.append(torch.stack(rows))
            ends.append(params)
        return torch.cat(found, 1), {name: torch.cat([end[name] for end in ends]) for name in stacked}


def assert_never_falls(bounds):
    assert torch.isfinite(bounds).all()
    room = 1e-9 * (1 + bounds[:-1].abs())
    assert (bounds.diff(dim=0) >= -room).all(), f"fell by {-bounds.diff(dim=0).min():.3g}"


def assert_story_never_falls(name, starts, iters, steps):
    model, data = STORIES[name]
    values = [random_values(model, data, seed) for seed in range(starts)]
    bounds, ends = trajectories(model, data, values, iters, steps)
    assert_never_falls(bounds)
    assert (bounds[-1] > bounds[0]).all()
    for run in range(2):  # the engine's own bound is the one that brute force finds
        end = {key: value[run] for key, value in ends.items()}
        assert bounds[-1, run].item() == pytest.approx(bound(model, data, end), rel=1e-9)


@pytest.mark.parametrize("name", [name for name in STORIES if name not in SMOOTH])
def test_the_bound_never_falls_where_every_update_is_closed(name):
    assert_story_never_falls(name, starts=20, iters=15, steps=0)


@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_the_bound_never_falls_where_params_climb(name):
    assert_story_never_falls(name, starts=3, iters=4, steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_the_bound_never_falls_where_params_climb_from_twenty_starts(name):
    assert_story_never_falls(name, starts=20, iters=12, steps=8)


@pytest.mark.parametrize(("name", "example"), REGISTERED, ids=str)
@pytest.mark.parametrize("gaps", [0.0, 0.2], ids=["whole", "with gaps"])
def test_the_bound_of_registered_models_never_falls(name, example, gaps):
    data = TABLES[name]
    holes = torch.rand(data.shape, generator=torch.Generator().manual_seed(0)) < gaps
    data = torch.where(holes, torch.nan, data)
    model = zoo.create(name, **example).model
    starts, iters = (4, 8) if name == "item_response" else (20, 30)  # climbed, so each start runs by itself
    bounds, ends = trajectories(model, data, [random_values(model, data, seed) for seed in range(starts)], iters)
    assert_never_falls(bounds)
    for run in range(2):
        end = {key: value[run] for key, value in ends.items()}
        assert bounds[-1, run].item() == pytest.approx(bound(model, data, end), rel=1e-9)


# --- rows that repeat -------------------------------------------------------------------------------------------------

REPEATED = ["poisson", "raters", "conjugate_flags", "mvn_full", "inner_plate", "regressions", "gamma"]


def pick(data, rows):
    return data[rows] if isinstance(data, torch.Tensor) else type(data)(*(field[rows] for field in data))


@pytest.mark.parametrize("name", REPEATED)
def test_a_weight_of_two_is_the_row_twice(name):
    model, data = STORIES[name]
    size = len(data if isinstance(data, torch.Tensor) else data[0])
    counts = torch.arange(size) % 3  # some rows not at all
    values = random_values(model, data, 0)
    weighted = em(Pair(model), data, weights=counts, start=values, max_iters=6, tol=0)
    repeated = em(
        Pair(model), pick(data, torch.arange(size).repeat_interleave(counts)), start=values, max_iters=6, tol=0
    )
    exact = dict(rtol=1e-10, atol=1e-10) if name not in SMOOTH else dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weighted.history, repeated.history, **exact)
    for key, value in weighted.params.items():
        torch.testing.assert_close(value, repeated.params[key], **exact)
    assert weighted.num_rows == repeated.num_rows
    assert weighted.bic == pytest.approx(repeated.bic, rel=1e-6)
    assert weighted.icl == pytest.approx(repeated.icl, rel=1e-4)


@pytest.mark.parametrize("given_weights", [False, True])
@pytest.mark.parametrize("name", ["poisson", "raters", "items", "one_hot", "categorical_columns", "many_zeros"])
def test_repeated_rows_may_be_fitted_once(name, given_weights):
    model, data = STORIES[name]
    data = data.repeat(3, *(1,) * (data.dim() - 1))
    weights = torch.rand(len(data), generator=torch.Generator().manual_seed(0)) if given_weights else None
    values = random_values(model, data, 0)
    options = dict(weights=weights, start=values, max_iters=8, tol=0)
    each, once = (em(Pair(model), data, collapse=collapse, **options) for collapse in (False, True))
    exact = dict(rtol=1e-10, atol=1e-10) if name not in SMOOTH else dict(rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(each.history, once.history, **exact)
    torch.testing.assert_close(each.score(), once.score(), **exact)
    for key, value in each.params.items():
        torch.testing.assert_close(value, once.params[key], **exact)


# --- restarts and seeds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["normal", "mvn_tied", "two_latents", "conjugate_counts", "inner_plate", "log_scales"])
def test_restarts_side_by_side_are_the_same_as_one_by_one(name):
    model, data = STORIES[name]
    starts = [random_values(model, data, seed) for seed in range(4)]
    left = iter(starts)
    pair = Pair(model, initialize=lambda data, generator: next(left))
    together = em(pair, data, restarts=4, max_iters=15, tol=1e-6)
    alone = [em(Pair(model), data, start=start, max_iters=15, tol=1e-6) for start in starts]
    assert list(together.mode_map.bounds) == pytest.approx([fit.history[-1].item() for fit in alone], rel=1e-9)
    best = max((fit for fit in alone if not fit.mode_map[0].degenerate), key=lambda fit: fit.history[-1])
    assert len(together.history) == len(best.history)
    torch.testing.assert_close(together.history, best.history, rtol=1e-9, atol=1e-9)
    for key, value in best.params.items():
        torch.testing.assert_close(together.params[key], value, rtol=1e-7, atol=1e-7)


def test_a_restart_that_breaks_down_does_not_take_the_others_along():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).double()
    sound = {"loc": torch.tensor([[-1.0, 0.0], [1.0, 0.0]])}
    onto_a_point = torch.stack([torch.eye(2), 1e-8 * torch.eye(2)])
    broken = {"loc": torch.stack([torch.zeros(2).double(), x[0]]), "covariance": onto_a_point}
    left = iter([sound, broken])
    pair = Pair(zoo.create("gaussian_mixture", num_components=2).model, initialize=lambda data, generator: next(left))
    fit = em(pair, x, restarts=2, max_iters=50, variance_floor=0.0)
    alone = em(Pair(pair.model), x, start=sound, max_iters=50, variance_floor=0.0)
    assert fit.mode_map.failed == 1
    assert fit.history[-1].item() == pytest.approx(alone.history[-1].item(), rel=1e-9)
    with pytest.raises(FitError, match="every restart") as error:
        em(Pair(pair.model), x, start=broken, max_iters=50, variance_floor=0.0)
    assert set(error.value.params) == {"weights", "loc", "covariance"}


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_starts():
    first, again, other = (em(zoo.create("gaussian_mixture"), TABLE, seed=seed, max_iters=20) for seed in (1, 1, 2))
    assert torch.equal(first.history, again.history)
    assert all(torch.equal(first.params[name], again.params[name]) for name in first.params)
    assert not torch.equal(first.history[:1], other.history[:1])


def test_a_start_with_equal_components_is_moved_apart():
    model, data = STORIES["poisson"]
    fit = em(Pair(model), data)  # the model declares equal rates
    assert fit.converged
    assert fit.latents()["z"].max() > 0.9
    assert (fit.params["rate"][0] - fit.params["rate"][1]).abs().max() > 0.5
    held = em(Pair(model), data, start={"rate": torch.ones(2, 3)})  # what is asked for is done
    torch.testing.assert_close(held.params["rate"][0], held.params["rate"][1])


def test_a_start_may_be_whole_numbers():
    fit = em(zoo.create("poisson_mixture"), COUNTS[:, 0], start={"rate": [1, 5]}, max_iters=0, tol=0)
    assert fit.params["rate"].tolist() == [1.0, 5.0]
    assert torch.isfinite(fit.history).all()


def test_the_callers_param_store_is_left_alone_and_not_read():
    store = pyro.get_param_store()
    expected = em(zoo.create("gaussian_mixture"), TABLE, max_iters=5)
    state = torch.random.get_rng_state()
    with store.scope():
        mine = pyro.param("loc", torch.tensor([123.0]))
        fit = em(zoo.create("gaussian_mixture"), TABLE, max_iters=5)
        fit.score()
        fit.latents()
        assert set(store.keys()) == {"loc"}
        assert torch.equal(store["loc"], mine)
    assert torch.equal(fit.history, expected.history)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32


def test_two_models_with_params_of_one_name_do_not_meet():
    normal = em(Pair(STORIES["normal"].model), TABLE, start=random_values(*STORIES["normal"], 0), max_iters=3)
    em(Pair(STORIES["mvn_full"].model), TABLE, max_iters=3)
    again = em(Pair(STORIES["normal"].model), TABLE, start=random_values(*STORIES["normal"], 0), max_iters=3)
    assert torch.equal(normal.params["loc"], again.params["loc"])


# --- the same answer as elsewhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_scikit_learn_goes_the_same_way(covariance):
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.normal(size=(60, 3)), generator.normal(size=(90, 3)) * [0.5, 1.0, 2.0] + 2.0])
    loc, weights = x[[0, 70, 100]], np.array([0.3, 0.3, 0.4])
    kind = {"diagonal": "diag"}.get(covariance, covariance)
    shape = {"full": (3, 3, 3), "tied": (3, 3), "diagonal": (3, 3), "spherical": (3,)}[covariance]
    eye = np.broadcast_to(np.eye(3), shape).copy() if covariance in ("full", "tied") else np.ones(shape)
    theirs = GaussianMixture(
        3,
        covariance_type=kind,
        weights_init=weights,
        means_init=loc,
        precisions_init=eye,
        reg_covar=0,
        max_iter=25,
        tol=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(x)
    spread = {"covariance": eye} if covariance in ("full", "tied") else {"scale": eye}
    ours = em(
        zoo.create("gaussian_mixture", covariance=covariance),
        x,
        start={"weights": weights, "loc": loc, **spread},
        max_iters=25,
        tol=0,
    )
    variances = ours.params["covariance"] if covariance in ("full", "tied") else ours.params["scale"] ** 2
    np.testing.assert_allclose(ours.params["weights"], theirs.weights_, rtol=1e-6)
    np.testing.assert_allclose(ours.params["loc"], theirs.means_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(variances, theirs.covariances_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(ours.score(), theirs.score_samples(x), rtol=1e-8)


def test_regressions_with_one_component_are_least_squares():
    def model(data):
        slopes, scale = real("slopes", 2), positive("scale")
        with pyro.plate("data", len(data.x)):
            pyro.sample("y", dist.Normal(data.x @ slopes, scale), obs=data.y)

    fit = em(Pair(model), XY, max_iters=5, tol=0)
    slopes = torch.linalg.lstsq(XY.x, XY.y).solution
    torch.testing.assert_close(fit.params["slopes"], slopes, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(fit.params["scale"], ((XY.y - XY.x @ slopes) ** 2).mean().sqrt(), rtol=1e-6, atol=1e-7)


class Spread(PyroModule):
    """A module of Pyro's: its constraint is declared to the param store alone."""

    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(1.0), dist.constraints.positive)

    def forward(self):
        return self.scale


@pytest.mark.parametrize("kind", ["module", "named again"])
@pytest.mark.parametrize("inference", ["em", "svi"])
def test_a_param_that_is_only_named_keeps_the_constraint_it_was_declared_with(kind, inference):
    x = 0.01 * torch.randn(200, generator=torch.Generator().manual_seed(0)).double()

    def model(rows):
        spread = Spread() if kind == "module" else lambda: pyro.param("scale")
        if kind == "named again":
            positive("scale")
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(rows)):
            pyro.sample("x", dist.Normal(loc, spread()), obs=rows)

    fit = zoo.fit(Pair(model), x, inference=inference)
    assert float(fit.params["scale"]) == pytest.approx(float(x.std(unbiased=False)), rel=1e-3)
    with engine_state(0):
        assert read(model, x).params["scale"].constraint is dist.constraints.positive
