"""Chains written with `pyro.markov`: what Pyro's own enumeration gives, and what the same loop without it gives."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import by_pyro
from pyro.distributions import constraints

from latentzoo import Pair, em
from latentzoo.inference.base.errors import ModelError

ENUMERATE = {"enumerate": "parallel"}
X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3.0 * torch.tensor(
    [0, 1, 1, 0]
)


def params():
    moves = pyro.param("moves", torch.tensor([[0.7, 0.3], [0.2, 0.8]]), constraint=constraints.simplex)
    return moves, pyro.param("means", torch.tensor([0.0, 3.0]))


def inside(x):
    moves, means = params()
    with pyro.plate("data", len(x)):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z{t}", dist.Categorical(moves[z]), infer=ENUMERATE)
            pyro.sample(f"x{t}", dist.Normal(means[z], 1.0), obs=x[:, t])


def outside(x):
    moves, means = params()
    z = 0
    rows = pyro.plate("data", len(x), dim=-1)
    for t in pyro.markov(range(x.shape[1])):
        with rows:
            z = pyro.sample(f"z{t}", dist.Categorical(moves[z]), infer=ENUMERATE)
            pyro.sample(f"x{t}", dist.Normal(means[z], 1.0), obs=x[:, t])


def of_order_two(x):
    table = pyro.param(
        "table", torch.tensor([[[0.7, 0.3], [0.4, 0.6]], [[0.5, 0.5], [0.1, 0.9]]]), constraint=constraints.simplex
    )
    means = pyro.param("means", torch.tensor([0.0, 3.0]))
    with pyro.plate("data", len(x)):
        older = old = 0
        for t in pyro.markov(range(x.shape[1]), history=2):
            z = pyro.sample(f"z{t}", dist.Categorical(table[older, old]), infer=ENUMERATE)
            pyro.sample(f"x{t}", dist.Normal(means[z], 1.0), obs=x[:, t])
            older, old = old, z


def with_an_inner_plate(x):
    moves, means = params()
    with pyro.plate("data", len(x), dim=-2):
        z = 0
        for t in pyro.markov(range(2)):
            z = pyro.sample(f"z{t}", dist.Categorical(moves[z]), infer=ENUMERATE)
            with pyro.plate(f"columns{t}", 2, dim=-1):
                pyro.sample(f"x{t}", dist.Normal(means[z], 1.0), obs=x[:, 2 * t : 2 * t + 2])


def recursive(x):
    moves, means = params()

    @pyro.markov
    def step(z, t):
        z = pyro.sample(f"z{t}", dist.Categorical(moves[z]), infer=ENUMERATE)
        pyro.sample(f"x{t}", dist.Normal(means[z], 1.0), obs=x[:, t])
        if t + 1 < x.shape[1]:
            step(z, t + 1)

    with pyro.plate("data", len(x)):
        step(0, 0)


def shared_within(x):
    """Means for each step, sampled in the loop."""
    moves = pyro.param("moves", torch.tensor([[0.7, 0.3], [0.2, 0.8]]), constraint=constraints.simplex)
    z = 0
    rows = pyro.plate("data", len(x), dim=-1)
    for t in pyro.markov(range(x.shape[1])):
        mean = pyro.sample(f"mean{t}", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with rows:
            z = pyro.sample(f"z{t}", dist.Categorical(moves[z]), infer=ENUMERATE)
            pyro.sample(f"x{t}", dist.Normal(mean[z], 1.0), obs=x[:, t])


@pytest.mark.parametrize("model", [inside, outside, of_order_two, with_an_inner_plate, recursive, shared_within])
def test_chains_are_summed_as_pyro_sums_them(model):
    nesting = 2 if model is with_an_inner_plate else 1
    start = em(Pair(model), X, max_iters=0, tol=0, progress=False)
    assert start.log_likelihood + _prior(start) == pytest.approx(by_pyro(model, X, start.params, nesting), rel=1e-9)
    fit = em(Pair(model), X, progress=False)
    assert fit.log_likelihood + _prior(fit) == pytest.approx(by_pyro(model, X, fit.params, nesting), rel=1e-9)
    assert fit.history[-1] > start.history[-1]
    for name, table in fit.latents().items():
        assert table.sum(-1).allclose(torch.ones(len(X)).double()), name


def _prior(fit):
    """log p of the latents that rows share."""
    means = [value for name, value in fit.params.items() if name.startswith("mean") and name != "means"]
    return sum(float(dist.Normal(0.0, 3.0).log_prob(value).sum()) for value in means)


def test_posteriors_of_a_chain_are_those_of_brute_force():
    fit = em(Pair(inside), X, max_iters=0, tol=0, progress=False)
    moves, means = torch.tensor([[0.7, 0.3], [0.2, 0.8]]).double(), torch.tensor([0.0, 3.0]).double()
    joint = {}
    for path in itertools.product(range(2), repeat=4):
        log_p = torch.zeros(len(X)).double()
        for t, (before, now) in enumerate(zip((0, *path), path, strict=False)):
            log_p = log_p + moves[before, now].log() + dist.Normal(means[now], 1.0).log_prob(X[:, t])
        joint[path] = log_p
    share = torch.stack(list(joint.values())).softmax(0)
    for t in range(4):
        ones = sum(part for path, part in zip(joint, share, strict=True) if path[t] == 1)
        assert fit.latents()[f"z{t}"][:, 1].numpy() == pytest.approx(ones.numpy(), abs=1e-6)


def test_a_chain_is_no_longer_than_a_tensor_has_dims():
    long = torch.randn(3, 58, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ModelError, match=r"site 'z57' is latent 58 of a row.*57 to spare: shorten the chain"):
        em(Pair(inside), long, progress=False)
    assert em(Pair(inside), long[:, :57], max_iters=1, tol=0, progress=False).log_likelihood < 0
