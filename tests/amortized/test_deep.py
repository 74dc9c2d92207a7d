"""Pairs with networks: their bounds and gradients beside closed forms, quadrature and loops written by hand."""

import math

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_digits, load_iris, load_wine
from torch import nn
from torch.nn import functional

from latentzoo import Pair, zoo
from latentzoo.inference.amortized.bounds import draw, elbo, importance_bound, kl_of, log_weights, terms
from latentzoo.inference.amortized.encoder import Amortized
from latentzoo.inference.amortized.objective import Objective
from latentzoo.inference.amortized.reader import read_story
from latentzoo.inference.data.batches import Batches
from latentzoo.inference.nn.networks import fresh, mlp, positive, tril_of
from latentzoo.inference.posterior.psis import k_hat
from latentzoo.inference.svi.options import SVIOptions
from latentzoo.inference.trace.handlers import engine_state

pytestmark = pytest.mark.filterwarnings("ignore::latentzoo.inference.base.errors.ConvergenceWarning")

IRIS = load_iris().data
WINE = load_wine().data
WINE = (WINE - WINE.mean(0)) / WINE.std(0)
IMAGES = load_digits().data
DIGITS = torch.from_numpy((load_digits().data > 8).astype(np.float32))


# --- closed forms -----------------------------------------------------------------------------------------------------


def linear_elbo(fit, x):
    """The bound of a linear VAE without noise: every expectation is of a quadratic form."""
    x = torch.from_numpy(x)
    part = {name.removeprefix("value/"): v.double() for name, v in {**fit.params, **fit.guide_parts}.items()}
    load, loc, scale = part["decoder$$$0.weight"], part["decoder$$$0.bias"], part["scale"]
    mean = x @ part["encoder$$$0.weight"].mT + part["encoder$$$0.bias"]
    K, D = mean.shape[1], x.shape[1]
    spread = part["spread"]
    tril = torch.diag(positive(spread)) if len(spread) == K and K > 1 else tril_of(spread, K)
    cov = tril @ tril.mT
    square = ((x - mean @ load.mT - loc) ** 2).sum(1) + (load @ cov @ load.mT).trace()
    likelihood = -0.5 * square / scale**2 - D * (scale.log() + 0.5 * math.log(2 * math.pi))
    kl = 0.5 * (cov.trace() + (mean**2).sum(1) - K) - tril.diagonal().log().sum()
    return float((likelihood - kl).sum())


def stage(learning_rate, num_steps, num_particles=1, **options):
    return {"learning_rate": learning_rate, "num_steps": num_steps, "num_particles": num_particles, **options}


# Small steps at the end, of little noise; the gradients of "dreg" have none for the encoder once it is exact.
ALL = {"batch_size": len(IMAGES), "tol": 0}
EXACT = {"objective": "dreg", **ALL}
QUICK = [stage(0.03, 3000, patience=5)]
LONG = [stage(0.01, 12_000), stage(1e-3, 1500, 20)]
TWO = [stage(0.01, 6000, **ALL), stage(1e-3, 3000, 2, **EXACT), stage(1e-4, 2000, 2, **EXACT)]
TEN = [
    *(stage(rate, num, **ALL) for rate, num in ((0.02, 12_000), (5e-3, 12_000), (1e-3, 10_000))),
    *(stage(rate, 2500, 2, **EXACT) for rate in (1e-3, 2e-4, 4e-5)),
]
RUNS = {
    "wine": (WINE, 2, "full", -2875.6363, QUICK),
    "wine-diagonal": (WINE, 2, "diagonal", -2875.6363, QUICK),
    "iris": (IRIS, 2, "full", -404.9628, LONG),
    "wine-10": (WINE, 10, "full", -2614.4640, LONG),
    "digits-diagonal": (IMAGES, 2, "diagonal", -318859.6288, TWO),
    "digits-10": (IMAGES, 10, "full", -287508.7350, TEN),
}


@pytest.mark.parametrize(
    ("x", "latents", "posterior", "best", "stages"),
    [pytest.param(*run, id=name, marks=[] if run[-1] is QUICK else [pytest.mark.slow]) for name, run in RUNS.items()],
)
def test_the_bound_of_a_linear_vae_is_the_likelihood_of_probabilistic_pca(x, latents, posterior, best, stages):
    """Lucas et al. (2019); the figures are Tipping and Bishop's closed form."""
    start = None
    for options in stages:
        fit = zoo.fit("linear_vae", x, latent_dim=latents, posterior=posterior, start=start, **options)
        start = {**fit.params, **{name.removeprefix("value/"): v for name, v in fit.guide_parts.items()}}
    assert abs(linear_elbo(fit, x) - best) < 0.5
    assert abs(float(fit.score(x).sum()) - best) < 0.5
    assert abs(fit.log_likelihood - linear_elbo(fit, x)) < 4  # of draws
    axes = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:latents]
    load = np.linalg.qr(fit.params["decoder$$$0.weight"].double().numpy())[0]
    cosines = np.linalg.svd(axes @ load)[1]
    assert cosines.min() > math.cos(math.radians(5 if latents == 2 else 20))  # of 10 the last are nearly equal


def test_a_linear_autoencoder_has_the_error_of_principal_components():
    fit = zoo.fit("autoencoder", IRIS, hidden=(), learning_rate=0.02, num_steps=3000, patience=5)
    wanted = (np.linalg.svd(IRIS - IRIS.mean(0))[1][2:] ** 2).sum()
    assert ((IRIS - fit.reconstruct(IRIS)) ** 2).sum() == pytest.approx(wanted, rel=1e-3)


def test_noise_of_a_denoising_autoencoder_is_there_only_while_it_learns():
    fit = zoo.fit("autoencoder", IRIS, noise=0.5, num_steps=20, tol=0)
    assert np.array_equal(fit.reconstruct(IRIS), fit.reconstruct(IRIS))
    plain = zoo.fit("autoencoder", IRIS, num_steps=20, tol=0)
    assert not torch.allclose(fit.history[:-1], plain.history[:-1])


FACTORS = [
    (dist.Normal(torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])).to_event(1), "diagonal"),
    (dist.MultivariateNormal(torch.tensor([0.3, -1.0]), scale_tril=torch.tensor([[0.5, 0.0], [0.7, 1.2]])), "full"),
]


@pytest.mark.parametrize(("q", "kind"), FACTORS, ids=["diagonal", "full"])
def test_closed_divergences_agree_with_draws_and_with_quadrature(q, kind):
    torch.manual_seed(0)
    p = dist.Normal(torch.tensor([0.5, 0.0]), torch.tensor([1.5, 1.0])).to_event(1)
    z = q.sample((200_000,))
    each = q.log_prob(z) - p.log_prob(z)
    assert abs(float(kl_of(q, p)) - float(each.mean())) < 5 * float(each.std()) / len(z) ** 0.5
    line = torch.linspace(-14, 14, 1401, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line).float()
    log_q = q.log_prob(grid).double()
    quadrature = (log_q.exp() * (log_q - p.log_prob(grid).double())).sum() * 0.02**2
    assert float(kl_of(q, p)) == pytest.approx(float(quadrature), abs=1e-3)


def test_free_bits_cost_no_less_than_they_allow():
    q = dist.Normal(torch.zeros(5, 3), torch.ones(5, 3)).to_event(1)
    p = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    torch.testing.assert_close(kl_of(q, p, 0.25), torch.full((5,), 0.75))
    far = dist.Normal(torch.full((5, 3), 3.0), torch.ones(5, 3)).to_event(1)
    torch.testing.assert_close(kl_of(far, p, 0.25), kl_of(far, p))


# --- a pair small enough for quadrature -------------------------------------------------------------------------------


def tiny(mixture=False):
    """One latent number, tanh in between, in float64."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    encoder = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()

    def model(x):
        decode = pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            loc, scale = torch.zeros(1), torch.ones(1)
            if mixture:
                probs = torch.tensor([0.3, 0.7])
                y = pyro.sample("y", dist.Categorical(probs), infer={"enumerate": "parallel"})
                loc, scale = torch.tensor([[-1.0], [2.0]])[y], torch.tensor([[1.0], [0.5]])[y]
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), 0.7).to_event(1), obs=x)

    def guide(x):
        encode = pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encode(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, functional.softplus(raw)).to_event(1))

    return Pair(model, guide), decoder, encoder


TINY = torch.randn(20, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def by_quadrature(decoder, x, mixture):
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64).unsqueeze(1)
    prior = dist.Normal(0.0, 1.0).log_prob(z).squeeze(1)
    if mixture:
        parts = dist.Normal(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 0.5])).log_prob(z)
        prior = (parts + torch.tensor([0.3, 0.7]).log()).logsumexp(1)
    with torch.no_grad():
        likelihood = dist.Normal(decoder(z), 0.7).log_prob(x.unsqueeze(1)).sum(-1)
    return (prior + likelihood).logsumexp(1) + math.log(float(z[1] - z[0]))


@pytest.mark.parametrize("mixture", [False, True], ids=["normal", "mixture"])
def test_scores_agree_with_quadrature_within_their_own_errors(mixture):
    pair, _, _ = tiny(mixture)
    fit = zoo.fit(pair, TINY, num_steps=300, learning_rate=0.02, tol=0, objective="iwae", num_particles=10)
    _, decoder, _ = tiny(mixture)
    decoder.load_state_dict({name.removeprefix("decoder$$$"): v for name, v in fit.params.items()})
    exact = by_quadrature(decoder, TINY, mixture)
    found = fit.importance(TINY, num=4000)
    sound = found.k_hat < 0.7  # of the others the error itself is unknown
    assert sound.sum() >= 10
    assert ((found.log_prob - exact).abs() < 6 * found.error + 1e-4)[sound].all()
    assert found.total_error < 0.5
    assert float(fit.history[-1]) < float(exact.sum()) + 1
    if mixture:  # and the posterior of y with the same weights
        table = fit.latents(TINY)["y"]
        z = torch.linspace(-12, 12, 4001, dtype=torch.float64).unsqueeze(1)
        parts = dist.Normal(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 0.5])).log_prob(z)
        with torch.no_grad():
            likelihood = dist.Normal(decoder(z), 0.7).log_prob(TINY.unsqueeze(1)).sum(-1)
        joint = (likelihood.unsqueeze(-1) + parts + torch.tensor([0.3, 0.7]).log()).logsumexp(1)
        away = (table - joint.softmax(-1))[sound].abs()
        assert away.max() < 0.15
        assert away.mean() < 0.04


def training_of(pair, objective, particles, seed=0):
    """A training of a pair, to ask for its gradients."""
    story = read_story(pair, TINY, torch.float64)
    leaves = {name: leaf.weight for name, leaf in story.leaves.items()}
    return Objective(story, TINY, leaves, SVIOptions(objective=objective, num_particles=particles, seed=seed))


def gradients(training, times):
    """Estimates (times, P) of the gradient of the objective."""
    leaves = list(training.leaves.values())
    found = []
    for _ in range(times):
        parts = torch.autograd.grad(-training.loss(training.batch(None)), leaves)
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


def test_reparameterized_gradients_are_those_of_finite_differences():
    pair, decoder, encoder = tiny()
    with engine_state(0, "cpu", torch.float64):
        training = training_of(pair, "elbo", 3)
        for weight in (encoder[0].weight, decoder[2].bias):
            torch.manual_seed(1)
            found = torch.autograd.grad(-training.loss(training.batch(None)), weight)[0].flatten()[0]
            values = []
            for step in (1e-5, -2e-5):
                weight.data.view(-1)[0] += step
                torch.manual_seed(1)
                values.append(-training.loss(training.batch(None)).item())
            weight.data.view(-1)[0] += 1e-5
            assert float(found) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_the_doubly_reparameterized_gradient_has_the_same_mean_and_less_noise():
    """Of the encoder's weights: Tucker et al. (2019), figure 2. That of the decoder is the same in both."""
    pair, decoder, encoder = tiny()
    fit = zoo.fit(pair, TINY, num_steps=300, learning_rate=0.02, tol=0)
    reached = {**fit.params, **{name.removeprefix("value/"): v for name, v in fit.guide_parts.items()}}
    for name, network in (("decoder", decoder), ("encoder", encoder)):
        network.load_state_dict({key: reached[f"{name}$$${key}"] for key in network.state_dict()})
    with engine_state(0, "cpu", torch.float64):
        plain, double = (gradients(training_of(pair, name, 16), 700) for name in ("iwae", "dreg"))
    error = ((plain.var(0) + double.var(0)) / 700).sqrt()
    assert ((plain.mean(0) - double.mean(0)).abs() < 5 * error + 1e-12).all()
    own = slice(13, None)  # the decoder's 13 weights come first
    assert double[:, own].var(0).sum() < 0.7 * plain[:, own].var(0).sum()


def test_more_particles_tighten_the_bound():
    pair, decoder, _ = tiny()
    with engine_state(0, "cpu", torch.float64), torch.no_grad():
        story = read_story(pair, TINY, torch.float64)
        values = {name: leaf.weight for name, leaf in story.leaves.items()}

        def bound(num):
            each = [terms(story, draw(story, values, TINY, num, False), exact=False) for _ in range(4000 // num)]
            return float(torch.stack([importance_bound(log_weights(one)) for one in each]).mean())

        plain = float(elbo(terms(story, draw(story, values, TINY, 4000, False)), False).mean())
        found = [bound(num) for num in (1, 5, 50)]
        exact = float(by_quadrature(decoder, TINY, False).mean())
    assert found[0] == pytest.approx(plain, abs=0.05)
    assert found[0] < found[1] < found[2] < exact + 0.01


def test_the_tail_of_weights_is_that_of_arviz():
    log_weights = torch.randn(400, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_weights = log_weights * torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0, 3.0], dtype=torch.float64)
    if not hasattr(az, "psislw"):
        pytest.skip("ArviZ 1.x has no psislw")
    theirs = np.array([float(az.psislw(one.numpy())[1]) for one in log_weights.mT])
    np.testing.assert_allclose(k_hat(log_weights).numpy(), theirs, atol=0.02)


# --- beside a loop written by hand ------------------------------------------------------------------------------------


def test_a_vae_of_digits_goes_where_a_loop_written_by_hand_goes():
    """The same networks, optimizer, batches and seed: the same bounds at every step, but for rounding."""
    encoder, decoder = mlp(64, (32,), 8), mlp(4, (32,), 64)
    start = fresh({"encoder": encoder, "decoder": decoder}, torch.Generator().manual_seed(5))
    for network, of in (("encoder", encoder), ("decoder", decoder)):
        for name, weight in of.named_parameters():
            weight.data = start[f"{network}$$${name}"].clone()
    pair = zoo.create("vae", latent_dim=4, encoder=encoder, decoder=decoder)
    fit = zoo.fit(pair, DIGITS, num_steps=150, tol=0, clip=0, seed=2)

    weights = [*encoder.parameters(), *decoder.parameters()]  # a fit leaves them as they were
    assert all(torch.equal(w, start[f"encoder$$${n}"]) for n, w in encoder.named_parameters())
    optimizer = torch.optim.Adam(weights, lr=1e-3, fused=True)
    batches, bounds = Batches(len(DIGITS), 128, 3), []
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for _ in range(150):
            x = DIGITS[batches.next()]
            loc, raw = encoder(x).chunk(2, -1)
            scale = functional.softplus(raw) + 1e-4
            out = decoder(loc + scale * torch.normal(torch.zeros_like(loc), torch.ones_like(loc)))
            kl = (0.5 * (scale**2 + loc**2 - 1) - scale.log()).sum()
            loss = (functional.binary_cross_entropy_with_logits(out, x, reduction="sum") + kl) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bounds.append(-loss.item() * len(DIGITS))
    np.testing.assert_allclose(fit.history[:-1].numpy(), bounds, rtol=1e-4)
    for name, weight in decoder.named_parameters():
        torch.testing.assert_close(fit.params[f"decoder$$${name}"], weight.detach(), atol=1e-3, rtol=0)


def test_beta_one_is_the_plain_vae_and_a_larger_one_says_less():
    options = {"hidden": (16,), "num_steps": 100, "tol": 0, "learning_rate": 0.01}
    plain = zoo.fit("vae", DIGITS, **options)
    one = zoo.fit("beta_vae", DIGITS, beta=1.0, **options)
    assert torch.equal(plain.history, one.history)
    ten = zoo.fit("beta_vae", DIGITS, beta=10.0, **options)
    assert ten.latents(DIGITS)["z"].mean.var(0).sum() < one.latents(DIGITS)["z"].mean.var(0).sum()


# --- encoders that follow from a model --------------------------------------------------------------------------------


def test_an_encoder_of_a_model_without_networks_reaches_the_likelihood_of_em():
    best = zoo.fit("probabilistic_pca", IRIS, inference="em")
    options = {"learning_rate": 0.01, "num_steps": 800, "tol": 0}
    for guide in ("amortized_full", Amortized(hidden=(32,))):
        fit = zoo.fit("probabilistic_pca", IRIS, inference="svi", guide=guide, **options)
        assert best.log_likelihood - 8 < fit.log_likelihood < best.log_likelihood + 1.5
        assert float(fit.score(IRIS).sum()) == pytest.approx(best.log_likelihood, abs=2)
        assert fit.guide == (guide if isinstance(guide, str) else "amortized")


def test_gaps_tell_the_encoder_from_its_family(tmp_path):
    """An encoder that has learned nothing, of a family that holds the posterior: all is lost in the encoder."""
    best = zoo.fit("probabilistic_pca", IRIS, inference="em")
    fit = zoo.fit("probabilistic_pca", IRIS, inference="svi", guide="amortized_full", num_steps=0, tol=0)
    found = fit.gaps(IRIS, num_steps=400, num=200)
    assert found.amortization > 1
    assert abs(found.approximation) < 0.05
    assert float(found.log_prob.sum()) == pytest.approx(best.log_likelihood, abs=1)
    fit.save(tmp_path / "run")
    assert torch.equal(zoo.load(tmp_path / "run").score(IRIS), fit.score(IRIS))
