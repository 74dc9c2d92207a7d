"""Mixtures and flows as factors of encoders, beside quadrature, finite differences and closed forms."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from sklearn.datasets import load_digits
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from latentzoo import Pair, zoo
from latentzoo.inference.amortized.encoder import Amortized
from latentzoo.inference.base.errors import OptionError
from latentzoo.inference.nn.posteriors import POSTERIORS, Bends, Flow, Mixture, free_numbers, posterior_of

pytestmark = pytest.mark.filterwarnings("ignore::latentzoo.inference.base.errors.ConvergenceWarning")

DIGITS = torch.from_numpy((load_digits().data > 8).astype(np.float32))


# --- the distributions ------------------------------------------------------------------------------------------------


def mixture(size, dtype=torch.float64):
    generator = torch.Generator().manual_seed(size)
    loc = 1.5 * torch.randn(3, size, generator=generator, dtype=dtype)
    scale = 0.3 + 0.5 * torch.rand(3, size, generator=generator, dtype=dtype)
    return torch.tensor([0.3, -0.5, 0.1], dtype=dtype), loc, scale


def flow(size, rows=1):
    torch.manual_seed(size)
    with torch.no_grad():
        network = Bends(size)
        for weight in network.parameters():
            weight.mul_(1.5)  # bent well away from a normal distribution
    return Flow(torch.randn(rows, posterior_of("flow", size).num_stats), network)


def grid_of(size, half=10.0, num=801):
    line = torch.linspace(-half, half, num, dtype=torch.float64)
    return torch.cartesian_prod(*[line] * size).reshape(-1, size), (2 * half / (num - 1)) ** size


def bumpy(z):
    return torch.sin(1.3 * z).sum(-1) + (z**2).prod(-1) + 0.3 * z[..., 0] ** 3


@pytest.mark.parametrize("size", [1, 2])
def test_draws_of_a_mixture_carry_the_gradient_of_their_expectation(size):
    """That of the weights too; the expectation by quadrature."""
    params = [part.requires_grad_() for part in mixture(size)]
    points, cell = grid_of(size)
    wanted = torch.autograd.grad((Mixture(*params).log_prob(points).exp() * bumpy(points)).sum() * cell, params)
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32):
        many = [part.detach().to(dtype).expand(80_000, *part.shape).clone().requires_grad_() for part in params]
        found = torch.autograd.grad(bumpy(Mixture(*many).rsample()).sum(), many)
        for one, exact in zip(found, wanted, strict=True):
            error = one.double().std(0) / len(one) ** 0.5
            assert ((one.double().mean(0) - exact).abs() < 5 * error + 1e-3).all()


def test_a_draw_of_one_component_moves_as_a_normal_draw_does():
    loc, scale = torch.tensor([[0.5, -1.0]], requires_grad=True), torch.tensor([[0.7, 2.0]], requires_grad=True)
    torch.manual_seed(0)
    value = Mixture(torch.zeros(1), loc, scale).rsample()
    for k in range(2):
        by_loc, by_scale = torch.autograd.grad(value[k], [loc, scale], retain_graph=True)
        torch.testing.assert_close(by_loc[0], torch.eye(2)[k], atol=1e-4, rtol=0)
        wanted = torch.eye(2)[k] * ((value - loc[0]) / scale[0])[k].detach()
        torch.testing.assert_close(by_scale[0], wanted, atol=1e-3, rtol=1e-3)


def test_the_density_and_the_moments_of_a_mixture_are_those_of_torch():
    logits, loc, scale = mixture(3)
    theirs = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(loc, scale), 1))
    ours = Mixture(logits, loc, scale)
    torch.manual_seed(0)
    z = ours.sample((20_000,))
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
    torch.testing.assert_close(z.mean(0), theirs.mean, atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [1, 2])
def test_the_density_of_a_flow_is_one_over_all_and_that_of_its_draws(size):
    q = flow(size)
    points, cell = grid_of(size, half=12.0, num=5001 if size == 1 else 301)
    with torch.no_grad():
        assert float(q.log_prob(points.float()).double().exp().sum()) * cell == pytest.approx(1, abs=0.02)
        torch.manual_seed(0)
        z = q.rsample((20_000,))  # (S, 1, K)
        known, again = q.log_prob(z), q.log_prob(z.clone())  # kept from the draw; by the way back
        weight = q.log_prob(points.float()).double().exp() * cell
    assert (known - again).abs().mean() < 1e-3
    mean, second = (weight @ points, weight @ points**2)
    error = z.double().std(0)[0] / len(z) ** 0.5
    assert ((z.double().mean(0)[0] - mean).abs() < 5 * error + 0.02).all()
    torch.testing.assert_close((z.double() ** 2).mean(0)[0], second, rtol=0.05, atol=0)


def test_a_frozen_flow_passes_gradients_to_its_draws_alone():
    q = flow(2, rows=4)
    q = Flow(q.stats.requires_grad_(), q.network)
    z = q.rsample().detach().requires_grad_()
    q.frozen().log_prob(z).sum().backward()
    assert q.stats.grad is None
    assert all(weight.grad is None for weight in q.network.parameters())
    step = torch.zeros_like(z)
    step[1, 0] = 1e-2
    with torch.no_grad():
        wanted = (q.log_prob(z + step) - q.log_prob(z - step))[1] / 2e-2
    assert float(z.grad[1, 0]) == pytest.approx(float(wanted), rel=0.05, abs=0.02)


@pytest.mark.parametrize("name", ["diagonal", "full", "mixture", "flow"])
def test_a_factor_is_made_again_of_its_free_numbers(name):
    family = posterior_of(name, 2)
    torch.manual_seed(0)
    with pyro.get_param_store().scope():
        q = family.of(torch.randn(5, family.num_stats))
        free, again = free_numbers(q)
        assert free.shape == (5, family.num_stats)
        z = torch.randn(5, 2)
        torch.testing.assert_close(again(free).log_prob(z), q.log_prob(z), rtol=1e-4, atol=1e-4)


# --- posteriors that are not normal -----------------------------------------------------------------------------------


def two_humps(x):
    """The first number is seen by its square."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = torch.stack([z[..., 0] ** 2, z[..., 1]], -1)
        pyro.sample("x", dist.Normal(mean, torch.tensor([0.5, 0.3])).to_event(1), obs=x)


def banana(x):
    """What is seen is how far the second number is from the square of the first."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 1:] - z[..., :1] ** 2, 0.3).to_event(1), obs=x)


MODELS = {"two humps": two_humps, "banana": banana}


def drawn_from(model, num=40):
    torch.manual_seed(1)
    z = torch.randn(num, 2)
    if model is two_humps:
        return torch.stack([z[:, 0] ** 2 + 0.5 * torch.randn(num), z[:, 1] + 0.3 * torch.randn(num)], 1)
    return z[:, 1:] - z[:, :1] ** 2 + 0.3 * torch.randn(num, 1)


def by_quadrature(model, x):
    """log p(x_n), and the posterior mean of z and of its square, (N, 2) each."""
    points, cell = grid_of(2, half=6.0, num=301)
    points = points.float()
    total, first, second = [], [], []
    for row in x:
        with poutine.trace() as tracer, poutine.condition(data={"z": points}):
            model(row.expand(len(points), -1))
        tracer.trace.compute_log_prob()
        log_joint = sum(tracer.trace.nodes[name]["log_prob"] for name in ("z", "x")).double()
        total.append(log_joint.logsumexp(0) + math.log(cell))
        share = log_joint.softmax(0)
        first.append(share @ points.double())
        second.append(share @ points.double() ** 2)
    return torch.stack(total), torch.stack(first), torch.stack(second)


FITS = {}


@pytest.fixture(params=["two humps", pytest.param("banana", marks=pytest.mark.slow)])
def fits(request):
    """One fit of each family to a few rows of each model, for all tests."""
    name = request.param
    if name not in FITS:
        x = drawn_from(MODELS[name])
        short = {"num_steps": 300, "learning_rate": 0.005, "num_particles": 8, "tol": 0}
        each = {
            posterior: zoo.fit(Pair(MODELS[name]), x, inference="svi", guide=Amortized(posterior, (32,)), **short)
            for posterior in POSTERIORS
        }
        FITS[name] = x, by_quadrature(MODELS[name], x), each
    return FITS[name]


def test_richer_families_come_closer_to_log_p(fits):
    """Diagonal below full below mixture and flow, and all below log p(x) by quadrature."""
    x, (exact, _, _), each = fits
    lost = {name: (float(exact.sum()) - fit.log_likelihood) / len(x) for name, fit in each.items()}
    assert min(lost.values()) > -0.03  # of draws
    assert lost["diagonal"] > lost["full"] - 0.05
    assert lost["mixture"] < lost["full"] - 0.1
    assert lost["flow"] < min(0.35, lost["full"] - 0.15)


def test_scores_are_near_log_p_and_not_above_it(fits):
    x, (exact, _, _), each = fits
    for name in ("mixture", "flow"):
        found = each[name].importance(x, num=1000)
        away = found.log_prob - exact
        assert (away < 6 * found.error + 0.02).all()
        assert -0.25 < away.mean() < 0.02  # below, where a part of the posterior is not covered


def test_posterior_spreads_are_those_of_quadrature(fits):
    """Two humps are wide together, though each is narrow; a normal factor sits in one."""
    x, (_, first, second), each = fits
    sd = (second - first**2).sqrt()
    away = {name: float((fit.latents(x)["z"].sd - sd).abs().mean()) for name, fit in each.items()}
    assert away["mixture"] < 0.7 * away["full"]
    assert away["flow"] < 0.9 * away["full"]


def test_a_saved_fit_says_the_same(fits, tmp_path):
    x, _, each = fits
    for name in ("mixture", "flow"):
        fit = each[name]
        assert fit.guide == f"amortized_{name}"
        fit.save(tmp_path / name)
        again = zoo.load(tmp_path / name, Pair(fit.pair.model))
        assert torch.equal(again.score(x), fit.score(x))
        drawn, redrawn = (one.sample_posterior(20, x, seed=3)["z"] for one in (fit, again))
        assert torch.equal(drawn, redrawn)
        assert type(again.posterior("z", x)).__name__.lower() == name


def test_gaps_are_known_of_mixtures_and_flows(fits):
    """Factors climbed row by row come closer to log p(x), and no further."""
    x, (exact, _, _), each = fits
    for name in ("mixture", "flow"):
        found = each[name].gaps(x[:15], num_steps=40, num=200)
        assert found.amortization >= 0
        assert found.approximation > -0.02
        assert float((exact[:15] - found.log_prob).mean()) > -0.05
        assert found.optimum is None
        assert "optimization" not in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_flow_given_time_loses_little(name):
    model = MODELS[name]
    x = drawn_from(model, 100)
    exact, _, _ = by_quadrature(model, x)
    longer = {"num_steps": 2500, "learning_rate": 0.003, "num_particles": 8, "tol": 0}
    fit = zoo.fit(Pair(model), x, inference="svi", guide=Amortized("flow"), **longer)
    assert -0.02 < (float(exact.sum()) - fit.log_likelihood) / len(x) < 0.25


# --- the same families elsewhere --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixture", pytest.param("flow", marks=pytest.mark.slow)])
def test_latents_that_are_positive_have_them_too(name):
    """Poisson counts of a gamma rate: log p(x) is that of a negative binomial."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.tensor([0.0, 1.0, 2.0, 5.0, 9.0]).repeat(8)
    wanted = dist.NegativeBinomial(2.0, probs=torch.tensor(0.5)).log_prob(x)
    fit = zoo.fit(Pair(model), x, inference="svi", guide=f"amortized_{name}", num_steps=200, learning_rate=0.01, tol=0)
    torch.testing.assert_close(fit.score(x).float(), wanted, atol=0.15, rtol=0)
    assert float(wanted.sum()) - 4 < fit.log_likelihood < float(wanted.sum()) + 0.5


@pytest.mark.parametrize("name", ["mixture", "flow"])
def test_a_vae_takes_them(name):
    options = {"num_steps": 15, "tol": 0, "learning_rate": 0.01, "hidden": (16,), "posterior": name}
    for latents in (1, 3):
        fit, again = (zoo.fit("vae", DIGITS[:100], latent_dim=latents, seed=4, **options) for _ in range(2))
        assert torch.equal(fit.history, again.history)
        assert fit.history[-1] > fit.history[0]
        assert fit.latents(DIGITS[:5])["z"].mean.shape == (5, latents)
        assert torch.isfinite(fit.score(DIGITS[:5])).all()


@pytest.mark.parametrize("name", ["mixture", "flow"])
def test_tighter_bounds_and_their_gradients_take_them(name):
    x = drawn_from(banana)
    for objective in ("dreg",):
        fit = zoo.fit(
            Pair(banana),
            x,
            inference="svi",
            guide=Amortized(name, (16,)),
            objective=objective,
            num_steps=25,
            learning_rate=0.01,
            tol=0,
        )
        assert fit.history[-1] > fit.history[0]


def test_what_is_no_family_is_refused():
    for make in (lambda: Amortized("flows"), lambda: zoo.create("vae", posterior="flows")):
        with pytest.raises(OptionError, match="posterior: met 'flows', expected one of diagonal, full, mixture, flow"):
            make()
    for make in (
        lambda: Amortized("mixture", components=1),
        lambda: zoo.create("vae", posterior="mixture", components=0),
    ):
        with pytest.raises(OptionError, match="components: met"):
            make()


def test_components_are_kept(tmp_path):
    x = drawn_from(two_humps)
    fit = zoo.fit(
        Pair(two_humps), x, inference="svi", guide=Amortized("mixture", (8,), components=7), num_steps=5, tol=0
    )
    fit.save(tmp_path / "run")
    assert zoo.load(tmp_path / "run", Pair(two_humps)).posterior("z", x).loc.shape == (len(x), 7, 2)
