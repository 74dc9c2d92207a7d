"""Quantities that a model computes from the latents of a row: `pyro.deterministic` inside the data plate."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import joint
from stories.base import COLUMN, TABLE, label, positive, real, simplex

from latentzoo import Pair, em
from latentzoo.inference.base.errors import DataError
from latentzoo.inference.io.report import write_report
from latentzoo.inference.program.deterministic import Moments

EXACT = dict(rtol=1e-9, atol=1e-11)
NODES = torch.tensor([-1.5, 0.0, 2.0])


def of_two(x):
    """Numbers and vectors, of one latent, of both, of the row beside them, with and without `event_dim`."""
    first, second, loc, scale = simplex("first", 3), simplex("second", 2), real("loc", 3, 2), positive("scale")
    with pyro.plate("data", len(x)):
        a, b = label("a", dist.Categorical(first)), label("b", dist.Categorical(second))
        pyro.deterministic("one", NODES[b])
        mean = pyro.deterministic("both", loc[a, b])
        pyro.deterministic("pair", loc[a])
        pyro.deterministic("said", loc[a], event_dim=1)
        pyro.deterministic("gap", x[:, 0] - mean, event_dim=0)
        pyro.deterministic("whole", a + 2 * b)
        pyro.deterministic("row", x[:, 0] ** 2)
        pyro.sample("x", dist.Normal(mean, scale), obs=x[:, 0])


def expected_of_two(x, values):
    """The same quantities at each configuration, by the row: (C, N, ...)."""
    found, loc = joint(of_two, x, values), values["loc"]
    a, b = (torch.stack([c[name] for c in found.configurations]).long() for name in ("a", "b"))
    ones = torch.ones(len(x)).double()
    by_configuration = {"one": NODES[b].double(), "both": loc[a, b], "pair": loc[a], "said": loc[a], "whole": a + 2 * b}
    out = {name: torch.einsum("c...,n->cn...", value.double(), ones) for name, value in by_configuration.items()}
    out["gap"] = x[:, 0] - out["both"]
    out["row"] = (x[:, 0] ** 2).expand(len(a), -1)
    return found.posterior, out


def two(rows=8, iters=3):
    x = TABLE[:rows]
    fit = em(Pair(of_two), x, max_iters=iters, tol=0)
    return x, fit, *expected_of_two(x, fit.params)


def test_posterior_means_and_deviations_are_sums_over_every_configuration():
    x, fit, posterior, values = two()
    found = fit.latents(x)
    assert list(found)[:2] == ["a", "b"]
    for name, value in values.items():
        weights = posterior.reshape(*posterior.shape, *(1,) * (value.dim() - 2))
        mean = (weights * value).sum(0)
        assert isinstance(found[name], Moments)
        torch.testing.assert_close(found[name].mean, mean, **EXACT)
        torch.testing.assert_close(found[name].sd, (weights * (value - mean) ** 2).sum(0).sqrt(), **EXACT)


def test_draws_are_computed_from_the_draws_of_the_latents():
    x, fit, _, _ = two()
    drawn = fit.sample_posterior(50, x)
    a, b = drawn["a"], drawn["b"]
    torch.testing.assert_close(drawn["one"], NODES[b].double())
    torch.testing.assert_close(drawn["both"], fit.params["loc"][a, b])
    assert drawn["pair"].shape == (50, 8, 2)
    torch.testing.assert_close(drawn["pair"], fit.params["loc"][a])
    torch.testing.assert_close(drawn["gap"], x[:, 0] - drawn["both"])
    torch.testing.assert_close(drawn["row"], (x[:, 0] ** 2).expand(50, -1))


def test_chunks_of_rows_give_the_same(monkeypatch):
    x, fit, _, _ = two(rows=24)
    whole = fit.latents(x)
    monkeypatch.setattr("latentzoo.inference.program.program.Program.chunk_size", lambda self, params: 5)
    for name, part in fit.latents(x).items():
        for one, other in zip(part, whole[name], strict=True):
            torch.testing.assert_close(one, other, **EXACT)


def test_a_quantity_of_a_latent_in_a_plate_inside_the_rows():
    def model(x):
        top, inner, loc = simplex("top", 2), simplex("inner", 2, 3), real("loc", 3)
        with pyro.plate("data", len(x), dim=-2):
            z = label("z", dist.Categorical(top))
            with pyro.plate("items", 3, dim=-1):
                c = label("c", dist.Categorical(inner[z]))
                pyro.deterministic("node", NODES[c])
                pyro.deterministic("mixed", NODES[c] * (1.0 + z))
                pyro.sample("x", dist.Normal(loc[c], 1.0), obs=x)

    fit = em(Pair(model), TABLE[:4], max_iters=2, tol=0)
    found, expected = fit.latents(), joint(model, TABLE[:4], fit.params)
    nodes = torch.stack([NODES.double()[c["c"].long()] for c in expected.configurations])  # (C, 3)
    z = torch.stack([c["z"] for c in expected.configurations]).double().unsqueeze(-1)
    for name, value in (("node", nodes), ("mixed", nodes * (1 + z))):
        mean = expected.posterior.mT @ value
        square = expected.posterior.mT @ value**2
        torch.testing.assert_close(found[name].mean, mean, **EXACT)
        torch.testing.assert_close(found[name].sd, (square - mean**2).sqrt(), rtol=1e-6, atol=1e-8)


def on_nodes(x):
    loc = real("loc", 3)
    with pyro.plate("data", len(x)):
        z = label("z", dist.Categorical(torch.ones(3) / 3))
        pyro.deterministic("ability", NODES[z])
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def test_every_verb_knows_it(tmp_path):
    fit = em(Pair(on_nodes), COLUMN, max_iters=5, tol=0)
    ability = fit.latents()["ability"]
    assert torch.equal(fit.clusters(), fit.latents()["z"].argmax(-1))
    with pytest.raises(DataError, match=r"'ability' is computed from latents.*sample_posterior"):
        fit.posterior("ability")
    opened = fit.to_arviz(draws="laplace", num_draws=400).posterior["ability"]
    assert opened.dims == ("chain", "draw", "data")
    error = ability.sd.numpy().max() / 20
    np.testing.assert_allclose(opened.values[0].mean(0), ability.mean.numpy(), atol=8 * error)
    assert set(np.unique(opened.values)) <= set(NODES.double().tolist())
    write_report(fit, tmp_path / "run", ["bound"])
    table = pd.read_csv(tmp_path / "run" / "latents.csv")
    np.testing.assert_allclose(table["ability_mean"], ability.mean.numpy())
    np.testing.assert_allclose(table["ability_sd"], ability.sd.numpy())
    assert {"z", "z=0", "z=2"} < set(table.columns)


def test_what_lies_outside_the_data_plate_is_no_latent_of_a_row():
    def model(x):
        loc = real("loc", 2)
        pyro.deterministic("gap", loc[1] - loc[0])
        with pyro.plate("data", len(x)):
            z = label("z", dist.Categorical(simplex("weights", 2)))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    assert list(em(Pair(model), COLUMN, max_iters=1, tol=0).latents()) == ["z"]


def test_a_model_without_latents_still_tells_what_it_computed():
    def model(x):
        loc = real("loc")
        with pyro.plate("data", len(x)):
            pyro.deterministic("away", x - loc)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    fit = em(Pair(model), COLUMN, max_iters=2, tol=0)
    away = fit.latents()["away"]
    torch.testing.assert_close(away.mean, COLUMN - fit.params["loc"])
    assert (away.sd == 0).all()
    torch.testing.assert_close(fit.sample_posterior(3)["away"], away.mean.expand(3, -1))
