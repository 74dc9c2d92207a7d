"""Stochastic variational inference against exact answers: conjugate posteriors, closed forms, EM's own maximum."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from latentzoo import Pair, zoo
from latentzoo.inference.data.adapt import adapt
from latentzoo.inference.data.batches import Batches
from latentzoo.inference.program.compiler import compile_program
from latentzoo.inference.svi.normal_guides import SHAPES
from latentzoo.inference.svi.options import SVIOptions
from latentzoo.inference.svi.run import begin, exact_of_rows
from latentzoo.inference.trace.handlers import engine_state
from latentzoo.inference.trace.structure import read

pytestmark = pytest.mark.filterwarnings("error")
NUM_ROWS = 400


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- a normal mean: the posterior is normal, and known ----------------------------------------------------------------

COLUMN = 3 + 2 * draw(NUM_ROWS)
PRECISION = 1 / 100 + NUM_ROWS / 4
MEAN, SD = float(COLUMN.sum() / 4 / PRECISION), PRECISION**-0.5


def normal_mean(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 2.0), obs=x)


@pytest.mark.parametrize("guide", ["mean_field", "full_rank", "low_rank"])
def test_the_posterior_of_a_conjugate_mean_is_found(guide):
    fit = zoo.fit(Pair(normal_mean), COLUMN, inference="svi", guide=guide)
    assert fit.converged
    draws = fit.shared_draws(20_000)["mu"]
    assert draws.mean().item() == pytest.approx(MEAN, abs=0.1 * SD)
    assert draws.std().item() == pytest.approx(SD, rel=0.08)


@pytest.mark.parametrize("batch_size", [None, 200, 40, 10])
def test_the_posterior_is_as_wide_at_any_batch_size(batch_size):
    """Without the factor N / B it would be sqrt(N / B) times as wide: 1.4 to 6.3 times here."""
    fit = zoo.fit(Pair(normal_mean), COLUMN, inference="svi", batch_size=batch_size, num_steps=8_000)
    factor = fit.posterior("mu").base_dist
    assert factor.mean.item() == pytest.approx(MEAN, abs=0.3 * SD)
    assert factor.stddev.item() == pytest.approx(SD, rel=0.12)


def test_the_bound_at_the_exact_posterior_is_the_log_evidence():
    fit = zoo.fit(Pair(normal_mean), COLUMN, inference="svi")
    n = NUM_ROWS
    covariance = 4 * torch.eye(n).double() + 100
    evidence = torch.distributions.MultivariateNormal(torch.zeros(n).double(), covariance).log_prob(COLUMN)
    assert fit.history[-1].item() == pytest.approx(evidence.item(), abs=0.05)


def test_a_delta_guide_is_the_mode_without_noise():
    fit = zoo.fit(Pair(normal_mean), COLUMN, inference="svi", guide="delta")
    assert fit.params["mu"].item() == pytest.approx(MEAN, rel=1e-6)
    assert fit.guide == ""
    assert fit.score_kind == "exact"


# --- a correlated posterior -------------------------------------------------------------------------------------------

X = draw(200, 3, seed=1)
X[:, 2] = X[:, 1] + 0.5 * X[:, 2]
REGRESSION = torch.cat([X, (X @ torch.tensor([1.0, 2.0, 3.0]).double() + 0.7 * draw(200, seed=2)).unsqueeze(1)], 1)
LAMBDA = X.T @ X / 0.49 + torch.eye(3) / 25


def regression(rows: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 5.0 * torch.ones(3)).to_event(1))
    with pyro.plate("data", len(rows)):
        pyro.sample("y", dist.Normal(rows[:, :3] @ w, 0.7), obs=rows[:, 3])


def test_full_rank_finds_the_correlations_and_mean_field_the_conditional_widths():
    full = zoo.fit(Pair(regression), REGRESSION, inference="svi", guide="full_rank")
    mean = zoo.fit(Pair(regression), REGRESSION, inference="svi", guide="mean_field")
    covariance = torch.linalg.inv(LAMBDA)
    exact = covariance @ X.T @ REGRESSION[:, 3] / 0.49
    for fit in (full, mean):
        assert ((fit.params["w"] - exact).abs() <= 0.15 * covariance.diagonal().sqrt()).all()
    torch.testing.assert_close(full.shared_draws(20_000)["w"].T.cov(), covariance, rtol=0.2, atol=0.0005)
    torch.testing.assert_close(mean.posterior("w").base_dist.stddev, LAMBDA.diagonal().rsqrt(), rtol=0.1, atol=0)


# --- the bound against Pyro's own -------------------------------------------------------------------------------------


def mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], scale), obs=x)


def mixture_guide(x: Tensor) -> None:
    concentration = pyro.param("concentration", torch.tensor([20.0, 10.0]), constraint=constraints.positive)
    center = pyro.param("center", torch.tensor([-1.0, 2.0]))
    width = pyro.param("width", torch.tensor([0.1, 0.2]), constraint=constraints.positive)
    pyro.sample("weights", dist.Dirichlet(concentration))
    pyro.sample("loc", dist.Normal(center, width).to_event(1))


def factors(x: Tensor) -> None:
    load = pyro.param("load", torch.tensor([[1.0, 0.5, -0.5]]))
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(u @ load, 0.8).to_event(1), obs=x)


def factors_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor([[0.5], [0.2], [-0.1]]))
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Normal(x @ slope, 0.5).to_event(1))


PAIRS = {
    "mixture": (mixture, mixture_guide, draw(30, seed=3), TraceEnum_ELBO(max_plate_nesting=1)),
    "factors": (factors, factors_guide, draw(30, 3, seed=4), TraceMeanField_ELBO()),
    "factors by draws": (factors, factors_guide, draw(30, 3, seed=4), Trace_ELBO()),
}


def objective_of(model, guide, data, particles=1, alpha=1.0):
    """The objective that svi would raise, at its start. Call inside `engine_state`."""
    shape = SHAPES[guide] if isinstance(guide, str) else None
    structure = read(model, data)
    exact = exact_of_rows(structure, shape, guide, data) if alpha == 1.0 else set()
    given = [n for n in structure.continuous if n not in exact]
    program = compile_program(model, data, structure, given=given)
    pair = Pair(model, guide if callable(guide) else None)
    start = {name: param.value for name, param in structure.params.items()}
    options = SVIOptions(num_particles=particles, alpha=alpha)
    return begin(pair, program, start, shape, options, None)


@pytest.mark.parametrize("name", PAIRS)
def test_the_bound_is_pyros_in_the_mean_over_draws(name):
    model, guide, data, elbo = PAIRS[name]
    with engine_state(0), torch.no_grad():
        run = objective_of(model, guide, data)
        mine = torch.stack([run.objective(run.parts()) for _ in range(250)])
        theirs = torch.tensor([-elbo.loss(model, guide, data) for _ in range(250)]).double()
    error = math.hypot(float(mine.std()), float(theirs.std())) / 250**0.5
    assert float(mine.mean()) == pytest.approx(float(theirs.mean()), abs=4 * error + 1e-9)


def apart(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(1.0, 2.0))
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(torch.ones(2), 3.0).to_event(1))
        pyro.sample("x", dist.Normal(0.0 * (mu + u.sum(-1)), 1.0), obs=x)


def apart_guide(x: Tensor) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("m", torch.tensor(0.5)), 0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Normal(torch.zeros(len(x), 2), 0.4).to_event(1))


@pytest.mark.parametrize("guide", ["mean_field", apart_guide])
def test_normal_terms_are_exact_where_the_guide_is_mean_field(guide):
    """Where the data say nothing of the latents nothing is left to draw: the bound is log p(x) - KL, without noise."""
    x = COLUMN[:5]
    with engine_state(0), torch.no_grad():
        run = objective_of(apart, guide, x)
        bounds = torch.stack([run.objective(run.parts()) for _ in range(5)])
    assert bounds.std() < 1e-10
    if callable(guide):
        kl = kl_divergence(dist.Normal(0.5, 0.3), dist.Normal(1.0, 2.0))
        kl_rows = 2 * len(x) * kl_divergence(dist.Normal(0.0, 0.4), dist.Normal(1.0, 3.0))
        expected = dist.Normal(0.0, 1.0).log_prob(x).sum() - kl - kl_rows
        assert float(bounds[0]) == pytest.approx(float(expected), abs=1e-6)


def test_the_renyi_bound_is_pyros_in_the_mean_over_draws():
    model, guide, data, _ = PAIRS["mixture"]

    def pooled(x):  # Pyro's RenyiELBO sums nothing out: the same model with z summed out by hand
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, scale)), obs=x)

    elbo = RenyiELBO(alpha=0.5, num_particles=4)
    with engine_state(0), torch.no_grad():
        run = objective_of(model, guide, data, particles=4, alpha=0.5)
        mine = torch.stack([run.objective(run.parts()) for _ in range(150)])
        theirs = torch.tensor([-elbo.loss(pooled, guide, data) for _ in range(150)]).double()
    error = math.hypot(float(mine.std()), float(theirs.std())) / 150**0.5
    assert float(mine.mean()) == pytest.approx(float(theirs.mean()), abs=4 * error)


def test_the_importance_weighted_bound_rises_to_the_evidence_with_its_draws():
    data = PAIRS["factors"][2]
    load = torch.tensor([[1.0, 0.5, -0.5]]).double()
    marginal = dist.MultivariateNormal(torch.zeros(3).double(), load.T @ load + 0.64 * torch.eye(3).double())
    evidence = float(marginal.log_prob(data).sum())
    bounds = []
    for particles in (2, 20, 200):
        with engine_state(0), torch.no_grad():
            run = objective_of(factors, "mean_field", data, particles, 0.0)
            bounds.append(float(torch.stack([run.objective(run.parts()) for _ in range(20)]).mean()))
    assert bounds[0] < bounds[1] < bounds[2] < evidence + 1


def test_a_batch_is_right_in_the_mean():
    """The bounds of all batches of a pass average to the bound on all rows."""
    with engine_state(0), torch.no_grad():
        run = objective_of(mixture, "delta", PAIRS["mixture"][2])
        whole = run.objective(run.parts())
        batches = Batches(30, 6, 0)
        parts = [run.objective(run.parts(), batches.next()) for _ in range(5)]
    assert float(torch.stack(parts).mean()) == pytest.approx(float(whole), rel=1e-12)


def test_every_row_comes_once_a_pass_in_an_order_that_changes():
    batches = Batches(10, 3, 0)
    first, second = ([batches.next() for _ in range(3)] for _ in range(2))
    assert len(set(torch.cat(first).tolist())) == len(set(torch.cat(second).tolist())) == 9
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


# --- latents of a row -------------------------------------------------------------------------------------------------


def ppca(x: Tensor) -> None:
    loc = pyro.param("loc", lambda: x.mean(0))
    load = pyro.param("load", lambda: torch.linspace(-1, 1, 2 * x.shape[1]).cos().reshape(x.shape[1], 2))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(u @ load.T + loc, scale).to_event(1), obs=x)


@pytest.fixture(scope="module")
def iris_ppca():
    return zoo.fit(Pair(ppca), "iris", inference="svi", guide="full_rank")


def test_a_linear_gaussian_model_reaches_its_closed_form_maximum(iris_ppca):
    """Tipping and Bishop 1999: -404.9628; a full covariance in each row can meet it."""
    assert iris_ppca.converged
    assert iris_ppca.history[-1].item() == pytest.approx(-404.9628, abs=0.5)
    assert iris_ppca.history[-1].item() <= -404.9628 + 4 * iris_ppca.bound_error
    assert iris_ppca.bound_error <= 0.02


def test_latents_of_a_row_have_the_posterior_of_the_linear_gaussian_model(iris_ppca):
    x, params = adapt("iris").values, iris_ppca.params
    load, noise = params["load"], params["scale"] ** 2
    covariance = torch.linalg.inv(torch.eye(2) + load.T @ load / noise)
    mean = (x - params["loc"]) @ load @ covariance / noise
    found = iris_ppca.latents()["u"]
    sd = covariance.diagonal().sqrt()
    assert ((found.mean - mean).abs().mean(0) < 0.2 * sd).all()
    torch.testing.assert_close(found.sd.mean(0), sd, rtol=0.1, atol=0)
    assert iris_ppca.sample_posterior(3)["u"].shape == (3, 150, 2)


def test_scores_are_the_marginal_density_within_the_error_of_draws(iris_ppca):
    x, params = adapt("iris").values, iris_ppca.params
    covariance = params["load"] @ params["load"].T + params["scale"] ** 2 * torch.eye(4)
    exact = dist.MultivariateNormal(params["loc"], covariance).log_prob(x)
    torch.testing.assert_close(iris_ppca.score(), exact, rtol=0, atol=0.15)
    assert iris_ppca.score_kind == "importance-weighted bound"
    moved = dist.MultivariateNormal(params["loc"], covariance).log_prob(x[:20] + 0.05)
    torch.testing.assert_close(iris_ppca.score(x[:20] + 0.05), moved, rtol=0, atol=0.15)  # rows that it never saw


def test_a_fit_with_a_guide_is_saved_opened_and_generates(iris_ppca, tmp_path):
    iris_ppca.save(tmp_path / "run")
    loaded = zoo.load(tmp_path / "run", pair=Pair(ppca))
    assert loaded.guide == "full_rank"
    rows = adapt("iris").values[:10]
    assert torch.equal(loaded.score(rows), iris_ppca.score(rows))
    posterior = iris_ppca.to_arviz(num_draws=10).posterior
    assert posterior["u"].shape == (1, 10, 150, 2)
    new = iris_ppca.generate(4000)
    assert np.abs(new.cov().to_numpy() - adapt("iris").values.T.cov().numpy()).max() < 0.4


def half_and_half(x: Tensor) -> None:
    """A discrete and a continuous latent in each row."""
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-2.0, 2.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc[z] + u, 0.5), obs=x)


def test_discrete_latents_are_recovered_beside_continuous_ones():
    x = torch.cat([draw(30, seed=5) - 3, draw(30, seed=6) + 3])
    fit = zoo.fit(Pair(half_and_half), x, inference="svi", num_steps=3_000, tol=1e-5)
    found = fit.latents()
    weights, loc = fit.params["weights"], fit.params["loc"]
    joint = weights.log() + dist.Normal(loc, 1.25**0.5).log_prob(x.unsqueeze(-1))  # u summed out by hand
    # a mean-field guide leaves z and u of a row dependent only through their means
    assert (found["z"].argmax(-1) == joint.argmax(-1)).double().mean() > 0.95
    assert found["u"].mean.shape == (60,)


# --- a pair without continuous latents: EM's maximum ------------------------------------------------------------------


def test_svi_reaches_the_maximum_of_em_from_minibatches():
    x = torch.cat([draw(3_000, 2, seed=7) - 2, draw(3_000, 2, seed=8) + 2])
    pair = zoo.create("gaussian_mixture", num_components=2, covariance="diagonal")
    exact = zoo.fit(pair, x, inference="em")
    fit = zoo.fit(pair, x, inference="svi", batch_size=500, start=exact.start)
    assert fit.converged
    assert exact.log_likelihood - fit.log_likelihood < 0.01 * len(x) / 100


def test_the_best_start_of_a_race_goes_on():
    pair = zoo.create("gaussian_mixture", num_components=3)
    many = zoo.fit(pair, "iris", inference="svi", restarts=8, seed=2)
    one = zoo.fit(pair, "iris", inference="svi", restarts=1, seed=2)
    assert len(many.mode_map.bounds) == 8
    assert many.log_likelihood >= one.log_likelihood - 1e-6


def test_missing_cells_and_weights_mean_what_they_mean_to_em():
    x = adapt("iris").values.clone()
    x[::7, 1] = torch.nan
    pair = zoo.create("gaussian_mixture", num_components=2, covariance="diagonal")
    weights = torch.arange(1, 151) % 3 + 1.0
    exact = zoo.fit(pair, x, inference="em", weights=weights, seed=4)
    fit = zoo.fit(pair, x, inference="svi", weights=weights, start=exact.params)
    assert fit.log_likelihood == pytest.approx(exact.log_likelihood, abs=1e-3)


def test_the_same_seed_gives_the_same_bits_and_the_caller_is_left_as_he_was():
    before = torch.random.get_rng_state()
    one, two = (zoo.fit(Pair(normal_mean), COLUMN, inference="svi", batch_size=50, num_steps=300, tol=0) for _ in "ab")
    assert torch.equal(one.history, two.history)
    assert torch.equal(one.guide_parts["shared/loc"], two.guide_parts["shared/loc"])
    assert torch.equal(before, torch.random.get_rng_state())
