"""Coordinate ascent: no factor's update may lower the bound, and the bound is what an independent estimate says."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import float64
from pyro import poutine
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal, nbinom
from sklearn.datasets import load_iris
from stories.conjugate import CONJUGATE

from latentzoo import Pair, cavi, zoo
from latentzoo.inference.base.progress import Progress
from latentzoo.inference.cavi.derivation import mean_field
from latentzoo.inference.cavi.sweeps import Sweeps
from latentzoo.inference.drivers.inputs import take_in
from latentzoo.inference.optimize.coordinate_ascent import Runner, pick
from latentzoo.inference.optimize.starts import first_starts, jitter
from latentzoo.inference.optimize.stopping import Stop
from latentzoo.inference.program.compiler import compile_program
from latentzoo.inference.trace.handlers import engine_state
from latentzoo.inference.trace.provenance import plain
from latentzoo.inference.trace.structure import read
from latentzoo.models.registry import ENTRIES

OWN_FIELD = ("topics", "graphs")  # mean fields of another form, each with tests of its own
REGISTERED = {
    f"{name}-{'-'.join(str(v) for v in example.values())}": (name, example)
    for name, entry in ENTRIES.items()
    for example in entry.examples
    if "cavi" in entry.card.inference and entry.card.family not in OWN_FIELD
}
EVERY = pytest.mark.parametrize("name", [*CONJUGATE, *REGISTERED])


def pair_and_data(name, rows=150):
    """A story, or a registered model on at most `rows` rows of its card's example."""
    if name in CONJUGATE:
        return Pair(CONJUGATE[name].model), CONJUGATE[name].data
    model, example = REGISTERED[name]
    pair = zoo.create(model, **example)
    bound, dataset, _ = take_in(pair, ENTRIES[model].card.example, None)
    return bound, dataset.values[:: max(1, len(dataset.values) // rows)]


def derived(pair, data):
    bound, dataset, _ = take_in(pair, data, None)
    structure = read(bound.model, dataset.values)
    return mean_field(bound.model, dataset.values, structure), structure


def held_bound(field, state, means, stats):
    """The bound under q(z) of an E-step that is past, up to what does not change with the factors: its entropy."""
    sites = [*field.program.latents, *field.program.products]
    return field.log_prob(means, stats, sites) + field.products(means) - field.cost(state, means)


def bound_of(field, state, means, stats):
    return stats.log_prob + field.products(means) - field.cost(state, means)


def random_starts(structure, count):
    """Of the latents that rows share, the params, and the continuous latents of rows."""
    generator = torch.Generator().manual_seed(0)
    declared = {name: param.value for name, param in structure.params.items()}
    each = [jitter(declared, structure, generator) for _ in range(count)]
    starts = {name: torch.stack([one[name] for one in each]) for name in declared}
    for name in structure.continuous:
        value = plain(structure.trace.nodes[name]["value"])
        starts[name] = torch.randn(count, *value.shape, generator=generator, dtype=torch.float64)
    return starts


# --- the bound --------------------------------------------------------------------------------------------------------


@EVERY
def test_no_update_of_a_factor_lowers_the_bound(name):
    """20 random starts; and a sweep raises the bound by no less than its factors do before q(z) follows."""
    pair, data = pair_and_data(name)
    with engine_state(0), torch.no_grad():
        field, structure = derived(pair, data)
        sweeps = Sweeps(field, None, 20, 1)
        starts = random_starts(structure, 20)
        for batch in [starts] if sweeps.together else [pick(starts, [r]) for r in range(20)]:
            state = sweeps.first(batch)
            for _ in range(4):
                means = dict(field.means(state))
                stats = sweeps.expect(means)
                before = bound_of(field, state, means, stats)
                held = [held_bound(field, state, means, stats)]
                for factor in field.priors:
                    state = {**state, factor: field.update(factor, means, stats)}
                    means[factor] = field.families[factor].mean(state[factor])
                    held.append(held_bound(field, state, means, stats))
                if sweeps.params:
                    state |= sweeps.learn(means, stats)
                    means |= {n: state[n] for n in sweeps.params}
                    held.append(held_bound(field, state, means, stats))
                after = bound_of(field, state, means, sweeps.expect(means))
                room = 1e-9 * (1 + before.abs())
                steps = torch.stack(held).diff(dim=0)
                assert (steps >= -room).all(), (name, [*field.priors], steps.min(1).values)
                assert (after - before >= held[-1] - held[0] - room).all()


@EVERY
def test_the_bound_is_what_draws_from_its_factors_say(name):
    """E_q[log p(x, z, theta) - log q(z) - log q(theta)] by plain runs of the model, to 4 standard errors."""
    pair, data = pair_and_data(name, rows=40)
    with engine_state(0):
        _, structure = derived(pair, data)
    fit = cavi(pair, data, restarts=2, seed=1)
    sites = [site for site in fit.params if site not in ("scale",)]
    factors = {site: fit.posterior(site) for site in sites}
    posteriors = {
        site: fit.posterior(site) if site in structure.continuous else dist.Categorical(probs)
        for site, probs in fit.latents().items()
    }
    learned = {site: fit.params[site] for site in fit.params if site not in sites}
    data = fit.data.values
    terms = []
    with float64(), torch.no_grad():
        torch.manual_seed(0)
        for _ in range(400):
            shared = {site: factor.sample() for site, factor in factors.items()}
            rows = {site: q.sample() for site, q in posteriors.items()}
            log_q = sum(factors[s].log_prob(v).sum() for s, v in shared.items())
            log_q = log_q + sum(posteriors[s].log_prob(v).sum() for s, v in rows.items())
            model = poutine.condition(fit.pair.model, data={**shared, **rows})
            trace = poutine.trace(poutine.substitute(model, data=learned)).get_trace(data)
            terms.append(float(trace.log_prob_sum() - log_q))
    error = np.std(terms) / len(terms) ** 0.5
    if len(posteriors) < 2:  # of several latents of a row the engine keeps the joint posterior
        assert abs(np.mean(terms) - fit.history[-1].item()) <= 4 * error
    else:
        assert np.mean(terms) <= fit.history[-1].item() + 4 * error


# --- restarts, weights, missing cells ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["variances", "one_matrix", "two_latents", "bayesian_dawid_skene-"])
def test_restarts_as_a_batch_end_where_they_end_one_by_one(name):
    pair, data = pair_and_data(name)
    with engine_state(0):
        field, structure = derived(pair, data)
        bound, dataset, _ = take_in(pair, data, None)
        generator = torch.Generator().manual_seed(0)
        program = compile_program(bound.model, dataset.values, structure)
        starts = first_starts(bound, dataset.values, program, 6, generator, None)
        sweeps = Sweeps(field, None, 20, 1)
        runner = Runner(sweeps, Stop(1e-9), 500, "cavi")
        together = list(runner.run(sweeps.first(starts), Progress(0, "", False)))
        alone = [
            outcome for r in range(6) for outcome in runner.run(sweeps.first(pick(starts, [r])), Progress(0, "", False))
        ]
    for (one, _), (other, _) in zip(together, alone, strict=True):
        assert one.history == pytest.approx(other.history, rel=1e-10)
        for key in one.params:
            torch.testing.assert_close(one.params[key], other.params[key], rtol=1e-6, atol=1e-6)


def test_missing_cells_are_as_if_they_were_never_there():
    """Columns that share nothing: each is as a fit of its observed cells alone."""

    def model(x):
        width = x.shape[1:]
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand(width).to_event(len(width)))
        tau = pyro.sample("tau", dist.Gamma(2.0, 1.0).expand(width).to_event(len(width)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, tau**-0.5).to_event(len(width)), obs=x)

    x = CONJUGATE["variances"].data.clone()
    x[:5, 0] = x[3:9, 1] = x[-4:, 2] = torch.nan
    whole = cavi(Pair(model), x)
    each = [cavi(Pair(model), column[~column.isnan()]) for column in x.unbind(1)]
    assert whole.history[-1].item() == pytest.approx(sum(one.history[-1].item() for one in each), rel=1e-9)
    for number, one in enumerate(each):
        factor = whole.posterior("tau")
        assert factor.concentration[number].item() == pytest.approx(one.posterior("tau").concentration.item())
        assert factor.rate[number].item() == pytest.approx(one.posterior("tau").rate.item(), rel=1e-6)


def vectors(x):
    size = x.shape[1]
    loc = pyro.sample("loc", dist.MultivariateNormal(torch.zeros(size), 9 * torch.eye(size)))
    matrix = pyro.sample("matrix", dist.Wishart(torch.tensor(size + 2.0), torch.eye(size)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(loc, precision_matrix=matrix), obs=x)


def vectors_by_hand(x, sweeps):
    """Mean field of `vectors` where the missing cells of a row are one more normal factor; factors and bound."""
    size, eye = x.shape[1], torch.eye(x.shape[1])
    m, S, df, V = torch.zeros(size), eye, torch.tensor(size + 2.0), eye
    x = x[~x.isnan().all(1)]
    for _ in range(sweeps):
        P, log_det = df * V, torch.special.digamma((df - torch.arange(size)) / 2).sum() + size * np.log(2) + V.logdet()
        full, spread, entropy = x.clone(), torch.zeros(len(x), size, size), 0.0
        for n, row in enumerate(x):
            gone = row.isnan()
            if gone.any():
                own = P[gone][:, gone].inverse()
                full[n, gone] = m[gone] - own @ P[gone][:, ~gone] @ (row - m)[~gone]
                spread[n] = torch.zeros(size, size).masked_scatter(gone[:, None] & gone, own)
                entropy += 0.5 * (own.logdet() + gone.sum() * (1 + np.log(2 * np.pi)))
        second = (full - m).mT @ (full - m) + spread.sum(0) + len(x) * S
        error = 0.5 * (len(x) * (log_det - size * np.log(2 * np.pi)) - (P * second).sum())
        prior, factor = (dist.MultivariateNormal(torch.zeros(size), 9 * eye), dist.MultivariateNormal(m, S))
        wishart = dist.Wishart(df, V)
        start = dist.Wishart(torch.tensor(size + 2.0), eye)
        at = start.log_prob(eye) + 0.5 * size  # less what varies: log |P| is 0 and tr P is `size` there
        cross = at + 0.5 * (start.df - size - 1) * log_det - 0.5 * P.trace()
        divergence = torch.distributions.kl_divergence(factor, prior) - wishart.entropy() - cross
        bound = error + entropy - divergence
        S = (eye / 9 + len(x) * P).inverse()
        m = S @ P @ full.sum(0)
        second = (full - m).mT @ (full - m) + spread.sum(0) + len(x) * S
        df, V = torch.tensor(size + 2.0 + len(x)), (eye + second).inverse()
    return m, S, df, V, bound


def test_vectors_with_missing_cells_are_completed_by_one_more_factor():
    with float64():
        generator = torch.Generator().manual_seed(4)
        x = torch.randn(30, 3, generator=generator) @ torch.tensor([[1.0, 0.8, 0.2], [0.0, 0.6, -0.5], [0.0, 0.0, 0.4]])
        x[torch.rand(30, 3, generator=generator) < 0.25] = torch.nan
        x[7] = torch.nan  # a row that says nothing
        m, S, df, V, bound = vectors_by_hand(x, 200)
    fit = cavi(Pair(vectors), x, tol=1e-13)
    assert (x.isnan().any(1) & ~x.isnan().all(1)).sum() > 5
    assert fit.history[-1].item() == pytest.approx(bound.item(), rel=1e-9)
    assert (fit.history.diff() >= -1e-9).all()
    torch.testing.assert_close(fit.posterior("loc").loc, m, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(fit.posterior("loc").covariance_matrix, S, rtol=1e-5, atol=1e-7)
    assert fit.posterior("matrix").df.item() == pytest.approx(df.item())
    torch.testing.assert_close(fit.params["matrix"], df * V, rtol=1e-5, atol=1e-6)


def test_clusters_with_missing_cells_rise_and_impute():
    """A full covariance fills a cell from the others, better than the mean of its column, and nearly as EM does."""
    x = torch.tensor(load_iris().data)
    holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    y = torch.where(holes, torch.nan, x)
    options = dict(covariance="full", num_components=3, restarts=3)
    fit, em = (zoo.fit(name, y, **options) for name in ("bayesian_gaussian_mixture", "gaussian_mixture"))
    assert (fit.inference, em.inference) == ("cavi", "em")
    assert (fit.history.diff() >= -1e-9 * abs(fit.history[-1])).all()
    error, other = (((torch.as_tensor(one.impute(y)) - x)[holes] ** 2).mean().sqrt() for one in (fit, em))
    mean = ((y.nanmean(0).expand_as(x) - x)[holes] ** 2).mean().sqrt()
    assert error < 0.55 * mean
    assert error < 1.15 * other


def test_weights_are_repeated_rows():
    pair, data = pair_and_data("variances")
    counts = torch.arange(len(data)) % 3 + 1
    start = cavi(pair, data, max_iters=2, tol=0).params
    one = cavi(pair, data.repeat_interleave(counts, 0), start=start, max_iters=10, tol=0)
    two = cavi(pair, data, weights=counts, start=start, max_iters=10, tol=0)
    assert two.history.tolist() == pytest.approx(one.history.tolist(), rel=1e-10)


def test_a_saved_fit_holds_its_factors(tmp_path):
    pair, data = pair_and_data("one_matrix")
    fit = cavi(pair, data)
    fit.save(tmp_path / "run")
    loaded = zoo.load(tmp_path / "run", pair=pair)
    assert torch.equal(loaded.score(data), fit.score(data))
    for site in fit.params:
        assert type(loaded.posterior(site, data)) is type(fit.posterior(site))
        assert torch.equal(loaded.posterior(site, data).mean, fit.posterior(site).mean)


# --- params: variational EM -------------------------------------------------------------------------------------------


def test_a_param_of_the_noise_is_that_of_the_marginal_likelihood():
    """One latent, so the bound is log p(x): a normal vector of covariance s^2 I + 4."""
    x = CONJUGATE["variances"].data[:, 0]

    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    def surprise(log_scale):
        covariance = np.exp(2 * log_scale) * np.eye(len(x)) + 4.0
        return -multivariate_normal.logpdf(x.numpy(), np.zeros(len(x)), covariance)

    best = minimize_scalar(surprise, bounds=(-2, 2), method="bounded", options={"xatol": 1e-12})
    fit = cavi(Pair(model), x, tol=1e-12)
    assert fit.history[-1].item() == pytest.approx(-best.fun, abs=1e-8)
    assert fit.params["scale"].item() == pytest.approx(np.exp(best.x), rel=1e-4)


def test_a_param_of_a_prior_is_that_of_the_marginal_likelihood():
    """Empirical Bayes of 24 rates: each count is negative binomial, once they are integrated out."""
    x = CONJUGATE["rates_of_rates"].data[:, 0]

    def model(x):
        beta = pyro.param("beta", torch.tensor(1.0), constraint=dist.constraints.positive)
        rate = pyro.sample("rate", dist.Gamma(2.0, beta).expand([len(x)]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def surprise(log_beta):
        beta = np.exp(log_beta)
        return -nbinom.logpmf(x.numpy(), 2.0, beta / (1 + beta)).sum()

    best = minimize_scalar(surprise, bounds=(-5, 5), method="bounded", options={"xatol": 1e-12})
    fit = cavi(Pair(model), x, tol=1e-12)
    assert fit.history[-1].item() == pytest.approx(-best.fun, abs=1e-7)
    assert fit.params["beta"].item() == pytest.approx(np.exp(best.x), rel=1e-4)


# --- Dirichlet processes ----------------------------------------------------------------------------------------------


def by_cumprod(sticks):
    return torch.nn.functional.pad(sticks, (0, 1), value=1.0) * torch.nn.functional.pad(
        (1 - sticks).cumprod(-1), (1, 0), value=1.0
    )


def by_a_loop(sticks):
    left, out = torch.ones(()), []
    for stick in sticks:
        out.append(stick * left)
        left = left - stick * left
    return torch.stack([*out, left])


def by_logarithms(sticks):
    log_left = torch.cat([torch.zeros(1), torch.log1p(-sticks).cumsum(-1)])
    return (torch.cat([sticks.log(), torch.zeros(1)]) + log_left).exp()


@pytest.mark.parametrize("idiom", [by_a_loop, by_logarithms])
def test_sticks_may_be_broken_in_any_way(idiom):
    def model_with(break_them):
        def model(x):
            sticks = pyro.sample("sticks", dist.Beta(torch.ones(3), 1.0).to_event(1))
            loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([4, 3]).to_event(2))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(break_them(sticks)), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x)

        return Pair(model)

    x = CONJUGATE["variances"].data
    one, two = (cavi(model_with(way), x, restarts=3, seed=2) for way in (by_cumprod, idiom))
    assert two.history.tolist() == pytest.approx(one.history.tolist(), rel=1e-9)


@pytest.mark.parametrize("weights", ["dirichlet", "dirichlet_process"])
def test_components_that_iris_does_not_need_empty(weights):
    pair = zoo.create("bayesian_gaussian_mixture", num_components=10, covariance="full", prior=weights)
    fit = cavi(pair, "iris", restarts=20)
    rows = fit.latents()["z"].sum(0)
    assert rows.sum().item() == pytest.approx(150)
    assert (rows > 1).sum() < 5
    assert ((rows < 0.01) | (rows > 1)).all()


# --- claims of convergence --------------------------------------------------------------------------------------------


def test_a_plateau_is_no_convergence():
    """Where a fast part of the fit has just settled gains are small, and rise again: five nats are still to come."""
    fit = zoo.fit("gamma_poisson_mixture", "hasselblad_deaths", inference="cavi", seed=3)
    assert fit.converged
    assert fit.history[-1] == pytest.approx(-2005.361, abs=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_topics_end_where_a_sharper_tolerance_does(seed):
    """Both seeds stood on a plateau, 0.9 and 3.8 nats below."""
    options = {"num_topics": 4, "inference": "cavi", "seed": seed}
    fit = zoo.fit("lda", "docstrings", **options)
    sharper = zoo.fit("lda", "docstrings", tol=1e-10, **options)
    assert sharper.history[-1] - fit.history[-1] < 1e-7 * abs(sharper.history[-1])


def test_small_gains_are_convergence_where_they_shrink_alone():
    stop = Stop(1e-6)
    slow = [-100 - 1e-4 * 0.5**i for i in range(21)]
    assert stop.held(slow)
    assert not stop.held([bound + 2e-6 * i for i, bound in enumerate(slow)])  # a fast part has settled, a slow one not
    assert not stop.held([bound + 1e-7 * 1.5**i for i, bound in enumerate(slow)])  # gains rise again
    assert stop.held([-100.0] * 21)
    assert stop.held([-100.0, -100.0])
