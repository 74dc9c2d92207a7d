"""Models as users write them, never registered: small, with data drawn for them. Each is a story of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

POSITIVE, UNIT, DEFINITE = constraints.positive, constraints.unit_interval, constraints.positive_definite
ENUMERATE = {"enumerate": "parallel"}
K = 2  # values of most latents


class Regression(NamedTuple):
    x: Tensor  # (N, D), the first column is 1
    y: Tensor  # (N,)


class Story(NamedTuple):
    model: Callable[[Any], None]
    data: Any


STORIES: dict[str, Story] = {}
SMOOTH: set[str] = set()  # stories with a param that has no closed form
PRIORS: set[str] = set()  # stories with latents that all rows share


def story(data: Any, smooth: bool = False, prior: bool = False) -> Callable[[Any], Any]:
    def enter(model: Callable[[Any], None]) -> Callable[[Any], None]:
        STORIES[model.__name__] = Story(model, data)
        SMOOTH.update([model.__name__] if smooth else [])
        PRIORS.update([model.__name__] if prior else [])
        return model

    return enter


def _draw() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = 24
        group = torch.arange(rows) % 2
        table = torch.randn(rows, 3).double() + 2.0 * group.unsqueeze(-1) * torch.tensor([1.0, -1.0, 0.5])
        counts = torch.poisson(torch.tensor([[1.0, 4.0, 2.0], [5.0, 1.0, 3.0]])[group]).double()
        codes = torch.randint(0, 3, (rows, 3))
        codes[group == 0, 0] = 0
        cube = torch.randn(6, 2, 2).double() + torch.randn(6, 1, 1)
        return {"table": table, "counts": counts, "codes": codes, "cube": cube}


_DATA = _draw()
TABLE, COUNTS, CODES, CUBE = _DATA["table"], _DATA["counts"], _DATA["codes"], _DATA["cube"]
COLUMN, SIGNS = TABLE[:, 0], (TABLE > 0).double()
XY = Regression(torch.stack([torch.ones(len(TABLE)).double(), TABLE[:, 1]], 1), TABLE[:, 0] * TABLE[:, 1])


def simplex(name: str, *shape: int) -> Tensor:
    return pyro.param(name, torch.ones(*shape) / shape[-1], constraint=constraints.simplex)


def real(name: str, *shape: int) -> Tensor:
    return pyro.param(name, torch.linspace(-1, 1, max(1, torch.Size(shape).numel())).reshape(shape))


def positive(name: str, *shape: int) -> Tensor:
    return pyro.param(name, torch.ones(shape), constraint=POSITIVE)


def definite(name: str, *shape: int) -> Tensor:
    size = shape[-1]
    return pyro.param(name, torch.eye(size).expand(*shape, size).clone(), constraint=DEFINITE)


def unit(name: str, *shape: int) -> Tensor:
    return pyro.param(name, torch.full(shape, 0.5), constraint=UNIT)


def label(name: str, fn: Any) -> Tensor:
    return pyro.sample(name, fn, infer=ENUMERATE)


def mixture(data: Any, site: Callable[[Tensor], Any], weights: Tensor | None = None) -> None:
    """One latent z of K values, and a site of the data given z."""
    weights = simplex("weights", K) if weights is None else weights
    with pyro.plate("data", len(data)):
        pyro.sample("x", site(label("z", dist.Categorical(weights))), obs=data)
