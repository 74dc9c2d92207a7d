"""What a model takes: several arguments, a dict, columns by name, fields of any type, rows in a plate of any name."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from latentzoo import Pair, em, zoo
from latentzoo.inference.base.errors import DataError, ModelError, OptionError

torch.manual_seed(0)
X = torch.cat([torch.randn(30), torch.randn(30) + 4]).double()
Y = 2 * X + torch.randn(60).double()
TABLE = torch.stack([X, Y], 1)
FRAME = pd.DataFrame({"x": X.numpy(), "y": Y.numpy()})


def story(x: Tensor, y: Tensor, plate: str = "data") -> None:
    """Two classes of x, and a regression of y on x."""
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([0.0, 3.0]))
    slope = pyro.param("slope", torch.tensor(1.0))
    with pyro.plate(plate, len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def density(x: Tensor, y: Tensor, weights: Any, loc: Any, slope: float) -> Tensor:
    """log p(x_n, y_n), written out."""
    parts = [math.log(w) - 0.5 * (x - m) ** 2 for w, m in zip(weights, loc, strict=True)]
    return torch.stack(parts).logsumexp(0) - 0.5 * (y - slope * x) ** 2 - math.log(2 * math.pi)


class Pairs(NamedTuple):
    x: Tensor
    y: Tensor
    count: int


@dataclass
class Fields:
    x: Tensor
    y: Tensor
    codes: Tensor
    seen: Tensor


def of_fields(data: Fields) -> None:
    assert data.codes.dtype is torch.long
    assert data.seen.dtype is torch.bool
    with poutine.mask(mask=data.seen):
        story(data.x, data.y)


class Module(pyro.nn.PyroModule):
    def forward(self, data: Tensor) -> None:
        story(data[:, 0], data[:, 1])


def of_optional(x: Tensor, y: Tensor | None = None, scale: float = 1.0) -> None:
    assert y is not None
    story(x, y)


def of_three(x: Tensor, y: Tensor, count: int) -> None:
    assert count == 3
    story(x, y)


WAYS: dict[str, tuple[Any, Any]] = {
    "a bare function": (lambda data: story(data[:, 0], data[:, 1]), TABLE),
    "two arguments": (lambda x, y: story(x, y), (X, Y)),
    "two arrays": (lambda x, y: story(x, y), (X.numpy(), Y.numpy())),
    "two Series": (lambda x, y: story(x, y), (FRAME["x"], FRAME["y"])),
    "an argument with a default": (of_optional, (X, Y)),
    "a number beside": (of_three, (X, Y, 3)),
    "an option bound before": (functools.partial(of_three, count=3), (X, Y)),
    "any arguments": (lambda *data: story(*data), (X, Y)),
    "a dict": (lambda data: story(data["x"], data["y"]), {"x": X, "y": Y}),
    "a dict of arguments": (lambda x, y: story(x, y), {"y": Y, "x": X}),
    "columns by item": (lambda data: story(data["x"], data["y"]), FRAME),
    "columns by attribute": (lambda data: story(data.x, data.y), FRAME),
    "several columns at once": (lambda data: story(*data[["x", "y"]].unbind(-1)), FRAME),
    "columns by place": (lambda data: story(data[:, 0], data[:, 1]), FRAME),
    "a NamedTuple": (lambda data: story(data.x, data.y), Pairs(X, Y, 3)),
    "fields of all types": (of_fields, Fields(X, Y, torch.arange(60), X > -10)),
    "a module": (Module(), TABLE),
    "another name of the plate": (lambda data: story(data[:, 0], data[:, 1], "documents"), TABLE),
    "another name, two arguments": (lambda x, y: story(x, y, "documents"), (X, Y)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_takes_its_data_as_it_likes(way: str) -> None:
    model, data = WAYS[way]
    begun = em(model, data, max_iters=0, tol=0)
    torch.testing.assert_close(begun.score(), density(X, Y, (0.4, 0.6), (0.0, 3.0), 1.0), rtol=0, atol=1e-10)
    fit = zoo.fit(model, data)
    assert fit.inference == "em"
    found = density(X, Y, fit.params["weights"].tolist(), fit.params["loc"].tolist(), float(fit.params["slope"]))
    torch.testing.assert_close(fit.score(), found, rtol=0, atol=1e-10)
    assert fit.params["slope"].item() == pytest.approx(float((X * Y).sum() / (X * X).sum()), abs=1e-9)


@pytest.mark.parametrize("way", ["two arguments", "a dict", "columns by item", "another name of the plate"])
def test_verbs_take_new_data_in_the_same_form(way: str, tmp_path: Any) -> None:
    model, data = WAYS[way]
    fit = zoo.fit(model, data)
    fit.save(tmp_path / "run")
    again = zoo.load(tmp_path / "run", pair=Pair(model))
    few: Any
    if isinstance(data, tuple):
        few = tuple(part[:5] for part in data)
    elif isinstance(data, dict):
        few = {name: part[:5] for name, part in data.items()}
    else:
        few = data[:5]
    torch.testing.assert_close(again.score(few), fit.score()[:5])
    assert again.latents(few)["z"].shape == (5, 2)
    made = fit.generate(3)
    assert len(made["x"] if not isinstance(made, Tensor) else made) == 3


def test_svi_and_guides_take_arguments_too() -> None:
    def guide(x: Tensor, y: Tensor) -> None:
        pass

    fit = zoo.fit(Pair(lambda x, y: story(x, y), guide), (X, Y), num_steps=20, tol=0, progress=False)
    assert fit.inference == "svi"


def test_the_plate_of_the_rows_is_named_where_two_could_be() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("first", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        with pyro.plate("second", len(x)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(ModelError, match=r"plates 'first', 'second' are all as large as the data: .*rows='first'"):
        zoo.fit(model, X)
    fit = zoo.fit(model, X, inference="em", rows="first", max_iters=0, tol=0)
    assert fit.num_rows == 60


def test_what_does_not_fit_is_said() -> None:
    model, data = WAYS["columns by item"]
    fit = zoo.fit(model, data)
    with pytest.raises(DataError, match="expected a DataFrame as in training"):
        fit.score(np.ones((3, 2)))
    two = zoo.fit(*WAYS["two arguments"])
    with pytest.raises(DataError, match="expected a tuple of the model's arguments"):
        two.score(TABLE)
    with pytest.raises(OptionError, match="met a int, expected a model"):
        zoo.fit(3, TABLE)  # type: ignore[arg-type]
