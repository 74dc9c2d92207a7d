r"""Exponential families: log p(x | a) = log h(x) + t(x) . eta(a) - A(a).

Written once per family, by dispatch on the distribution's class. The engine never asks what a site is, only for its
statistics t(x), its natural parameters eta and A, and for the ratio of two sums that maximises the expected log density
in one argument while the others stay as they are (Dempster, Laird and Rubin 1977; Meng and Rubin 1993).
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import clamp_probs, logits_to_probs, probs_to_logits

from .symbols import provenance

Args = dict[str, Tensor]
LOG_2PI = math.log(2 * math.pi)


class Ratio(NamedTuple):
    """A maximiser as a ratio of two sums, which add up over rows, sites, tied cells and conjugate priors."""

    kind: str  # the objective that num / den maximises; only ratios of one kind may be pooled (see `mstep.LINKS`)
    num: Tensor
    den: Tensor


class Family:
    """An exponential family.

    Shapes: values (*event, *batch) and statistics (T, *batch), batch last, so that rows lie contiguous; arguments
    (*batch, *event of the argument), eta (*batch, T) and A (*batch).
    """

    arguments: dict[str, int] = {}  # name -> event dims of the argument; alternatives are resolved by `read`
    order: tuple[str, ...] = ()  # arguments with a closed-form maximiser, in the order of their updates
    event_dim = 0
    location: str | None = None  # the argument that moves with the data: the engine centres x by it
    spread: tuple[str, ...] = ()  # arguments that would collapse on a constant column
    fixed: tuple[str, ...] = ()  # arguments that log h(x) depends on

    def read(self, fn: dist.Distribution) -> dict[str, tuple[Tensor, int]]:
        """The arguments a distribution was built with: name -> (tensor, its event dims)."""
        found = {name: (getattr(fn, name), dim) for name, dim in self.arguments.items() if name in fn.__dict__}
        if "probs" in found and "logits" in found:  # torch has computed one from the other: keep what was given
            known = provenance(found["probs"][0])
            del found["logits" if known is not None and known.index is not None else "probs"]
        return found

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        raise NotImplementedError

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def statistics_last(self, value: Tensor, args: Args) -> Tensor:
        """Statistics (*batch, T) of values (*batch, *event)."""
        if self.event_dim:
            value = value.movedim(-1, 0)
        return self.statistics(value, args).movedim(0, -1)

    def base(self, value: Tensor, args: Args) -> Tensor | float:
        return 0.0

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        raise NotImplementedError


class NormalFamily(Family):
    arguments = {"loc": 0, "scale": 0}
    order = ("loc", "scale")
    location = "loc"
    spread = ("scale",)

    def statistics(self, value, args):
        return torch.stack([value, value * value])

    def natural(self, args):
        loc, precision = args["loc"], args["scale"] ** -2
        log_normalizer = 0.5 * precision * loc**2 + args["scale"].log() + 0.5 * LOG_2PI
        eta = torch.stack(torch.broadcast_tensors(precision * loc, -0.5 * precision), -1)
        return eta, log_normalizer

    def ratio(self, name, args, s1, s0):
        if name == "loc":
            precision = args["scale"] ** -2
            return Ratio("mean", precision * s1[..., 0], precision * s0)
        loc = args["loc"]
        return Ratio("scale", s1[..., 1] - 2 * loc * s1[..., 0] + loc**2 * s0, s0)


class LogNormalFamily(NormalFamily):
    def read(self, fn):
        return {"loc": (fn.loc, 0), "scale": (fn.scale, 0)}

    def statistics(self, value, args):
        return super().statistics(value.log(), args)

    def base(self, value, args):
        return -value.log()

    location = None


class MultivariateNormalFamily(Family):
    """t(x) = (x, the products x_i x_j of the lower triangle)."""

    arguments = {"loc": 1, "covariance_matrix": 2, "scale_tril": 2, "precision_matrix": 2}
    order = ("loc", "covariance_matrix", "scale_tril", "precision_matrix")
    event_dim = 1
    location = "loc"
    spread = ("covariance_matrix", "scale_tril", "precision_matrix")

    def cholesky(self, args):
        if "scale_tril" in args:
            return args["scale_tril"]
        if "covariance_matrix" in args:
            return torch.linalg.cholesky(args["covariance_matrix"])
        return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(args["precision_matrix"])))

    def statistics(self, value, args):
        size = len(value)
        # row by row of the triangle into one buffer: gathers took six times as long
        out = value.new_empty(size + size * (size + 1) // 2, *value.shape[1:])
        out[:size] = value
        start = size
        for i in range(size):
            torch.mul(value[i], value[: i + 1], out=out[start : start + i + 1])
            start += i + 1
        return out

    def natural(self, args):
        loc, tril = args["loc"], self.cholesky(args)
        size = loc.shape[-1]
        precision = torch.cholesky_inverse(tril)
        shift = (precision @ loc.unsqueeze(-1)).squeeze(-1)
        rows, cols = torch.tril_indices(size, size, device=loc.device)
        halves = torch.where(rows == cols, -0.5, -1.0).to(loc)
        eta = torch.cat([shift, (precision[..., rows, cols] * halves).expand(*shift.shape[:-1], -1)], -1)
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return eta, 0.5 * (loc * shift).sum(-1) + log_det + 0.5 * size * LOG_2PI

    def ratio(self, name, args, s1, s0):
        size = args["loc"].shape[-1]
        first, second = s1[..., :size], square(s1[..., size:], size)
        if name == "loc":
            return Ratio("mean", first, s0.unsqueeze(-1))
        loc = args["loc"]
        cross = first.unsqueeze(-1) * loc.unsqueeze(-2)
        outer = loc.unsqueeze(-1) * loc.unsqueeze(-2)
        weight = s0[..., None, None]
        return Ratio(name, second - cross - cross.mT + weight * outer, weight)


class CategoricalFamily(Family):
    """t(x) indicates the categories after the first."""

    arguments = {"probs": 1, "logits": 1}
    order = ("probs", "logits")

    def statistics(self, value, args):
        size = args["probs" if "probs" in args else "logits"].shape[-1]
        categories = torch.arange(1, size, device=value.device).reshape(-1, *(1,) * value.dim())
        return (value == categories).to(torch.get_default_dtype())

    def natural(self, args):
        logits = log_probs(args)
        return logits[..., 1:] - logits[..., :1], -logits[..., 0]

    def ratio(self, name, args, s1, s0):
        counts = torch.cat([(s0 - s1.sum(-1)).clamp_min(0).unsqueeze(-1), s1], -1)
        return Ratio("simplex" if name == "probs" else "logits", counts, s0.unsqueeze(-1))


class MultinomialFamily(Family):
    arguments = {"probs": 1, "logits": 1}
    order = ("probs", "logits")
    event_dim = 1

    def read(self, fn):
        inner = fn._categorical if hasattr(fn, "_categorical") else fn
        return super().read(inner)

    def statistics(self, value, args):
        return value

    def natural(self, args):
        logits = log_probs(args)
        return logits, torch.zeros_like(logits[..., 0])

    def base(self, value, args):
        return (value.sum(0) + 1).lgamma() - (value + 1).lgamma().sum(0)

    def ratio(self, name, args, s1, s0):
        return Ratio("simplex" if name == "probs" else "logits", s1, s1.sum(-1, keepdim=True))


class OneHotFamily(MultinomialFamily):
    def base(self, value, args):
        return 0.0


class BernoulliFamily(Family):
    arguments = {"probs": 0, "logits": 0}
    order = ("probs", "logits")

    def statistics(self, value, args):
        return value.unsqueeze(0)

    def natural(self, args):
        logits = args["logits"] if "logits" in args else probs_to_logits(args["probs"], is_binary=True)
        return logits.unsqueeze(-1), torch.nn.functional.softplus(logits)

    def ratio(self, name, args, s1, s0):
        return Ratio("proportion" if name == "probs" else "log_odds", s1[..., 0], s0)


class BinomialFamily(BernoulliFamily):
    arguments = {"probs": 0, "logits": 0, "total_count": 0}
    fixed = ("total_count",)

    def natural(self, args):
        eta, log_normalizer = super().natural(args)
        return eta, log_normalizer * args["total_count"]

    def base(self, value, args):
        count = args["total_count"]
        return (count + 1).lgamma() - (value + 1).lgamma() - (count - value + 1).lgamma()

    def ratio(self, name, args, s1, s0):
        kind, num, den = super().ratio(name, args, s1, s0)
        return Ratio(kind, num, den * args["total_count"])


class PoissonFamily(Family):
    arguments = {"rate": 0}
    order = ("rate",)

    def statistics(self, value, args):
        return value.unsqueeze(0)

    def natural(self, args):
        return positive(args["rate"]).log().unsqueeze(-1), args["rate"]

    def base(self, value, args):
        return -(value + 1).lgamma()

    def ratio(self, name, args, s1, s0):
        return Ratio("rate", s1[..., 0], s0)


class ExponentialFamily(Family):
    arguments = {"rate": 0}
    order = ("rate",)

    def statistics(self, value, args):
        return value.unsqueeze(0)

    def natural(self, args):
        return -args["rate"].unsqueeze(-1), -positive(args["rate"]).log()

    def ratio(self, name, args, s1, s0):
        return Ratio("rate", s0, s1[..., 0])


class GammaFamily(Family):
    arguments = {"concentration": 0, "rate": 0}
    order = ("rate",)

    def statistics(self, value, args):
        return torch.stack([value.log(), value])

    def natural(self, args):
        shape, rate = torch.broadcast_tensors(args["concentration"], args["rate"])
        return torch.stack([shape, -rate], -1), shape.lgamma() - shape * rate.log()

    def base(self, value, args):
        return -value.log()

    def ratio(self, name, args, s1, s0):
        return Ratio("rate", args["concentration"] * s0, s1[..., 1])


class BetaFamily(Family):
    """Statistics (log x, log(1 - x)); its arguments have no closed-form maximiser."""

    arguments = {"concentration1": 0, "concentration0": 0}

    def read(self, fn):
        return {name: (getattr(fn, name), 0) for name in self.arguments}

    def statistics(self, value, args):
        return torch.stack([value.log(), (-value).log1p()])

    def natural(self, args):
        a, b = torch.broadcast_tensors(args["concentration1"], args["concentration0"])
        return torch.stack([a, b], -1), a.lgamma() + b.lgamma() - (a + b).lgamma()

    def base(self, value, args):
        return -value.log() - (-value).log1p()


class GeometricFamily(Family):
    arguments = {"probs": 0, "logits": 0}
    order = ("probs",)

    def statistics(self, value, args):
        return value.unsqueeze(0)

    def natural(self, args):
        probs = clamp_probs(args["probs"] if "probs" in args else logits_to_probs(args["logits"], is_binary=True))
        return (-probs).log1p().unsqueeze(-1), -probs.log()

    def ratio(self, name, args, s1, s0):
        return Ratio("proportion", s0, s0 + s1[..., 0])


@singledispatch
def family(fn: object) -> Family | None:
    """The exponential family of a distribution's class, or None: then the site is scored as it stands."""
    return None


for _cls, _family in {
    dist.Normal: NormalFamily(),
    dist.LogNormal: LogNormalFamily(),
    dist.MultivariateNormal: MultivariateNormalFamily(),
    dist.Categorical: CategoricalFamily(),
    dist.OneHotCategorical: OneHotFamily(),
    dist.Multinomial: MultinomialFamily(),
    dist.Bernoulli: BernoulliFamily(),
    dist.Binomial: BinomialFamily(),
    dist.Poisson: PoissonFamily(),
    dist.Exponential: ExponentialFamily(),
    dist.Gamma: GammaFamily(),
    dist.Beta: BetaFamily(),
    dist.Geometric: GeometricFamily(),
}.items():
    family.register(_cls, lambda fn, _family=_family: _family)


@singledispatch
def prior_ratio(fn: object, value: Tensor) -> Ratio | None:
    """A prior's share in the ratio of the param it is the conjugate prior of: the mode counts, or None."""
    return None


@prior_ratio.register(dist.Dirichlet)
def _(fn, value):
    excess = fn.concentration - 1
    return Ratio("simplex", excess, excess.sum(-1, keepdim=True))


@prior_ratio.register(dist.Beta)
def _(fn, value):
    return Ratio("proportion", fn.concentration1 - 1, fn.concentration1 + fn.concentration0 - 2)


@prior_ratio.register(dist.Gamma)
def _(fn, value):
    return Ratio("rate", fn.concentration - 1, fn.rate)


@prior_ratio.register(dist.Normal)
def _(fn, value):
    precision = fn.scale**-2
    return Ratio("mean", precision * fn.loc, precision)


def log_probs(args: Args) -> Tensor:
    """Normalised log probabilities from whichever argument was given, clamped as torch clamps them."""
    if "logits" in args:
        return args["logits"] - args["logits"].logsumexp(-1, keepdim=True)
    probs = args["probs"]
    return clamp_probs(probs / probs.sum(-1, keepdim=True)).log()


def positive(value: Tensor) -> Tensor:
    """Keep a boundary estimate of exactly 0 finite in log space."""
    return value.clamp_min(torch.finfo(value.dtype).tiny)


def square(products: Tensor, size: int) -> Tensor:
    """The symmetric matrix (..., D, D) of its lower triangle (..., D(D+1)/2)."""
    rows, cols = torch.tril_indices(size, size, device=products.device)
    position = torch.zeros(size, size, dtype=torch.long, device=products.device)
    position[rows, cols] = position[cols, rows] = torch.arange(len(rows), device=products.device)
    return products[..., position]
