"""What the reparameterization trick rests on: divergences and gradients beside quadrature and finite differences.

Everything in float64, and on a pair so small that sums over a grid are exact.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence
from torch.nn import functional

from latentzoo import Pair, zoo
from latentzoo.inference.amortized.bounds import detached, draw, elbo, importance_bound, kl_of, log_weights, terms
from latentzoo.inference.amortized.objective import Objective
from latentzoo.inference.amortized.reader import read_story
from latentzoo.inference.svi.options import SVIOptions
from latentzoo.inference.trace.handlers import engine_state

# --- divergences ------------------------------------------------------------------------------------------------------


def normals(kind, size, seed, batch=4):
    """Normals of vectors (batch, size), their numbers drawn at random."""
    random = torch.Generator().manual_seed(seed)
    loc = torch.randn(batch, size, generator=random, dtype=torch.float64)
    if kind == "diagonal":
        return dist.Normal(loc, 0.3 + torch.rand(batch, size, generator=random, dtype=torch.float64)).to_event(1)
    tril = torch.randn(batch, size, size, generator=random, dtype=torch.float64).tril(-1)
    return dist.MultivariateNormal(loc, scale_tril=tril + torch.diag(0.3 + torch.arange(size, dtype=torch.float64)))


def moments(fn):
    """Mean and covariance, whatever they are written as."""
    if isinstance(fn, dist.MultivariateNormal):
        return fn.loc, fn.covariance_matrix
    return fn.mean, torch.diag_embed(fn.variance)


KINDS = [("diagonal", "diagonal"), ("full", "diagonal"), ("full", "full"), ("diagonal", "full")]
EACH = pytest.mark.parametrize(("of_q", "of_p"), KINDS, ids=[f"{q}-{p}" for q, p in KINDS])


@EACH
@pytest.mark.parametrize("size", [1, 3, 10])
def test_the_divergence_of_normals_is_that_of_the_textbook(of_q, of_p, size):
    """By matrices, whatever the two are written as."""
    q, p = normals(of_q, size, 1), normals(of_p, size, 2)
    (m, S), (mu, P) = moments(q), moments(p)
    inverse = P.inverse()
    away = (mu - m).unsqueeze(-1)
    trace = (inverse @ S).diagonal(dim1=-2, dim2=-1).sum(-1)
    square = (away.mT @ inverse @ away).flatten()
    wanted = 0.5 * (trace + square - size + P.logdet() - S.logdet())
    torch.testing.assert_close(kl_of(q, p), wanted, rtol=1e-10, atol=1e-12)


@EACH
def test_slopes_of_the_divergence_are_those_of_finite_differences(of_q, of_p):
    q, p = normals(of_q, 3, 5), normals(of_p, 3, 6)
    full = of_q == "full"
    start = (q.loc, q.scale_tril) if full else (q.base_dist.loc, q.base_dist.scale)

    def divergence(loc, scale):
        return kl_of(dist.MultivariateNormal(loc, scale_tril=scale) if full else dist.Normal(loc, scale).to_event(1), p)

    inputs = tuple(value.clone().requires_grad_() for value in start)
    if full:  # what lies above the diagonal is no number of the distribution
        inputs = (inputs[0], start[1].tril().clone().requires_grad_())
        lower = torch.ones(3, 3, dtype=torch.float64).tril()
        assert torch.autograd.gradcheck(lambda loc, tril: divergence(loc, tril * lower), inputs, atol=1e-7)
    else:
        assert torch.autograd.gradcheck(divergence, inputs, atol=1e-7)


def test_the_divergence_of_vectors_in_a_plate_is_added_up_over_their_own_numbers_alone():
    q = dist.Normal(torch.zeros(5, 3, 2), 0.5).to_event(2)
    p = dist.Normal(torch.ones(3, 2), 1.0).to_event(2)
    one = math.log(2) + 0.5 * (0.25 + 1 - 1)
    torch.testing.assert_close(kl_of(q, p), torch.full((5,), 6 * one))
    assert kl_of(q, dist.Normal(torch.ones(3, 2), 1.0).to_event(1)) is None  # events of different shapes
    torch.testing.assert_close(kl_of(dist.Normal(0.0, 0.5), dist.Normal(1.0, 1.0)), torch.tensor(one))


def test_divergences_of_other_families_are_those_of_quadrature():
    line = torch.linspace(1e-6, 60, 600_001, dtype=torch.float64)
    pairs = [(dist.Gamma(2.0, 1.5), dist.Gamma(3.0, 1.0)), (dist.LogNormal(0.2, 0.5), dist.LogNormal(0.0, 1.0))]
    for q, p in pairs:
        log_q = q.log_prob(line)
        wanted = float((log_q.exp() * (log_q - p.log_prob(line))).sum() * (line[1] - line[0]))
        assert float(kl_of(q, p)) == pytest.approx(wanted, rel=1e-4)


def test_a_frozen_distribution_passes_gradients_to_its_draws_alone():
    loc, tril = torch.randn(2, requires_grad=True), torch.eye(2).requires_grad_()
    value = torch.randn(2, requires_grad=True)
    for fn in (dist.MultivariateNormal(loc, scale_tril=tril), dist.Normal(loc, tril.diagonal()).to_event(1)):
        plain, frozen = fn.log_prob(value), detached(fn).log_prob(value)
        assert torch.equal(plain, frozen)
        grads = torch.autograd.grad(frozen, (value, loc, tril), allow_unused=True)
        assert grads[0].abs().sum() > 0
        assert all(grad is None for grad in grads[1:])


# --- a pair whose every expectation is a sum over a grid --------------------------------------------------------------


X = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.4, 1.1]], dtype=torch.float64)
EPSILON = torch.linspace(-7, 7, 281, dtype=torch.float64)  # trapezes are exact to 1e-12 for functions this smooth
SHARE = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(EPSILON).softmax(0)


class Small:
    """A normal latent number, tanh, and two observed ones; closed divergence or drawn as the prior allows."""

    def __init__(self, prior="normal"):
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.decoder = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2)).double()
            self.encoder = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        one = torch.ones(1, dtype=torch.float64)
        self.prior = (
            dist.Normal(0 * one, one) if prior == "normal" else dist.StudentT(5 * one, 0 * one, one)
        ).to_event(1)

        def model(x):
            decode = pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior)
                pyro.sample("x", dist.Normal(decode(z), 0.7).to_event(1), obs=x)

        def guide(x):
            encode = pyro.module("encoder", self.encoder)
            with pyro.plate("data", len(x)):
                loc, raw = encode(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, functional.softplus(raw)).to_event(1))

        self.pair = Pair(model, guide)

    @property
    def weights(self):
        return [*self.decoder.parameters(), *self.encoder.parameters()]

    def log_weight(self, epsilon):
        """log p(x_n, z) - log q(z | x_n) at z = m + s epsilon: (N, *epsilon.shape). No line of the engine."""
        m, raw = self.encoder(X).chunk(2, -1)
        s = functional.softplus(raw)
        z = m + s * epsilon.flatten()  # (N, E)
        likelihood = -0.5 * ((X.unsqueeze(1) - self.decoder(z.unsqueeze(-1))) / 0.7) ** 2
        likelihood = (likelihood - math.log(0.7) - 0.5 * math.log(2 * math.pi)).sum(-1)
        log_q = -0.5 * epsilon.flatten() ** 2 - s.log() - 0.5 * math.log(2 * math.pi)
        return (likelihood + self.prior.base_dist.log_prob(z) - log_q).unflatten(1, epsilon.shape)

    def elbo(self):
        """A mean over the rows, exact."""
        return (self.log_weight(EPSILON) @ SHARE).mean()

    def iwae(self):
        """The importance-weighted bound of two draws, by the sum over both."""
        log_w = self.log_weight(EPSILON)
        both = torch.logaddexp(log_w.unsqueeze(2), log_w.unsqueeze(1)) - math.log(2)
        return torch.einsum("nij,i,j->n", both, SHARE, SHARE).mean()

    def training(self, objective, particles, data=X):
        story = read_story(self.pair, data, torch.float64)
        leaves = {name: leaf.weight for name, leaf in story.leaves.items()}
        return Objective(story, data, leaves, SVIOptions(objective=objective, num_particles=particles))


def flat(parts):
    return torch.cat([part.flatten() for part in parts])


def by_differences(function, weights, step=1e-5):
    """The gradient of a function of weights, one number after the other."""
    out = []
    with torch.no_grad():
        for weight in weights:
            for number in weight.view(-1).split(1):
                level = []
                for move in (step, -2 * step):
                    number += move
                    level.append(float(function()))
                number += step
                out.append((level[0] - level[1]) / (2 * step))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
@pytest.mark.parametrize("prior", ["normal", "student"])
def test_gradients_through_draws_have_the_mean_of_quadrature(objective, prior):
    """Of all weights of both networks, and the bound too; quadrature itself is held against finite differences."""
    small = Small(prior)
    exact = small.elbo if objective == "elbo" else small.iwae
    wanted = flat(torch.autograd.grad(exact(), small.weights))
    torch.testing.assert_close(wanted, by_differences(exact, small.weights), rtol=1e-5, atol=1e-7)
    kinds = ["elbo"] if objective == "elbo" else ["iwae", "dreg"]
    with engine_state(0, "cpu", torch.float64):
        for kind in kinds:
            training = small.training(kind, 2, X.repeat(300, 1))
            found, levels = [], []
            for _ in range(60):
                level = -training.loss(training.batch(None))
                levels.append(level.detach())
                found.append(flat(torch.autograd.grad(level, small.weights)))
            each, levels = torch.stack(found), torch.stack(levels)
            error = each.std(0) / len(each) ** 0.5
            apart = (each.mean(0) - wanted).abs()
            assert (apart < 4.5 * error + 1e-9).all(), kind
            assert abs(levels.mean() - exact()) < 4.5 * levels.std() / len(levels) ** 0.5
            assert error.max() < 0.05 * wanted.abs().max()  # so that a wrong sign or factor would show


def test_given_draws_every_bound_has_the_slope_of_finite_differences():
    """Through the draws and the densities; DReG is another estimator, with the value of IWAE and not its slope."""
    small = Small()
    with engine_state(0, "cpu", torch.float64):
        for objective in ("elbo", "iwae"):
            training = small.training(objective, 4)

            def level(training=training):
                torch.manual_seed(1)
                return -training.loss(training.batch(None))

            found = flat(torch.autograd.grad(level(), small.weights))
            torch.testing.assert_close(found, by_differences(level, small.weights), rtol=1e-5, atol=1e-7)
        values = []
        for objective in ("iwae", "dreg"):
            torch.manual_seed(1)
            training = small.training(objective, 4)
            values.append(-training.loss(training.batch(None)))
        torch.testing.assert_close(values[0], values[1])


def test_bounds_of_drawn_rows_are_those_worked_out_by_hand():
    """The same draws, row by row: closed divergence, drawn divergence, and the importance-weighted bound."""
    small = Small()
    with engine_state(0, "cpu", torch.float64), torch.no_grad():
        story = read_story(small.pair, X, torch.float64)
        values = {name: leaf.weight for name, leaf in story.leaves.items()}
        torch.manual_seed(2)
        drawn = draw(story, values, X, 50, False)
        m, raw = small.encoder(X).chunk(2, -1)
        z = drawn.guide["z"]["value"].reshape(50, len(X))
        epsilon = (z - m.squeeze(1)) / functional.softplus(raw).squeeze(1)  # (50, N)
        log_w = torch.stack([small.log_weight(epsilon[:, n])[n] for n in range(len(X))], 1)
        weights = log_weights(terms(story, drawn, exact=False))
        torch.testing.assert_close(weights, log_w)
        torch.testing.assert_close(importance_bound(weights), log_w.logsumexp(0) - math.log(50))
        torch.testing.assert_close(elbo(terms(story, drawn, exact=False), False), log_w.mean(0))
        q = dist.Normal(m, functional.softplus(raw)).to_event(1)
        closed = elbo(terms(story, drawn), False)
        drawn_kl = (q.log_prob(z.unsqueeze(-1)) - small.prior.log_prob(z.unsqueeze(-1))).mean(0)
        torch.testing.assert_close(
            closed, log_w.mean(0) + drawn_kl - kl_divergence(q.base_dist, small.prior.base_dist).sum(1)
        )


def test_a_step_of_the_driver_is_a_step_along_that_gradient():
    """Adam's first step moves each weight by the learning rate, in the direction that the gradient's sign says."""
    small = Small()
    wanted = flat(torch.autograd.grad(small.elbo(), small.weights))
    before = flat([weight.detach().clone() for weight in small.weights])
    options = {"num_steps": 1, "tol": 0, "num_particles": 20_000, "learning_rate": 1e-3}
    fit = zoo.fit(small.pair, X.numpy(), **options)
    learned = {**fit.params, **{name.removeprefix("value/"): value for name, value in fit.guide_parts.items()}}
    names = [
        f"{part}$$${name}" for part in ("decoder", "encoder") for name, _ in getattr(small, part).named_parameters()
    ]
    after = flat([learned[name] for name in names])
    clear = wanted.abs() > 0.02 * wanted.abs().max()  # of the others the noise may choose the sign
    assert clear.sum() > 15
    np.testing.assert_allclose((after - before)[clear], 1e-3 * wanted[clear].sign(), rtol=1e-3)
