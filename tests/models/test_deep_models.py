"""Deep models one by one: mixtures for priors, two layers, topics, convolutions; beside closed forms and quadrature."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy.special import gammaln, log_softmax
from scipy.stats import multivariate_normal, norm
from sklearn.datasets import load_digits, load_iris
from torch import nn

from latentzoo import zoo
from latentzoo.inference.amortized.bounds import draw, kl_of, terms
from latentzoo.inference.base.errors import DataError, ModelError, OptionError
from latentzoo.inference.data.adapt import adapt
from latentzoo.inference.data.seeding import near_rows
from latentzoo.inference.data.sparse import bags_of
from latentzoo.inference.diagnose.topics import bound_perplexity, coherence, halves, perplexity, top_words, topic_shares
from latentzoo.inference.nn.networks import conv_decoder, conv_encoder
from latentzoo.inference.posterior.amortized import opened
from latentzoo.inference.svi.options import Warmup

pytestmark = pytest.mark.filterwarnings("ignore::latentzoo.inference.base.errors.ConvergenceWarning")

DIGITS = (load_digits().data > 8).astype(np.float64)
IRIS = load_iris().data
SHORT = {"num_steps": 20, "tol": 0}


def softplus(raw):
    return np.log1p(np.exp(raw)) + 1e-4


def layers_of(fit, network):
    """Weights and biases of a network, as numpy has them."""
    own = {**fit.params, **{name.removeprefix("value/"): v for name, v in fit.guide_parts.items()}}
    return {name.partition("$$$")[2]: v.double().numpy() for name, v in own.items() if name.startswith(f"{network}$$$")}


# --- a prior made of posteriors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixture", ["learned", "uniform"])
def test_a_vampprior_is_the_mixture_written_by_hand(mixture):
    options = {"num_pseudo_inputs": 6, "mixture": mixture, "hidden": (8,), "learning_rate": 0.02}
    fit = zoo.fit("vampprior_vae", DIGITS[:200], num_steps=60, tol=0, **options)
    part = layers_of(fit, "encoder")
    pseudo = fit.params["pseudo_inputs"].double().numpy()
    out = np.maximum(pseudo @ part["0.weight"].T + part["0.bias"], 0) @ part["2.weight"].T + part["2.bias"]
    weights = fit.params["mixture"].double().numpy() if mixture == "learned" else np.full(6, 1 / 6)
    assert mixture == "uniform" or weights.std() > 1e-3  # they are learned
    with opened(fit, fit.adapted(DIGITS[200:230]), 0) as it:
        drawn = draw(it.story, it.values, it.data, 4, False)
        found = terms(it.story, drawn)
        z = drawn.model["z"]["value"].double().numpy()
        q, p = drawn.guide["z"]["fn"], drawn.model["z"]["fn"]
        assert kl_of(q, p) is None  # there is no closed form, so the bound takes the draws
        exact = terms(it.story, drawn, exact=False)
        torch.testing.assert_close(found.kl, exact.log_q - exact.prior)
    each = norm.logpdf(z[:, None], out[:, :2], softplus(out[:, 2:])).sum(-1)  # (draws, C)
    by_hand = np.log((weights * np.exp(each)).sum(1))
    np.testing.assert_allclose(exact.prior.flatten().numpy(), by_hand, rtol=1e-4, atol=1e-4)


def test_rows_of_a_vampprior_come_from_its_parts():
    """Two kinds of rows far apart: those that are made are of both kinds, in the shares of the data."""
    rng = np.random.default_rng(0)
    kind = rng.random(300) < 0.3
    x = np.where(kind[:, None], 5.0, -5.0) + rng.normal(size=(300, 4))
    options = {"num_pseudo_inputs": 10, "latent_dim": 1, "hidden": (16,), "likelihood": "gaussian"}
    fit = zoo.fit("vampprior_vae", x, num_steps=600, tol=0, learning_rate=0.01, **options)
    made = np.asarray(fit.generate(2000, seed=1))
    assert (np.abs(made.mean(1)) > 2).mean() > 0.98  # none between the two
    assert (made.mean(1) > 0).mean() == pytest.approx(0.3, abs=0.06)


def test_pseudo_inputs_start_at_different_rows_of_the_data():
    x = torch.from_numpy(IRIS)
    found = near_rows(x, 150, torch.Generator().manual_seed(0))
    distance = torch.cdist(found / x.std(0), x / x.std(0))
    assert distance.min(1).values.max() < 0.1
    assert len(found.unique(dim=0)) == 150
    np.testing.assert_allclose(found.sort(0).values, x.sort(0).values, atol=0.1)  # each row once
    assert len(near_rows(x[:3], 10, torch.Generator().manual_seed(0)).unique(dim=0)) == 10
    gaps = torch.tensor([[1.0, math.nan], [3.0, 4.0]])
    np.testing.assert_allclose(near_rows(gaps, 2, torch.Generator().manual_seed(0))[:, 1], 4.0)
    fit = zoo.fit("vampprior_vae", IRIS, likelihood="gaussian", num_steps=0, tol=0)
    assert torch.cdist(fit.params["pseudo_inputs"].double(), x).min(1).values.max() < 0.1


def held_out(name, seeds, **options):
    """Importance-weighted bounds of digits that a model has not seen, in nats a row."""
    common = {"hidden": (128,), "epochs": 60, "learning_rate": 3e-3, "tol": 0}
    fits = [zoo.fit(name, DIGITS[:1400], seed=seed, **common, **options) for seed in range(seeds)]
    return np.array([float(fit.importance(DIGITS[1400:], num=500).log_prob.mean()) for fit in fits])


@pytest.mark.slow
@pytest.mark.parametrize("latent_dim", [2, 10])
def test_a_vampprior_says_more_of_new_digits_than_a_normal_prior(latent_dim):
    """Measured: -19.66 beside -19.91 with 2 numbers, -17.57 beside -18.01 with 10; spreads of seeds below 0.1."""
    plain, vamp = (held_out(name, 3, latent_dim=latent_dim) for name in ("vae", "vampprior_vae"))
    assert vamp.min() > plain.max()
    assert vamp.mean() > plain.mean() + 0.15


# --- two layers -------------------------------------------------------------------------------------------------------

TOP, LOW, WIDE = 1, 2, 4  # sizes of the layers, and columns


def linear_layers():
    """Weights of linear networks whose joint is normal, the guide's factors its exact conditional ones but for
    correlations; and what they make of rows: mean and covariance of x, and how top goes with x.
    """
    rng = np.random.default_rng(1)
    upper, lower = rng.normal(size=(LOW, TOP)), rng.normal(size=(WIDE, LOW))
    shift, loc = rng.normal(size=LOW), rng.normal(size=WIDE)
    raw = np.array([0.2, -0.4])
    spread, scale = softplus(raw), np.array([0.7, 0.9, 0.8, 1.1])
    cov_z = upper @ upper.T + np.diag(spread**2)
    mean_x, cov_x = loc + lower @ shift, lower @ cov_z @ lower.T + np.diag(scale**2)
    gain = cov_z @ lower.T @ np.linalg.inv(cov_x)  # of z on x
    left = np.diag(cov_z - gain @ lower @ cov_z)
    gain_top = upper.T @ np.linalg.inv(cov_z)  # of top on z
    left_top = np.diag(np.eye(TOP) - gain_top @ upper)

    def raw_of(sd):
        return np.log(np.expm1(sd - 1e-4))

    def layer(name, weight, bias, sd):
        return {
            f"{name}$$$0.weight": torch.tensor(np.vstack([weight, np.zeros_like(weight)])),
            f"{name}$$$0.bias": torch.tensor(np.concatenate([bias, raw_of(sd)])),
        }

    start = {"decoder$$$0.weight": torch.tensor(lower), "decoder$$$0.bias": torch.tensor(loc)}
    start |= {"scale": torch.tensor(scale), **layer("top_decoder", upper, shift, spread)}
    start |= layer("encoder", gain, shift - gain @ mean_x, left**0.5)
    start |= layer("top_encoder", gain_top, -gain_top @ shift, left_top**0.5)
    return start, mean_x, cov_x, (gain_top @ gain, gain_top @ (cov_z - gain @ lower @ cov_z) @ gain_top.T + left_top)


@pytest.fixture(scope="module")
def linear():
    start, mean, cov, top = linear_layers()
    x = np.random.default_rng(2).multivariate_normal(mean, cov, 60)
    options = {"latent_dim": LOW, "top_dim": TOP, "likelihood": "gaussian", "hidden": ()}
    return zoo.fit("hierarchical_vae", x, start=start, num_steps=0, tol=0, **options), x, mean, cov, top


def test_the_bound_of_linear_layers_meets_the_density_of_a_normal_distribution(linear):
    fit, x, mean, cov, _ = linear
    found = fit.importance(x, num=4000)
    exact = multivariate_normal(mean, cov).logpdf(x)
    assert (found.k_hat < 0.7).all()
    assert (np.abs(found.log_prob.numpy() - exact) < 6 * found.error.numpy() + 1e-4).all()
    assert found.total_error < 0.2
    assert fit.log_likelihood < exact.sum()  # the bound of one draw lies below


def test_rows_made_by_linear_layers_have_the_moments_of_the_normal_distribution(linear):
    fit, _, mean, cov, _ = linear
    made = np.asarray(fit.generate(40_000, seed=3))
    error = (np.diag(cov) / len(made)) ** 0.5
    assert (np.abs(made.mean(0) - mean) < 5 * error).all()
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / len(made))
    assert (np.abs(np.cov(made.T) - cov) < 5 * spread).all()


def test_the_posterior_of_the_upper_layer_of_linear_layers_is_the_exact_one(linear):
    fit, x, mean, _, (gain, variance) = linear
    found = fit.latents(x)["top"]
    assert list(fit.embeddings(x).columns) == ["top", "z_0", "z_1"]
    draws = fit.sample_posterior(4000, seed=1)["top"][..., 0].numpy()  # (4000, N)
    exact = (x - mean) @ gain.T
    assert np.abs(draws.mean(0) - exact[:, 0]).max() < 6 * (variance.item() / 4000) ** 0.5
    np.testing.assert_allclose(found.mean.numpy(), exact, atol=0.5)


@pytest.mark.slow
def test_two_layers_let_in_by_and_by_say_more_of_new_digits_than_one():
    """Measured, of 8 numbers: -17.64 (two layers), -18.10 (without the warm-up), -18.00 (one layer)."""
    one = held_out("vae", 3, latent_dim=8)
    two = held_out("hierarchical_vae", 3, latent_dim=8, warmup=Warmup(200))
    assert two.min() > one.max()


# --- topics -----------------------------------------------------------------------------------------------------------


def documents(n=60, seed=0, words=12, topics=3, length=40):
    rng = np.random.default_rng(seed)
    beta = rng.dirichlet(np.full(words, 0.1), topics)
    theta = rng.dirichlet(np.full(topics, 0.2), n)
    return np.stack([rng.multinomial(rng.integers(10, length), t @ beta) for t in theta]).astype(float), beta


def words_of(fit, theta):
    """Log probabilities of the words under shares theta, by hand: batch norm with what it has counted."""
    parts = fit.guide_parts
    mean, var = (parts[f"buffer/decoder/2.running_{name}"].double().numpy() for name in ("mean", "var"))
    logits = (theta @ layers_of(fit, "decoder")["1.weight"].T - mean) / np.sqrt(var + 1e-5)
    return log_softmax(fit.params["background"].double().numpy() + logits, -1)


def test_the_prior_is_the_laplace_approximation_of_a_dirichlet():
    """In the softmax basis log p(z) = alpha sum log softmax(z)_k, flat along the ones: curvature by differences."""
    K, alpha = 5, 0.3
    with opened(
        fit := zoo.fit("prodlda", documents()[0], num_topics=K, concentration=alpha, **SHORT), fit.data, 0
    ) as it:
        prior = it.story.latents["z"]

    def log_prior(z):
        return alpha * log_softmax(z).sum()

    step, eye = 1e-3, np.eye(K)
    curvature = [
        [
            log_prior(step * (a + b))
            - log_prior(step * (a - b))
            - log_prior(step * (b - a))
            + log_prior(-step * (a + b))
            for a in eye
        ]
        for b in eye
    ]
    variance = np.diag(np.linalg.pinv(-np.array(curvature) / (4 * step**2), rcond=1e-4))
    np.testing.assert_allclose(prior.variance[0].numpy(), variance, rtol=1e-3)
    assert (prior.mean == 0).all()


@pytest.fixture(scope="module")
def two_topics():
    x, _ = documents(200, topics=2)
    x = x[:, x.any(0)]
    options = {"num_topics": 2, "hidden": (16,), "learning_rate": 0.01, "num_steps": 400, "tol": 0}
    return zoo.fit("prodlda", x, **options), x


def test_the_score_of_two_topics_is_an_integral_over_their_shares(two_topics):
    """With two topics theta depends on one number, the difference of two normal ones."""
    fit, x = two_topics
    line = np.linspace(-8, 8, 4001)
    spread = 2**0.5 * (1 - 1 / 2) ** 0.5
    share = 1 / (1 + np.exp(-line))
    log_words = words_of(fit, np.stack([share, 1 - share], 1)) @ x[:40].T + norm.logpdf(line, 0, spread)[:, None]
    exact = np.log(np.exp(log_words - log_words.max(0)).sum(0) * (line[1] - line[0])) + log_words.max(0)
    exact += gammaln(x[:40].sum(1) + 1) - gammaln(x[:40] + 1).sum(1)
    found = fit.importance(x[:40], num=3000)
    assert (np.abs(found.log_prob.numpy() - exact) < 6 * found.error.numpy() + 1e-3).all()
    assert found.total_error < 0.3


def test_topics_shares_and_perplexities_by_hand(two_topics):
    fit, x = two_topics
    topics = np.exp(words_of(fit, np.eye(2)))
    best = [[str(v) for v in row.argsort()[::-1][:4]] for row in topics]
    assert top_words(fit, 4) == best
    draws = fit.sample_posterior(2000, seed=1)["theta"].numpy()
    np.testing.assert_allclose(topic_shares(fit), draws.mean(0), atol=0.06)
    np.testing.assert_allclose(topic_shares(fit).sum(1), 1, rtol=1e-5)
    orders = gammaln(x.sum(1) + 1) - gammaln(x + 1).sum(1)
    by_hand = math.exp(-(fit.score(x).numpy() - orders).sum() / x.sum())
    assert bound_perplexity(fit, x) == pytest.approx(by_hand)
    both = halves(bags_of(torch.from_numpy(x)))
    seen, held = both.seen.dense().numpy(), both.held.dense().numpy()
    theta = fit.sample_posterior(500, data=seen, seed=2)["theta"].numpy()
    expected = np.exp(words_of(fit, theta)).mean(0)
    assert perplexity(fit, x) == pytest.approx(math.exp(-(held * np.log(expected)).sum() / held.sum()), rel=0.02)
    assert perplexity(fit, x) < 0.8 * x.shape[1]
    point = zoo.fit("lda", x, num_topics=2, tol=1e-6)
    by_hand = math.exp(-(point.score(x).numpy() - orders).sum() / x.sum())
    assert bound_perplexity(point, x) == pytest.approx(by_hand)
    np.testing.assert_allclose(topic_shares(point), point.latents()["theta"].mean)


def test_topics_of_simulated_documents_are_found_again():
    x, beta = documents(1000, words=40, topics=3, length=80)
    x, beta = x[:, x.any(0)], beta[:, x.any(0)]
    fit = zoo.fit("prodlda", x, num_topics=3, learning_rate=5e-3, epochs=40, tol=0)
    own = np.exp(words_of(fit, np.eye(3)))
    angle = own @ beta.T / np.linalg.norm(own, axis=1)[:, None] / np.linalg.norm(beta, axis=1)
    assert (np.sort(angle.argmax(1)) == np.arange(3)).all()
    assert angle.max(1).min() > 0.8
    lists = zoo.fit("lda", x, num_topics=3, tol=1e-4)
    assert coherence(fit, num=5).mean() > coherence(lists, num=5).mean() - 0.15


def test_lists_of_words_sparse_and_dense_give_the_same_topics():
    x, _ = documents()
    x = x[:, x.any(0)]
    names = [f"w{v:02d}" for v in range(x.shape[1])]
    texts = [[names[v] for v in range(len(names)) for _ in range(int(row[v]))] for row in x]
    fits = [zoo.fit("prodlda", data, num_topics=3, **SHORT) for data in (x, sp.csr_matrix(x), texts)]
    for fit in fits[1:]:
        torch.testing.assert_close(fit.history, fits[0].history, rtol=1e-3, atol=0)  # they are laid out differently
    assert top_words(fits[2], 3)[0] == [names[int(v)] for v in top_words(fits[0], 3)[0]]
    assert sp.issparse(fits[1].generate(3))
    assert (fits[0].generate(5, seed=1).sum(1) == x[:5].sum(1)).all()
    assert "words of a row wholly of one topic" in fits[2].summary()
    assert ", ".join(top_words(fits[2], 1)[0]) in fits[2].summary()


def test_pictures_of_topics_of_networks():
    fit = zoo.fit("prodlda", "docstrings", num_topics=4, hidden=(16,), **SHORT)
    figure = fit.plot()
    assert len(figure.axes) == 4
    assert {label.get_text() for label in figure.axes[0].get_yticklabels()} <= set(adapt("docstrings").schema.columns)
    assert "276 rows" in fit.plot("mixtures").axes[0].get_title(loc="left")
    with pytest.raises(OptionError, match="no shared profiles"):
        zoo.fit("vae", DIGITS, hidden=(8,), **SHORT).plot("topics")


def test_bad_documents_and_options_are_named():
    def replaced(row, column, value):
        x, _ = documents()
        x[row, column] = value
        return x

    for data, words in (
        (pd.DataFrame(replaced(3, 2, -1.0)).add_prefix("w"), r"row 3 holds -1 in column 'w2', expected counts"),
        (replaced(3, 2, 0.5), "row 3 holds 0.5 in column 2, expected counts: whole numbers"),
        (replaced(3, 2, np.nan), "row 3 has missing cells beside others"),
        (replaced(3, slice(None), 0.0), "row 3 .* counts nothing"),
        (replaced(3, slice(None), np.nan), "row 3 has no observed cell"),
    ):
        with pytest.raises(DataError, match=words):
            zoo.fit("prodlda", data, num_topics=3)
    for wrong in ({"num_topics": 1}, {"concentration": 0.0}, {"dropout": 1.0}, {"hidden": (0,)}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            zoo.create("prodlda", **wrong)
    with pytest.raises(OptionError, match="batch_size: met 1 row a step, and layer '2' of network 'decoder'"):
        zoo.fit("prodlda", documents()[0], batch_size=1)


@pytest.mark.slow
def test_dropout_trades_the_perplexity_of_documentation_for_coherence_on_either_side_of_lda():
    """Measured over two starts, lda beside prodlda with dropout 0, 0.2 and 0.5: coherence 0.236 beside 0.236, 0.229 and
    0.297; perplexity of new documents by the bound 311 beside 274, 302 and 376, by completion of their halves 302
    beside 286, 333 and 418.
    """
    table = adapt("documentation")
    x = table.values.double()[torch.randperm(len(table.values), generator=torch.Generator().manual_seed(0))]
    held, x = x[: len(x) // 5], x[len(x) // 5 :]
    options = {"num_topics": 20, "epochs": 80, "learning_rate": 5e-3, "tol": 0}

    def measured(name, **options):
        fits = [zoo.fit(name, x, seed=seed, **options) for seed in range(2)]
        return np.mean([(float(coherence(f).mean()), bound_perplexity(f, held), perplexity(f, held)) for f in fits], 0)

    point = measured("lda", num_topics=20, tol=1e-4)
    none, much = measured("prodlda", dropout=0.0, **options), measured("prodlda", dropout=0.5, **options)
    assert much[0] > point[0] + 0.02
    assert none[0] > point[0] - 0.03
    assert none[1] < 0.95 * point[1]
    assert none[2] < point[2]


# --- networks that count what passes them -----------------------------------------------------------------------------


def normed():
    return {
        "encoder": nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4)),
        "decoder": nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)),
    }


def test_reading_and_fitting_leave_no_trace_in_batch_norm():
    networks = normed()
    before = {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in networks.items()}
    pair = zoo.create("vae", likelihood="gaussian", **networks)
    one = zoo.fit(pair, IRIS, **SHORT)
    for name, net in networks.items():
        assert all(torch.equal(v, before[name][k]) for k, v in net.state_dict().items())
        assert net.training
    zoo.fit(pair, IRIS[:50], **SHORT)
    again = zoo.fit(pair, IRIS, **SHORT)
    assert torch.equal(one.history, again.history)
    assert all(torch.equal(one.guide_parts[name], again.guide_parts[name]) for name in one.guide_parts)
    assert int(one.guide_parts["buffer/encoder/1.num_batches_tracked"]) == SHORT["num_steps"]  # steps, and nothing else
    assert len(one.generate(1)) == 1  # one row is enough where nothing is learned
    torch.testing.assert_close(one.latents(IRIS[:1])["z"].mean, one.latents(IRIS)["z"].mean[:1], atol=1e-5, rtol=0)


def test_the_best_weights_go_with_what_batch_norm_had_counted_by_then():
    """The bound is looked at every 50 steps, and 30 more come after the last look."""
    pair = zoo.create("vae", likelihood="gaussian", **normed())
    fit = zoo.fit(pair, IRIS, num_steps=130, learning_rate=0.05, tol=0, validation=0.2)
    assert int(fit.guide_parts["buffer/encoder/1.num_batches_tracked"]) in (50, 100)


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (3, 5, 5), (28, 28), (1, 1)])
def test_convolutions_take_images_of_any_size_and_keep_their_variance(shape):
    torch.manual_seed(0)
    size = math.prod(shape)
    encoder, decoder = conv_encoder(shape, 6), conv_decoder(3, shape, per_cell=2)
    with torch.no_grad():
        inwards, out = encoder(torch.randn(500, size)), decoder(torch.randn(500, 3))
    assert inwards.shape == (500, 6)
    assert out.shape == (500, 2 * size)
    if size > 30:  # where most cells have all their neighbours
        assert 0.3 < float(inwards.std()) < 1.5
        assert 0.3 < float(out.std()) < 1.5


def test_convolutions_learn_digits():
    """From rows that know nothing of their neighbours: better than every perceptron starts, and than one without
    latents.
    """
    torch.manual_seed(0)
    networks = {"encoder": conv_encoder((8, 8), 8), "decoder": conv_decoder(4, (8, 8))}
    pair = zoo.create("vae", latent_dim=4, **networks)
    fit = zoo.fit(pair, DIGITS[:1000], epochs=4, batch_size=50, learning_rate=0.01, tol=0)
    start = zoo.fit("vae", DIGITS[:1000], latent_dim=4, num_steps=0, tol=0)
    share = DIGITS[:1000].mean(0).clip(0.01, 0.99)
    alone = (DIGITS[1000:] * np.log(share) + (1 - DIGITS[1000:]) * np.log(1 - share)).sum(1).mean()
    assert fit.log_likelihood > start.log_likelihood + 2000
    assert float(fit.score(DIGITS[1000:]).mean()) > alone + 1
    assert fit.reconstruct(DIGITS[:3]).shape == (3, 64)


IMAGE = (1, 8, 8)


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        ({"encoder": conv_encoder((8, 9), 4)}, r"layer '0' of network 'encoder'.*\(16, 64\), expected 72 numbers"),
        ({"encoder": conv_encoder((8, 8), 5)}, r"layer '6' of network 'encoder'.*shape \(16, 5\).*expected 4 a row"),
        ({"decoder": conv_decoder(3, (8, 8))}, r"layer '0' of network 'decoder'.*\(16, 2\), expected 3 numbers a row"),
        ({"decoder": conv_decoder(2, (8, 9))}, r"site 'x' .* shape \(72,\), the data's are \(64,\).*'decoder'"),
        (
            {"encoder": nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(10, 4))},
            r"layer '0' of network 'encoder' \(Conv2d.*\(16, 64\), expected \(rows, 1, height, width\)",
        ),
        (
            {"encoder": nn.Sequential(nn.Unflatten(1, IMAGE), nn.Conv2d(1, 4, 3), nn.Conv2d(3, 4, 3))},
            r"layer '2' of network 'encoder' \(Conv2d.*\(16, 4, 6, 6\), expected \(rows, 3, height, width\)",
        ),
        (
            {"encoder": nn.Sequential(nn.Unflatten(1, IMAGE), nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(10, 4))},
            r"layer '3' of network 'encoder' \(Linear.*\(16, 144\), expected 10 numbers a row",
        ),
        (
            {"encoder": nn.Sequential(nn.Unflatten(1, IMAGE), nn.Conv2d(1, 4, 9))},
            r"layer '1' of network 'encoder' \(Conv2d.*\(16, 1, 8, 8\): .*Kernel size",
        ),
        (
            {"encoder": nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(9), nn.Linear(8, 4))},
            r"layer '1' of network 'encoder' \(BatchNorm1d.*\(16, 8\), expected \(rows, 9\)",
        ),
    ],
)  # fmt: skip
def test_networks_of_images_of_the_wrong_shape_are_named_with_their_layer(networks, words):
    with pytest.raises(ModelError, match=words):
        zoo.fit("vae", DIGITS, **networks)


def test_free_bits_of_a_divergence_without_a_closed_form_are_refused():
    for name in ("vampprior_vae", "gaussian_mixture_vae", "hierarchical_vae"):
        with pytest.raises(OptionError, match=r"free_bits: .* has no closed form"):
            zoo.fit(name, DIGITS, free_bits=0.1, **SHORT)


def test_convolutions_of_no_size_are_refused():
    for make, words in (
        (lambda: conv_encoder((8,), 4), r"shape: met \(8,\), expected \(height, width\)"),
        (lambda: conv_encoder((8, 8), 4, ()), "channels: met none"),
        (lambda: conv_encoder((8, 0), 4), "shape: met 0"),
        (lambda: conv_decoder(0, (8, 8)), "num_inputs: met 0"),
    ):
        with pytest.raises(OptionError, match=words):
            make()


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_of_priors_and_of_layers():
    fit = zoo.fit("vampprior_vae", DIGITS, num_pseudo_inputs=30, hidden=(8,), **SHORT)
    figure = fit.plot()
    assert "25 of 30 parts of the prior" in figure.axes[1].get_title(loc="left")
    mixture = zoo.fit("gaussian_mixture_vae", DIGITS, num_components=3, hidden=(8,), **SHORT)
    assert "3 parts of the prior (100 %)" in mixture.plot().axes[1].get_title(loc="left")
    shown = mixture.plot("prior").axes[0].collections[-1].get_offsets()
    heavy = mixture.params["weights"].argsort(descending=True)
    np.testing.assert_allclose(np.asarray(shown), mixture.params["loc"][heavy].numpy(), atol=1e-5)
    layers = zoo.fit("hierarchical_vae", DIGITS, hidden=(8,), **SHORT)
    assert "each line has one draw of 'top'" in layers.plot().axes[0].get_title(loc="left")
    assert len(zoo.fit("vampprior_vae", IRIS, likelihood="gaussian", **SHORT).plot().axes) == 1
    plain = zoo.fit("vae", DIGITS, hidden=(8,), **SHORT)
    for kind, words in (("prior", "no mixture"), ("layers", "one layer alone")):
        with pytest.raises(OptionError, match=words):
            plain.plot(kind)


def test_topics_of_sparse_documents_are_those_of_a_table():
    counts = np.random.default_rng(0).poisson(0.4, (60, 30))
    counts[:, 0] += 1  # no row is empty
    options = {"num_topics": 3, "hidden": (8,), "epochs": 2, "tol": 0}
    table, sparse = (zoo.fit("prodlda", x, **options) for x in (counts, sp.csr_matrix(counts)))
    assert torch.equal(table.history, sparse.history)
    assert bound_perplexity(sparse) == bound_perplexity(table)
    assert torch.equal(topic_shares(sparse), topic_shares(table))
    assert torch.equal(coherence(sparse), coherence(table))
