"""A model is read and compiled once: bound to other rows, its program says of each row what it says of it anywhere."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import joint, random_values
from pyro.poutine.runtime import _PYRO_STACK
from stories import STORIES
from stories.base import CODES, COUNTS, TABLE, label, mixture, positive, real, simplex

from latentzoo import Pair, cavi, em, svi, zoo
from latentzoo.inference.data.structures import num_rows, slice_rows
from latentzoo.inference.program.compiler import compile_program
from latentzoo.inference.program.estep import expectations
from latentzoo.inference.trace.handlers import Bind, engine_state
from latentzoo.inference.trace.structure import read

EXACT = dict(rtol=1e-10, atol=1e-10)
ROWS = torch.tensor([5, 3, 3, 17, 0, 21, 8])


def counted(model):
    """A model that counts its runs by the engine, in `runs`; those by Pyro alone, which a fit is held against, are few
    rows' and left out.
    """

    def again(x):
        again.runs += any(isinstance(handler, Bind) for handler in _PYRO_STACK)
        model(x)

    again.runs = 0
    return again


def batch(values):
    return {name: value.unsqueeze(0) for name, value in values.items()}


@pytest.mark.parametrize("name", STORIES)
def test_rows_bound_are_rows_compiled(name):
    model, data = STORIES[name]
    rows = ROWS % num_rows(data)
    values, few = random_values(model, data, 1), slice_rows(data, rows)
    with engine_state(0), torch.no_grad():
        program = compile_program(model, data, read(model, data))
        whole = program.row_log_prob(batch(values))
        there = program.on(few)
        assert there.num_rows == len(rows)
        torch.testing.assert_close(there.row_log_prob(batch(values)), whole[:, rows], **EXACT)
        for row in (0, 6):
            alone = program.on(slice_rows(data, rows[row : row + 1])).row_log_prob(batch(values))
            torch.testing.assert_close(alone[:, 0], whole[:, rows[row]], **EXACT)
        fresh = compile_program(model, few, read(model, few))
        ours, theirs = (expectations(one, batch(values)) for one in (program.on(few, anew=True), fresh))
        assert ours.sums.keys() == theirs.sums.keys()
        for site, (s1, s0) in theirs.sums.items():
            torch.testing.assert_close(ours.sums[site], (s1, s0), **EXACT)


def normals(x):
    mixture(x, lambda z: dist.Normal(real("loc", 2, 3)[z], positive("scale", 2, 3)[z]).to_event(1))


def vectors(x):
    mixture(x, lambda z: dist.MultivariateNormal(real("loc", 2, 3)[z], torch.eye(3)))


def counts(x):
    mixture(x, lambda z: dist.Poisson(positive("rate", 2, 3)[z]).to_event(1))


def categories(x):
    mixture(x, lambda z: dist.Categorical(simplex("probs", 2, 3, 3)[z]).to_event(1))


def multinomials(x):
    """Events that cannot be torn: with some cells missing they would be scored in a run."""
    mixture(x, lambda z: dist.Multinomial(probs=simplex("probs", 2, 3)[z], validate_args=False))


TABLES = {normals: TABLE, vectors: TABLE, counts: COUNTS, categories: CODES.double(), multinomials: COUNTS}


@pytest.mark.parametrize("model", TABLES, ids=lambda model: model.__name__)
def test_cells_may_be_missing_where_none_were(model):
    """Whole rows, scattered cells, a column; and the other way round."""
    data = TABLES[model]
    gaps = data.clone()
    gaps[4] = torch.nan
    if model is not multinomials:
        gaps[2, 1] = torch.nan
        gaps[:, 2] = torch.nan
    values = random_values(model, data, 1)
    with engine_state(0), torch.no_grad():
        programs = [compile_program(model, one, read(model, one)) for one in (data, gaps)]
        for mine, other, there in ((programs[0], programs[1], gaps), (programs[1], programs[0], data)):
            expected = other.row_log_prob(batch(values))
            torch.testing.assert_close(mine.on(there).row_log_prob(batch(values)), expected, **EXACT)
            torch.testing.assert_close(mine.on(there).on(there).row_log_prob(batch(values)), expected, **EXACT)


@pytest.mark.parametrize("model", TABLES, ids=lambda model: model.__name__)
def test_nothing_is_run_to_bind_cells_as_they_stand(model):
    run = counted(model)
    fit = em(Pair(run), TABLES[model], max_iters=3, tol=0, collapse=False)
    assert run.runs <= 3  # what it takes for its data, the number of plates, then the structure
    run.runs = 0
    for _ in range(2):
        fit.score()
        fit.latents()
        fit.sample_posterior(3)
        fit.score(TABLES[model][:5].clone())
        fit.latents(TABLES[model][7:8].clone())
    assert run.runs == 0


def test_a_column_of_a_table_is_a_cell_as_it_stands():
    model = counted(STORIES["chain"].model)  # observes column by column
    fit = em(Pair(model), TABLE, max_iters=2, tol=0)
    model.runs = 0
    found = fit.score(TABLE.flip(0).clone())
    assert model.runs == 0
    torch.testing.assert_close(found.flip(0), joint(model, TABLE, fit.params).log_evidence, **EXACT)


def test_values_that_are_computed_cost_one_run():
    def model(x):
        loc = real("loc", 2)
        with pyro.plate("data", len(x)):
            z = label("z", dist.Categorical(simplex("weights", 2)))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, 0] ** 2)

    model = counted(model)
    fit = em(Pair(model), TABLE, max_iters=2, tol=0)
    model.runs = 0
    fit.score()
    assert model.runs == 0
    found = fit.score(TABLE[3:9].clone())
    assert model.runs == 1
    torch.testing.assert_close(found, joint(model, TABLE, fit.params).log_evidence[3:9], **EXACT)


def test_arguments_that_are_gathered_by_row_are_those_of_the_new_rows(tmp_path):
    def model(x):
        loc = real("loc", 4, 2)
        group = x[:, 1].long()
        with pyro.plate("data", len(x)):
            z = label("z", dist.Categorical(simplex("weights", 2)))
            pyro.sample("x", dist.Normal(loc[group, z], 1.0), obs=x[:, 0])

    model = counted(model)
    x = torch.stack([1e3 + TABLE[:, 0], torch.arange(24.0).double() % 4], 1)
    fit = em(Pair(model), x, max_iters=3, tol=0, start={"loc": 1e3 + torch.arange(8.0).reshape(4, 2)})
    model.runs = 0
    new = torch.stack([1e3 + TABLE[:, 1], (torch.arange(24.0).double() + 1) % 4], 1)
    found = fit.score(new)
    assert model.runs == 1
    torch.testing.assert_close(found, joint(model, new, fit.params).log_evidence, **EXACT)
    torch.testing.assert_close(fit.score(new[2:3]), found[2:3], **EXACT)
    fit.save(tmp_path / "run")
    assert torch.equal(zoo.load(tmp_path / "run", pair=Pair(model)).score(x), fit.score())
    assert torch.equal(fit.score(x.clone()), fit.score())


def test_loadings_that_are_gathered_by_row_are_those_of_the_new_rows():
    def model(x):
        loc, load, scale = real("loc", 4, 2), real("load", 2), positive("scale", 2)
        group = x[:, 2].long()
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(loc[group] + u.unsqueeze(-1) * load, scale).to_event(1), obs=x[:, :2])

    x = torch.cat([TABLE[:, :2], torch.arange(24.0).double().unsqueeze(1) % 4], 1)
    fit = em(Pair(model), x, max_iters=5, tol=0)
    new = torch.cat([TABLE[:, :2], (torch.arange(24.0).double().unsqueeze(1) + 1) % 4], 1)  # as many rows, other groups
    load, loc = fit.params["load"], fit.params["loc"]
    covariance = torch.outer(load, load) + torch.diag(fit.params["scale"] ** 2)
    for rows in (x, new, x):
        expected = torch.distributions.MultivariateNormal(loc[rows[:, 2].long()], covariance).log_prob(rows[:, :2])
        torch.testing.assert_close(fit.score(rows.clone()), expected, **EXACT)


def far(rows):
    """Rows beside which any mean is nowhere near the others."""
    return torch.cat([rows, torch.full_like(rows[:1], 1e10)])


@pytest.mark.parametrize(
    "name", ["gaussian_mixture", "factor_analysis", "mixture_of_factor_analyzers", "probabilistic_pca"]
)
def test_the_score_of_a_row_does_not_depend_on_the_rows_beside_it(name, tmp_path):
    x = torch.cat([TABLE, 2 * TABLE.roll(1, 1) - 1, 0.5 * TABLE.roll(1, 0)]) + 100.0
    x = torch.cat([x, x.roll(5, 0) * 0.3 + torch.linspace(0, 1, len(x)).double().unsqueeze(1)], 1)
    fit = zoo.fit(name, x, max_iters=20, tol=0, seed=1)
    fit.save(tmp_path / "run")
    loaded = zoo.load(tmp_path / "run")
    assert torch.equal(zoo.load(tmp_path / "run").score(x), fit.score())
    torch.testing.assert_close(loaded.score(far(x))[:-1], fit.score(), **EXACT)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for one in (fit, loaded, zoo.load(tmp_path / "run")):
        torch.testing.assert_close(one.score(x[order]), fit.score()[order], **EXACT)
        torch.testing.assert_close(one.score(far(x))[:-1], fit.score(), **EXACT)
        alone = torch.cat([one.score(row) for row in x[:9].split(1)])
        torch.testing.assert_close(alone, fit.score()[:9], **EXACT)
        for found, expected in zip(one.latents(far(x)).values(), fit.latents().values(), strict=True):
            pair = [(found, expected)] if isinstance(found, torch.Tensor) else zip(found, expected, strict=True)
            for mine, theirs in pair:
                torch.testing.assert_close(mine[:-1], theirs, rtol=1e-7, atol=1e-7)


def test_a_loaded_fit_is_compiled_at_its_first_verb(tmp_path):
    model = counted(normals)
    em(Pair(model), TABLE, max_iters=3, tol=0).save(tmp_path / "run")
    loaded = zoo.load(tmp_path / "run", pair=Pair(model))
    model.runs = 0
    first = loaded.score(TABLE)
    assert model.runs == 2
    for rows in (TABLE[:1], TABLE[3:], TABLE):
        loaded.score(rows)
        loaded.latents(rows)
        assert model.runs == 2
    torch.testing.assert_close(first, joint(normals, TABLE, loaded.params).log_evidence, **EXACT)


def test_of_one_row_nobody_can_tell_what_depends_on_the_row(tmp_path):
    def model(x):
        loc = real("loc", 3)
        with pyro.plate("data", len(x)):
            z = label("z", dist.Categorical(simplex("weights", 3)))
            pyro.sample("x", dist.Normal(loc[z] * x[:, 1], 1.0), obs=x[:, 0])

    em(Pair(model), TABLE, max_iters=2, tol=0).save(tmp_path / "run")
    loaded = zoo.load(tmp_path / "run", pair=Pair(model))
    expected = joint(model, TABLE, loaded.params).log_evidence
    torch.testing.assert_close(loaded.score(TABLE[:1]), expected[:1], **EXACT)
    torch.testing.assert_close(loaded.score(TABLE), expected, **EXACT)


def test_a_bootstrap_reads_nothing(monkeypatch):
    model = counted(normals)
    fit = em(Pair(model), TABLE, max_iters=3, tol=0)
    model.runs = 0
    fit.param_draws(4, "bootstrap")
    drawing = model.runs
    assert drawing <= 2 * 4  # two to draw each set of rows, none to fit it


def bayesian(x):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = label("z", dist.Categorical(torch.ones(2) / 2))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, 0])


def factors(x):
    loc, load, scale = real("loc", 3), real("load", 3), positive("scale", 3)
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(loc + u.unsqueeze(-1) * load, scale).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("fit", "model", "data", "most"),
    [
        (em, normals, TABLE, 3),  # what it takes for its data, the number of plates, then the structure
        (em, categories, CODES.double().repeat(90, 1), 4),  # and the distinct rows
        (em, factors, TABLE, 8),  # and four times to sum its latents out, once as what is left
        (cavi, bayesian, TABLE, 3),
        (svi, bayesian, TABLE, 5),  # and once to look for networks, once with its checks on
    ],
    ids=["em", "collapsed", "summed out", "cavi", "svi"],
)
def test_a_fit_runs_the_model_a_few_times_however_many_its_steps(fit, model, data, most):
    model = counted(model)
    fit(Pair(model), data, tol=0, progress=False, **{"num_steps" if fit is svi else "max_iters": 30})
    assert model.runs <= most


def test_runs_of_a_guided_fit_are_few():
    model = counted(bayesian)
    fit = svi(Pair(model), TABLE, num_steps=5, tol=0, progress=False)
    model.runs = 0
    first = fit.score()
    fit.latents()
    fit.sample_posterior(3)
    fit.score(TABLE[2:9].clone())
    assert model.runs == 0
    assert torch.equal(first, fit.score())
