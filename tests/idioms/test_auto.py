"""The inference that "auto" picks, what it says of why, and what it reaches: posteriors against quadrature."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from latentzoo import Pair, em, zoo
from latentzoo.inference.base.errors import DataError, ModelError

pytestmark = pytest.mark.filterwarnings("error")
ENUM = {"enumerate": "parallel"}
X = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1


def learned(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def mixture(x):
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])), infer=ENUM)
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def conjugate(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, tau**-0.5), obs=x)


def half_normal(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def collinear(x):
    first = pyro.sample("first", dist.Laplace(0.0, 1.0))
    second = pyro.sample("second", dist.Laplace(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(first + second, 1.0), obs=x)


def positive(x):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.LogNormal(0.0, scale))
        pyro.sample("x", dist.Normal(u, 1.0), obs=x)


def random_effect(x):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(u, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "inference", "words"),
    [
        (learned, "em", "no row has a latent"),
        (mixture, "em", "'z' of each row can be summed out"),
        (conjugate, "cavi", "its factors are independent"),
        (half_normal, "svi", r"'scale' has a HalfNormal prior.*full-rank normal over their 2 numbers"),
        (collinear, "svi", "full-rank normal over their 2 numbers"),
        (positive, "svi", "'u' of each row is continuous"),
        (random_effect, "em", "'u' is normal, the model linear in it"),
    ],
)
def test_the_pick_and_its_reason(model, inference, words):
    name, reason, _ = zoo.resolve(Pair(model), "auto", X)
    assert name == inference
    assert re.search(words, reason)
    assert "iris" not in reason


def test_many_shared_numbers_get_a_low_rank_guide():
    def model(x):
        with pyro.plate("cells", 400):
            b = pyro.sample("b", dist.Laplace(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(b.sum(), 1.0), obs=x)

    assert zoo.resolve(Pair(model), "auto", X)[2] == {"guide": "low_rank"}


def test_a_guide_that_is_asked_for_is_taken():
    fit = zoo.fit(Pair(half_normal), X, guide="mean_field", num_steps=20, tol=0, progress=False)
    assert fit.guide == "mean_field"


def test_a_posterior_of_latents_that_lean_on_one_another_is_as_wide_as_it_is():
    """first + second is known to 1/8, first - second is not: independent factors would know either to 1/8."""
    grid = torch.linspace(-6, 6, 601, dtype=torch.float64)
    like = -0.5 * 60 * (grid[:, None] + grid - X.mean()) ** 2
    joint = (like - grid.abs()[:, None] - grid.abs()).flatten()
    share = (joint - joint.logsumexp(0)).exp().reshape(601, 601).sum(1)
    mean = (share * grid).sum()
    sd = ((share * (grid - mean) ** 2).sum()).sqrt().item()
    fit = zoo.fit(Pair(collinear), X, progress=False)
    draws = fit.shared_draws(4_000)
    assert draws["first"].std().item() == pytest.approx(sd, rel=0.25)
    assert (draws["first"] + draws["second"]).std().item() == pytest.approx(60**-0.5, rel=0.2)


def counts(y):
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(1.0)))
    with pyro.plate("groups", 8):
        u = pyro.sample("u", dist.Normal(0.0, tau))
    with pyro.plate("data", 8):
        pyro.sample("y", dist.Poisson(u.exp()), obs=y)


def test_a_joint_mode_that_would_run_to_scale_0_is_refused():
    y = torch.tensor([3.0, 1.0, 0.0, 2.0, 5.0, 1.0, 2.0, 0.0])
    assert zoo.resolve(Pair(counts), "auto", y)[0] == "svi"
    with pytest.raises(ModelError, match=r"prior of latent 'u'.* would run to a spread of 0"):
        em(Pair(counts), y, progress=False)


def test_effects_of_groups_under_learned_spreads_are_summed_out():
    def model(x):
        t = pyro.param("t", torch.tensor(1.0), constraint=constraints.positive)
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("groups", 6):
            u = pyro.sample("u", dist.Normal(0.0, t))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(u[torch.arange(len(x)) % 6], s), obs=x)

    name, reason, _ = zoo.resolve(Pair(model), "auto", X)
    assert name == "em"
    assert "'u' shared by rows are normal" in reason


def test_em_that_is_asked_for_says_that_it_is_a_mode():
    fit = em(Pair(conjugate), X, progress=False)
    assert fit.at_mode == ("loc", "tau")
    assert "MAP" in repr(fit)
    assert "MAP: 'loc', 'tau' at the joint mode, which is no posterior" in fit.summary()
    assert "MAP" not in repr(em(Pair(mixture), X, progress=False))


def test_restarts_of_a_mixture_with_constant_weights():
    one, five = (em(Pair(mixture), X, restarts=restarts, progress=False) for restarts in (1, 5))
    assert len(five.mode_map.bounds) == 5
    assert five.log_likelihood >= one.log_likelihood - 1e-9


def test_a_nan_that_the_model_makes_is_no_gap():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x.log())

    x = torch.tensor([0.5, math.nan, -1.0, 2.0, 3.0, 1.0])
    for inference in ("em", "svi"):
        with pytest.raises(DataError, match=r"site 'x' is given NaN in row 2 .* the model makes it"):
            zoo.fit(Pair(model), x, inference=inference, progress=False)
