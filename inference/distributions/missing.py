"""Missing cells: NaN in an observed value is marginalised exactly, by one handler, for every model.

NaN is filled before anything is computed, and the filled cells take no part, so no gradient meets a NaN (pyro#2447).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import singledispatch
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..base.errors import ModelError
from ..trace.handlers import base_of


@singledispatch
def marginal_log_prob(fn: Any, value: Tensor, observed: Tensor) -> Tensor:
    """log density of the observed cells of `value`; the others are integrated out.

    Parameters
    ----------
    value : Tensor
        Event-shaped values without NaN.
    observed : Tensor of bool
        Like `value`.
    """
    log_prob = fn.log_prob(value)
    if fn.event_dim == 0:
        return torch.where(observed, log_prob, 0.0)
    whole, some = observed.flatten(-fn.event_dim).all(-1), observed.flatten(-fn.event_dim).any(-1)
    if (whole != some).any():
        raise ModelError(
            f"{type(fn).__name__} has events with only some cells missing, and no rule for their marginal density: "
            f"give whole rows, or whole rows of NaN"
        )
    return torch.where(whole, log_prob, 0.0)


@marginal_log_prob.register(dist.Independent)
def _(fn: Any, value: Tensor, observed: Tensor) -> Tensor:
    inner = marginal_log_prob(fn.base_dist, value, observed)
    return inner.flatten(inner.dim() - fn.reinterpreted_batch_ndims).sum(-1) if fn.reinterpreted_batch_ndims else inner


class ObservedPart(NamedTuple):
    """What the observed cells of each row of vectors say, under a location and a covariance."""

    distance: Tensor  # (...) squared Mahalanobis distance of the observed cells
    log_det: Tensor  # (...) of the Cholesky factor of their covariance
    white: Tensor  # (..., D) deviations divided by that factor, 0 where missing
    tril: Tensor  # (..., D, D) that factor, with unit, independent variance where missing


def observed_part(value: Tensor, observed: Tensor, loc: Tensor, covariance: Tensor) -> ObservedPart:
    """Row by row: the unseen cells are given unit, independent variance and no deviation."""
    both = observed.unsqueeze(-1) & observed.unsqueeze(-2)
    eye = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
    tril = torch.linalg.cholesky(torch.where(both, covariance, eye) if not observed.all() else covariance)
    deviation = torch.where(observed, value - loc, 0.0)
    white = torch.linalg.solve_triangular(tril, deviation.unsqueeze(-1), upper=False).squeeze(-1)
    return ObservedPart((white**2).sum(-1), tril.diagonal(dim1=-2, dim2=-1).log().sum(-1), white, tril)


def complete(
    value: Tensor, observed: Tensor, loc: Tensor, covariance: Tensor, part: ObservedPart
) -> tuple[Tensor, ...]:
    """Vectors (..., D) with missing cells at their linear regression on the others, and the covariance (..., D, D)
    that is left of them, 0 elsewhere.
    """
    if observed.all():
        return value, torch.zeros_like(covariance)
    between = covariance * observed.unsqueeze(-2)  # columns of the observed cells
    root = torch.linalg.solve_triangular(part.tril, between.mT, upper=False)  # (..., D, D)
    expected = loc + (root.mT @ part.white.unsqueeze(-1)).squeeze(-1)
    unseen = ~observed.unsqueeze(-1) & ~observed.unsqueeze(-2)
    return torch.where(observed, value, expected), torch.where(unseen, covariance - root.mT @ root, 0.0)


@marginal_log_prob.register(dist.MultivariateNormal)
@marginal_log_prob.register(dist.LowRankMultivariateNormal)
def _(fn: Any, value: Tensor, observed: Tensor) -> Tensor:
    part = observed_part(value, observed, fn.loc, fn.covariance_matrix)
    return -0.5 * part.distance - part.log_det - 0.5 * observed.sum(-1) * math.log(2 * math.pi)


@marginal_log_prob.register(dist.MultivariateStudentT)
def _(fn: Any, value: Tensor, observed: Tensor) -> Tensor:
    """The margin of a t is a t of the same degrees of freedom."""
    part, count, df = observed_part(value, observed, fn.loc, fn.covariance_matrix), observed.sum(-1), fn.df
    kernel = -0.5 * (df + count) * torch.log1p(part.distance / df)
    constant = torch.lgamma(0.5 * (df + count)) - torch.lgamma(0.5 * df) - 0.5 * count * (df * math.pi).log()
    return kernel + constant - part.log_det


class PartlyObserved(TorchDistribution):
    """A distribution met with values that have missing cells; scores the observed ones."""

    def __init__(self, fn: Any, observed: Tensor) -> None:
        self.fn, self.observed = fn, observed
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.fn.support

    def log_prob(self, value: Tensor) -> Tensor:
        return marginal_log_prob(self.fn, value, self.observed)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.fn.rsample(sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.fn.sample(sample_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PartlyObserved:
        return PartlyObserved(self.fn.expand(batch_shape), self.observed)


class Missing(Messenger):
    """At each observed site with NaN: fill the cells, score the rest.

    With `look` sites whose cells are all there are left as they are; without, no values are looked at.
    """

    def __init__(self, look: bool = True) -> None:
        super().__init__()
        self.look = look

    def _pyro_sample(self, msg: dict) -> None:
        value = msg["value"]
        if not msg["is_observed"] or value is None or not value.is_floating_point():
            return
        observed = ~value.isnan()
        if self.look and observed.all():
            return
        msg["value"] = torch.where(observed, value, filler(msg["fn"]).to(value))
        msg["fn"] = PartlyObserved(msg["fn"], observed)


def filler(fn: Any) -> Tensor:
    """A value inside the support, broadcastable to the event."""
    fn = base_of(fn)
    for number in (0.0, 0.5, 1.0):
        value = torch.full(fn.event_shape, number)
        if fn.support.check(value).all():
            return value
    return fn.sample()


def scoring(has_missing: bool) -> AbstractContextManager[Any]:
    """Score missing cells where the data have any."""
    return Missing() if has_missing else nullcontext()
