r"""Summing normal latents of a row out of a model, where everything that depends on them is linear and Gaussian.

Written as u = m + L e with e standard normal, such a latent makes the mean of what is observed affine in e, and an
affine map is known from its values at 0 and at the unit vectors. So one run of the model, with e standing at all these
points along a dim of its own (as the values of a discrete latent stand in enumeration), tells the whole map; in place
of x given u the model then says x with u summed out (`factor_normal.FactorNormal`). To the engine that is a model like
any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..base.errors import ModelError
from ..trace.handlers import base_of, is_bookkeeping
from ..trace.polynomials import unbroadcast
from ..trace.provenance import plain
from .distribution import FactorNormal

WAY_OUT = 'use inference="svi"'


@dataclass(frozen=True)
class Gather:
    """Cells of one param that an argument of a site is made of."""

    param: str
    cells: Tensor
    by_row: bool = False  # other cells for other rows

    def of(self, values: Mapping[str, Tensor], met: Tensor) -> Tensor:
        """These cells in the shape in which they were met in a run, whose dims of size 1 may stand elsewhere."""
        if met.numel() != self.cells.numel():
            return met
        return values[self.param].reshape(-1)[self.cells.reshape(met.shape)]


@dataclass(frozen=True)
class Marginal:
    """A model with the normal latents of its rows summed out; itself a plain function of the data.

    Attributes
    ----------
    latents : dict
        Name -> its event shape.
    dim : int
        The batch dim, left of all others, along which the points stand.
    gathers : dict
        Site -> argument ("loc", "factor") -> the cells that it was seen to be.
    """

    model: Any
    latents: dict[str, torch.Size]
    dim: int
    gathers: dict[str, dict[str, Gather]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Coordinates of e."""
        return sum(shape.numel() for shape in self.latents.values())

    def __call__(self, data: Any) -> None:
        with SumOut(self):
            self.model(data)

    def maps(self, data: Any) -> dict[str, Tensor]:
        """Values (1 + E, ..., *event) of each latent at the points, as one run of the model under the handlers in force
        has them.
        """
        with SumOut(self) as handler:
            self.model(data)
        return handler.values


def varies_by_row(model: Any) -> bool:
    """Whether which cells an argument is made of was seen row by row, so that on other rows it must be seen again."""
    return isinstance(model, Marginal) and any(g.by_row for own in model.gathers.values() for g in own.values())


class SumOut(Messenger):
    """Put e at its points, and the marginal of x in the place of x."""

    def __init__(self, marginal: Marginal, trial: Tensor | None = None) -> None:
        super().__init__()
        self.marginal, self.trial = marginal, trial
        self.params: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        self.maps: dict[str, tuple[Tensor, Tensor]] = {}  # site -> loc, factor as they were met
        points = torch.cat([torch.zeros(1, marginal.width), torch.eye(marginal.width)])
        self.points = (points if trial is None else torch.cat([points, trial.unsqueeze(0)])).double()

    def _pyro_post_param(self, msg: Any) -> None:
        self.params[msg["name"]] = msg["value"]

    def _pyro_post_sample(self, msg: Any) -> None:
        self.params[msg["name"]] = msg["value"]

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if name in self.marginal.latents:
            msg["value"], msg["done"], msg["stop"] = self._latent(name, fn), True, True
            self.values[name] = msg["value"]
        elif is_bookkeeping(msg):
            if isinstance(msg["value"], Tensor) and self._stands(plain(msg["value"]).shape):
                msg["done"], msg["stop"] = True, True  # computed from e: its posterior is not tabulated
        elif self._stands(fn.batch_shape):
            self._observed(msg)

    def _stands(self, batch_shape: Any) -> bool:
        """Whether a shape has the dim of the points (the dims of events, to its right, are none too many)."""
        return len(batch_shape) >= -self.marginal.dim and batch_shape[self.marginal.dim] == len(self.points)

    def _latent(self, name: str, fn: Any) -> Tensor:
        shape = self.marginal.latents[name]
        start = 0
        for other, size in self.marginal.latents.items():
            if other == name:
                break
            start += size.numel()
        points = self.points[:, start : start + shape.numel()]
        points = points.reshape(len(points), *(1,) * (-self.marginal.dim - 1), *shape)
        base = base_of(fn)
        loc = _lean(base.loc, len(shape))
        if isinstance(base, dist.Normal):
            return loc + self._still(name, "scale", base.scale, len(shape)) * points
        tril = self._still(name, "covariance", base.scale_tril, 2)
        return loc + (tril @ points.unsqueeze(-1)).squeeze(-1)

    def _still(self, site: str, what: str, value: Tensor, inner: int) -> Tensor:
        """An argument that may not depend on the latents, without the dim of the points."""
        dim, value = self.marginal.dim - inner, _lean(value, inner)
        if value.dim() < -dim:
            return value
        if not torch.equal(plain(value), plain(value).narrow(dim, 0, 1).expand(value.shape)):
            raise ModelError(
                f"em: site '{site}' has a {what} that depends on {self._names()}, so it cannot be summed out: {WAY_OUT}"
            )
        return _narrow(value.select(dim, 0), inner)

    def _names(self) -> str:
        return "continuous latent " + ", ".join(f"'{name}'" for name in self.marginal.latents)

    def _observed(self, msg: Any) -> None:
        name, fn, marginal = msg["name"], msg["fn"], self.marginal
        base, inner = base_of(fn), len(fn.event_shape)
        kind = "Normal" if type(base) is dist.Normal else "MultivariateNormal"
        if not msg["is_observed"]:
            raise ModelError(
                f"em: site '{name}' depends on {self._names()}, which can only be summed out of what is observed: "
                f"{WAY_OUT}"
            )
        if type(base) not in (dist.Normal, dist.MultivariateNormal):
            raise ModelError(
                f"em: {self._names()} cannot be summed out: site '{name}' depends on it and is a "
                f"{type(base).__name__}, not a normal whose mean is affine in it: {WAY_OUT}"
            )
        frames = [frame.name for frame in msg["cond_indep_stack"]]
        if inner > 1 or len(frames) > 1 or (kind == "MultivariateNormal" and fn is not base):
            raise ModelError(
                f"em: site '{name}' depends on {self._names()} in batch shape {tuple(fn.batch_shape[-len(frames) :])} "
                f"and event shape {tuple(fn.event_shape)}: to sum it out, observe each row as one vector, "
                f"Normal(...).to_event(1), in the data plate alone, or {WAY_OUT}"
            )
        if self.maps:
            raise ModelError(
                f"em: sites '{next(iter(self.maps))}' and '{name}' both depend on {self._names()}: to sum it out, "
                f"observe them as one vector in one site, Normal(...).to_event(1), or {WAY_OUT}"
            )
        if inner == 0:
            msg["value"] = msg["value"].unsqueeze(-1)
        loc = base.loc if inner else base.loc.unsqueeze(-1)
        loc, factor = self._affine(name, loc)
        self.maps[name] = (loc, factor)
        gathers = marginal.gathers.get(name, {})
        loc = gathers["loc"].of(self.params, loc) if "loc" in gathers else loc
        factor = gathers["factor"].of(self.params, factor) if "factor" in gathers else factor
        if kind == "Normal":
            scale = base.scale if inner else base.scale.unsqueeze(-1)
            noise = {"scale": self._still(name, "scale", scale, 1)}
        else:
            noise = {"noise_tril": self._still(name, "covariance", base.scale_tril, 2)}
        batch = fn.batch_shape[len(fn.batch_shape) + marginal.dim + 1 :]
        while len(batch) > 1 and batch[0] == 1:
            batch = batch[1:]
        msg["fn"] = FactorNormal(loc, factor, **noise).expand(batch)

    def _affine(self, name: str, loc: Tensor) -> tuple[Tensor, Tensor]:
        """loc (..., D) at e = 0, and factor (..., D, E)."""
        dim, width, size = self.marginal.dim - 1, self.marginal.width, loc.shape[-1]
        loc = _lean(loc, 1)
        if loc.dim() < -dim or loc.shape[dim] == 1:  # what depends on the latents is no mean
            return _narrow(loc, 1), torch.zeros(size, width, dtype=loc.dtype)
        zero = loc.narrow(dim, 0, 1)
        slopes = (loc.narrow(dim, 1, width) - zero).movedim(dim, -1)  # (..., D, E)
        origin = zero.squeeze(dim)
        if self.trial is not None:
            met, foretold = loc.select(dim, width + 1), origin + slopes @ self.trial
            room = 1e-8 * (1 + plain(met).detach().abs().max())
            if not bool(((met - foretold).abs() <= room).all()):
                raise ModelError(
                    f"em: {self._names()} cannot be summed out: the mean of site '{name}' is not affine in it (a sum "
                    f"of products of the latent with params, plus what does not depend on it): {WAY_OUT}"
                )
        return _narrow(origin, 1), _narrow(slopes, 2)


def _lean(value: Tensor, inner: int) -> Tensor:
    """A tensor without the copies that `expand` made of its batch."""
    event = value.shape[value.dim() - inner :]
    value = unbroadcast(value)
    return value.expand(*value.shape[: value.dim() - inner], *event)


def _narrow(value: Tensor, inner: int) -> Tensor:
    """A tensor without leading dims of size 1 before its last `inner`."""
    extra = 0
    while extra < value.dim() - inner and value.shape[extra] == 1:
        extra += 1
    return value.reshape(value.shape[extra:]) if extra else value
