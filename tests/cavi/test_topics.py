"""Counts allocated to positive latents: the derived updates beside those of the papers, written out by hand."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
import torch
from pyro.distributions import constraints
from scipy.special import digamma, gammaln

from latentzoo import Pair, zoo
from latentzoo.inference.base.errors import ConvergenceWarning, DataError, ModelError, OptionError
from latentzoo.inference.cavi.counts.ascent import Allocating
from latentzoo.inference.cavi.counts.model import read_allocation, sample_of
from latentzoo.inference.cavi.counts.passes import Rows, expect_shared, make_blocks
from latentzoo.inference.data.adapt import adapt
from latentzoo.inference.data.sparse import bag_of_words, bags_of, bags_of_sparse
from latentzoo.inference.diagnose.topics import coherence, halves, perplexity, top_words
from latentzoo.inference.optimize.minibatches import Schedule
from latentzoo.inference.trace.handlers import engine_state
from latentzoo.inference.trace.structure import read
from latentzoo.models.registry import ENTRIES

ALPHA, ETA, K, V = 0.3, 0.2, 3, 12
A, B, C, D = 0.4, 0.5, 0.3, 0.7  # of the Gamma priors


def documents(n=30, seed=0, length=25):
    rng = np.random.default_rng(seed)
    topics = rng.dirichlet(np.full(V, 0.2), K)
    theta = rng.dirichlet(np.full(K, 0.3), n)
    return np.stack([rng.multinomial(rng.integers(5, length), t @ topics) for t in theta]).astype(float)


def start_topics(seed=1):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(V), K))


def lda(**options):
    return zoo.create("lda", num_topics=K, concentration=ALPHA, topic_concentration=ETA, **options)


def gap():
    given = {"shape": A, "rate": B, "factor_shape": C, "factor_rate": D}
    return zoo.create("gamma_poisson_factorization", num_factors=K, **given)


def short(pair, x, iterations, **options):
    return zoo.fit(pair, x, inference="cavi", max_iters=iterations, tol=0, **options)


def steps_of(pair, x):
    """The engine's own pieces, for one update at a time."""
    dataset = adapt(x)
    with engine_state(0):
        structure = read(pair.model, sample_of(dataset.values))
        allocation = read_allocation(pair.model, dataset.values, structure, dataset.schema)
        return allocation, Allocating(allocation, make_blocks(allocation), None, 1)


# --- the papers' updates by hand --------------------------------------------------------------------------------------


def blei_e_step(x, gamma, log_beta, updates):
    """Blei et al. (2003), equations 6 and 7, document by document."""
    gamma = gamma.copy()
    for n in range(len(x)):
        for _ in range(updates):
            phi = np.exp(log_beta + (digamma(gamma[n]) - digamma(gamma[n].sum()))[:, None])  # (K, V)
            phi /= phi.sum(0)
            gamma[n] = ALPHA + phi @ x[n]
    return gamma


def blei_counts(x, gamma, log_beta):
    out = np.zeros_like(log_beta)
    for n in range(len(x)):
        phi = np.exp(log_beta + digamma(gamma[n])[:, None])
        out += phi / phi.sum(0) * x[n]
    return out


@pytest.mark.parametrize("point", [False, True])
def test_lda_by_hand_gives_the_same_topics_at_every_sweep(point):
    x, start = documents(), start_topics()
    value = start.numpy()
    lam = ETA + x.sum() * value / value.sum()

    def log_beta():
        return np.log(value) if point else digamma(lam) - digamma(lam.sum(1, keepdims=True))

    gamma = blei_e_step(x, ALPHA + np.repeat(x.sum(1, keepdims=True) / K, K, 1), log_beta(), 20)
    for sweep in range(1, 8):
        gamma = blei_e_step(x, gamma, log_beta(), 2)
        counts = blei_counts(x, gamma, log_beta())
        lam, value = ETA + counts, counts / counts.sum(1, keepdims=True)
        fit = short(lda(point_topics=point), x, sweep, start={"topics": start})
        expected = value if point else lam / lam.sum(1, keepdims=True)
        np.testing.assert_allclose(fit.params["topics"].numpy(), expected, rtol=1e-8, atol=1e-12)
        if not point:
            np.testing.assert_allclose(fit.posterior("topics").concentration.numpy(), lam, rtol=1e-8)


def test_each_row_stands_still_however_long_the_others_take():
    """Rows leave as they come to rest: each must be where updating all of them for long ends."""
    x = documents(12, length=60)
    fit = short(lda(), x, 40)
    lam = fit.posterior("topics").concentration.numpy()
    log_beta = digamma(lam) - digamma(lam.sum(1, keepdims=True))
    gamma = blei_e_step(x, ALPHA + np.repeat(x.sum(1, keepdims=True) / K, K, 1), log_beta, 3000)
    np.testing.assert_allclose(fit.posterior("theta").concentration.numpy(), gamma, atol=1e-3)


def test_gamma_poisson_by_hand_gives_the_same_factors_at_every_sweep():
    """Cemgil (2009), algorithm 1; Gopalan et al. (2015), section 3, without their hyper-priors."""
    x = documents()
    start = torch.from_numpy(np.random.default_rng(2).gamma(1.0, 1.0, (K, V)))
    shape = C + x.sum() * start.numpy() / start.numpy().sum()
    rate = shape / start.numpy()
    theta_shape = theta_rate = None

    def beta():
        return np.exp(digamma(shape) - np.log(rate)), shape / rate

    def update_theta():
        t = np.exp(digamma(theta_shape) - np.log(theta_rate))
        b, mean = beta()
        z = t[:, :, None] * b[None]
        z *= (x / z.sum(1))[:, None]
        return A + z.sum(2), np.broadcast_to(B + mean.sum(1), t.shape)

    theta_shape = A + np.repeat(x.sum(1, keepdims=True) / K, K, 1)
    theta_rate = np.broadcast_to(B + beta()[1].sum(1), theta_shape.shape)
    for _ in range(20):
        theta_shape, theta_rate = update_theta()
    for sweep in range(1, 8):
        for _ in range(2):
            theta_shape, theta_rate = update_theta()
        t = np.exp(digamma(theta_shape) - np.log(theta_rate))
        z = t[:, :, None] * beta()[0][None]
        z *= (x / z.sum(1))[:, None]
        shape = C + z.sum(0)
        rate = np.broadcast_to(D + (theta_shape / theta_rate).sum(0)[:, None], shape.shape)
        fit = short(gap(), x, sweep, start={"beta": start})
        np.testing.assert_allclose(fit.posterior("beta").concentration.numpy(), shape, rtol=1e-8)
        np.testing.assert_allclose(fit.posterior("beta").rate.numpy(), rate, rtol=1e-8)


# --- the bound --------------------------------------------------------------------------------------------------------


def kl_dirichlet(q, p):
    return torch.distributions.kl_divergence(dist.Dirichlet(q), dist.Dirichlet(p)).sum().item()


def test_bound_of_lda_is_the_sum_of_its_expectations():
    """Term by term, the allocations of single words among them (Blei et al. 2003, equation 15)."""
    x = documents(5)
    allocation, steps = steps_of(lda(), x)
    with engine_state(0), torch.no_grad():
        state = steps.start(start_topics())
        swept = steps.sweep(state, 1)
    gamma, lam = (swept.eta + 1).numpy(), (state["topics"][0] + 1).numpy()
    log_theta = digamma(gamma) - digamma(gamma.sum(1, keepdims=True))
    log_beta = digamma(lam) - digamma(lam.sum(1, keepdims=True))
    total = 0.0
    for n in range(len(x)):
        phi = np.exp(log_beta + log_theta[n][:, None])
        phi /= phi.sum(0)
        total += (x[n] * (phi * (log_theta[n][:, None] + log_beta - np.log(phi))).sum(0)).sum()
        total += gammaln(x[n].sum() + 1) - gammaln(x[n] + 1).sum()
    total -= kl_dirichlet(torch.from_numpy(gamma), torch.full((len(x), K), ALPHA, dtype=torch.float64))
    total -= kl_dirichlet(torch.from_numpy(lam), torch.full((K, V), ETA, dtype=torch.float64))
    assert swept.log_prob.item() == pytest.approx(total, rel=1e-10)
    assert allocation.size == K


def test_bound_of_gamma_poisson_is_the_sum_of_its_expectations():
    x = documents(6)
    _, steps = steps_of(gap(), x)
    with engine_state(0), torch.no_grad():
        state = steps.start(torch.from_numpy(np.random.default_rng(2).gamma(1.0, 1.0, (K, V))))
        swept = steps.sweep(state, 1)
    theta = dist.Gamma(swept.eta[..., 0] + 1, -swept.eta[..., 1])
    own = state["beta"][0]
    beta = dist.Gamma(own[..., 0] + 1, -own[..., 1])
    log_theta = theta.concentration.digamma() - theta.rate.log()
    log_beta = beta.concentration.digamma() - beta.rate.log()
    joint = (log_theta.unsqueeze(2) + log_beta).exp()  # (N, K, V)
    phi = joint / joint.sum(1, keepdim=True)
    counts = torch.from_numpy(x)
    energy = (counts.unsqueeze(1) * phi * (log_theta.unsqueeze(2) + log_beta - phi.log())).sum()
    total = energy - (theta.mean @ beta.mean).sum() - (counts + 1).lgamma().sum()
    for q, shape, rate in ((theta, A, B), (beta, C, D)):
        prior = dist.Gamma(torch.tensor(shape, dtype=torch.float64), torch.tensor(rate, dtype=torch.float64))
        total = total - torch.distributions.kl_divergence(q, prior.expand(q.batch_shape)).sum()
    assert swept.log_prob.item() == pytest.approx(total.item(), rel=1e-10)


@pytest.mark.parametrize("name", ["lda", "point", "gap"])
def test_bound_never_falls_at_any_update_of_any_factor(name):
    x = documents(20)
    pair = gap() if name == "gap" else lda(point_topics=name == "point")
    allocation, steps = steps_of(pair, x)
    for seed in range(20):
        value = torch.from_numpy(np.random.default_rng(seed).gamma(0.5, 1.0, (K, V)))
        with engine_state(0), torch.no_grad():
            state = steps.start(value / value.sum(1, keepdim=True))
            bounds = []
            for _ in range(6):
                for _ in range(3):  # one update of the rows' factor at a time
                    swept = steps.sweep(state, 1)
                    bounds.append(swept.log_prob.item())
                    state = {**state, allocation.rows.name: swept.eta.unsqueeze(0)}
                state = steps.improve(state, steps.sweep(state, 0))
                bounds.append(steps.sweep(state, 0).log_prob.item())
        assert min(np.diff(bounds)) >= -1e-9 * (1 + abs(bounds[-1]))
        assert bounds[-1] > bounds[0]


def test_single_precision_where_data_are_large_changes_no_digit_that_counts(monkeypatch):
    x, start = documents(60), start_topics()
    plain = short(lda(), x, 30, start={"topics": start})
    monkeypatch.setattr("latentzoo.inference.cavi.counts.passes.SINGLE", 0)
    single = short(lda(), x, 30, start={"topics": start})
    assert single.history[-1].item() == pytest.approx(plain.history[-1].item(), rel=1e-6)
    assert min(np.diff(single.history.numpy())) >= -1e-9 * (1 + abs(single.history[-1].item()))


# --- scikit-learn -----------------------------------------------------------------------------------------------------


def test_bound_at_the_topics_of_scikit_learn_is_its_own_and_the_fit_reaches_it():
    from sklearn.decomposition import LatentDirichletAllocation

    x = documents(120)
    options = {"doc_topic_prior": ALPHA, "topic_word_prior": ETA, "learning_method": "batch"}
    peer = LatentDirichletAllocation(K, **options, max_iter=300, max_doc_update_iter=1000, mean_change_tol=1e-9).fit(x)
    constant = (gammaln(x.sum(1) + 1) - gammaln(x + 1).sum(1)).sum()
    allocation, steps = steps_of(lda(), x)
    eta = torch.from_numpy(peer.components_) - 1
    with engine_state(0), torch.no_grad():
        shared = expect_shared(allocation, eta)
        rows = Rows(allocation, steps.blocks[0], shared).run(None, 2000, 1e-10).eta
        at = steps.sweep({"theta": rows.unsqueeze(0), "topics": eta.unsqueeze(0)}, 0).log_prob.item() - constant
    assert at == pytest.approx(peer.score(x), rel=1e-6)
    fit = zoo.fit(lda(), x, inference="cavi", restarts=5)
    assert fit.history[-1].item() - constant >= peer.score(x) - 1e-3 * abs(peer.score(x))


def test_held_out_perplexity_is_near_that_of_the_true_topics():
    rng = np.random.default_rng(0)
    words, topics = 200, 5
    beta = rng.dirichlet(np.full(words, 0.05), topics)
    theta = rng.dirichlet(np.full(topics, 0.2), 1100)
    x = np.stack([rng.multinomial(120, t @ beta) for t in theta])
    seen = x[:1000].any(0)
    x, beta = x[:, seen], beta[:, seen] / beta[:, seen].sum(1, keepdims=True)
    fit = zoo.fit("lda", sp.csr_matrix(x[:1000]), num_topics=topics, concentration=0.2, tol=1e-6)
    truth = zoo.fit(
        zoo.create("lda", num_topics=topics, concentration=0.2, point_topics=True),
        x[:1000],
        inference="cavi",
        max_iters=0,
        tol=0,
        start={"topics": torch.from_numpy(beta.clip(1e-12))},
    )
    best = perplexity(truth, x[1000:])
    found = perplexity(fit, sp.csr_matrix(x[1000:]))
    assert best < 0.5 * words
    assert found == pytest.approx(best, rel=0.02)


# --- what the engine takes --------------------------------------------------------------------------------------------


def test_sparse_dense_and_lists_of_words_give_the_same_fit():
    x = documents()
    words = [f"w{v:02d}" for v in range(V)]
    texts = [[words[v] for v in range(V) for _ in range(int(row[v]))] for row in x]
    start = {"topics": start_topics()}
    fits = [short(lda(), data, 5, start=start) for data in (x, sp.csr_matrix(x), sp.coo_array(x), texts)]
    for fit in fits[1:]:
        torch.testing.assert_close(fit.history, fits[0].history, rtol=1e-12, atol=0)
    assert fits[3].schema.columns == tuple(words)
    assert top_words(fits[3], 3)[0] == [words[v] for v in fits[0].params["topics"][0].argsort(descending=True)[:3]]
    torch.testing.assert_close(fits[3].score(texts[:4]), fits[0].score(x[:4]), rtol=1e-6, atol=0)
    assert sp.issparse(fits[1].generate(3))


def test_a_transposed_matrix_an_exposure_and_einsum_are_seen():
    x = documents()
    exposure = torch.linspace(0.5, 2.0, len(x), dtype=torch.float64)
    scale = torch.linspace(1.0, 3.0, V, dtype=torch.float64)

    def model(data):
        w = pyro.sample("w", dist.Gamma(C * torch.ones(V, K), D).to_event(2))
        with pyro.plate("data", len(data)):
            theta = pyro.sample("theta", dist.Gamma(A * torch.ones(K), B).to_event(1))
            rate = torch.einsum("nk,vk->nv", theta, w) * exposure.unsqueeze(1) * scale
            pyro.sample("x", dist.Poisson(rate).to_event(1), obs=data)

    allocation, _ = steps_of(Pair(model), x)
    assert allocation.transposed
    torch.testing.assert_close(
        allocation.row_factor.unsqueeze(1) * allocation.column_factor, exposure.unsqueeze(1) * scale
    )
    start = torch.from_numpy(np.random.default_rng(2).gamma(1.0, 1.0, (V, K)))
    fit = short(Pair(model), x, 40, start={"w": start})
    assert min(np.diff(fit.history.numpy())) >= -1e-9 * (1 + abs(fit.history[-1].item()))
    # at the optimum of theta's factor its rate is what it should be: b + c_n sum_v d_v E w
    theta = fit.posterior("theta")
    expected = B + exposure.unsqueeze(1) * (fit.params["w"] * scale.unsqueeze(1)).sum(0)
    torch.testing.assert_close(theta.rate, expected, rtol=1e-8, atol=0)


def test_missing_cells_of_poisson_counts_are_left_out():
    """Beside a dense computation in which missing cells have neither count nor rate."""
    x = documents()
    holes = np.random.default_rng(3).random(x.shape) < 0.2
    gaps = np.where(holes, np.nan, x)
    _, steps = steps_of(gap(), gaps)
    with engine_state(0), torch.no_grad():
        state = steps.start(torch.from_numpy(np.random.default_rng(2).gamma(1.0, 1.0, (K, V))))
        swept = steps.sweep(state, 3)
        after = steps.improve(state, swept)["beta"][0]
    theta = dist.Gamma(swept.eta[..., 0] + 1, -swept.eta[..., 1])
    seen = torch.from_numpy(~holes).double()
    mean = -(state["beta"][0][..., 0] + 1) / state["beta"][0][..., 1]
    torch.testing.assert_close(theta.rate, B + seen @ mean.mT)
    torch.testing.assert_close(-after[..., 1], D + theta.mean.mT @ seen)
    fit = zoo.fit(gap(), gaps, inference="cavi", tol=1e-8)
    filled = fit.impute()
    assert np.array_equal(filled[~holes], x[~holes])
    assert np.isfinite(filled).all()
    error = np.abs(filled - x)[holes].mean()
    assert error < np.abs(x[~holes].mean() - x)[holes].mean()


def test_score_is_the_integral_over_theta():
    """With two topics theta is one number, and p(x | topics) an integral over it."""
    x = documents(12)
    pair = zoo.create("lda", num_topics=2, concentration=0.8, topic_concentration=ETA)
    fit = zoo.fit(pair, x, inference="cavi", tol=1e-8)
    topics = fit.params["topics"].numpy()
    grid = (np.arange(20_000) + 0.5) / 20_000
    share = np.stack([grid, 1 - grid], 1)  # (G, 2)
    log_prior = dist.Dirichlet(torch.full((2,), 0.8, dtype=torch.float64)).log_prob(torch.from_numpy(share)).numpy()
    log_words = np.log(share @ topics) @ x.T + log_prior[:, None]
    exact = np.log(np.exp(log_words - log_words.max(0)).mean(0)) + log_words.max(0)
    exact += gammaln(x.sum(1) + 1) - gammaln(x + 1).sum(1)
    assert fit.score_kind == "importance-weighted bound"
    np.testing.assert_allclose(fit.score().numpy(), exact, atol=0.25)
    assert np.abs(fit.score().numpy() - exact).mean() < 0.05


def test_batches_of_all_rows_with_whole_steps_are_sweeps():
    x = documents()
    start = {"topics": start_topics()}
    one = short(lda(), x, 1, start=start, batch_size=len(x), schedule=Schedule(delay=0.0))
    _, steps = steps_of(lda(), x)
    with engine_state(0), torch.no_grad():
        state = steps.start(start["topics"])
        swept = steps.sweep(state, 0)  # `start` has made the 20 updates that a batch makes
        lam = steps.improve(state, swept)["topics"][0] + 1
    torch.testing.assert_close(one.posterior("topics").concentration, lam, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["lda", "gap"])
def test_batches_end_near_the_bound_of_full_sweeps(name):
    x = documents(300)
    pair = lda() if name == "lda" else gap()
    full = zoo.fit(pair, x, inference="cavi", restarts=3)
    batches = short(pair, x, 30, batch_size=50)
    assert batches.history[-1] > full.history[-1] - 0.05 * abs(full.history[-1])
    assert len(batches.history) == 31


def test_a_schedule_is_that_of_hoffman_et_al():
    assert Schedule(delay=1.0, forgetting=0.7).rate(9) == pytest.approx(10**-0.7)
    assert Schedule(delay=0.0, forgetting=1.0).rate(4) == 0.25
    for wrong in ({"forgetting": 0.5}, {"forgetting": 1.5}, {"delay": -1.0}):
        with pytest.raises(OptionError, match="expected a number"):
            Schedule(**wrong)


def test_latents_draws_and_disk(tmp_path):
    x = documents()
    fit = zoo.fit(gap(), x, inference="cavi", tol=1e-7)
    found = fit.latents()["theta"]
    draws = fit.sample_posterior(4000, seed=1)
    assert draws["theta"].shape == (4000, len(x), K)
    assert draws["beta"].shape == (4000, K, V)
    error = found.sd / 4000**0.5
    assert ((draws["theta"].mean(0) - found.mean).abs() <= 6 * error).all()
    assert ((draws["beta"].mean(0) - fit.params["beta"]).abs() <= 6 * draws["beta"].std(0) / 4000**0.5).all()
    np.testing.assert_allclose(fit.reconstruct(), (found.mean @ fit.params["beta"]).numpy(), rtol=1e-10)
    fit.save(tmp_path / "run")
    loaded = zoo.load(tmp_path / "run")
    assert torch.equal(loaded.score(x), fit.score(x))
    assert set(loaded.guide_parts) == {"beta"}


def test_halves_part_every_count():
    x = bags_of(torch.from_numpy(documents()))
    seen, held = halves(x)
    assert torch.equal(seen.dense() + held.dense(), x.dense())
    assert ((held.totals - seen.totals) >= 0).all()
    assert ((held.totals - seen.totals) <= 1).all()
    with pytest.raises(AssertionError):
        assert torch.equal(halves(x, seed=1).seen.dense(), seen.dense())


def test_coherence_is_npmi_by_hand():
    x = documents()
    fit = zoo.fit(lda(), x, inference="cavi", tol=1e-6)
    present = x > 0
    for k, value in enumerate(coherence(fit, x, num=4).tolist()):
        best = fit.params["topics"][k].argsort(descending=True)[:4].tolist()
        each = []
        for i in range(4):
            for j in range(i + 1, 4):
                both = (present[:, best[i]] & present[:, best[j]]).mean()
                alone = present[:, best[i]].mean() * present[:, best[j]].mean()
                each.append(np.log(both / alone) / -np.log(both) if 0 < both < 1 else -1.0 if both == 0 else 1.0)
        assert value == pytest.approx(np.mean(each))


# --- what it refuses --------------------------------------------------------------------------------------------------


def replaced(row, column, value):
    x = documents()
    x[row, column] = value
    return x


def emptied(rows=(), columns=()):
    x = documents()
    x[list(rows)] = 0
    x[:, list(columns)] = 0
    return x


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (replaced(3, 2, -1.0), ["row 3", "-1", "whole numbers, none negative"]),
        (replaced(3, 2, 1.5), ["row 3", "1.5", "whole numbers, none negative"]),
        (sp.csr_matrix(replaced(4, 1, -2.0)), ["row 4", "-2"]),
        (emptied(rows=[5]), ["row 5", "counts nothing"]),
        (sp.csr_matrix(emptied(rows=[6])), ["row 6", "counts nothing"]),
        ([["a", "b"], []], ["document 1", "no word"]),
        (replaced(2, 3, np.nan), ["row 2", "missing cells beside others"]),
    ],
)
def test_bad_counts_are_named(data, words):
    with pytest.raises(DataError) as error:
        zoo.fit(lda(), data, inference="cavi")
    for word in words:
        assert word in str(error.value)


RATES = zoo.create("gamma_poisson_factorization", num_factors=2)


@pytest.mark.parametrize("pair", [lda(), lda(point_topics=True), RATES])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_column_that_counts_nothing_is_an_error(pair, sparse):
    x = emptied(columns=[7, 9])
    with pytest.raises(DataError, match=r"column 7 .*is 0 in every row.* leave it out \(there are 2 such columns\)"):
        zoo.fit(pair, sp.csr_matrix(x) if sparse else x, inference="cavi")


def test_a_row_without_a_count_is_an_error_for_rates_too():
    with pytest.raises(DataError, match=r"row 5 .*is 0 in every column"):
        zoo.fit(RATES, emptied(rows=[5]), inference="cavi")


def test_a_column_that_counts_nothing_is_named():
    table = pd.DataFrame(emptied(columns=[7]), columns=[f"w{n}" for n in range(documents().shape[1])])
    with pytest.raises(DataError, match="column 'w7' is 0 in every row"):
        zoo.fit(lda(), table, inference="cavi")


def test_rows_that_a_fit_scores_may_lack_a_column():
    fit = zoo.fit(lda(), documents(), inference="cavi", tol=1e-5)
    assert fit.score(emptied(columns=[7])).isfinite().all()


def test_words_that_are_not_known_are_named():
    fit = zoo.fit("lda", [["a", "b", "a"], ["b", "c"], ["c", "a"]], num_topics=2, tol=1e-5)
    with pytest.raises(DataError, match=r"document 1 .* holds 'x', which is not in the vocabulary"):
        fit.score([["a"], ["b", "x"]])
    with pytest.raises(DataError, match=r"document 0 .* holds the word number 7, expected 0 to 4"):
        bag_of_words([[1, 7]], vocabulary=5)


def test_other_models_are_refused_in_plain_words():
    x = documents()

    def of(rate, extra=lambda theta: None, prior=None):
        def model(data):
            w = pyro.sample("w", dist.Gamma(C * torch.ones(K, V), D).to_event(2))
            with pyro.plate("data", len(data)):
                theta = pyro.sample("theta", prior or dist.Gamma(A * torch.ones(K), B).to_event(1))
                extra(theta)
                pyro.sample("x", dist.Poisson(rate(theta, w)).to_event(1), obs=data)

        return Pair(model)

    cases = [
        (of(lambda theta, w: (theta @ w) ** 2), "not the matrix product 'theta @ w'"),
        (of(lambda theta, w: theta @ w + 1.0), "not the matrix product 'theta @ w'"),
        (of(lambda theta, w: theta @ torch.ones(K, V)), "'theta' meets nothing"),
        (
            of(lambda theta, w: theta @ w, lambda theta: pyro.sample("z", dist.Normal(0.0, 1.0))),
            "'z' of each row beside it",
        ),
        (
            of(
                lambda theta, w: theta @ w,
                lambda theta: pyro.sample("y", dist.Normal(theta.sum(-1), 1.0), obs=torch.from_numpy(x[:, 0].copy())),
            ),
            "one site of counts",
        ),
    ]
    for pair, words in cases:
        with pytest.raises(ModelError) as error:
            zoo.fit(pair, x, inference="cavi")
        assert words in str(error.value), str(error.value)


@pytest.mark.parametrize("wrong", [{"concentration": 0.0}, {"topic_concentration": -1.0}, {"num_topics": 0}])
def test_hyper_parameters_are_checked(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        zoo.create("lda", **wrong)


def test_a_negative_concentration_of_ones_own_model_is_named():
    def model(data):
        topics = pyro.param("topics", torch.ones(K, V) / V, constraint=constraints.simplex)
        with pyro.plate("data", len(data)):
            theta = pyro.sample("theta", dist.Dirichlet(-torch.ones(K), validate_args=False))
            pyro.sample("x", dist.Multinomial(probs=theta @ topics, validate_args=False), obs=data)

    with pytest.raises(ModelError, match="'theta' has a concentration of -1, expected positive"):
        zoo.fit(Pair(model), documents(), inference="cavi", start={"topics": start_topics()})


def test_a_fit_that_stops_early_says_so():
    with pytest.warns(ConvergenceWarning, match="stopped after 2 sweeps"):
        zoo.fit(lda(), documents(), inference="cavi", max_iters=2)


def test_the_same_pair_runs_under_svi():
    fit = zoo.fit(lda(), documents(), inference="svi", num_steps=30, tol=0, progress=False)
    assert torch.isfinite(fit.history).all()
    assert fit.latents()["theta"].mean.shape == (30, K)


def test_sparse_data_are_read_without_a_dense_table():
    x = sp.random_array((3000, 40_000), density=0.0005, rng=np.random.default_rng(0), format="csr")
    x.data[:] = 1.0
    x = x[np.diff(x.indptr) > 0]
    x = x[:, np.asarray(x.sum(0)).ravel() > 0]
    fit = zoo.fit("lda", x, num_topics=3, inference="cavi", max_iters=1, tol=0)
    assert fit.params["topics"].shape == (3, x.shape[1])
    assert len(bags_of_sparse(x)) == x.shape[0]
    assert "lda" in ENTRIES


def test_auto_picks_cavi_for_a_pair_of_ones_own():
    x = sp.csr_matrix(documents())
    own = Pair(gap().model)
    fit = zoo.fit(own, x, tol=1e-6)
    assert fit.inference == "cavi"
    assert "coordinate ascent follows" in fit.reason


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_summary_lists_words_of_topics_and_says_that_a_bound_is_one():
    words = [f"w{v:02d}" for v in range(40)]
    rng = np.random.default_rng(0)
    x = np.stack([rng.multinomial(30, t) for t in rng.dirichlet(np.full(40, 0.1), 20)])
    fit = short(zoo.create("lda", num_topics=2), pd.DataFrame(x, columns=words), 5)
    page = fit.summary()
    assert fit.bounded
    assert "log-likelihood" not in page
    assert "log p(x) lies above it" in page
    assert "bound=" in repr(fit)
    for k, row in enumerate(top_words(fit, 3)):
        probability = fit.params["topics"][k, words.index(row[0])]
        assert f"{k:3}  {row[0]} {probability:.3g}, {row[1]} " in page


def test_topics_of_svi_are_looked_at_in_the_same_ways():
    x = documents(60)
    with pytest.warns(ConvergenceWarning, match="300 steps"):
        fit = zoo.fit(lda(), x, inference="svi", num_steps=300)
    topics = fit.params["topics"]
    held = documents(40, seed=3)
    point = zoo.fit(
        lda(point_topics=True), x, inference="cavi", max_iters=0, tol=0, start={"topics": topics.clamp_min(1e-12)}
    )
    assert perplexity(fit, held) == pytest.approx(perplexity(point, held), rel=1e-3)
    assert top_words(fit, 2)[0] == [str(v) for v in topics[0].argsort(descending=True)[:2].tolist()]
    assert coherence(fit).shape == (K,)
    assert len(fit.plot().axes) == K
    with pytest.raises(OptionError, match="no shared profiles"):
        top_words(zoo.fit("gaussian_mixture", "iris", num_components=2))
