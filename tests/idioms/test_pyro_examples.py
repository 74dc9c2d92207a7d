"""Pyro's own public examples of latent variable models, as their users have them: log p(x) against Pyro's enumeration.

The table in README.md is of these.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from latentzoo import Pair, em, zoo

pytestmark = pytest.mark.filterwarnings("error")
ENUM = {"enumerate": "parallel"}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coin(*shape: int, seed: int = 0) -> Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.5).double()


# --- mixtures ---------------------------------------------------------------------------------------------------------


@config_enumerate
def gmm(x):
    """The tutorial on Gaussian mixtures, its weights, scale and locations as params."""
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("components", 2):
        locs = pyro.param("locs", torch.tensor([-1.0, 3.0]))
    with pyro.plate("data", len(x)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=x)


@config_enumerate
def zinb(x):
    """Counts with more zeros than they should have, as in single cells: a gate that is enumerated."""
    gate = pyro.param("gate", torch.tensor(0.3), constraint=constraints.unit_interval)
    rate = pyro.param("rate", torch.tensor(2.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        off = pyro.sample("off", dist.Bernoulli(gate))
        pyro.sample("x", dist.Poisson(torch.where(off == 1, 1e-9, rate)), obs=x)


# --- annotation -------------------------------------------------------------------------------------------------------


def multinomial_annotators(x):
    """One confusion for all annotators."""
    share = pyro.param("share", torch.ones(3) / 3, constraint=constraints.simplex)
    table = pyro.param("table", 0.2 / 3 + 0.8 * torch.eye(3), constraint=constraints.simplex)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(share), infer=ENUM)
        with pyro.plate("positions", x.shape[1]):
            pyro.sample("y", dist.Categorical(table[c]), obs=x.T)


def dawid_skene(x):
    """A confusion for each annotator."""
    share = pyro.param("share", torch.ones(3) / 3, constraint=constraints.simplex)
    table = pyro.param("table", (0.2 / 3 + 0.8 * torch.eye(3)).expand(4, 3, 3), constraint=constraints.simplex)
    who = torch.arange(4).unsqueeze(-1)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(share), infer=ENUM)
        with pyro.plate("positions", 4):
            pyro.sample("y", dist.Categorical(table[who, c]), obs=x.T)


def item_difficulty(x):
    """Log-linear answers, each item of its own difficulty."""
    eta = pyro.param("eta", torch.zeros(3, 3) + torch.eye(3))
    chi = pyro.param("chi", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3), infer=ENUM)
        with pyro.plate("positions", x.shape[1]):
            pyro.sample("y", dist.Categorical(logits=chi * eta[c]), obs=x.T)


# --- chains -----------------------------------------------------------------------------------------------------------


def hmm(steps, factorial=False):
    def model(x):
        step = pyro.param("step", 0.1 + 0.8 * torch.eye(2), constraint=constraints.simplex)
        emit = pyro.param(
            "emit", torch.tensor([[0.2, 0.7, 0.4], [0.8, 0.3, 0.9]]), constraint=constraints.unit_interval
        )
        with pyro.plate("data", len(x)):
            z, w = 0, 0
            for t in steps(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Categorical(step[z]), infer=ENUM)
                if factorial:
                    w = pyro.sample(f"w_{t}", dist.Categorical(step[w]), infer=ENUM)
                probs = (emit[z] + emit[w]) / 2 if factorial else emit[z]
                pyro.sample(f"y_{t}", dist.Bernoulli(probs).to_event(1), obs=x[:, t])

    return model


def masked_hmm(x):
    """Sequences of several lengths: what is beyond the end is masked."""
    step = pyro.param("step", 0.1 + 0.8 * torch.eye(2), constraint=constraints.simplex)
    emit = pyro.param("emit", torch.tensor([0.2, 0.8]), constraint=constraints.unit_interval)
    lengths = 1 + torch.arange(len(x)) % x.shape[1]
    with pyro.plate("data", len(x)):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(step[z]), infer=ENUM)
                pyro.sample(f"y_{t}", dist.Bernoulli(emit[z]), obs=x[:, t])


def cjs(x):
    """Capture and recapture (Cormack, Jolly and Seber), model 1: all are alive at the first catch."""
    survive = pyro.param("survive", torch.tensor(0.8), constraint=constraints.unit_interval)
    catch = pyro.param("catch", torch.tensor(0.5), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        alive, seen = torch.ones(()), torch.zeros(len(x), dtype=torch.bool)
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=seen):
                alive = pyro.sample(f"alive_{t}", dist.Bernoulli(survive * alive), infer=ENUM)
                pyro.sample(f"y_{t}", dist.Bernoulli(catch * alive), obs=x[:, t])
            seen = seen | (x[:, t] > 0)


def second_order(x):
    """A chain that looks back twice."""
    step = pyro.param("step", 0.3 + 0.1 * torch.arange(8.0).reshape(2, 2, 2) / 8, constraint=constraints.simplex)
    emit = pyro.param("emit", torch.tensor([0.2, 0.8]), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        before, z = 0, 0
        for t in pyro.markov(range(x.shape[1]), history=2):
            before, z = z, pyro.sample(f"z_{t}", dist.Categorical(step[before, z]), infer=ENUM)
            pyro.sample(f"y_{t}", dist.Bernoulli(emit[z]), obs=x[:, t])


def autoregressive(x):
    """What is seen depends on what was seen last, too."""
    step = pyro.param("step", 0.1 + 0.8 * torch.eye(2), constraint=constraints.simplex)
    emit = pyro.param("emit", torch.tensor([[0.2, 0.4], [0.6, 0.8]]), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        z, last = 0, torch.zeros(len(x), dtype=torch.long)
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(step[z]), infer=ENUM)
            pyro.sample(f"y_{t}", dist.Bernoulli(emit[z, last]), obs=x[:, t])
            last = x[:, t].long()


ANSWERS = torch.randint(3, (30, 4), generator=torch.Generator().manual_seed(0))
CASES = {
    "gmm": (gmm, torch.cat([draw(20), draw(20, seed=1) + 4])),
    "zinb": (zinb, torch.tensor([0.0, 0, 0, 1, 3, 2, 0, 4, 0, 2, 1, 5]).double()),
    "multinomial annotators": (multinomial_annotators, ANSWERS),
    "dawid_skene": (dawid_skene, ANSWERS),
    "item difficulty": (item_difficulty, ANSWERS),
    "hmm by a plain loop": (hmm(list), coin(12, 4, 3)),
    "hmm 1, by markov": (hmm(pyro.markov), coin(12, 4, 3)),
    "hmm 2, autoregressive": (autoregressive, coin(12, 4)),
    "hmm of second order": (second_order, coin(12, 4)),
    "hmm 3, factorial": (hmm(pyro.markov, factorial=True), coin(12, 3, 3)),
    "hmm 0, of several lengths": (masked_hmm, coin(12, 4)),
    "capture-recapture 1": (cjs, coin(12, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_log_p_is_that_of_pyro_after_a_fit(name):
    model, x = CASES[name]
    fit = em(Pair(model), x, max_iters=30, tol=0, progress=False)
    assert not fit.unchecked
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pyro.get_param_store().scope():
            bound = poutine.substitute(model, data=fit.params)
            right = -TraceEnum_ELBO(strict_enumeration_warning=False).loss(bound, lambda x: None, x)
    finally:
        torch.set_default_dtype(before)
    assert fit.log_likelihood == pytest.approx(right, rel=1e-9)
    assert fit.history.diff().min() >= -1e-9 * (1 + abs(fit.history[-1]))


def regression(d):
    """The tutorial on Bayesian regression: terrain, Africa, and both."""
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
    with pyro.plate("data", len(d)):
        mean = a + b[0] * d[:, 0] + b[1] * d[:, 1] + b[2] * d[:, 0] * d[:, 1]
        pyro.sample("y", dist.Normal(mean, sigma), obs=d[:, 2])


def test_bayesian_regression_has_a_posterior_by_itself():
    d = torch.stack([coin(60), draw(60, seed=2), draw(60, seed=3)], 1)
    assert zoo.resolve(Pair(regression), "auto", d)[0] == "svi"
    fit = zoo.fit(Pair(regression), d, num_steps=300, tol=0, progress=False)
    assert not fit.unchecked
    assert fit.guide == "full_rank"


@config_enumerate
def lda(x):
    """Topics of words, a document a row."""
    topics = pyro.sample("topics", dist.Dirichlet(torch.ones(6)).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
        pyro.sample("x", dist.Multinomial(probs=shares @ topics, validate_args=False), obs=x)


def test_topics_by_the_counts_of_their_words():
    x = torch.randint(4, (20, 6), generator=torch.Generator().manual_seed(0)).double() + 1
    fit = zoo.fit(Pair(lda), x, max_iters=20, tol=0, progress=False)
    assert fit.inference == "cavi"
    assert not fit.unchecked


def vae(x):
    decoder = pyro.module("decoder", DECODER)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)


def vae_guide(x):
    encoder = pyro.module("encoder", ENCODER)
    with pyro.plate("data", len(x)):
        loc, scale = encoder(x).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


torch.manual_seed(0)
DECODER = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
ENCODER = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))


def test_an_autoencoder_with_its_own_guide():
    fit = zoo.fit(Pair(vae, vae_guide), coin(40, 5).float(), epochs=2, tol=0, progress=False)
    assert fit.inference == "svi"
    assert not fit.unchecked
