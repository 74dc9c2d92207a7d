"""The E-step against brute force: log p(x), posteriors of every latent, and both ways of scoring a site."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import bound, joint, marginals, random_values
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm, poisson
from stories import SMOOTH, STORIES
from stories.base import CUBE, label, real, simplex

from latentzoo import Pair, em, zoo
from latentzoo.inference.base.errors import ModelError
from latentzoo.inference.data import devices
from latentzoo.inference.data.structures import map_tensors
from latentzoo.inference.program import program

EXACT = dict(rtol=1e-10, atol=1e-10)


def fitted(model, data, start, iters=0, **options):
    """EM that runs exactly `iters` iterations."""
    return em(Pair(model), data, start=start, max_iters=iters, tol=0, **options)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", STORIES)
def test_scores_and_posteriors_are_sums_over_every_configuration(name, seed):
    model, data = STORIES[name]
    values = random_values(model, data, seed)
    expected = joint(model, data, values)
    fit = fitted(model, data, values)
    torch.testing.assert_close(fit.score(), expected.log_evidence, **EXACT)
    assert fit.history[0].item() == pytest.approx(bound(model, data, values), rel=1e-11)
    assert fit.log_likelihood == pytest.approx(expected.log_evidence.sum().item(), rel=1e-11)
    found = {name: probs for name, probs in fit.latents().items() if isinstance(probs, torch.Tensor)}
    for latent, probs in marginals(expected, {n: p.shape[-1] for n, p in found.items()}).items():
        torch.testing.assert_close(found[latent], probs, **EXACT)


@pytest.mark.parametrize("name", STORIES)
def test_scoring_by_running_the_model_gives_the_same_log_evidence(name):
    model, data = STORIES[name]
    values = random_values(model, data, 2)
    fit = fitted(model, data, values, natural=False)
    assert fit.history[0].item() == pytest.approx(bound(model, data, values), rel=1e-11)


RUNAWAY = {"regressions", "experts"}  # in thirty exact M-steps one meets a collapse, the other a separation


@pytest.mark.parametrize("name", [name for name in STORIES if name not in SMOOTH])
def test_both_ways_of_scoring_go_the_same_way_for_thirty_iterations(name):
    model, data = STORIES[name]
    values = random_values(model, data, 3)
    iterations = 5 if name in RUNAWAY else 30
    fast, slow = (fitted(model, data, values, iterations, natural=natural) for natural in (True, False))
    torch.testing.assert_close(fast.history, slow.history, **EXACT)
    for key, value in fast.params.items():
        torch.testing.assert_close(value, slow.params[key], **EXACT)


def test_a_gaussian_mixture_is_the_textbooks_sum():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(30, 3)) * [1.0, 10.0, 0.1] + [1e3, 0.0, -5.0]
    weights = np.array([0.2, 0.5, 0.3])
    loc = x[:3]
    factor = generator.normal(size=(3, 3, 3))
    covariance = factor @ factor.transpose(0, 2, 1) + 0.1 * np.eye(3)
    start = {"weights": weights, "loc": loc, "covariance": covariance}
    fit = fitted(zoo.create("gaussian_mixture", num_components=3).model, torch.tensor(x), start)
    log_joint = np.stack(
        [np.log(w) + multivariate_normal.logpdf(x, m, s) for w, m, s in zip(*start.values(), strict=True)]
    )
    np.testing.assert_allclose(fit.score().numpy(), logsumexp(log_joint, 0), rtol=1e-10)
    expected = np.exp(log_joint - logsumexp(log_joint, 0)).T
    np.testing.assert_allclose(fit.latents()["z"].numpy(), expected, rtol=1e-8, atol=1e-12)


def test_a_poisson_mixture_is_the_textbooks_sum():
    x = np.random.default_rng(0).poisson(3.0, size=(20, 2))
    weights, rate = np.array([0.4, 0.6]), np.array([[1.0, 5.0], [3.0, 0.5]])
    fit = fitted(zoo.create("poisson_mixture").model, torch.tensor(x), {"weights": weights, "rate": rate})
    log_joint = np.log(weights) + poisson.logpmf(x[:, None], rate).sum(-1)
    np.testing.assert_allclose(fit.score().numpy(), logsumexp(log_joint, 1), rtol=1e-12)


def test_a_chain_in_time_is_the_forward_backward_recursion():
    def model(x):
        start, moves, loc = simplex("start", 3), simplex("moves", 3, 3), real("loc", 3)
        with pyro.plate("data", len(x)):
            z = label("z_0", dist.Categorical(start))
            for t in range(x.shape[1]):
                z = label(f"z_{t}", dist.Categorical(moves[z])) if t else z
                pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=x[:, t])

    x = np.random.default_rng(0).normal(size=(5, 7)) * 2
    values = random_values(model, torch.tensor(x), 0)
    start, moves, loc = (values[name].numpy() for name in ("start", "moves", "loc"))
    emission = norm.pdf(x[:, :, None], loc)  # (N, T, 3)
    forward, backward = [start * emission[:, 0]], [np.ones((5, 3))]
    for t in range(1, 7):
        forward.append(forward[-1] @ moves * emission[:, t])
        backward.append((backward[-1] * emission[:, 7 - t]) @ moves.T)
    smoothed = np.stack(forward, 1) * np.stack(backward[::-1], 1)
    fit = fitted(model, torch.tensor(x), values)
    np.testing.assert_allclose(fit.score().numpy(), np.log(forward[-1].sum(1)), rtol=1e-11)
    for t in range(7):
        expected = smoothed[:, t] / smoothed[:, t].sum(1, keepdims=True)
        np.testing.assert_allclose(fit.latents()[f"z_{t}"].numpy(), expected, rtol=1e-9, atol=1e-14)


def test_a_probability_of_exactly_zero_is_no_obstacle():
    x = torch.tensor([[0.0], [1.0], [2.0]]).double()
    start = {"weights": torch.tensor([1.0, 0.0, 0.0]), "loc": torch.tensor([[0.0], [1.0], [2.0]])}
    fit = fitted(zoo.create("gaussian_mixture", covariance="diagonal").model, x, start, 2)
    assert torch.isfinite(fit.history).all()
    assert fit.history[0].item() == pytest.approx(norm.logpdf(x.numpy()).sum(), rel=1e-12)


def test_an_observation_that_one_value_of_a_latent_forbids_has_no_weight_there():
    def model(x):
        weights, edge = simplex("weights", 2), torch.tensor([1.0, 4.0])
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Uniform(0.0, edge[label("z", dist.Categorical(weights))]), obs=x)

    x = torch.tensor([0.5, 0.7, 3.0, 2.0])
    fit = fitted(model, x, {"weights": torch.tensor([0.5, 0.5])})
    torch.testing.assert_close(
        fit.latents()["z"], torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.0, 1.0], [0.0, 1.0]]).double()
    )
    improved = fitted(model, x, {"weights": torch.tensor([0.5, 0.5])}, 1)
    torch.testing.assert_close(improved.params["weights"], torch.tensor([0.4, 0.6]).double())


def test_latents_that_cross_two_plates_are_refused_in_plain_words():
    def model(x):
        rows, columns, loc = simplex("rows", 2), simplex("columns", 2), real("loc", 2, 2)
        left, right = pyro.plate("left", 2, dim=-2), pyro.plate("right", 2, dim=-1)
        with pyro.plate("data", len(x), dim=-3):
            with left:
                a = label("a", dist.Categorical(rows))
            with right:
                b = label("b", dist.Categorical(columns))
            with left, right:
                pyro.sample("x", dist.Normal(loc[a, b], 1.0), obs=x)

    with pytest.raises(ModelError, match="two plates"):
        em(Pair(model), CUBE)


# --- many rows --------------------------------------------------------------------------------------------------------


def many_rows(rows=1300, missing=0.0):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=generator).double() + 3.0 * (torch.arange(rows) % 2).unsqueeze(1)
    holes = torch.rand(rows, 3, generator=generator) < missing
    return torch.where(holes, torch.nan, x)


@pytest.mark.parametrize("missing", [0.0, 0.3], ids=["whole", "with gaps"])
@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_chunks_and_threads_change_nothing(monkeypatch, covariance, missing):
    x = many_rows(missing=missing)
    pair = zoo.create("gaussian_mixture", num_components=2, covariance=covariance)
    weights = torch.rand(len(x), generator=torch.Generator().manual_seed(1))
    whole = fitted(pair.model, x, {"loc": x[2:4].nan_to_num()}, 4, weights=weights)
    monkeypatch.setattr(program, "CHUNK_BYTES", 1)
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            parts = fitted(pair.model, x, {"loc": x[2:4].nan_to_num()}, 4, weights=weights)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        torch.testing.assert_close(parts.history, whole.history, **EXACT)
        torch.testing.assert_close(parts.score(), whole.score(), **EXACT)
        torch.testing.assert_close(parts.latents()["z"], whole.latents()["z"], **EXACT)
        for key, value in whole.params.items():
            torch.testing.assert_close(parts.params[key], value, **EXACT)


@pytest.mark.parametrize("name", ["mixed_columns", "two_latents", "raters", "markov", "inner_plate"])
def test_chunks_change_nothing_for_ones_own_models(monkeypatch, name):
    model, data = STORIES[name]
    data = data.repeat(60, *(1,) * (data.dim() - 1))
    data = (
        data + 0.01 * torch.randn(data.shape, generator=torch.Generator().manual_seed(0)) if name != "raters" else data
    )
    values = random_values(model, data, 0)
    whole = fitted(model, data, values, 4, collapse=False)
    monkeypatch.setattr(program, "CHUNK_BYTES", 1)
    parts = fitted(model, data, values, 4, collapse=False)
    torch.testing.assert_close(parts.history, whole.history, **EXACT)
    for key, value in whole.params.items():
        torch.testing.assert_close(parts.params[key], value, **EXACT)


@pytest.mark.parametrize("copied", [1 << 28, 0], ids=["copied", "in place"])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_memory_map_of_float32_is_fitted_in_float64(monkeypatch, tmp_path, covariance, copied):
    monkeypatch.setattr(devices, "DOUBLED_BYTES", copied)
    x = many_rows(missing=0.1).float().numpy()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = zoo.create("gaussian_mixture", num_components=2, covariance=covariance).model
    start = {"loc": torch.tensor([[0.0, 0.0, 0.0], [3.0, 3.0, 3.0]])}
    from_map, from_memory = fitted(model, mapped, start, 5), fitted(model, torch.tensor(x).double(), start, 5)
    assert all(value.dtype == torch.float64 for value in from_map.params.values())
    torch.testing.assert_close(from_map.history, from_memory.history, **EXACT)
    torch.testing.assert_close(from_map.score(), from_memory.score(), **EXACT)


@pytest.mark.parametrize("name", ["experts", "regressions", "mvn_full"])
def test_numbers_of_any_dtype_may_meet_the_params_in_a_matrix_product(name):
    model, data = STORIES[name]
    halved = map_tensors(lambda tensor: tensor.float(), data)
    values = random_values(model, data, 0)
    from_float32 = fitted(model, halved, values, 1)
    from_float64 = fitted(model, map_tensors(lambda tensor: tensor.double(), halved), values, 1)
    torch.testing.assert_close(from_float32.history, from_float64.history, **EXACT)
    torch.testing.assert_close(from_float32.score(halved), from_float64.score(), **EXACT)
