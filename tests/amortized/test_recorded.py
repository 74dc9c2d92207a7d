"""A step that is recorded and replayed is the step that the pair would have taken."""

from __future__ import annotations

import functools
import random
import shutil

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from latentzoo import Pair, zoo
from latentzoo.inference.base.errors import ConvergenceWarning, OptionError
from latentzoo.inference.nn.networks import mlp
from latentzoo.inference.svi import replay as recorded
from latentzoo.inference.svi.replay import BEGIN, Steps

DIGITS = (load_digits().data[:300] > 7).astype(float)
RANDOM = np.random.default_rng(0)
NUMBERS = RANDOM.normal(size=(300, 6))
COUNTS = RANDOM.poisson(0.5, (200, 12)) + np.eye(200, 12, dtype=int)
GAPS = np.where(RANDOM.random(NUMBERS.shape) < 0.2, np.nan, NUMBERS)


@pytest.fixture
def forgone(monkeypatch):
    """Why fits went on without a record."""
    reasons = []
    original = Steps._forgo

    def forgo(self, reason):
        reasons.append(reason)
        original(self, reason)

    monkeypatch.setattr(Steps, "_forgo", forgo)
    return reasons


@pytest.mark.parametrize(
    ("name", "data", "options"),
    [
        ("vae", DIGITS, {}),
        ("vae", DIGITS, {"objective": "iwae"}),
        ("vae", DIGITS, {"objective": "dreg", "num_particles": 3}),
        ("vae", DIGITS, {"warmup": 30, "free_bits": 0.1, "weights": np.linspace(0.5, 2, 300)}),
        ("vae", DIGITS, {"posterior": "mixture", "validation": 0.1}),
        ("vae", COUNTS, {"likelihood": "negative_binomial"}),
        ("vae", NUMBERS, {"likelihood": "gaussian", "covariance": "full"}),
        ("vae", NUMBERS, {"likelihood": "gaussian", "optimizer": torch.optim.AdamW}),
        ("vae", GAPS, {"likelihood": "gaussian"}),
        ("missing_data_vae", GAPS, {}),
        ("linear_vae", NUMBERS, {}),
        ("autoencoder", DIGITS, {}),
        ("gaussian_mixture_vae", DIGITS, {"num_components": 3}),
        ("hierarchical_vae", DIGITS, {}),
        ("vampprior_vae", DIGITS, {}),
        ("probabilistic_pca", NUMBERS, {"inference": "svi", "guide": "amortized_full"}),
    ],
)
def test_a_recorded_fit_is_that_of_running_the_pair_to_the_bit(name, data, options, forgone):
    options = {"num_steps": 90, "tol": 0, **options}
    replayed, run = (zoo.fit(name, data, compile=compile, **options) for compile in (None, False))
    assert not forgone
    assert replayed.history.tolist() == run.history.tolist()
    for one, other in ((replayed.params, run.params), (replayed.guide_parts, run.guide_parts)):
        assert all(torch.equal(one[key], other[key]) for key in other)


def steps_of(loss, leaves, **options):
    """A recorded loss, and the same one run."""
    return Steps(loss, leaves, **options), Steps(loss, leaves, compile=False)


def test_what_a_loss_may_be_made_of():
    """Changes in place, views, draws, dropout, constants, a look at a constant, what has no gradient, shared ones."""
    leaves = [torch.randn(3, 4, requires_grad=True) for _ in range(2)] + [torch.randn((), requires_grad=True)]
    drop, constant = nn.Dropout(0.5), torch.arange(4.0)

    def loss(x):
        held = torch.zeros(3, 4)
        held[:, :2] += x[:, :2] * leaves[0].T.reshape(3, 4)[:, :2]
        scale = 1.0 if constant.sum() > 3 else 2.0
        drawn = drop(leaves[0] + leaves[1]) + torch.randn(3, 4)
        return (scale * held + drawn.exp().detach() * drawn + constant.expand(3, 4)).sum()

    recorded_one, run = steps_of(loss, leaves)
    for step in range(BEGIN + 30):
        x, found = torch.randn(3, 4), []
        for steps in (recorded_one, run):
            torch.manual_seed(step)
            value = steps(x, [x])
            found.append([value, leaves[0].grad.clone(), leaves[1].grad.clone()])
            assert leaves[2].grad is None
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert recorded_one.replay is not None


class Reads(nn.Module):
    """A network of rows (N, 32) as sequences of four."""

    def __init__(self, inner, out):
        super().__init__()
        self.inner, self.last = inner, nn.Linear(out, 1)

    def forward(self, x):
        found = self.inner(x.view(len(x), 4, 8))
        return self.last((found[0] if isinstance(found, tuple) else found)[:, -1])


class Looks(nn.Module):
    """A network of codes."""

    def __init__(self, sparse):
        super().__init__()
        self.table = nn.Embedding(10, 4, sparse=sparse)

    def forward(self, x):
        return self.table((x[:, 0].abs() * 3).long().clamp_max(9)).exp()


@pytest.mark.parametrize(
    ("network", "replayed"),
    [
        (lambda: nn.Sequential(nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), True),
        (lambda: Reads(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 8), True),
        (lambda: nn.Sequential(nn.Linear(32, 8), nn.LayerNorm(8), nn.RReLU(), nn.Dropout(0.3)), True),
        (lambda: Looks(sparse=False), True),
        (lambda: Looks(sparse=True), False),
        (lambda: Reads(nn.LSTM(8, 16, batch_first=True), 16), None),  # its kernels differ from machine to machine
        (lambda: Reads(nn.GRU(8, 16, batch_first=True), 16), None),
        (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(32, 8))), False),
    ],
)
def test_networks_are_replayed_or_run(network, replayed):
    pairs = []
    for compile in (None, False):
        torch.manual_seed(0)
        made = network()
        leaves = list(made.parameters())
        pairs.append((Steps(lambda x, made=made: made(x).square().mean(), leaves, [made], compile), leaves))
    for step in range(BEGIN + 5):
        x = torch.randn(16, 32)
        for steps, leaves in pairs:
            torch.manual_seed(step)
            steps(x, [x])
            with torch.no_grad():
                for leaf in leaves:
                    leaf.sub_(0.1 * leaf.grad.to_dense())
    (steps, ours), (_, theirs) = pairs
    assert all(map(torch.equal, ours, theirs))
    assert replayed is None or (steps.replay is not None) == replayed


def pair_of(looks=lambda x: 1.0, decoder=None):
    decoder = decoder or mlp(2, (8,), DIGITS.shape[1])
    encoder = mlp(DIGITS.shape[1], (8,), 4)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=looks(x) * decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Pair(model, guide)


fit = functools.partial(zoo.fit, num_steps=60, tol=0, learning_rate=0.01)


def same(one, other):
    return one.history.tolist() == other.history.tolist()


@pytest.mark.parametrize(
    "looks",
    [
        lambda x: 2.0 if x.mean() > 0.33 else 1.0,
        lambda x: x[x > 0].mean(),
        lambda x: torch.sparse.sum(x.to_sparse()) / x.numel(),
        lambda x: float(x.detach().numpy().mean()),  # past torch: found out by the run beside the replay
    ],
)
def test_a_pair_that_looks_at_values_is_run_at_each_step(looks, forgone):
    torch.manual_seed(0)
    pair = pair_of(looks)
    assert same(fit(pair, DIGITS), fit(pair, DIGITS, compile=False))
    assert len(forgone) == 1
    with pytest.raises(OptionError, match="compile: met True, and the pair cannot be recorded, for it"):
        fit(pair, DIGITS, compile=True)


@pytest.mark.parametrize("kind", ["batch norm", "hook"])
def test_networks_that_count_or_are_watched_are_run_at_each_step(kind, forgone):
    torch.manual_seed(0)
    layers = [nn.Linear(2, 8), nn.BatchNorm1d(8) if kind == "batch norm" else nn.ReLU(), nn.Linear(8, DIGITS.shape[1])]
    decoder, calls = nn.Sequential(*layers), []
    if kind == "hook":
        decoder[0].register_forward_hook(lambda *args: calls.append(1))
    pair = pair_of(decoder=decoder)
    found = fit(pair, DIGITS)
    assert len(calls) >= 60 * (kind == "hook")
    assert same(found, fit(pair, DIGITS, compile=False))
    assert forgone == ["its networks have hooks, or count what passes (as batch norm does)"]


def test_a_pair_that_changes_as_it_goes_is_found_out():
    calls = []

    def looks(x):
        if torch.is_grad_enabled():  # a step, and none of the runs that read the pair
            calls.append(1)
        return 1.0 if len(calls) < 26 else 0.5

    torch.manual_seed(0)
    with pytest.warns(ConvergenceWarning, match=r"at step \d+ the pair does not do what it did at step 20"):
        fit(pair_of(looks), DIGITS, num_steps=300)


def test_a_pair_with_random_numbers_of_its_own_is_run(forgone):
    torch.manual_seed(0)
    found = fit(pair_of(lambda x: random.random()), DIGITS)
    assert forgone == ["it does not do the same at each step"]
    assert found.history.isfinite().all()


def test_what_torch_cannot_compile_is_said(monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(recorded.torch, "compile", fails)
    with pytest.raises(OptionError, match=r"compile: met True, and torch.compile says: no C\+\+ compiler; leave"):
        fit("vae", DIGITS, compile=True)


def test_compile_is_of_networks():
    with pytest.raises(OptionError, match="compile: met True, an option of pairs with networks"):
        zoo.fit("gaussian_mixture", NUMBERS, inference="svi", compile=True)


@pytest.mark.slow
# torch.compile writes C++ for the CPU; `test_what_torch_cannot_compile_is_said` is for machines without a compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("options", [{}, {"objective": "dreg"}, {"posterior": "full"}])
def test_a_compiled_fit_is_the_same_but_for_rounding(options):
    compiled, run = (fit("vae", DIGITS, compile=compile, **options) for compile in (True, False))
    # a compiled kernel adds in another order: float32 rounding, carried on by sixty steps, 4e-7 at most where measured
    assert compiled.history == pytest.approx(run.history, rel=1e-5)
