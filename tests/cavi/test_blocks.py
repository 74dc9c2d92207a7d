"""Block models of graphs: against updates written out by hand, against sums over all labels, and on known graphs."""

import itertools
from dataclasses import replace

import networkx as nx
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from scipy.sparse import coo_matrix, csr_array
from scipy.special import betaln, digamma, gammaln, xlogy
from sklearn.metrics import adjusted_rand_score

from latentzoo import Pair, zoo
from latentzoo.__main__ import main
from latentzoo.inference.base.errors import DataError, ModelError, OptionError
from latentzoo.inference.cavi.climb import CAVIOptions
from latentzoo.inference.cavi.graphs import pair_sums as ties
from latentzoo.inference.cavi.graphs.ascent import fit_relation
from latentzoo.inference.cavi.graphs.model import read_relation
from latentzoo.inference.data import graph as graphs
from latentzoo.inference.data.adapt import adapt
from latentzoo.inference.data.graph import Graph, view
from latentzoo.inference.data.structures import map_tensors
from latentzoo.inference.posterior import graphs as related
from latentzoo.inference.posterior.graphs import block_table
from latentzoo.inference.trace.handlers import engine_state

NAN = float("nan")
MODELS = ("stochastic_block_model", "degree_corrected_block_model")


def planted(sizes, inside, outside, seed=0, directed=False, counts=False):
    """A graph of planted blocks, and the block of each node."""
    rng = np.random.default_rng(seed)
    z = np.repeat(np.arange(len(sizes)), sizes)
    rate = np.where(z[:, None] == z, inside, outside)
    table = rng.poisson(rate) if counts else (rng.random(rate.shape) < rate).astype(int)
    table = table if directed else np.triu(table, 1) + np.triu(table, 1).T
    np.fill_diagonal(table, 0)
    return table, z


def pairs_of(table, directed):
    size = len(table)
    for i in range(size):
        for j in range(size):
            if (i < j or (directed and i != j)) and not np.isnan(table[i, j]):
                yield i, j


# --- the updates of the textbook, in loops ----------------------------------------------------------------------------


def by_hand(table, q, directed, poisson, sweeps):
    """Latouche et al. (2012), and the same for Poisson counts; all priors at 1. Returns q and the bounds."""
    size, K = q.shape
    q = q.copy()
    seen = ~np.isnan(table) & ~np.eye(size, dtype=bool)
    filled = np.where(seen, table, 0.0)
    out, into = (filled.sum(d) / seen.sum(d) * (size - 1) for d in (1, 0))
    rate = np.outer(out, into) / out.sum() if poisson else np.ones((size, size))
    bounds = []

    def shared():
        first, second = np.ones((K, K)), np.ones((K, K))
        for i, j in pairs_of(table, directed):
            pair = np.outer(q[i], q[j])
            pair = pair if directed else pair + pair.T - np.diag(np.diag(pair))  # k <= l is one number
            first += pair * table[i, j]
            second += pair * (rate[i, j] if poisson else 1 - table[i, j])
        return 1 + q.sum(0), first, second

    def expectations(first, second):
        if poisson:
            return digamma(first) - np.log(second), first / second
        return digamma(first) - digamma(first + second), digamma(second) - digamma(first + second)

    def log_p(i, j, log, other):
        if poisson:
            return table[i, j] * (log + np.log(rate[i, j])) - rate[i, j] * other - gammaln(table[i, j] + 1)
        return table[i, j] * log + (1 - table[i, j]) * other

    def bound(alpha, first, second):
        log, other = expectations(first, second)
        prior = digamma(alpha) - digamma(alpha.sum())
        total = (q @ prior).sum() - xlogy(q, q).sum()
        total += sum(q[i] @ log_p(i, j, log, other) @ q[j] for i, j in pairs_of(table, directed))
        total -= gammaln(alpha.sum()) - gammaln(alpha).sum() + ((alpha - 1) * prior).sum() - gammaln(K)
        for k, m in itertools.product(range(K), range(K)):
            if directed or k <= m:
                a, b = first[k, m], second[k, m]
                if poisson:
                    total -= a * np.log(b) - gammaln(a) + (a - 1) * log[k, m] - b * other[k, m] + other[k, m]
                else:
                    total -= -betaln(a, b) + (a - 1) * log[k, m] + (b - 1) * other[k, m]
        return total

    factors = shared()
    bounds.append(bound(*factors))
    for _ in range(sweeps):
        factors = shared()
        log, other = expectations(*factors[1:])
        for i in range(size):
            logits = digamma(factors[0]) - digamma(factors[0].sum())
            for j in range(size):
                if j != i and not np.isnan(table[i, j]) and (directed or i < j):
                    logits = logits + log_p(i, j, log, other) @ q[j]
                if j != i and not np.isnan(table[j, i]) and (directed or j < i):
                    logits = logits + q[j] @ log_p(j, i, log, other)
            q[i] = np.exp(logits - logits.max())
            q[i] /= q[i].sum()
        bounds.append(bound(*factors))
    return q, np.array(bounds)


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "gaps"])
@pytest.mark.parametrize("directed", [False, True], ids=["undirected", "directed"])
@pytest.mark.parametrize("name", MODELS)
def test_every_sweep_is_that_of_the_textbook(name, directed, gaps):
    table, _ = planted((5, 6), 0.7, 0.2, seed=3, directed=directed)
    table = table.astype(float)
    if gaps:
        table[[0, 3, 2], [4, 9, 7]] = NAN
        if not directed:
            table[[4, 9, 7], [0, 3, 2]] = NAN
    q = np.random.default_rng(1).dirichlet(np.ones(3), len(table))
    expected, bounds = by_hand(table, q, directed, name.startswith("degree"), 6)
    start = {"z": torch.from_numpy(q)}
    fit = zoo.fit(name, table, num_blocks=3, directed=directed, start=start, max_iters=6, tol=0)
    np.testing.assert_allclose(fit.history.numpy(), bounds, rtol=0, atol=1e-8)
    np.testing.assert_allclose(fit.guide_parts["z"].numpy(), expected, rtol=0, atol=1e-8)


# --- the bound --------------------------------------------------------------------------------------------------------


def evidence_by_labels(table, K):
    """log p(A, z) of every labelling, all priors at 1, and what is added up of its pairs."""
    size = len(table)
    for z in itertools.product(range(K), repeat=size):
        nodes = np.bincount(z, minlength=K)
        ones, all_ = np.zeros((K, K)), np.zeros((K, K))
        for i, j in pairs_of(table, False):
            k, m = sorted((z[i], z[j]))
            ones[k, m] += table[i, j]
            all_[k, m] += 1
        upper = np.triu_indices(K)
        a, b = 1 + ones[upper], 1 + (all_ - ones)[upper]
        yield z, gammaln(K) + gammaln(1 + nodes).sum() - gammaln(K + size) + betaln(a, b).sum(), (1 + nodes, a, b)


def kl_dirichlet(a, b):
    log = digamma(a) - digamma(a.sum())
    return gammaln(a.sum()) - gammaln(a).sum() - gammaln(b.sum()) + gammaln(b).sum() + ((a - b) * log).sum()


@pytest.mark.parametrize("seed", [0, 1])
def test_bound_and_divergence_add_up_to_the_evidence_over_all_labels(seed):
    table, _ = planted((3, 3), 0.8, 0.2, seed=seed)
    fit = zoo.fit("stochastic_block_model", table, num_blocks=2, tol=1e-12)
    each = list(evidence_by_labels(table, 2))
    log_joint = np.array([value for _, value, _ in each])
    evidence = np.logaddexp.reduce(log_joint)
    q = fit.guide_parts["z"].numpy()
    weights, probs = fit.guide_parts["weights"].numpy() + 1, fit.guide_parts["probs"].numpy() + 1
    gap = 0.0
    for z, value, (alpha, a, b) in each:
        share = np.prod(q[range(6), z])
        inner = kl_dirichlet(weights, alpha.astype(float))
        inner += sum(kl_dirichlet(own, np.array(one)) for own, one in zip(probs, zip(a, b, strict=True), strict=True))
        gap += share * (np.log(share) - (value - evidence) + inner)
    bound = float(fit.history[-1])
    assert gap > 0
    assert bound < evidence
    assert bound + gap == pytest.approx(evidence, abs=1e-8)


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_bound_is_the_mean_of_log_p_less_log_q_of_plain_pyro(name, directed):
    table, _ = planted((4, 4), 1.2, 0.4, seed=2, directed=directed, counts=name.startswith("degree"))
    table = table if name.startswith("degree") else table.clip(0, 1)
    fit = zoo.fit(name, table, num_blocks=2, directed=directed)
    model = zoo.create(name, num_blocks=2, directed=directed).model
    graph = view(torch.from_numpy(table).double(), "directed" if directed else "undirected")
    values = []
    with engine_state(0):
        factors = {site: fit.posterior(site) for site in (*fit.params, "z")}
        for _ in range(400):
            drawn = {site: factor.sample() for site, factor in factors.items()}
            log_q = sum(factor.log_prob(drawn[site]).sum() for site, factor in factors.items())
            trace = poutine.trace(poutine.condition(model, data=drawn)).get_trace(graph)
            values.append(float(trace.log_prob_sum() - log_q))
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - float(fit.history[-1])) <= 4 * error
    assert error < 0.2


@pytest.mark.parametrize("name", MODELS)
def test_the_bound_never_falls_from_twenty_random_starts(name):
    table, _ = planted((8, 7), 0.5, 0.3, seed=5)
    rng = np.random.default_rng(0)
    for _ in range(20):
        start = {"z": torch.from_numpy(rng.dirichlet(np.ones(3), len(table)))}
        fit = zoo.fit(name, table, num_blocks=3, start=start, max_iters=12, tol=0)
        assert np.diff(fit.history.numpy()).min() >= -1e-9 * (1 + abs(float(fit.history[-1])))


@pytest.mark.parametrize("directed", [False, True])
def test_parts_of_many_nodes_never_lower_the_bound(monkeypatch, directed):
    table, z = planted((20, 20, 20), 0.4, 0.05, seed=1, directed=directed)
    one = zoo.fit("stochastic_block_model", table, num_blocks=3, directed=directed)
    monkeypatch.setattr(ties, "SEQUENTIAL", 3)  # twenty nodes move at once
    rng = np.random.default_rng(0)
    for _ in range(10):
        start = {"z": torch.from_numpy(rng.dirichlet(np.ones(3), len(table)))}
        fit = zoo.fit(
            "stochastic_block_model", table, num_blocks=3, directed=directed, start=start, max_iters=15, tol=0
        )
        assert np.diff(fit.history.numpy()).min() >= -1e-9 * (1 + abs(float(fit.history[-1])))
    two = zoo.fit("stochastic_block_model", table, num_blocks=3, directed=directed)
    assert float(two.history[-1]) == pytest.approx(float(one.history[-1]), abs=1e-3)
    assert adjusted_rand_score(z, two.clusters()) > 0.9


@pytest.mark.parametrize(("name", "directed"), list(zip(MODELS, (False, True), strict=True)))
def test_a_large_graph_is_kept_as_its_edges_and_fitted_alike(monkeypatch, name, directed):
    table, _ = planted((10, 12), 0.5, 0.1, seed=4, directed=directed)
    table = table.astype(float)
    table[1, 5] = table[5, 1] = NAN
    one = zoo.fit(name, csr_array(table), directed=directed, max_iters=8, tol=0)
    monkeypatch.setattr(graphs, "DENSE", 5)
    two = zoo.fit(name, csr_array(table), directed=directed, max_iters=8, tol=0)
    assert type(two.data.values).__name__ == "Bags"
    torch.testing.assert_close(two.history, one.history, rtol=1e-12, atol=0)
    torch.testing.assert_close(two.score(), one.score())
    np.testing.assert_allclose(two.reconstruct().toarray(), one.reconstruct().toarray())


# --- known graphs -----------------------------------------------------------------------------------------------------


def factions():
    """The club that each member of the karate club went to (Zachary 1977), as networkx has it."""
    club = nx.karate_club_graph()
    return np.array([club.nodes[i]["club"] == "Officer" for i in club])


def test_the_karate_club_is_the_published_graph():
    edges = {(i + 1, j + 1) for i, j in nx.karate_club_graph().edges}
    table = adapt("karate_club", graph="undirected").values
    assert {(i + 1, j + 1) for i, j in table.nonzero().tolist() if i < j} == edges
    assert table.sum() == 2 * 78


def test_with_degrees_corrected_the_karate_club_falls_into_its_factions():
    fit = zoo.fit("degree_corrected_block_model", "karate_club", num_blocks=2)
    apart = (fit.clusters().numpy() != factions()).sum()
    assert min(apart, 34 - apart) <= 1


def test_without_it_falls_by_degree():
    fit = zoo.fit("stochastic_block_model", "karate_club", num_blocks=2)
    degree, block = adapt("karate_club", graph="undirected").values.sum(0), fit.clusters()
    hubs = block == block[degree.argmax()]
    assert degree[hubs].min() > degree[~hubs].quantile(0.9)
    assert {0, 33} <= set(hubs.nonzero().flatten().tolist())  # the heads of both factions, in one block
    assert adjusted_rand_score(factions(), block) < 0.2


@pytest.mark.parametrize(("name", "directed"), list(zip(MODELS, (True, False), strict=True)))
def test_planted_blocks_are_found_and_are_one_optimum(name, directed):
    table, z = planted((30, 40, 50), 0.25, 0.04, seed=8, directed=directed)
    fit = zoo.fit(name, table, num_blocks=3, directed=directed, restarts=2)
    assert adjusted_rand_score(z, fit.clusters()) > 0.9
    assert len(set(np.round(fit.mode_map.bounds, 3))) == len(fit.mode_map)  # relabelled runs are one optimum


def test_a_block_of_pairs_that_shun_each_other_is_found():
    table, z = planted((25, 25), 0.02, 0.3, seed=1)
    assert adjusted_rand_score(z, zoo.fit("stochastic_block_model", table).clusters()) == 1


def test_learned_numbers_are_those_of_the_planted_blocks():
    table, _ = planted((60, 90), 0.3, 0.1, seed=2)
    fit = zoo.fit("stochastic_block_model", table)
    big = int(fit.clusters()[-1])
    table_of_blocks, _ = block_table(fit)
    assert table_of_blocks[big, big] == pytest.approx(table[60:, 60:].sum() / (90 * 89), abs=0.005)
    assert table_of_blocks[0, 1] == pytest.approx(table[:60, 60:].mean(), abs=0.005)
    assert fit.params["weights"][big] == pytest.approx(91 / 152, abs=1e-3)


def test_the_bound_tells_how_many_blocks_there_are():
    """The criterion ILvb of Latouche et al. (2012)."""
    table, _ = planted((25, 25, 25), 0.4, 0.05, seed=3)
    fits = {k: zoo.fit("stochastic_block_model", table, num_blocks=k, tol=1e-4) for k in (1, 2, 3, 4)}
    assert max(fits, key=lambda k: float(fits[k].history[-1])) == 3


@pytest.mark.parametrize("directed", [False, True])
def test_exposures_are_found_from_few_pairs_whatever_nodes_are_never_tied(directed):
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = int(rng.integers(2, 6))
        c = torch.from_numpy(rng.random(size) * (rng.random(size) < 0.6))
        d = torch.from_numpy(rng.random(size) * (rng.random(size) < 0.6)) if directed else c
        whole = torch.outer(c, d).fill_diagonal_(0)
        tied = (whole if directed else whole.triu()).nonzero().T
        if len(tied[0]):
            value = torch.ones(len(tied[0]))
            edges = ties.Edges(tied[0], tied[1], value, (tied[0][:0], tied[1][:0]), c, d, directed)
            found = torch.outer(*ties.exposures(lambda i, j, all_=whole: all_[i, j], edges))
            torch.testing.assert_close(found.fill_diagonal_(0), whole)


@pytest.mark.parametrize("name", MODELS)
def test_graphs_in_which_all_nodes_are_alike_have_one_block(name):
    fit = zoo.fit(name, 1 - np.eye(12), num_blocks=3, tol=1e-4)
    assert len(fit.clusters().unique()) == 1


# --- verbs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_sums_over_the_labels_of_one_node(name, directed):
    table, _ = planted((3, 4), 0.6, 0.3, seed=6, directed=directed)
    dataset = adapt(table, graph="directed" if directed else "undirected")
    pair = zoo.create(name, num_blocks=2, directed=directed)
    graph = view(dataset.values, pair.graph)
    site = "probs" if name == MODELS[0] else "rates"
    values = {"weights": torch.tensor([0.3, 0.7], dtype=torch.float64)}
    values[site] = torch.tensor([0.5, 0.2, 0.7, 0.4][: 4 if directed else 3], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 1])
    with engine_state(0):
        bound = zoo.fit(pair, table, max_iters=1, tol=0)
        relation = read_relation(bound.pair.model, dataset.values, pair.graph, dataset.schema)
        found = related.node_scores(relation, values, labels)
        for node in range(7):
            each = []
            for label in range(2):
                z = labels.clone()
                z[node] = label
                held = poutine.condition(pair.model, data={**values, "z": z})
                trace = poutine.trace(held).get_trace(graph)
                trace.compute_log_prob()
                own = (graph.first == node) | (graph.second == node)
                each.append(trace.nodes["edges"]["log_prob"][own].sum() + trace.nodes["z"]["log_prob"][node])
            assert float(found[node]) == pytest.approx(float(torch.stack(each).logsumexp(0)), rel=1e-10)


def test_expected_edges_fill_pairs_that_are_not_known():
    table, _ = planted((20, 20), 0.9, 0.05, seed=1)
    gaps = table.astype(float)
    gaps[[0, 5, 25], [3, 30, 38]] = gaps[[3, 30, 38], [0, 5, 25]] = NAN
    fit = zoo.fit("stochastic_block_model", gaps)
    filled = fit.impute()
    assert np.array_equal(filled[~np.isnan(gaps)], gaps[~np.isnan(gaps)])
    np.testing.assert_allclose(filled[[0, 5, 25], [3, 30, 38]], [0.9, 0.05, 0.9], atol=0.07)
    expected = fit.reconstruct()
    assert np.diag(expected).sum() == 0
    assert expected.sum() == pytest.approx(np.nansum(gaps) + 1.85 * 2, rel=0.02)


def test_new_graphs_have_the_blocks_and_degrees_asked_for():
    table, _ = planted((60, 60), 0.3, 0.02, seed=1)
    fit = zoo.fit("stochastic_block_model", nx.from_numpy_array(table))
    z = np.repeat([0, 1], 100)
    new = fit.generate(200, given={"z": torch.from_numpy(z)}, seed=3)
    assert isinstance(new, nx.Graph)
    drawn = nx.to_numpy_array(new)
    assert drawn[:100, :100].mean() == pytest.approx(0.3, abs=0.04)
    assert drawn[:100, 100:].mean() == pytest.approx(0.02, abs=0.01)
    assert (np.diag(drawn) == 0).all()
    club = zoo.fit("degree_corrected_block_model", "karate_club")
    degrees = adapt("karate_club", graph="undirected").values.sum(0).numpy()
    sums = np.mean([club.generate(34, given={"z": club.clusters()}, seed=s).to_numpy().sum(0) for s in range(40)], 0)
    assert np.corrcoef(sums, degrees)[0, 1] > 0.97


def test_factors_have_names_and_a_loaded_fit_says_the_same(tmp_path):
    fit = zoo.fit("degree_corrected_block_model", "karate_club", num_blocks=2, max_iters=8, tol=0)
    assert isinstance(fit.posterior("rates"), dist.Gamma)
    torch.testing.assert_close(fit.posterior("rates").mean, fit.params["rates"])
    torch.testing.assert_close(fit.posterior("z").probs, fit.latents()["z"])
    fit.save(tmp_path / "run")
    loaded = zoo.load(tmp_path / "run")
    assert torch.equal(loaded.clusters("karate_club"), fit.clusters())
    pd.testing.assert_frame_equal(loaded.generate(34, seed=4), fit.generate(34, seed=4))
    assert "mean field over the nodes" in loaded.summary()
    for verb in (fit.half_steps, fit.param_draws, lambda: fit.plot("clusters")):
        with pytest.raises((ModelError, OptionError), match="nodes of a graph meet in pairs"):
            verb()
    with pytest.raises(OptionError, match="num: met 1, expected how many nodes"):
        fit.generate()
    with pytest.raises(DataError, match=r"\['q'\], which are no latents"):
        fit.generate(5, given={"q": 1})
    with pytest.raises(DataError, match="no latent named 'theta'"):
        fit.posterior("theta")


def test_the_command_line_fits_a_list_of_edges_and_writes_every_node_by_name(tmp_path, capsys):
    (tmp_path / "ties.csv").write_text("from,to\nann,bob\nbob,cid\ncid,ann\ndan,eve\neve,fay\nfay,dan\nann,dan\n")
    run = str(tmp_path / "run")
    assert main(["fit", "stochastic_block_model", str(tmp_path / "ties.csv"), "--restarts", "1", "--out", run]) == 0
    assert "on 6 nodes, by cavi" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "run" / "latents.csv")
    assert table["row"].tolist() == ["ann", "bob", "cid", "dan", "eve", "fay"]
    assert table["z"].nunique() == 2
    assert (tmp_path / "run" / "picture.png").stat().st_size > 10_000
    assert main(["generate", run, "--num", "6"]) == 0
    assert capsys.readouterr().out.startswith("from,to\n")


@pytest.mark.parametrize("directed", [False, True])
def test_the_picture_has_a_frame_for_each_block_and_sorts_the_edges(directed):
    table, z = planted((9, 6), 0.8, 0.05, seed=1, directed=directed)
    shuffled = np.random.default_rng(0).permutation(15)
    fit = zoo.fit("stochastic_block_model", table[np.ix_(shuffled, shuffled)].astype(float), directed=directed)
    figure = fit.plot()
    left, right = figure.axes[:2]
    shown = left.images[0].get_array()
    assert np.asarray(shown).sum() == table.sum()
    sides = [box.get_width() for box in left.patches if not box.get_fill()]
    assert sides == [9, 6]  # largest first
    inside = np.asarray(shown)[:9, :9].sum() + np.asarray(shown)[9:, 9:].sum()
    same = z[:, None] == z
    assert inside == table[same].sum()
    assert next(text.get_text() for text in right.texts) == f"{float(right.images[0].get_array()[0, 0]):.2g}"
    assert str(np.flatnonzero(z[shuffled] == 0)[0]) in [t.get_text() for t in left.get_xticklabels()[:9]]


# --- models of one's own ----------------------------------------------------------------------------------------------


def rates_as_params(graph):
    weights = pyro.param("w", torch.ones(2) / 2, constraint=constraints.simplex)
    rates = pyro.param("r", torch.ones(2, 2), constraint=constraints.positive)
    with pyro.plate("data", graph.num_nodes):
        group = pyro.sample("group", dist.Categorical(weights), infer={"enumerate": "parallel"})
    with pyro.plate("pairs", len(graph.edges)):
        pyro.sample("calls", dist.Poisson(rates[group[graph.first], group[graph.second]]), obs=graph.edges)


def test_a_model_may_say_where_its_nodes_start():
    table, z = planted((12, 18), 4.0, 0.5, seed=3, directed=True, counts=True)

    def initialize(graph, generator):
        yield {"group": torch.arange(graph.num_nodes) % 2}
        yield {"group": torch.from_numpy(z)}

    fit = zoo.fit(Pair(rates_as_params, initialize=initialize, graph="directed"), table, restarts=2)
    one, two = fit.mode_map.bounds
    assert float(fit.history[-1]) == max(one, two)
    assert adjusted_rand_score(z, fit.clusters()) == 1
    first = zoo.fit(Pair(rates_as_params, initialize=initialize, graph="directed"), table, max_iters=0, tol=0)
    assert torch.equal(first.start["group"], torch.arange(30).double() % 2)
    rates = zoo.fit(Pair(rates_as_params, graph="directed"), table, start={"r": fit.params["r"]}, max_iters=0, tol=0)
    assert torch.equal(rates.clusters(), fit.clusters())  # labels are those that the rates belong to


def test_params_are_learned_by_variational_em():
    """Daudin, Picard and Robin (2008): where memberships are certain, rates are means of blocks."""
    table, z = planted((12, 18), 4.0, 0.5, seed=3, directed=True, counts=True)
    fit = zoo.fit(Pair(rates_as_params, graph="directed"), table)
    assert "mean field over nodes" in fit.reason
    assert adjusted_rand_score(z, fit.clusters()) == 1
    order = [int(fit.clusters()[0]), int(fit.clusters()[-1])]
    hot = np.eye(2)[z]
    means = hot.T @ table @ hot / (np.outer(hot.sum(0), hot.sum(0)) - np.diag(hot.sum(0)))
    np.testing.assert_allclose(fit.params["r"].numpy()[np.ix_(order, order)], means, rtol=1e-4)
    np.testing.assert_allclose(fit.params["w"].numpy()[order], [0.4, 0.6], rtol=1e-4)


def test_strengths_of_ties_may_be_normal():
    def model(graph):
        weights = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
        means = pyro.sample("m", dist.Normal(torch.zeros(2, 2), 3.0).to_event(2))
        precision = pyro.sample("t", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", graph.num_nodes):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        with pyro.plate("pairs", len(graph.edges)):
            loc = means[z[graph.first], z[graph.second]]
            pyro.sample("x", dist.Normal(loc, precision**-0.5), obs=graph.edges)

    rng = np.random.default_rng(0)
    z = np.repeat([0, 1], [10, 14])
    centre = np.array([[1.0, -2.0], [3.0, 0.0]])
    table = rng.normal(centre[z][:, z], 0.5)
    np.fill_diagonal(table, 0)
    fit = zoo.fit(Pair(model, graph="directed"), table)
    assert adjusted_rand_score(z, fit.clusters()) == 1
    order = [int(fit.clusters()[0]), int(fit.clusters()[-1])]
    np.testing.assert_allclose(fit.params["m"].numpy()[np.ix_(order, order)], centre, atol=0.2)
    assert fit.params["t"] == pytest.approx(4, rel=0.15)
    with pytest.raises(ModelError, match=r"tells the labels \(k, l\) of a pair from \(l, k\)"):
        zoo.fit(Pair(model, graph="undirected"), table + table.T)


def calls_by(table, expected_rate, prior_rate):
    """Poisson counts of pairs whose rate is `expected_rate(rates, labels of both ends)`."""

    def model(graph):
        rates = pyro.sample("r", dist.Gamma(torch.ones(2), prior_rate).to_event(1))
        with pyro.plate("data", graph.num_nodes):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
        with pyro.plate("pairs", len(graph.edges)):
            rate = expected_rate(rates, z[graph.first], z[graph.second])
            pyro.sample("calls", dist.Poisson(rate), obs=graph.edges)

    start = {"z": torch.arange(len(table)) % 2}
    return zoo.fit(Pair(model, graph="undirected"), table, start=start, max_iters=5, tol=0)


def test_a_constant_of_the_labels_is_one_of_the_rate():
    """c r with r ~ Gamma(a, b) is r' ~ Gamma(a, b / c)."""
    table, _ = planted((8, 7), 3.0, 0.5, seed=2, counts=True)
    factor = torch.tensor([4.0, 0.5])  # of pairs in two blocks, and in one

    def scaled(rates, one, two):
        same = (one == two).long()
        return rates[same] * factor[same]

    plain = calls_by(table, lambda rates, one, two: rates[(one == two).long()], 1 / factor)
    fit = calls_by(table, scaled, 1.0)
    torch.testing.assert_close(fit.history, plain.history, rtol=1e-10, atol=0)
    torch.testing.assert_close(fit.params["r"] * factor, plain.params["r"])
    np.testing.assert_allclose(fit.reconstruct(), plain.reconstruct())


def edges_by(distribution, **latent):
    def model(graph):
        probs = pyro.sample("p", dist.Beta(torch.ones(2, 2), 1.0).to_event(2))
        with pyro.plate("data", graph.num_nodes):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            if latent.get("second"):
                pyro.sample("u", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
        with pyro.plate("pairs", len(graph.edges)):
            pyro.sample("x", distribution(probs, z, graph), obs=graph.edges)

    return Pair(model, graph="directed")


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (edges_by(lambda p, z, g: dist.Bernoulli(p[z[g.first], z[g.second]]), second=True), "latents"),
        (edges_by(lambda p, z, g: dist.Bernoulli(p[z[g.first], g.second % 2])), "more than the labels of both nodes"),
        (edges_by(lambda p, z, g: dist.Cauchy(p[z[g.first], z[g.second]], 1.0)), "a Cauchy, which has no conjugate"),
        (
            edges_by(lambda p, z, g: dist.Poisson(p[z[g.first], z[g.second]])),
            "expected power.*no other inference takes",
        ),
        (edges_by(lambda p, z, g: dist.Bernoulli(p[z[g.first], z[g.second]].sigmoid())), "sigmoid"),
        (edges_by(lambda p, z, g: dist.Bernoulli(p[z.bincount()[0] * 0, z[g.first]])), "its nodes to 'bincount'"),
        (edges_by(lambda p, z, g: dist.Bernoulli(p[z[g.first], z[g.second.flip(0)]])), "'__getitem__': write"),
    ],
    ids=["two latents", "one label", "family", "prior", "link", "all labels", "other nodes"],
)
def test_models_that_are_not_conjugate_models_of_pairs_are_refused(pair, words):
    table, _ = planted((4, 4), 0.7, 0.2, directed=True)
    with pytest.raises(ModelError, match=words):
        zoo.fit(pair, table, inference="cavi")


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_other_inference_is_refused_in_plain_words(inference):
    with pytest.raises(ModelError, match="nodes of a graph meet in pairs"):
        zoo.fit("stochastic_block_model", "karate_club", inference=inference)


def test_options_that_part_the_nodes_are_refused():
    for option in ({"weights": [1.0] * 34}, {"batch_size": 5}, {"fallback": "svi"}):
        with pytest.raises(OptionError, match="not taken by models of graphs"):
            zoo.fit("stochastic_block_model", "karate_club", **option)
    with pytest.raises(OptionError, match="num_blocks: met 0"):
        zoo.create("stochastic_block_model", num_blocks=0)
    with pytest.raises(OptionError, match="rate: met -1"):
        zoo.create("degree_corrected_block_model", rate=-1)
    with pytest.raises(TypeError, match="graph must be one of"):
        Pair(rates_as_params, graph="bipartite")
    pair = zoo.create("stochastic_block_model")
    elsewhere = adapt("karate_club", graph=pair.graph)
    elsewhere = replace(elsewhere, values=map_tensors(lambda t: t.to("meta"), elsewhere.values))
    with pytest.raises(OptionError, match="device: met 'meta', expected 'cpu'"):
        fit_relation(pair, elsewhere, CAVIOptions())
    for start, words in (({"z": [1, 0]}, "has shape"), ({"z": [7] * 34}, "labels outside 0 to 1"), ({"q": 1}, "'q'")):
        with pytest.raises((DataError, ModelError), match=words):
            zoo.fit("stochastic_block_model", "karate_club", start=start)


# --- data -------------------------------------------------------------------------------------------------------------

MATRIX = np.array([[0, 2, 0, 1], [2, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
NAMES = ["b", "a", "d", "c"]


def forms():
    """One graph of counts in every form, as name -> (data, its nodes in order)."""
    graph = nx.Graph()
    graph.add_nodes_from(NAMES)
    graph.add_weighted_edges_from([("b", "a", 2), ("b", "c", 1), ("a", "d", 1)])
    rows = [("a", "b", 2), ("c", "b", 1), ("d", "a", 1)]
    frame = pd.DataFrame(rows, columns=["who", "whom", "calls"])
    twice = pd.DataFrame([("a", "b"), ("b", "a"), ("c", "b"), ("d", "a")], columns=["who", "whom"])
    numbers = np.array([[0, 1, 2], [0, 3, 1], [1, 2, 1]])
    return {
        "networkx": (graph, NAMES),
        "array": (MATRIX, [0, 1, 2, 3]),
        "tensor": (torch.from_numpy(MATRIX), [0, 1, 2, 3]),
        "list": (MATRIX.tolist(), [0, 1, 2, 3]),
        "square frame": (pd.DataFrame(MATRIX, NAMES, NAMES), NAMES),
        "scipy": (coo_matrix(MATRIX), [0, 1, 2, 3]),
        "torch sparse": (torch.from_numpy(MATRIX).double().to_sparse(), [0, 1, 2, 3]),
        "edges": (frame, sorted(NAMES)),
        "repeated edges": (twice, sorted(NAMES)),
        "tuples": (rows, sorted(NAMES)),
        "edges by number": (numbers, [0, 1, 2, 3]),
    }


@pytest.mark.parametrize("form", list(forms()))
def test_a_graph_may_come_in_many_forms_and_goes_back_in_its_own(form):
    data, nodes = forms()[form]
    dataset = adapt(data, graph="undirected")
    place = [NAMES.index(node) if isinstance(node, str) else node for node in nodes]
    np.testing.assert_array_equal(dataset.values.numpy(), MATRIX[np.ix_(place, place)])
    back = dataset.schema.decode(dataset.values)
    assert type(back) is type(data) or form in ("list", "tuples", "scipy", "torch sparse")
    again = adapt(back, dataset.schema)
    torch.testing.assert_close(again.values, dataset.values)
    if isinstance(nodes[0], str):
        assert list(dataset.schema.labels["node"]) == nodes
    fit = zoo.fit("degree_corrected_block_model", data, num_blocks=2, max_iters=3, tol=0)
    assert fit.clusters(data).shape == (4,)
    assert type(fit.generate(6)) is type(back)


def test_nodes_of_new_data_are_known_by_name():
    frame = pd.DataFrame([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")], columns=["from", "to"])
    fit = zoo.fit("stochastic_block_model", frame, max_iters=3, tol=0)
    part = adapt(frame[1:][::-1], fit.schema).values  # fewer edges, in another order
    expected = adapt(frame, graph="undirected").values
    expected[0, 1] = expected[1, 0] = 0
    torch.testing.assert_close(part, expected)
    with pytest.raises(DataError, match="met node 'e', which was not seen in training"):
        fit.latents(pd.DataFrame([("a", "e")], columns=["from", "to"]))
    with pytest.raises(DataError, match="met a graph of 5 nodes, expected the 4 of training"):
        fit.score(np.ones((5, 5)) - np.eye(5))


def test_a_pair_is_known_where_one_of_its_cells_is():
    table = MATRIX.astype(float)
    table[0, 1] = NAN
    np.testing.assert_array_equal(adapt(table, graph="undirected").values.numpy(), MATRIX)
    table[1, 0] = NAN
    values = adapt(table, graph="undirected").values
    assert values.isnan().nonzero().tolist() == [[0, 1], [1, 0]]
    graph = view(values, "undirected")
    assert graph.edges.isnan().sum() == 1
    torch.testing.assert_close(graph.out_degree, torch.tensor([1.5, 1.5, 1.0, 1.0], dtype=torch.float64))


def directed_graph():
    graph = nx.DiGraph()
    graph.add_edge("a", "b")
    return graph


def bad(change):
    table = MATRIX.astype(float)
    change(table)
    return table


SQUARE = "expected a networkx graph, a square adjacency matrix"
BAD = {
    "self-loop": (bad(lambda t: t.__setitem__((2, 2), 1)), "node 2 has an edge to itself.*take out the 1 self-loop"),
    "asymmetric": (bad(lambda t: t.__setitem__((0, 2), 1)), "0 to 2 is 1, but 2 to 0 is 0.*directed=True"),
    "negative": (bad(lambda t: t.__isub__(2 * MATRIX)), "nodes 0 and 1 have -2 between them, expected counts"),
    "fraction": (MATRIX / 2, "nodes 0 and 3 have 0.5 between them, expected counts"),
    "infinite": (bad(lambda t: t.__setitem__((0, 1), np.inf)), "met inf between nodes 0 and 1"),
    "not square": (np.ones((4, 5)), rf"met shape \(4, 5\), {SQUARE}"),
    "sparse not square": (csr_array(np.ones((4, 5))), rf"shape \(4, 5\), {SQUARE}"),
    "table": ("iris", rf"met a table of shape \(150, 4\), {SQUARE}"),
    "one node": (np.zeros((1, 1)), "met a graph of 1 node, expected at least two"),
    "no edge": (np.zeros((3, 3)), "met a graph of 3 nodes without an edge"),
    "nothing known": (np.full((3, 3), NAN), "met a graph of 3 nodes without an edge"),
    "empty networkx": (nx.Graph(), "met a graph without nodes"),
    "directed networkx": (directed_graph(), "met a directed networkx graph, expected undirected.*to_undirected"),
    "no name": (pd.DataFrame([("a", "b"), ("c", None)], columns=["x", "y"]), "edge 1 .* has no node in column 'y'"),
    "no name in a list": ([["a", "b"], ["c", None]], "edge 1 .* has no node in column 'to'"),
    "no edges": (pd.DataFrame({"x": [], "y": []}), "list of no edges"),
    "text for a count": (pd.DataFrame([("a", "b", "many")]), "column '2' holds no numbers"),
    "text in a matrix": (pd.DataFrame([list("abcd")] * 4), "column '0' of the adjacency matrix holds no numbers"),
    "rows unlike columns": (pd.DataFrame(MATRIX, list("abcd"), list("abce")), "rows and columns have different names"),
    "names alike": (pd.DataFrame([(1, 2), ("1", 2), (3, "1")], columns=["x", "y"]), "whose names read alike"),
    "number": (3.0, "met float, expected a networkx graph"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_graphs_are_plain_errors(case):
    data, words = BAD[case]
    with pytest.raises(DataError, match=words):
        zoo.fit("degree_corrected_block_model", data)


def test_edges_of_a_bernoulli_are_no_counts():
    with pytest.raises(DataError, match="'b' and 'a' have 2 between them, expected 0 or 1; give 1 for each edge"):
        zoo.fit("stochastic_block_model", forms()["networkx"][0])
    with pytest.raises(DataError, match=r"undirected networkx graph, expected directed edges.*to_directed"):
        zoo.fit("stochastic_block_model", nx.karate_club_graph(), directed=True)


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_model_runs_under_plain_pyro_and_may_be_tiny(name, directed):
    kind = "directed" if directed else "undirected"
    graph = view(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), kind)
    assert isinstance(graph, Graph)
    trace = poutine.trace(zoo.create(name, num_blocks=3, directed=directed).model).get_trace(graph)
    assert trace.nodes["z"]["value"].shape == (3,)
    assert trace.nodes["edges"]["fn"].batch_shape == (6 if directed else 3,)
    assert torch.isfinite(trace.log_prob_sum())
    for size in (1, 3):
        fit = zoo.fit(
            name, [[0, 1], [1, 0]], num_blocks=size, directed=directed, max_iters=3, tol=0
        )  # fewer nodes than labels
        assert fit.latents()["z"].shape == (2, size)
