"""The M-step: closed forms are where the expected complete log density, by brute force, has no slope left."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import expected_complete, joint, random_values
from stories import PRIORS, SMOOTH, STORIES
from stories.base import COUNTS, TABLE
from torch.distributions import transform_to

from latentzoo import Pair, em, zoo
from latentzoo.inference.base.errors import ConvergenceWarning
from latentzoo.inference.em.plan import make_plan
from latentzoo.inference.program.compiler import compile_program
from latentzoo.inference.trace.handlers import engine_state
from latentzoo.inference.trace.structure import read

# In these one argument's update rests on another's, which moves later in the same M-step (ECM), or stops at a bound.
IN_TURN = {"shared_means", "conjugate_means", "bounded_rates"}


def compiled(name):
    model, data = STORIES[name]
    with engine_state(0):
        program = compile_program(model, data, read(model, data))
        return program, make_plan(program, 1e-6)


def climbed(name):
    """Params without a closed form, and why."""
    return compiled(name)[1].climbed


def one_step(model, data, start, **options):
    return em(Pair(model), data, start=start, max_iters=1, tol=0, **options).params


@pytest.mark.parametrize("name", [name for name in STORIES if name not in SMOOTH | IN_TURN])
def test_after_one_closed_m_step_no_slope_is_left(name):
    model, data = STORIES[name]
    start = random_values(model, data, 0)
    q = joint(model, data, start).posterior
    found = one_step(model, data, start, variance_floor=0.0)
    structure = compiled(name)[0].structure
    transforms = {key: transform_to(structure.params[key].constraint) for key in found}
    free = {key: transforms[key].inv(value).requires_grad_() for key, value in found.items()}
    value = expected_complete(q, joint(model, data, {key: transforms[key](one) for key, one in free.items()}))
    for slope in torch.autograd.grad(value, list(free.values())):
        assert slope.abs().max() < 1e-8 * (1 + value.abs())


def test_a_bounded_param_moves_to_its_maximum_or_to_the_bound_before_it():
    model, data = STORIES["bounded_rates"]
    start = random_values(model, data, 0)
    q = joint(model, data, start).posterior
    free = (q @ data) / q.sum(1, keepdim=True)
    expected = free.clamp(1.5, 2.5)
    assert 0 < (free != expected).sum() < free.numel()
    torch.testing.assert_close(one_step(model, data, start)["rate"], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(IN_TURN | SMOOTH))
def test_every_other_m_step_raises_the_expected_complete_log_density(name, seed):
    model, data = STORIES[name]
    start = random_values(model, data, seed)
    before = joint(model, data, start)
    found = joint(model, data, one_step(model, data, start, m_steps=3))
    assert expected_complete(before.posterior, found) > expected_complete(before.posterior, before)


def test_closed_forms_are_found_wherever_there_is_one():
    found = {name: set(climbed(name)) for name in STORIES}
    assert {name for name, params in found.items() if params} == SMOOTH
    assert found["gamma"] == {"concentration"}
    assert found["log_scales"] == {"log_scale"}
    assert found["mean_of_two_covariances"] == {"loc"}
    assert found["prior_of_a_vector_mean"] == {"loc"}
    assert found["transposed_probs"] == found["parts_of_probs"] == {"probs"}


def test_what_is_climbed_says_why():
    assert "computes its scale" in climbed("log_scales")["log_scale"]
    assert "no closed form for concentration" in climbed("gamma")["concentration"]
    assert "not conjugate" in climbed("heavy_tailed_priors")["scale"]
    assert "different covariances" in climbed("mean_of_two_covariances")["loc"]
    assert "parts of it" in climbed("parts_of_probs")["probs"]
    assert "outside the data plate" in climbed("penalty_and_earlier_data")["loc"]
    assert "the prior of 'loc'" in climbed("prior_of_a_prior")["top"]


def test_a_model_whose_sites_are_matrix_products_is_never_run_again():
    run_again = {name for name in STORIES if name not in SMOOTH and compiled(name)[0].runs_model}
    inner = {"inner_plate", "inner_plate_on_the_left", "nested_plates", "sibling_plates"}
    assert run_again == {*inner, "trials_by_component", "regressions", "experts"}


# --- an example with an answer ----------------------------------------------------------------------------------------

LINKAGE_COUNTS = torch.tensor([125.0, 18.0, 20.0, 34.0])
LINKAGE_ITERATES = [
    0.608247423, 0.624321051, 0.626488879, 0.626777323, 0.626815632, 0.626820719, 0.626821395, 0.626821484,
]  # fmt: skip


def linkage(**options):
    start = {"chance": torch.tensor(0.5)}
    return em(Pair(STORIES["linkage"].model), torch.arange(4), weights=LINKAGE_COUNTS, start=start, **options)


def test_the_linkage_example_goes_through_the_published_iterates():
    found = [linkage(max_iters=iters, tol=0).params["chance"].item() for iters in range(1, 9)]
    assert found == pytest.approx(LINKAGE_ITERATES, abs=1e-9)


def test_the_linkage_example_ends_at_its_maximum_likelihood():
    assert linkage(max_iters=30, tol=0).params["chance"].item() == pytest.approx(
        (15 + math.sqrt(53809)) / 394, abs=1e-9
    )


# --- posterior modes --------------------------------------------------------------------------------------------------


def test_the_mode_of_conjugate_models_without_latents_is_the_textbooks():
    def model(x):
        chance = pyro.sample("chance", dist.Beta(3.0, 2.0))
        rate = pyro.sample("rate", dist.Gamma(4.0, 3.0))
        loc = pyro.sample("loc", dist.Normal(1.0, 0.5))
        probs = pyro.sample("probs", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
        with pyro.plate("data", len(x)):
            pyro.sample("flag", dist.Bernoulli(chance), obs=(x[:, 0] > 2).double())
            pyro.sample("count", dist.Poisson(rate), obs=x[:, 1])
            pyro.sample("number", dist.Normal(loc, 2.0), obs=x[:, 2])
            pyro.sample("code", dist.Categorical(probs), obs=x[:, 2].clamp(max=2))

    weights = torch.rand(len(COUNTS), generator=torch.Generator().manual_seed(0)).double()
    fit = em(Pair(model), COUNTS, weights=weights, max_iters=2, tol=0)
    rows, flags, codes = weights.sum(), (COUNTS[:, 0] > 2).double(), COUNTS[:, 2].clamp(max=2)
    counts = torch.stack([weights[codes == k].sum() for k in range(3)])
    expected = {
        "chance": (weights @ flags + 3 - 1) / (rows + 3 + 2 - 2),
        "rate": (weights @ COUNTS[:, 1] + 4 - 1) / (rows + 3),
        "loc": (weights @ COUNTS[:, 2] / 4 + 1.0 / 0.25) / (rows / 4 + 1 / 0.25),
        "probs": (counts + torch.tensor([1.0, 2.0, 3.0])) / (rows + 6),
    }
    for name, value in expected.items():
        torch.testing.assert_close(fit.params[name], value, rtol=1e-10, atol=1e-12)
    log_prior = joint(model, COUNTS, fit.params).log_prior.item()
    assert fit.history[-1].item() == pytest.approx(fit.log_likelihood + log_prior, rel=1e-10)


def test_at_the_mode_of_a_mixture_weights_are_posterior_counts_plus_prior_counts():
    model, data = STORIES["conjugate_counts"]
    fit = em(Pair(model), data, start=random_values(model, data, 1), tol=1e-14)
    counts = fit.latents()["z"].sum(0)
    torch.testing.assert_close(fit.params["weights"], (counts + 1) / (len(data) + 2), rtol=1e-6, atol=1e-8)
    rate = (fit.latents()["z"].mT @ data + 1) / (counts + 1)
    torch.testing.assert_close(fit.params["rate"], rate, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_priors_count_once_however_many_rows_there_are(name):
    model, data = STORIES[name]
    start = random_values(model, data, 0)
    once = em(Pair(model), data, start=start, max_iters=0, tol=0)
    tenfold = em(Pair(model), data, start=start, max_iters=0, tol=0, weights=torch.full((len(data),), 10.0))
    prior = once.history[0].item() - once.log_likelihood
    assert prior == pytest.approx(joint(model, data, start).log_prior.item(), rel=1e-9)
    assert tenfold.history[0].item() == pytest.approx(10 * once.log_likelihood + prior, rel=1e-12)


# --- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("natural", [True, False], ids=["natural", "by running the model"])
@pytest.mark.parametrize("covariance", ["full", "diagonal", "spherical"])
def test_a_collapsing_component_stops_on_the_variance_floor(covariance, natural):
    x = TABLE.clone()
    x[0] = torch.tensor([50.0, -80.0, 60.0])
    start = {"loc": torch.stack([x[1:].mean(0), x[0]])}
    pair = Pair(zoo.create("gaussian_mixture", num_components=2, covariance=covariance).model)
    with pytest.warns(ConvergenceWarning, match="collapsed"):
        fit = em(pair, x, start=start, variance_floor=1e-4, natural=natural)
    assert torch.isfinite(fit.history).all()
    assert (fit.history.diff() >= -1e-9 * (1 + fit.history[:-1].abs())).all()
    floor = 1e-4 * x.var(0, correction=0)
    if covariance == "full":
        scaled = fit.params["covariance"] / floor.sqrt().unsqueeze(-1) / floor.sqrt()
        assert torch.linalg.eigvalsh(scaled).min() >= 1 - 1e-6
        torch.testing.assert_close(fit.params["covariance"][1], torch.diag(floor), rtol=1e-6, atol=1e-9)
    elif covariance == "diagonal":
        torch.testing.assert_close(fit.params["scale"][1] ** 2, floor, rtol=1e-6, atol=0)
    else:
        assert (fit.params["scale"][1] ** 2).item() == pytest.approx(floor.mean().item(), rel=1e-6)
    assert fit.mode_map[0].degenerate


def test_a_sound_optimum_stands_before_a_collapsed_one():
    model = zoo.create("gaussian_mixture", num_components=2, covariance="diagonal").model
    sound = {"loc": TABLE[:2]}
    broken = {"loc": torch.stack([TABLE.mean(0), TABLE[0]]), "scale": torch.tensor([[1.0] * 3, [1e-3] * 3])}
    left = iter([broken, sound])
    fit = em(Pair(model, initialize=lambda data, generator: next(left)), TABLE, restarts=2)
    assert [mode.degenerate for mode in fit.mode_map] == [False, True]
    assert fit.mode_map[1].bound > fit.mode_map[0].bound
    alone = em(Pair(model), TABLE, start=sound)
    torch.testing.assert_close(fit.params["loc"], alone.params["loc"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_an_empty_component_keeps_its_values(covariance):
    pair = Pair(zoo.create("gaussian_mixture", num_components=2, covariance=covariance).model)
    far = torch.tensor([[0.0, 0.0, 0.0], [1e9, 1e9, 1e9]])
    fit = em(pair, TABLE, start={"loc": far}, max_iters=10, tol=0)
    assert torch.isfinite(fit.history).all()
    assert torch.equal(fit.params["loc"][1], far[1].double())
    assert fit.params["weights"].tolist() == [1.0, 0.0]
    torch.testing.assert_close(fit.params["loc"][0], TABLE.mean(0))
    if covariance in ("full", "diagonal"):
        spread = fit.params["covariance" if covariance == "full" else "scale"]
        assert torch.equal(spread[1], torch.eye(3).double() if covariance == "full" else torch.ones(3).double())
    if covariance in ("full", "tied"):
        matrix = fit.params["covariance"][0] if covariance == "full" else fit.params["covariance"]
        torch.testing.assert_close(matrix, torch.cov(TABLE.mT, correction=0))
