"""Pyro's autoguides, as a guide of a pair or of `svi`."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor

from latentzoo import Pair, svi, zoo
from latentzoo.inference.base.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore::latentzoo.inference.base.errors.ConvergenceWarning")

torch.manual_seed(0)
X = 3 + 1.5 * torch.randn(40).double()
# a normal mean with a normal prior, and known spread: posterior and evidence in closed form
PRECISION = 1 / 25 + 40 / 1.5**2
MEAN, SD = float(X.sum() / 1.5**2 / PRECISION), PRECISION**-0.5
EVIDENCE = float(
    dist.MultivariateNormal(torch.zeros(40).double(), 2.25 * torch.eye(40).double() + 25).log_prob(X.double())
)


def conjugate(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.5), obs=x)


def spread(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    s = pyro.sample("s", dist.HalfNormal(2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, s), obs=x)


def rows(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(m, 1.0))
        pyro.sample("x", dist.Normal(u, 1.0), obs=x)


def mixture(x: Tensor) -> None:
    w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
    m = pyro.sample("m", dist.Normal(torch.tensor([0.0, 4.0]), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(m[z], 1.0), obs=x)


def two_arguments(x: Tensor, scale: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, scale), obs=x)


def fitted(model: Any, guide: Any, data: Any = X, **options: Any) -> Any:
    return svi(Pair(model, guide), data, num_steps=4000, progress=False, **options)


NORMAL = (AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal)


@pytest.mark.parametrize("kind", NORMAL)
def test_a_normal_autoguide_meets_the_posterior(kind: Any) -> None:
    fit = fitted(conjugate, kind(conjugate))
    assert float(fit.history[-1]) == pytest.approx(EVIDENCE, abs=0.02)
    draws = fit.shared_draws(4000)["m"]
    assert draws.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert draws.std().item() == pytest.approx(SD, rel=0.08)


def test_a_point_is_the_joint_mode() -> None:
    fit = fitted(conjugate, AutoDelta(conjugate))
    assert fit.params["m"].item() == pytest.approx(MEAN, abs=1e-4)


@pytest.mark.parametrize("kind", NORMAL)
def test_constrained_latents_and_every_verb(kind: Any, tmp_path: Any) -> None:
    derived = svi(Pair(spread), X, guide="mean_field", progress=False)
    fit = fitted(spread, kind(spread))
    assert float(fit.history[-1]) == pytest.approx(float(derived.history[-1]), abs=0.1)
    assert fit.score().shape == (40,)
    assert fit.sample_posterior(7)["s"].shape == (7,)
    assert (fit.shared_draws(50)["s"] > 0).all()
    assert len(fit.generate(3)) == 3
    fit.save(tmp_path / "run")
    again = zoo.load(tmp_path / "run", pair=Pair(spread, kind(spread)))
    torch.testing.assert_close(again.score(X), fit.score(), rtol=0, atol=1e-9)


def test_latents_of_rows() -> None:
    exact = dist.MultivariateNormal(torch.zeros(40).double(), 2 * torch.eye(40).double() + 25).log_prob(X.double())
    fit = fitted(rows, AutoNormal(rows))
    assert float(fit.history[-1]) < float(exact) + 0.05
    assert fit.latents()["u"].mean.shape == (40,)


def test_discrete_latents_are_hidden_as_pyro_asks() -> None:
    derived = svi(Pair(mixture), X, progress=False)
    fit = fitted(mixture, AutoNormal(poutine.block(mixture, hide=["z"])))
    assert float(fit.history[-1]) == pytest.approx(float(derived.history[-1]), abs=0.1)
    assert fit.latents()["z"].shape == (40, 2)


def test_guides_of_some_latents_side_by_side() -> None:
    guide = AutoGuideList(spread)
    guide.append(AutoNormal(poutine.block(spread, hide=["s"])))
    guide.append(AutoDelta(poutine.block(spread, hide=["m"])))
    fit = fitted(spread, guide)
    assert fit.params["s"].item() == pytest.approx(float(X.std()), rel=0.1)


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
def test_given_as_an_option_with_several_arguments(kind: Any) -> None:
    data = (X, torch.full((40,), 1.5).double())
    fit = zoo.fit(two_arguments, data, inference="svi", guide=kind(two_arguments), num_steps=4000, progress=False)
    assert float(fit.history[-1]) == pytest.approx(EVIDENCE, abs=0.02)


@pytest.mark.parametrize("kind", [AutoIAFNormal, AutoLaplaceApproximation])
def test_other_families_are_refused_by_name(kind: Any) -> None:
    with pytest.raises(ModelError, match=f"guide: {kind.__name__} is not fitted here: use one of AutoDelta"):
        fitted(spread, kind(spread))


def test_a_guide_that_leaves_latents_out_is_refused() -> None:
    for kind in (AutoNormal, AutoMultivariateNormal):
        with pytest.raises(ModelError, match="guide: it does not sample 's', a latent of the model"):
            fitted(spread, kind(poutine.block(spread, hide=["s"])))
