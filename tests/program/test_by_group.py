"""Sites whose arguments are gathered by row: products by group give the numbers that running the model gives."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import bound, random_values
from pyro.distributions import constraints

from latentzoo import Pair, zoo
from latentzoo.inference.data.structures import slice_rows
from latentzoo.inference.drivers.em import em
from latentzoo.inference.em.mstep import m_step
from latentzoo.inference.em.plan import make_plan
from latentzoo.inference.program.compiler import compile_program
from latentzoo.inference.program.estep import expectations
from latentzoo.inference.program.objective import expected_complete
from latentzoo.inference.trace.handlers import engine_state
from latentzoo.inference.trace.structure import read

N, M, J, K, C = 60, 3, 4, 2, 3


def latent():
    weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
    return pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})


def categorical(x):
    """Every rater's own errors."""
    confusion = pyro.param("confusion", torch.ones(J, K, C) / C, constraint=constraints.simplex)
    rater, label = x[..., 0].nan_to_num(0.0).long(), x[..., 1]
    with pyro.plate("data", len(x)):
        z = latent().unsqueeze(-1)
        pyro.sample("label", dist.Categorical(confusion[rater, z]).to_event(1), obs=label)


def normal(x):
    """Each school has its own mean for each class, and each class its spread."""
    loc = pyro.param("loc", torch.randn(J, K))
    scale = pyro.param("scale", torch.ones(K), constraint=constraints.positive)
    group, value = x[..., 0].nan_to_num(0.0).long(), x[..., 1]
    with pyro.plate("data", len(x)):
        z = latent().unsqueeze(-1)
        pyro.sample("y", dist.Normal(loc[group, z], scale[z]).to_event(1), obs=value)


def poisson(x):
    """One count a row; the rate is tied over two of the groups."""
    rate = pyro.param("rate", torch.ones(K, J - 1), constraint=constraints.positive)
    group = x[:, 0, 0].nan_to_num(0.0).long().clamp(max=J - 2)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson(rate[latent(), group]), obs=x[:, 0, 1])


def vectors(x):
    """Multivariate values, with a mean of each group and class."""
    loc = pyro.param("loc", torch.randn(J, K, M))
    covariance = pyro.param("covariance", torch.eye(M), constraint=constraints.positive_definite)
    group = x[:, 0, 0].nan_to_num(0.0).long()
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.MultivariateNormal(loc[group, latent()], covariance), obs=x[..., 1])


def binomial(x):
    """Numbers of trials that differ from cell to cell, beside a column that is the same in all rows."""
    probs = pyro.param("probs", torch.full((J, K), 0.5), constraint=constraints.unit_interval)
    loc = pyro.param("loc", torch.randn(K))
    group, value = x[..., 0].nan_to_num(0.0).long(), x[..., 1]
    with pyro.plate("data", len(x)):
        z = latent()
        pyro.sample("y", dist.Binomial(5 + group, probs[group, z.unsqueeze(-1)]).to_event(1), obs=value)
        pyro.sample("w", dist.Normal(loc[z], 1.0), obs=x[:, 0, 2])


def plated(x):
    """A plate of cells in place of an event."""
    rate = pyro.param("rate", torch.ones(J, K), constraint=constraints.positive)
    group, value = x[..., 0].nan_to_num(0.0).long(), x[..., 1]
    with pyro.plate("data", len(x), dim=-2):
        z = latent()
        with pyro.plate("cells", M, dim=-1):
            pyro.sample("y", dist.Poisson(rate[group, z]), obs=value)


MODELS = {f.__name__: f for f in (categorical, normal, poisson, vectors, binomial, plated)}
ALL = pytest.mark.parametrize("name", MODELS)


def table(name, gaps=True):
    torch.manual_seed(3)
    group = torch.randint(J, (N, M)).double()
    value = {"normal": 3 * torch.randn(N, M), "vectors": 3 * torch.randn(N, M)}.get(
        name, torch.randint(C, (N, M))
    ).double()
    if gaps:
        holes = torch.rand(N, M) < 0.2
        holes = holes[:, :1].expand(N, M) if name == "vectors" else holes
        value = torch.where(holes, torch.nan, value)
    return torch.stack([group, value, torch.randn(N, M).double()], -1)


def programs(name, x):
    structure = read(MODELS[name], x)
    return [compile_program(MODELS[name], x, structure, natural) for natural in (True, False)]


@ALL
def test_scores_and_statistics_are_those_of_the_model_run(name):
    x, weights = table(name, gaps=name != "vectors"), torch.rand(N, dtype=torch.float64) + 0.5
    with engine_state(0):
        fast, slow = programs(name, x)
        assert not fast.scored
        assert slow.scored
        values = [{k: v.unsqueeze(0) for k, v in random_values(MODELS[name], x, seed).items()} for seed in (1, 2)]
        both = {key: torch.cat([one[key] for one in values]) for key in values[0]}
        rows = fast.row_log_prob(both)
        torch.testing.assert_close(rows, torch.cat([slow.row_log_prob(one) for one in values]), rtol=1e-10, atol=1e-10)
        assert (rows[:, x[..., 1].isnan().all(1)].abs() < 1e-12).all() or name == "binomial"
        ours, theirs = expectations(fast, both, weights), [expectations(slow, one, weights) for one in values]
        torch.testing.assert_close(ours.log_prob, torch.cat([one.log_prob for one in theirs]), rtol=1e-11, atol=0)
        new = m_step(fast, make_plan(fast, 1e-6), both, ours, 20)
        plan = make_plan(slow, 1e-6)
        assert not plan.climbed
        for place, one in enumerate(values):
            expected = m_step(slow, plan, one, theirs[place], 20)
            for key, value in expected.items():
                torch.testing.assert_close(new[key][place], value[0], rtol=1e-9, atol=1e-10)


@ALL
def test_the_likelihood_is_that_of_brute_force(name):
    x = table(name, gaps=False)
    values = random_values(MODELS[name], x, 5)
    with engine_state(0):
        fast = programs(name, x)[0]
        ours = fast.row_log_prob({key: value.unsqueeze(0) for key, value in values.items()}).sum().item()
    assert ours == pytest.approx(bound(MODELS[name], x, values), rel=1e-11)


@ALL
def test_chunks_add_up(name, monkeypatch):
    x = table(name)
    with engine_state(0):
        fast = programs(name, x)[0]
        params = {key: value.unsqueeze(0) for key, value in random_values(MODELS[name], x, 1).items()}
        whole = expectations(fast, params)
        monkeypatch.setattr(type(fast), "chunk_size", lambda self, params: 16)
        for workers in (1, 2):
            parts = expectations(fast, params, workers=workers)
            torch.testing.assert_close(parts.log_prob, whole.log_prob)
            for site, (s1, s0) in whole.sums.items():
                torch.testing.assert_close(parts.sums[site][0], s1)
                torch.testing.assert_close(parts.sums[site][1].expand_as(s0), s0)


@ALL
def test_some_rows_alone(name):
    x, rows = table(name), torch.tensor([7, 3, 3, 59, 0])
    with engine_state(0):
        fast = programs(name, x)[0]
        params = {key: value.unsqueeze(0) for key, value in random_values(MODELS[name], x, 1).items()}
        expected = fast.row_log_prob(params)[:, rows]
        torch.testing.assert_close(fast.on_rows(rows).row_log_prob(params), expected)
        few = compile_program(MODELS[name], slice_rows(x, rows), read(MODELS[name], slice_rows(x, rows)))
        torch.testing.assert_close(few.row_log_prob(params), expected)


@ALL
def test_gradients_of_first_and_second_order(name):
    x = table(name)
    with engine_state(0):
        fast, slow = programs(name, x)
        values = random_values(MODELS[name], x, 2)
        key = next(name for name in values if name not in ("weights", "covariance"))

        def total(program):
            def at(value):
                params = {k: (value if k == key else v).unsqueeze(0) for k, v in values.items()}
                return program.row_log_prob(params).sum()

            return at

        ours, theirs = (torch.autograd.functional.hessian(total(p), values[key]) for p in (fast, slow))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
        ours, theirs = (torch.autograd.functional.jacobian(total(p), values[key]) for p in (fast, slow))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@ALL
def test_fits_end_where_the_scored_ones_end(name):
    x = table(name, gaps=name != "vectors")  # of vectors with gaps the scored path has no closed form
    options = {"max_iters": 15, "tol": 0, "start": random_values(MODELS[name], x, 4), "collapse": False}
    fast, slow = (em(Pair(MODELS[name]), x, natural=natural, **options) for natural in (True, False))
    torch.testing.assert_close(fast.history, slow.history, rtol=1e-10, atol=1e-8)
    for key, value in slow.params.items():
        torch.testing.assert_close(fast.params[key], value, rtol=1e-7, atol=1e-9)


def test_rows_of_missing_vectors_take_no_part():
    x = table("vectors")
    start, whole = random_values(vectors, x, 4), ~x[:, 0, 1].isnan()
    fits = [zoo.fit(Pair(vectors), part, start=start, tol=1e-13) for part in (x, x[whole])]
    assert fits[0].log_likelihood == pytest.approx(fits[1].log_likelihood, rel=1e-9)
    assert 0 < (~whole).sum() < N


def test_restarts_run_together_and_each_rises():
    x = table("categorical")
    fit = zoo.fit(Pair(categorical), x, restarts=3, seed=1)
    alone = zoo.fit(Pair(categorical), x, restarts=3, seed=1, natural=False)
    assert sorted(fit.mode_map.bounds) == pytest.approx(sorted(alone.mode_map.bounds), abs=1e-6)
    assert (fit.history.diff() >= -1e-9 * (1 + abs(fit.log_likelihood))).all()


def test_labels_own_the_params_of_every_group():
    """So that two optima which differ by the order of the labels alone are one."""
    x = table("categorical")
    first = zoo.fit(Pair(categorical), x, start=random_values(categorical, x, 1), tol=1e-13)
    turned = {"weights": first.start["weights"].flip(0), "confusion": first.start["confusion"].flip(1)}
    both = {name: torch.stack([first.start[name], value]) for name, value in turned.items()}
    starts = iter([{n: v[0] for n, v in both.items()}, {n: v[1] for n, v in both.items()}])
    fit = zoo.fit(Pair(categorical, initialize=lambda x, generator: next(starts)), x, restarts=2, tol=1e-13)
    assert len(fit.mode_map) == 1


def test_computed_arguments_of_a_row_are_still_scored():
    def model(x):
        loc = pyro.param("loc", torch.randn(J, K))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc[x[:, 0, 0].long(), latent()].exp(), 1.0), obs=x[:, 0, 1])

    x = table("normal", gaps=False)
    with engine_state(0):
        program = compile_program(model, x, read(model, x))
    assert "y" in program.scored


def test_the_expected_density_is_that_of_the_scored_path():
    x = table("normal")
    with engine_state(0):
        fast, slow = programs("normal", x)
        old, new = ({k: v.unsqueeze(0) for k, v in random_values(normal, x, seed).items()} for seed in (1, 2))
        gains = [
            expected_complete(p, new, expectations(p, old)) - expected_complete(p, old, expectations(p, old))
            for p in (fast, slow)
        ]
    assert gains[0].item() == pytest.approx(gains[1].item(), rel=1e-10)


def test_a_group_without_spread_is_no_constant_column():
    """Groups of one row each have variance 0, yet their column varies."""
    x = table("normal")
    x[..., 0] = torch.arange(J).repeat(N)[: N * M].reshape(N, M)
    x[3:, 0, 0] = x[3:, 0, 0].clamp(max=2)
    fit = zoo.fit(Pair(normal), x, max_iters=5, tol=0)
    assert torch.isfinite(fit.history).all()
    x[:, 1, 1] = 2.0
    with pytest.raises(ValueError, match="column 1 of site 'y' is constant"):
        zoo.fit(Pair(normal), x, max_iters=5, tol=0)
