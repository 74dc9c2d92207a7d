"""Draws of discrete latents, backward through the order of their sum, beside the posterior by brute force."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import joint
from pyro.distributions import constraints

from latentzoo import zoo
from latentzoo.inference.base.errors import ModelError

PARALLEL = {"enumerate": "parallel"}
NUM = 40_000


def nested(data):
    """Two latents of a row, and two of each of its cells."""
    weights = pyro.param("weights", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
    turn = pyro.param("turn", torch.tensor([[0.8, 0.2], [0.4, 0.6]]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[-1.0, 0.2, 0.9], [0.0, 0.7, 1.5]]))
    with pyro.plate("data", len(data), dim=-2):
        z = pyro.sample("z", dist.Categorical(weights), infer=PARALLEL)
        c = pyro.sample("c", dist.Categorical(turn[z]), infer=PARALLEL)
        with pyro.plate("cells", data.shape[1], dim=-1):
            w = pyro.sample("w", dist.Categorical(turn[c]), infer=PARALLEL)
            v = pyro.sample("v", dist.Categorical(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])[w]), infer=PARALLEL)
            pyro.sample("x", dist.Normal(loc[z, v], 0.8), obs=data)
            pyro.deterministic("level", loc[c, v])


@pytest.fixture(scope="module")
def rows():
    return torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def fit(rows):
    return zoo.fit(zoo.Pair(nested), rows, inference="em", restarts=1, max_iters=1, tol=0)


def test_joint_draws_have_the_frequencies_of_the_posterior(fit, rows):
    exact = joint(nested, rows, fit.params)
    drawn = fit.sample_posterior(NUM)
    assert drawn["z"].shape == drawn["c"].shape == (NUM, 3)
    assert drawn["w"].shape == drawn["v"].shape == (NUM, 3, 2)
    for values, share in zip(exact.configurations, exact.posterior, strict=True):
        same = torch.ones(NUM, 3, dtype=torch.bool)
        for name, value in values.items():
            same &= (drawn[name] == value).reshape(NUM, 3, -1).all(-1)
        error = (share * (1 - share) / NUM).sqrt()
        assert ((same.double().mean(0) - share).abs() <= 5 * error + 1e-4).all()
    torch.testing.assert_close(drawn["level"], fit.params["loc"][drawn["c"].unsqueeze(-1), drawn["v"]])


def test_expected_cells_weigh_latents_of_rows_and_of_cells_together(fit, rows):
    exact = joint(nested, rows, fit.params)
    expected = torch.zeros(3, 2, dtype=torch.float64)
    for values, share in zip(exact.configurations, exact.posterior, strict=True):
        expected += share.unsqueeze(1) * fit.params["loc"][values["z"], values["v"]]
    torch.testing.assert_close(fit.reconstruct(rows), expected)


def test_a_quantity_of_all_cells_at_once_is_refused(rows):
    def model(data):
        with pyro.plate("data", len(data), dim=-2):
            with pyro.plate("cells", data.shape[1], dim=-1):
                weights = pyro.param("weights", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
                z = pyro.sample("z", dist.Categorical(weights), infer=PARALLEL)
                pyro.sample("x", dist.Normal(z.double(), 1.0), obs=data)
            pyro.deterministic("total", z.double().sum(-1, keepdim=True))

    fit = zoo.fit(zoo.Pair(model), rows, inference="em", restarts=1, max_iters=1, tol=0)
    with pytest.raises(ModelError, match="'total' is computed of 'z' outside of its plates"):
        fit.sample_posterior(2)


MANY = 25


def chain(data):
    """So many latents of a row that a table of their configurations would take a quarter of a gigabyte a row."""
    start = pyro.param("start", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    turn = pyro.param("turn", torch.tensor([[0.9, 0.1], [0.3, 0.7]]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-0.5, 0.5]))
    with pyro.plate("data", len(data)):
        z = None
        for m in range(MANY):
            z = pyro.sample(f"z{m}", dist.Categorical(start if z is None else turn[z]), infer=PARALLEL)
            pyro.sample(f"x{m}", dist.Normal(loc[z], 1.0), obs=data[:, m])


def test_many_latents_are_drawn_one_by_one():
    rows = torch.randn(20, MANY, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fit = zoo.fit(zoo.Pair(chain), rows, inference="em", restarts=1, max_iters=1, tol=0)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.untyped_storage().nbytes())
            return out

    num = 2_000
    with Watch():
        drawn = fit.sample_posterior(num)
        filled = fit.reconstruct()
        groups = fit.to_arviz()
    assert largest < 10e6
    assert groups.posterior["z24"].shape == (1, 1, 20)
    # the filter forward and the smoother backward, by hand (Rabiner 1989)
    start, turn, loc = (fit.params[name] for name in ("start", "turn", "loc"))
    like = dist.Normal(loc, 1.0).log_prob(rows.unsqueeze(-1)).exp()  # (N, M, 2)
    forward, backward = [start * like[:, 0]], [torch.ones(20, 2, dtype=torch.float64)]
    for m in range(1, MANY):
        forward.append(forward[-1] @ turn * like[:, m])
        backward.append((backward[-1] * like[:, MANY - m]) @ turn.mT)
    smoothed = torch.stack(forward, 1) * torch.stack(backward[::-1], 1)
    smoothed = smoothed / smoothed.sum(-1, keepdim=True)
    found = fit.latents()
    for m in range(MANY):
        torch.testing.assert_close(found[f"z{m}"], smoothed[:, m])
        share = drawn[f"z{m}"].double().mean(0)
        assert ((share - smoothed[:, m, 1]).abs() <= 5 * (0.25 / num) ** 0.5).all()
    torch.testing.assert_close(filled, smoothed @ loc)
    both = (drawn["z3"] * drawn["z4"]).double().mean(0)  # neighbours are drawn together
    pair = forward[3].unsqueeze(-1) * turn * (like[:, 4] * backward[::-1][4]).unsqueeze(-2)
    pair = pair / pair.sum((-2, -1), keepdim=True)
    assert ((both - pair[:, 1, 1]).abs() <= 5 * (0.25 / num) ** 0.5).all()
