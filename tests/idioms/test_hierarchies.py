"""Latents whose priors hang on other latents, any depth: against closed forms, Pyro's bounds, and quadrature."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO

from latentzoo import Pair, zoo

pytestmark = pytest.mark.filterwarnings("error")
ENUM = {"enumerate": "parallel"}
EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def chain(y):
    m = pyro.sample("m", dist.Normal(torch.tensor(0.0), 1.0))
    s = pyro.sample("s", dist.Normal(m, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(s, 1.0), obs=y)


def test_the_bound_of_a_chain_of_normals_is_that_of_its_mean_field():
    """Of a normal posterior of precision P the best mean field is 0.5 log(prod P_ii / det P) below the evidence."""
    y = torch.tensor([0.3, 1.2, -0.4, 2.1, 0.9, 1.4])
    evidence = dist.MultivariateNormal(torch.zeros(6).double(), torch.eye(6).double() + 2.0).log_prob(y.double()).item()
    gap = 0.5 * math.log(2 * 7 / (2 * 7 - 1))
    for guide, below in (("mean_field", gap), ("full_rank", 0.0)):
        fit = zoo.fit(Pair(chain), y, inference="svi", guide=guide, progress=False)
        assert fit.history[-1].item() == pytest.approx(evidence - below, abs=2e-3)


def mixture(x):
    center = pyro.sample("center", dist.Normal(torch.tensor(0.0), 3.0))
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(center, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(x.new_ones(2) / 2), infer=ENUM)
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def test_the_bound_of_a_mixture_with_hierarchical_means_is_what_pyro_gives_for_its_guide():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(40) - 2, torch.randn(40) + 3])
    fit = zoo.fit(Pair(mixture), x, inference="svi", progress=False, start={"loc": torch.tensor([-2.0, 3.0])})
    factors = {name: fit.posterior(name).base_dist for name in ("center", "loc")}

    def guide(x):
        pyro.sample("center", dist.Normal(factors["center"].mean, factors["center"].stddev))
        with pyro.plate("components", 2):
            pyro.sample("loc", dist.Normal(factors["loc"].mean, factors["loc"].stddev))

    elbo = TraceEnum_ELBO(num_particles=400, max_plate_nesting=1)
    bound = -elbo.loss(mixture, guide, x.double())
    assert fit.history[-1].item() == pytest.approx(bound, abs=0.3)


def schools(y):
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
    with pyro.plate("data", 8):
        pyro.sample("y", dist.Normal(theta, ERRORS), obs=y)


def schools_by_quadrature():
    """log p(y), and the posterior mean of mu: theta is summed out in closed form, mu and tau on a grid."""
    mu, tau = torch.linspace(-25, 35, 1201).double(), torch.linspace(-9, 6, 1501).double().exp()
    spread = (tau[:, None] ** 2 + ERRORS.double() ** 2).sqrt()
    like = dist.Normal(mu[:, None, None], spread).log_prob(EFFECTS.double()).sum(-1)
    prior = dist.Normal(0.0, 5.0).log_prob(mu)[:, None] + dist.HalfCauchy(5.0).log_prob(tau) + tau.log()
    joint = like + prior + math.log((mu[1] - mu[0]).item() * 15 / 1500)
    evidence = joint.flatten().logsumexp(0)
    share = (joint - evidence).exp()
    return evidence.item(), (share.sum(1) * mu).sum().item()


def test_eight_schools_have_a_posterior_below_the_evidence():
    evidence, mean = schools_by_quadrature()
    fit = zoo.fit(Pair(schools), EFFECTS, inference="svi", guide="full_rank", progress=False)
    assert evidence - 2 < fit.history[-1].item() < evidence
    assert fit.shared_draws(4000)["mu"].mean().item() == pytest.approx(mean, abs=0.7)


def scaled(x):
    t = pyro.sample("t", dist.HalfNormal(1.0))
    mu = pyro.sample("mu", dist.Normal(0.0, t))
    s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, s), obs=x)


def groups(x):
    t = pyro.param("t", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("groups", 4):
        u = pyro.sample("u", dist.Normal(0.0, t))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(u[torch.arange(len(x)) % 4], 1.0), obs=x)


@pytest.mark.parametrize("model", [scaled, groups])
@pytest.mark.parametrize("guide", ["mean_field", "full_rank", "low_rank", "delta"])
def test_priors_beside_params_are_fitted_by_every_guide(model, guide):
    torch.manual_seed(1)
    x = 2 + torch.randn(60)
    fit = zoo.fit(Pair(model), x, inference="svi", guide=guide, progress=False)
    assert fit.history[-1].isfinite()
    assert fit.score().shape == (60,)
    assert guide == "delta" or set(fit.shared_draws(3)) == set(fit.params)


def test_a_learned_prior_scale_meets_its_closed_form():
    """x | t is normal, with t^2 shared within groups: the bound of a full-rank guide is log p(x) at its maximum."""
    torch.manual_seed(1)
    x = (2 * torch.randn(4)[torch.arange(60) % 4] + torch.randn(60)).double()
    same = (torch.arange(60)[:, None] % 4 == torch.arange(60) % 4).double()

    def log_prob(t):
        return dist.MultivariateNormal(torch.zeros(60).double(), torch.eye(60).double() + t**2 * same).log_prob(x)

    best = max(log_prob(t).item() for t in torch.linspace(0.3, 6, 300).double())
    fit = zoo.fit(Pair(groups), x, inference="svi", guide="full_rank", progress=False)
    assert fit.history[-1].item() == pytest.approx(best, abs=5e-3)
