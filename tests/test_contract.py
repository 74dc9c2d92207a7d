"""What every registered model owes its users, run over the whole registry."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from latentzoo import zoo
from latentzoo.inference.amortized.fit import has_networks
from latentzoo.inference.amortized.reader import read_story, to_dtype
from latentzoo.inference.base.errors import DataError, OptionError
from latentzoo.inference.cavi.graphs.model import read_relation
from latentzoo.inference.data.adapt import adapt
from latentzoo.inference.pair import on_table
from latentzoo.inference.program.deterministic import Moments
from latentzoo.inference.trace.handlers import DIVIDER, engine_state, sample_sites
from latentzoo.inference.trace.provenance import known_cells, symbol
from latentzoo.inference.trace.structure import read
from latentzoo.models.registry import ENTRIES

CASES = [(name, example) for name, entry in ENTRIES.items() for example in entry.examples]
IDS = [f"{name}-{'-'.join(str(v) for v in example.values())}" for name, example in CASES]
pytestmark = pytest.mark.parametrize(("name", "example"), CASES, ids=IDS)


@pytest.fixture
def pair(name, example):
    return zoo.create(name, **example)


@pytest.fixture
def data(name, pair):
    """The card's own example, and, so that fits are quick, at most 300 rows of it."""
    found = taken(pair, zoo.card(name).example)
    step = max(1, len(found.values) // 300)
    return found.schema.decode(found.values[::step])


@pytest.fixture
def rows(pair, data):
    """How many rows the model has: of a long table, groups of its rows."""
    return len(taken(pair, data).values)


FITS = {}


@pytest.fixture
def fit(request, pair, data):
    """One fit for all the tests of a case: fits are frozen."""
    case = request.node.callspec.id
    if case not in FITS:
        steps = 100 if has_networks(pair, taken(pair, data).values, 0) else 800  # factors of rows must be at rest
        short = {"restarts": 1, "num_steps": steps, "tol": 0} if by_gradient(pair) else {"restarts": 3}
        FITS[case] = zoo.fit(pair, data, seed=1, **short)
    return FITS[case]


def by_gradient(pair):
    """Whether nothing but SVI fits the model: what it reaches is near an optimum, and its bound has noise."""
    return zoo.card(pair.origin.name).inference == ("svi",)


def few(pair, iterations):
    """Options of a short fit."""
    return {"tol": 0, "num_steps" if by_gradient(pair) else "max_iters": iterations}


def needs(name, *inference):
    """Skip what is not said of a model that its card lists other inference for."""
    for one in inference:
        if one not in zoo.card(name).inference:
            pytest.skip(f"its card does not list {one}")


def taken(pair, data):
    """The data as the drivers take them."""
    return adapt(data, by=pair.by, graph=pair.graph)


def continuous(pair, data):
    """Names of the continuous latents of the rows."""
    found = taken(pair, data)
    with engine_state(0):
        return read(on_table(pair, found.schema).model, found.values).continuous


def observed_sites(pair, data):
    """The observed sites of a run of the model on data whose cells are marked."""
    dataset = taken(pair, data)
    deep = has_networks(pair, dataset.values, 0)
    with engine_state(0, dtype=torch.float32 if deep else torch.float64):
        marked = symbol(to_dtype(dataset.values, torch.float32) if deep else dataset.values, "data")
        sites = sample_sites(poutine.trace(on_table(pair, dataset.schema).model).get_trace(marked))
    return [site for site in sites.values() if site["is_observed"]]


def observed_cells(pair, data):
    """The cells that a site observes: only these may be missing (those of covariates, or of players, may not)."""
    dataset = taken(pair, data)
    cells = [known_cells(site["value"]) for site in observed_sites(pair, data)]
    out = torch.zeros(dataset.values.numel(), dtype=torch.bool)
    out[torch.cat([c.flatten() for c in cells])] = True
    return out.reshape(dataset.values.shape)


def with_gaps(pair, data, share=0.15):
    """The data with a share of their cells missing, no column wholly so; of rows that cannot be torn apart, whole
    ones.
    """
    found = taken(pair, data)
    values = found.values.double()
    fns = [site["fn"] for site in observed_sites(pair, data)]
    holes = torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) < share
    holes[:20] = False
    if values.dim() > 1 and values.shape[1] > 1:
        holes[:, 0] = False
    if any(isinstance(fn, dist.Multinomial) for fn in fns):
        holes = holes[:, 1:2].expand(values.shape)
    holes = holes & observed_cells(pair, data)
    if pair.graph == "undirected":  # one cell of a pair would speak for the other
        holes = holes | holes.mT
    return found.schema.decode(torch.where(holes, torch.nan, values))


def numbers(data):
    """Whatever the data come as, their cells."""
    return adapt(data).values.double()


def test_every_fit_is_held_against_pyro(name, pair, data):
    """At its start and at its end: with gaps too, but for events that are torn, of which Pyro knows no margin."""
    for inference in zoo.card(name).inference:
        short = {"num_steps": 2} if inference == "svi" else {"max_iters": 2}
        fit = zoo.fit(pair, data, inference=inference, tol=0, progress=False, **short)
        assert not fit.unchecked


def test_the_model_can_be_read_and_its_card_is_whole(name, pair, data, rows):
    found = taken(pair, data)
    on_data = on_table(pair, found.schema)
    if has_networks(on_data, found.values, 0):
        with engine_state(0, "cpu", torch.float32):
            story = read_story(on_data, to_dtype(found.values, torch.float32))
        assert story.networks
        assert story.observed
    else:
        with engine_state(0):
            if pair.graph is None:
                structure = read(on_data.model, found.values)
                assert structure.params
                assert structure.observed
                assert structure.num_rows == rows
            else:  # its rows meet, so they are not read one by one
                relation = read_relation(on_data.model, found.values, pair.graph, found.schema)
                assert relation.field.params
                assert relation.site
                assert relation.probe.num_nodes == rows
    card = zoo.card(name)
    assert card.story
    assert card.references
    assert card.checks
    assert name in zoo.list_models(family=card.family)


def test_coordinate_ascent_improves_on_its_start_and_never_falls(name, pair, data):
    for inference in set(zoo.card(name).inference) & {"em", "cavi"}:
        fit = zoo.fit(pair, data, inference=inference, restarts=2)
        assert fit.history[-1] > fit.history[0]
        assert (np.diff(fit.history.numpy()) >= -1e-9 * (1 + abs(fit.log_likelihood))).all()
        assert fit.converged


def test_svi_reaches_the_maximum_of_em_from_the_same_start(name, pair, data, rows):
    """From one start in its basin: from far away the two may climb different hills, and either may be the higher."""
    needs(name, "em", "svi")
    start = zoo.fit(pair, data, inference="em", max_iters=5, tol=0, seed=1).params
    best = zoo.fit(pair, data, inference="em", start=start)
    fit = zoo.fit(pair, data, inference="svi", guide="delta", start=start)
    assert fit.history[-1] >= fit.history[0]
    assert fit.converged
    assert best.log_likelihood - fit.log_likelihood <= 0.01 * rows / 100


def test_svi_reaches_the_bound_of_cavi(name, pair, data, rows):
    """From where CAVI ended, as points: their guides differ in the families of their factors alone.

    With continuous latents of the rows they differ in more: SVI begins these anew, and takes each number for itself.
    """
    needs(name, "svi", "cavi")
    if continuous(pair, data):
        pytest.skip("its rows have continuous latents")
    best = zoo.fit(pair, data, inference="cavi", restarts=3, seed=1)
    fit = zoo.fit(pair, data, inference="svi", guide="mean_field", start=best.params, num_steps=400, tol=0)
    assert abs(fit.history[-1] - best.history[-1]) <= 0.1 * rows


def test_auto_picks_the_first_inference_of_the_card_and_says_why(name, fit):
    assert fit.inference == zoo.card(name).inference[0]
    assert {"em": "EM is exact", "cavi": "conjugate", "svi": "auto: the "}[fit.inference] in fit.reason
    assert fit.reason in fit.summary()


def test_scores_are_one_finite_number_per_row_and_sum_to_the_log_likelihood(fit, data, rows):
    score = fit.score(data)
    assert score.shape == (rows,)
    assert torch.isfinite(score).all()
    if fit.score_kind == "exact":
        assert score.sum().item() == pytest.approx(fit.log_likelihood, rel=1e-10)


def test_posteriors_are_probabilities(name, fit, data, rows):
    for probs in fit.latents(data).values():
        if isinstance(probs, Moments):
            assert len(probs.mean) == rows
            assert torch.isfinite(probs.mean).all()
            assert (probs.sd > 0).any() or "code" in zoo.card(name).size  # a code is computed, not drawn
            continue
        assert probs.shape[0] == rows
        torch.testing.assert_close(probs.sum(-1), torch.ones(probs.shape[:-1], dtype=torch.float64))


def test_generated_rows_keep_the_moments_of_the_data_they_came_from(name, fit, data, pair):
    needs(name, "em")
    drawn = fit.generate(4000, seed=1)
    again = zoo.fit(pair, drawn, restarts=1, start=fit.params, tol=1e-8, weights=None)
    first, second = numbers(drawn), numbers(again.generate(4000, seed=2))
    error = (first.var(0) / len(first)).sqrt()
    assert ((first.mean(0) - second.mean(0)).abs() <= 6 * error + 1e-12).all()
    assert ((first.std(0) - second.std(0)).abs() <= 0.15 * first.std(0) + 1e-12).all()


def test_a_saved_fit_scores_bitwise_the_same(fit, data, tmp_path):
    fit.save(tmp_path / "run")
    loaded = zoo.load(tmp_path / "run")
    assert torch.equal(loaded.score(data), fit.score(data))
    assert torch.equal(loaded.history, fit.history)
    assert loaded.summary() == fit.summary()
    np.testing.assert_equal((loaded.aic, loaded.bic, loaded.icl), (fit.aic, fit.bic, fit.icl))
    assert str(loaded.mode_map) == str(fit.mode_map)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered in scalar divide:RuntimeWarning")
def test_arviz_opens_it_and_summary_and_loo_run(name, fit, data, rows):
    posterior = fit.to_arviz(draws=None if fit.guide else "laplace", num_draws=100 if fit.guide else 300)
    params = [param for param in fit.params if DIVIDER not in param]  # weights of networks are no quantities
    assert set(params) <= set(posterior.posterior.data_vars)
    assert set(fit.latents(data)) <= set(posterior.posterior.data_vars)
    groups = set(posterior.groups())
    assert {"posterior", "log_likelihood", "observed_data", "sample_stats"} <= groups
    assert "posterior_predictive" in groups or "code" in zoo.card(name).size
    assert np.isfinite(az.summary(posterior, var_names=params or None, kind="stats")["mean"]).all()
    loo = az.loo(posterior)
    assert loo.n_data_points == rows
    assert fit.guide or loo.elpd_loo < fit.log_likelihood + 1


def test_one_draw_is_what_em_found(fit):
    if fit.guide:
        pytest.skip("its latents have a distribution, so there is no one draw")
    posterior = fit.to_arviz().posterior
    assert (posterior.sizes["chain"], posterior.sizes["draw"]) == (1, 1)
    for name, value in fit.params.items():
        np.testing.assert_array_equal(posterior[name].values[0, 0], value.numpy())


def test_missing_cells_are_scored_by_what_is_left(fit, pair, data):
    score = fit.score(with_gaps(pair, data))
    seen = ~taken(pair, with_gaps(pair, data)).values.double().isnan() & observed_cells(pair, data)
    torn = seen != (observed_cells(pair, data) & ~taken(pair, data).values.double().isnan())
    assert torn.any()
    assert torch.isfinite(score).all()
    if pair.graph is not None:  # what is known of a node depends on the others, see test_blocks.py
        return
    whole = ~torn.reshape(len(torn), -1).any(1)
    if fit.guide:  # where scores are averages over draws
        assert (score[whole] - fit.score(data)[whole]).abs().mean() < 0.3
    else:
        torch.testing.assert_close(score[whole], fit.score(data)[whole])
    empty = ~seen.reshape(len(seen), -1).any(1)
    assert (score[empty].abs() < 1e-12).all()


def test_missing_cells_are_fitted_and_imputed(pair, data):
    gaps = with_gaps(pair, data)
    learned = gaps
    if by_gradient(pair) and numbers(gaps).isnan().all(1).any():  # of counts that go together whole rows are missing
        with pytest.raises(DataError, match="no observed cell"):
            zoo.fit(pair, gaps, **few(pair, 1))
        learned = data
    fit = zoo.fit(pair, learned, restarts=2, **few(pair, 40))
    assert by_gradient(pair) or (np.diff(fit.history.numpy()) >= -1e-9 * (1 + abs(fit.log_likelihood))).all()
    filled, seen = numbers(fit.impute(gaps)), ~numbers(gaps).isnan()
    assert not filled.isnan().any()
    assert torch.equal(filled[seen], numbers(gaps)[seen])


def test_the_same_seed_gives_the_same_bits(pair, data):
    one, two = (zoo.fit(pair, data, restarts=2, seed=7, **few(pair, 15)) for _ in range(2))
    assert torch.equal(one.history, two.history)
    assert all(torch.equal(one.params[name], two.params[name]) for name in one.params)
    draws = [f.sample_posterior(5, seed=3) for f in (one, two)]
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0])


def test_the_caller_is_left_as_he_was(pair, data):
    store = pyro.get_param_store()
    with store.scope():
        pyro.param("weights", torch.tensor(5.0))
        before, state = torch.get_default_dtype(), torch.random.get_rng_state()
        fit = zoo.fit(pair, data, seed=3, **few(pair, 5))
        fit.score(data), fit.sample_posterior(2)
        if "code" not in zoo.card(pair.origin.name).size:  # a code has no distribution to draw rows from
            fit.generate(3)
        assert list(store.keys()) == ["weights"]
        assert store["weights"].item() == 5.0
        assert torch.get_default_dtype() is before
        assert torch.equal(torch.random.get_rng_state(), state)


def test_repeated_rows_may_come_as_weights(name, pair, data, rows):
    if by_gradient(pair):
        pytest.skip("its steps are random, and others for other rows")
    found = taken(pair, data)
    refuse = pair.graph is not None or name in ("bayesian_pca", "probabilistic_matrix_factorization")
    if zoo.card(name).inference[0] == "cavi" and refuse:
        with pytest.raises(OptionError, match="weights"):
            zoo.fit(pair, data, weights=[2.0] * rows)
        return
    twice = found.schema.decode(torch.cat([found.values, found.values]))
    start = zoo.fit(pair, data, max_iters=3, tol=0).params
    one = zoo.fit(pair, twice, start=start, max_iters=20, tol=0)
    two = zoo.fit(pair, data, start=start, max_iters=20, tol=0, weights=[2.0] * rows)
    assert two.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-10)
    assert two.bic == pytest.approx(one.bic, rel=1e-10)
