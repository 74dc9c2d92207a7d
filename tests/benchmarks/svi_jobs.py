"""Stochastic variational inference beside Pyro's own: the same model, guide, bound and optimizer."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from measure import Row, per_iteration, seconds, timed
from pyro.distributions import constraints
from pyro.infer import SVI, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from sklearn.datasets import load_iris
from torch import Tensor

from latentzoo import Pair, zoo

IRIS = torch.from_numpy(load_iris().data)
K = 3


def nothing(x: Tensor) -> None:
    """The guide of a model whose latents are all summed out."""


def factors(x: Tensor) -> None:
    loc = pyro.param("loc", lambda: x.mean(0))
    load = pyro.param("load", lambda: torch.linspace(-1, 1, 8).cos().reshape(4, 2).to(x))
    scale = pyro.param("scale", lambda: torch.tensor(1.0).to(x), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(torch.zeros(2).to(x), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(u @ load.T + loc, scale).to_event(1), obs=x)


def factors_guide(x: Tensor) -> None:
    center = pyro.param("center", lambda: torch.zeros(len(x), 2).to(x))
    width = pyro.param("width", lambda: torch.full((len(x), 2), 0.1).to(x), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Normal(center, width).to_event(1))


def steps_of_pyro(model, guide, elbo, count: int) -> SVI:
    """`count` steps of `SVI.step` in float64, validation off, in a param store of its own."""
    torch.set_default_dtype(torch.float64)
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        svi = SVI(model, guide, Adam({"lr": 0.05}), elbo)
        for _ in range(count):
            svi.step(IRIS)
    torch.set_default_dtype(torch.float32)
    return svi


def step(name: str, model, guide, elbo, rounds: int) -> Row:
    pair = Pair(model, guide)

    def ours(count: int):
        return zoo.fit(pair, IRIS, inference="svi", num_steps=count, tol=0, num_particles=1, progress=False)

    return timed(
        f"SVI step, {name}",
        "Pyro SVI.step",
        lambda: per_iteration(ours, 100, 500),
        lambda: per_iteration(lambda count: steps_of_pyro(model, guide, elbo, count), 100, 500),
        rounds,
        1.5,
    )


def step_of_mixture(rounds: int) -> Row:
    model = zoo.create("gaussian_mixture", num_components=K).model
    return step("Gaussian mixture of iris, enumerated", model, nothing, TraceEnum_ELBO(max_plate_nesting=1), rounds)


def step_of_factors(rounds: int) -> Row:
    return step("two factors of iris, mean field", factors, factors_guide, TraceMeanField_ELBO(), rounds)


def optimum(rounds: int) -> Row:
    pair = zoo.create("gaussian_mixture", num_components=K)
    begun = zoo.fit(pair, IRIS, inference="em", max_iters=5, tol=0, seed=1).params
    best = zoo.fit(pair, IRIS, inference="em", start=begun)

    def ours():
        return zoo.fit(pair, IRIS, inference="svi", start=begun, progress=False)

    gap = best.log_likelihood - ours().log_likelihood
    assert gap < 0.015, gap  # 0.01 nat for each 100 of 150 rows
    return timed(
        "SVI to the maximum of EM, iris K=3, stopping by itself",
        "Pyro SVI, 2,000 steps",
        lambda: seconds(ours),
        lambda: seconds(lambda: steps_of_pyro(pair.model, nothing, TraceEnum_ELBO(max_plate_nesting=1), 2_000)),
        rounds,
        1.0,
    )
