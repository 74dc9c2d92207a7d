"""Other things that Pyro programs do: finite latents of every family, constants in float32, modules, conditioning."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import by_pyro
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor

from latentzoo import Pair, cavi, em, svi, zoo
from latentzoo.inference.base.errors import DataError

ENUMERATE = {"enumerate": "parallel"}
X = torch.tensor([0.0, 1.0, 2.2, 0.7, 2.9, 1.1, 0.2, 3.4], dtype=torch.float64)


def unit(name="p", value=0.3):
    return pyro.param(name, torch.tensor(value), constraint=constraints.unit_interval)


def positive(name, value=1.0):
    return pyro.param(name, torch.tensor(value), constraint=constraints.positive)


def simplex():
    return pyro.param("p", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)


LATENTS = {
    "binomial": lambda: dist.Binomial(3, unit()),
    "binomial, logits": lambda: dist.Binomial(3, logits=pyro.param("logit", torch.tensor(-0.5))),
    "bernoulli": lambda: dist.Bernoulli(unit()),
    "bernoulli, logits": lambda: dist.Bernoulli(logits=pyro.param("logit", torch.tensor(-0.5))),
    "categorical": lambda: dist.Categorical(
        pyro.param("p", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
    ),
    "categorical, logits": lambda: dist.Categorical(logits=pyro.param("logits", torch.tensor([0.2, 0.3, 0.5]))),
    "beta-binomial": lambda: dist.BetaBinomial(positive("a", 0.7), 2.0, total_count=3),
}


@pytest.mark.parametrize("name", LATENTS)
def test_finite_latents_keep_their_whole_density(name):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", LATENTS[name](), infer=ENUMERATE)
            pyro.sample(
                "x", dist.Normal(1.0 * z, pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)), obs=x
            )

    start = em(Pair(model), X, max_iters=0, tol=0, progress=False)
    assert start.log_likelihood == pytest.approx(by_pyro(model, X, start.params), rel=1e-7)
    fit = em(Pair(model), X, progress=False)
    assert fit.log_likelihood == pytest.approx(by_pyro(model, X, fit.params), rel=1e-7)
    for key, value in fit.params.items():
        if value.dim() == 0:
            for moved in (value * 1.01, value * 0.99):
                assert by_pyro(model, X, {**fit.params, key: moved}) < fit.log_likelihood + 1e-9, key


def test_a_latent_of_one_hot_vectors():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(simplex()), infer=ENUMERATE)
            pyro.sample("x", dist.Normal(z @ torch.arange(3.0).to(z), 1.0), obs=x)

    start = em(Pair(model), X, max_iters=0, tol=0, progress=False)
    right = torch.stack([p.log() + dist.Normal(k, 1.0).log_prob(X) for k, p in enumerate(start.params["p"])]).logsumexp(
        0
    )
    assert start.log_likelihood == pytest.approx(float(right.sum()), rel=1e-9)


@pytest.mark.parametrize("inference", ["em", "cavi", "svi"])
def test_priors_made_outside_the_model_in_float32(inference):
    table = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    prior = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    wide = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))

    def model(d, prior=prior):
        slopes = pyro.sample("slopes", prior)
        with pyro.plate("data", len(d)):
            pyro.sample("y", dist.Normal(d[:, :2] @ slopes, 1.0), obs=d[:, 2])

    fit = zoo.fit(Pair(model), table, inference=inference, progress=False)
    design, y = table[:, :2].double(), table[:, 2].double()
    right = torch.linalg.solve(design.mT @ design + torch.eye(2).double(), design.mT @ y)
    assert fit.params["slopes"].numpy() == pytest.approx(right.numpy(), abs=2e-3 if inference == "svi" else 1e-6)
    if inference == "em":
        again = em(Pair(lambda d: model(d, wide)), table, progress=False)
        assert again.params["slopes"].numpy() == pytest.approx(right.numpy(), abs=1e-6)


class Line(PyroModule):
    """A regression as a module, with params of its own."""

    def __init__(self):
        super().__init__()
        self.slope = PyroParam(torch.zeros(2))
        self.spread = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, d):
        with pyro.plate("data", len(d)):
            pyro.sample("y", dist.Normal(d[:, :2] @ self.slope, self.spread), obs=d[:, 2])


class Sampled(PyroModule):
    """The same with a prior."""

    def __init__(self):
        super().__init__()
        self.slope = PyroSample(dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))

    def forward(self, d):
        mean = d[:, :2] @ self.slope
        with pyro.plate("data", len(d)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=d[:, 2])


def test_modules_of_pyro():
    table = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    design, y = table[:, :2].double(), table[:, 2].double()
    fit = em(Pair(Line()), table, progress=False)
    assert fit.params["slope"].numpy() == pytest.approx(torch.linalg.lstsq(design, y).solution.numpy(), abs=1e-6)
    fit = em(Pair(Sampled()), table, progress=False)
    right = torch.linalg.solve(design.mT @ design + torch.eye(2).double(), design.mT @ y)
    assert fit.params["slope"].numpy() == pytest.approx(right.numpy(), abs=1e-6)


def mixture(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
        mean = pyro.deterministic("mean", pyro.param("means", torch.tensor([0.0, 3.0]))[z])
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_a_latent_that_is_conditioned_is_observed():
    labels = torch.tensor([0, 0, 1, 0, 1, 0, 0, 1])
    fit = em(Pair(poutine.condition(mixture, data={"z": labels})), X, progress=False)
    assert fit.params["weights"].numpy() == pytest.approx([5 / 8, 3 / 8])
    assert fit.params["means"].numpy() == pytest.approx([float(X[labels == k].mean()) for k in (0, 1)], abs=1e-6)


def test_a_factor_weighs_rows_and_cannot_be_drawn():
    def model(x):
        rate = pyro.param("rate", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.factor("f", rate.log() - rate * x)

    fit = em(Pair(model), X, progress=False)
    assert float(fit.params["rate"]) == pytest.approx(1 / float(X.mean()), rel=1e-6)
    with pytest.raises(DataError, match=r"generate: site 'f' is a pyro\.factor"):
        fit.generate(3)


def test_a_factor_beside_a_latent_is_in_its_sum():
    def model(x):
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
            pyro.sample("x", dist.Normal(3.0 * z, 1.0), obs=x)
            pyro.factor("bonus", 0.5 * z * x)

    fit = em(Pair(model), X, progress=False)
    assert fit.log_likelihood == pytest.approx(by_pyro(model, X, fit.params), rel=1e-9)


def test_a_latent_in_another_parameterization_has_the_same_posterior():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("m", dist.Normal(1.0, 2.0)), 1.0), obs=x)

    def model_of_one(x):
        m = pyro.sample("m", dist.Normal(1.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    moved = poutine.reparam(model_of_one, config={"m": LocScaleReparam(0.0)})
    right = (X.sum() + 0.25) / (len(X) + 0.25)
    fit = em(Pair(moved), X, progress=False)
    assert 1 + 2 * float(fit.params["m_decentered"]) == pytest.approx(float(right), abs=1e-6)
    by_svi = svi(Pair(moved), X, progress=False)
    assert 1 + 2 * float(by_svi.params["m_decentered"]) == pytest.approx(float(right), abs=5e-3)


def test_restarts_of_a_latent_whose_weights_are_constant() -> None:
    x = torch.cat([torch.randn(60), torch.randn(60) + 4]).double()

    def model(x: Tensor) -> None:
        m = pyro.param("m", torch.tensor([0.0, 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(m[z], 1.0), obs=x)

    fit = em(Pair(model), x, restarts=5)
    parts = torch.stack([dist.Normal(m, 1.0).log_prob(x) for m in fit.params["m"]])
    assert fit.log_likelihood == pytest.approx(float((parts.logsumexp(0) - math.log(2)).sum()), abs=1e-8)
    assert len(fit.mode_map.bounds) == 5


def test_a_rows_own_latent_under_a_mean_field_and_its_verbs() -> None:
    x = 2 + torch.randn(200, generator=torch.Generator().manual_seed(0)).double() * 1.5

    def model(x: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(b, 1.0))
            pyro.sample("x", dist.Normal(u, tau**-0.5), obs=x)

    fit = cavi(Pair(model), x)
    assert fit.posterior("b").loc.item() == pytest.approx(float(x.mean()), abs=0.02)
    marginal = dist.Normal(fit.params["b"], (1 + 1 / fit.params["tau"]).sqrt()).log_prob(x)
    assert float((fit.score() - marginal).abs().mean()) < 0.05  # averaged over what is not known of b and tau
    assert fit.latents()["u"].mean.shape == (200,)


def test_classes_that_the_start_leaves_alike_are_moved_apart_beside_a_covariate() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(300, generator=generator).double()
    of_first = torch.rand(300, generator=generator) < torch.sigmoid(x)
    probs = torch.where(of_first[:, None], 0.85, 0.2)
    y = (torch.rand(300, 4, generator=generator) < probs).double()

    def model(x: Tensor, y: Tensor) -> None:
        g = pyro.param("g", torch.zeros(2))
        p = pyro.param("p", torch.full((2, 4), 0.5), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            logits = torch.stack([torch.zeros_like(x), g[0] + g[1] * x], -1)
            c = pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Bernoulli(p[c]).to_event(1), obs=y)

    fit = em(model, (x, y))
    found = fit.params["p"].mean(1).sort().values
    assert found[0].item() == pytest.approx(0.2, abs=0.08)
    assert found[1].item() == pytest.approx(0.85, abs=0.08)


class Layer(PyroModule):
    """A regression whose slopes are those of torch's own layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](2, 1)
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> None:
        loc = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc, self.log_scale.exp()), obs=y)


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_parameters_of_a_module_are_learned(inference: str) -> None:
    x = torch.randn(80, 2).double()
    y = x @ torch.tensor([1.0, -2.0]).double() + 0.5 + 0.1 * torch.randn(80).double()
    model = Layer()
    before = model.linear.weight.detach().clone()
    fit = zoo.fit(model, (x, y), inference=inference, progress=False)
    design = torch.cat([x, torch.ones(80, 1).double()], 1)
    best = torch.linalg.lstsq(design, y).solution
    residual = float(((y - design @ best) ** 2).mean())
    assert fit.params["linear.weight"].flatten().tolist() == pytest.approx(best[:2].tolist(), abs=1e-4)
    assert fit.params["linear.bias"].item() == pytest.approx(best[2].item(), abs=1e-4)
    assert fit.log_likelihood == pytest.approx(-40 * (math.log(2 * math.pi * residual) + 1), abs=1e-3)
    assert torch.equal(model.linear.weight, before)  # the user's own is left as it was
