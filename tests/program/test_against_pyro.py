"""The witness that fits are held against: right by brute force and closed forms, and not to be fooled."""

import ast
import math
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from latentzoo import Pair, em, zoo
from latentzoo.inference.base.errors import ModelError
from latentzoo.inference.program import against_pyro, objective, program, sites
from latentzoo.inference.program.against_pyro import Unchecked, Witness, log_density
from latentzoo.inference.program.compiler import compile_program
from latentzoo.inference.trace.handlers import engine_state
from latentzoo.inference.trace.structure import read

pytestmark = pytest.mark.filterwarnings("error")
ENUM = {"enumerate": "parallel"}
NAN = float("nan")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(model, data, **values):
    with engine_state(0), torch.no_grad():
        return log_density(model, data, {n: torch.as_tensor(v, dtype=torch.float64) for n, v in values.items()})


# --- what Pyro's account is -------------------------------------------------------------------------------------------


def chain(x):
    step = pyro.param("step", torch.tensor([[0.6, 0.4], [0.3, 0.7]]), constraint=constraints.simplex)
    with pyro.plate("data", len(x)):
        z = 0
        for t in pyro.markov(range(4)):
            z = pyro.sample(f"z{t}", dist.Categorical(step[z]), infer=ENUM)
            pyro.sample(f"x{t}", dist.Normal(3.0 * z, 1.0), obs=x[:, t])


def test_a_markov_chain_is_the_forward_algorithm():
    x, step = draw(5, 4), torch.tensor([[0.6, 0.4], [0.3, 0.7]]).double()
    emit = dist.Normal(torch.tensor([0.0, 3.0]).double(), 1.0).log_prob(x[:, :, None]).exp()
    alpha = step[0] * emit[:, 0]
    for t in range(1, 4):
        alpha = (alpha @ step) * emit[:, t]
    assert of(chain, x, step=step).log_prob == pytest.approx(alpha.sum(1).log().sum().item())


def mixture(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer=ENUM)
        loc = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, -1.0]])[z]
        pyro.sample("x", dist.MultivariateNormal(loc, 0.5 + torch.eye(3)), obs=x)


def test_missing_cells_of_vectors_are_the_margin():
    x = draw(4, 3)
    x[0, 1] = x[2, 0] = x[2, 2] = NAN
    right = 0.0
    for row in x:
        seen = ~row.isnan()
        cov = (0.5 + torch.eye(3).double())[seen][:, seen]
        locs = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, -1.0]]).double()[:, seen]
        each = dist.MultivariateNormal(locs, cov).log_prob(row[seen])
        right += (each + torch.tensor([0.3, 0.7]).double().log()).logsumexp(0).item()
    assert of(mixture, x).log_prob == pytest.approx(right)


def factors(x):
    load = torch.tensor([[1.0, 0.5, -1.0]])
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(u @ load, 0.7).to_event(1), obs=x)


def test_normal_latents_are_integrated():
    x, load = draw(6, 3), torch.tensor([[1.0, 0.5, -1.0]]).double()
    cov = load.mT @ load + 0.49 * torch.eye(3).double()
    right = dist.MultivariateNormal(torch.zeros(3).double(), cov).log_prob(x).sum().item()
    assert of(factors, x).log_prob == pytest.approx(right)


def test_normal_latents_are_integrated_beside_discrete_ones():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer=ENUM)
            u = pyro.sample("u", dist.Normal(2.0 * z, 1.0))
            pyro.sample("x", dist.Normal(u, 0.5), obs=x)

    x = draw(6)
    each = dist.Normal(torch.tensor([0.0, 2.0]).double(), 1.25**0.5).log_prob(x[:, None])
    right = (each + torch.tensor([0.3, 0.7]).double().log()).logsumexp(1).sum().item()
    assert of(model, x).log_prob == pytest.approx(right)


def test_what_is_not_normal_is_not_integrated():
    def model(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(u**2, 0.5), obs=x)

    with pytest.raises(Unchecked, match="not jointly normal"):
        of(model, draw(4))


def regression(d):
    with pyro.plate("data", len(d)):
        x = pyro.sample("x", dist.Normal(1.0, 2.0), obs=d[:, 0])
        pyro.sample("y", dist.Normal(0.5 + 1.5 * x, 1.0), obs=d[:, 1])


def test_a_gap_in_a_value_that_is_used_again_is_integrated():
    d = draw(5, 2)
    d[2, 0] = NAN
    whole = ~d[:, 0].isnan()
    right = (
        dist.Normal(1.0, 2.0).log_prob(d[whole, 0]).sum()
        + dist.Normal(0.5 + 1.5 * d[whole, 0], 1.0).log_prob(d[whole, 1]).sum()
    )
    right = right + dist.Normal(2.0, 10**0.5).log_prob(d[2, 1])
    found = of(regression, d)
    assert found.log_prob == pytest.approx(right.item())
    assert found.used == ["x"]


# --- what it refuses --------------------------------------------------------------------------------------------------


def clusters(x):
    w = pyro.param("w", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w), infer=ENUM)
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_a_site_that_is_scored_wrongly_ends_the_fit(monkeypatch, inference):
    """The engine's base measure of normal sites is made wrong by a thousandth of a nat."""
    right = sites.Site.base_measure
    monkeypatch.setattr(sites.Site, "base_measure", lambda *given: right(*given) + 1e-3)
    with pytest.raises(ModelError, match=r"not read rightly.*site 'x' is -\d+\.\d+ here and -\d+\.\d+ there"):
        zoo.fit(Pair(clusters), draw(50), inference=inference, progress=False)


def test_a_sum_over_latents_that_is_wrong_ends_the_fit(monkeypatch):
    right = program.log_evidence
    monkeypatch.setattr(program, "log_evidence", lambda factors, order: right(factors, order) + 1e-3)
    with pytest.raises(ModelError, match="each of 'z', 'x' agrees by itself"):
        em(Pair(clusters), draw(50), progress=False)


def test_it_shares_no_code_with_what_it_checks():
    """Of the project it takes errors, random numbers and the slicing of data."""
    tree = ast.parse(Path(against_pyro.__file__).read_text())
    own = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    assert own == {"base.errors", "base.rng", "data.structures"}


def test_rows_taken_at_random_are_refused():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x), subsample_size=20) as rows:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])

    with pytest.raises(ModelError, match=r"20 of its 100 .*batch_size=20"):
        em(Pair(model), draw(100), progress=False)


# --- what it does not refuse ------------------------------------------------------------------------------------------


def test_rows_that_lean_on_one_another_are_compared_together():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x - x.mean())

    fit = em(Pair(model), draw(100), progress=False)
    assert not fit.unchecked


def test_a_plate_of_fixed_size_is_compared_as_a_whole():
    scale = 1 + torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", 30):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    assert not em(Pair(model), draw(30), progress=False).unchecked


def test_a_fit_that_could_not_be_compared_says_so(monkeypatch):
    def unable(*_: object) -> None:
        raise Unchecked("for a reason")

    monkeypatch.setattr(against_pyro, "log_density", unable)
    fit = em(Pair(clusters), draw(50), progress=False)
    assert fit.unchecked == "for a reason"
    assert "not checked against Pyro: for a reason" in repr(fit)
    assert "converged" not in repr(fit)
    assert "NOT checked against Pyro: for a reason" in fit.summary()
    assert "converged" not in fit.summary().split("distinct")[0]
    assert fit.score_kind != "exact"


def test_it_leaves_random_numbers_as_they_were():
    with engine_state(0):
        witness = Witness("em", clusters, draw(50), lambda rows, values: 0.0, 50)
        before = torch.random.get_rng_state()
        with pytest.raises(ModelError):
            witness.compare("start", {"w": torch.tensor([0.5, 0.5]), "loc": draw(2)})
        assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("rows", [1_000, 300_000])
def test_it_costs_milliseconds_at_any_number_of_rows(rows):
    x = draw(rows)
    with engine_state(0):
        values = {"w": torch.tensor([0.5, 0.5]), "loc": torch.tensor([-1.0, 1.0])}
        witness = objective.witness("em", clusters, compile_program(clusters, x, read(clusters, x)))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            assert witness.compare("start", values) == ""
            times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_numbers_that_are_steep_are_no_difference():
    """Far out in a density rounding of the params alone moves it."""
    x = torch.tensor([1e8, 1e8 + 1, 1e8 + 2], dtype=torch.float64)

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1e-3), obs=x)

    assert not em(Pair(model), x, progress=False).unchecked
    assert math.isfinite(em(Pair(model), x, progress=False).log_likelihood)
