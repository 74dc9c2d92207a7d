"""Exponential families in expectation: E eta(a) and E A(a), where the arguments a are functions of latents.

E_q log p(x | a) = log h(x) + t(x) . E eta(a) - E A(a): all that a mean field asks of a family is which moments of its
arguments these two need. What comes out is a `Family` like any other, whose arguments are moments; so the compiled
program scores rows under a mean field at the price of an E-step of EM.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from .base import LOG_2PI, Args, Family
from .registry import family

PROBS = ("log",)


class Expected(Family):
    """A family whose arguments are moments, named "argument|moment"."""

    wants: ClassVar[dict[str, tuple[str, ...]]] = {}  # argument -> its moments
    events: ClassVar[dict[str, int]] = {}  # argument -> event dims

    def __init__(self, inner: Family | None = None) -> None:
        self.inner = inner
        if inner is not None:
            self.event_dim = inner.event_dim
            self.spread = inner.spread
            self.fixed = tuple(f"{name}|value" for name in inner.fixed)

    def raw(self, fn: Any) -> dict[str, Tensor]:
        """The arguments of a distribution by name."""
        return {name: getattr(fn, name) for name in self.wants}

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        assert self.inner is not None
        return self.inner.statistics(value, self._plain(args))

    def base(self, value: Tensor, args: Args) -> Tensor | float:
        assert self.inner is not None
        return self.inner.base(value, self._plain(args))

    def _plain(self, args: Args) -> Args:
        """Arguments as the family itself knows them, where its statistics look at their shapes or values."""
        return {name.split("|")[0]: value for name, value in args.items() if name.split("|")[1] in ("value", "log")}


class ExpectedNormal(Expected):
    wants: ClassVar = {"loc": ("mean", "variance"), "scale": ("precision", "log")}
    location: str | None = "loc|mean"

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        loc, precision = args["loc|mean"], args["scale|precision"]
        square_of_loc = loc**2 + args["loc|variance"]
        eta = torch.stack(torch.broadcast_tensors(precision * loc, -0.5 * precision), -1)
        return eta, 0.5 * precision * square_of_loc + args["scale|log"] + 0.5 * LOG_2PI


class ExpectedLogNormal(ExpectedNormal):
    location = None

    def raw(self, fn: Any) -> dict[str, Tensor]:
        return {"loc": fn.base_dist.loc, "scale": fn.base_dist.scale}


class ExpectedMultivariateNormal(Expected):
    wants: ClassVar = {"loc": ("mean", "covariance"), "precision_matrix": ("mean", "log_det")}
    events: ClassVar = {"loc": 1, "precision_matrix": 2}
    event_dim = 1
    location = "loc|mean"

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        loc, precision = args["loc|mean"], args["precision_matrix|mean"]
        size = loc.shape[-1]
        shift = (precision @ loc.unsqueeze(-1)).squeeze(-1)
        rows, cols = torch.tril_indices(size, size, device=loc.device)
        halves = torch.where(rows == cols, -0.5, -1.0).to(loc)
        packed = (precision[..., rows, cols] * halves).expand(*shift.shape[:-1], -1)
        quadratic = (loc * shift).sum(-1) + (precision * args["loc|covariance"]).sum((-2, -1))
        log_det = args["precision_matrix|log_det"]
        return torch.cat([shift, packed], -1), 0.5 * (quadratic - log_det + size * LOG_2PI)

    def stand_in(self, args: Args) -> Args:
        """The normal distribution whose natural parameters are the expected ones.

        E log p(x) is its log density and a number, `excess`: so of a vector with missing cells, which are latent too,
        exp E log p integrates to its marginal density, and their best factor is its conditional distribution.
        """
        precision = args["precision_matrix|mean"]
        factor = torch.linalg.cholesky(precision)
        tril = torch.linalg.cholesky(torch.cholesky_inverse(factor))
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        lost = (precision * args["loc|covariance"]).sum((-2, -1))
        excess = 0.5 * (args["precision_matrix|log_det"] - log_det - lost)
        return {"loc": args["loc|mean"], "scale_tril": tril, "excess": excess}


class ExpectedCategorical(Expected):
    wants: ClassVar = {"probs": PROBS}
    events: ClassVar = {"probs": 1}

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        log = args["probs|log"]
        return log[..., 1:] - log[..., :1], -log[..., 0]


class ExpectedMultinomial(ExpectedCategorical):
    def raw(self, fn: Any) -> dict[str, Tensor]:
        return {"probs": getattr(fn, "_categorical", fn).probs}

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        return args["probs|log"], torch.zeros_like(args["probs|log"][..., 0])


class ExpectedBernoulli(Expected):
    wants: ClassVar = {"probs": ("log", "log1m")}

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        return (args["probs|log"] - args["probs|log1m"]).unsqueeze(-1), -args["probs|log1m"]


class ExpectedBinomial(ExpectedBernoulli):
    wants: ClassVar = {"probs": ("log", "log1m"), "total_count": ("value",)}

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        eta, log_normalizer = super().natural(args)
        return eta, log_normalizer * args["total_count|value"]


class ExpectedGeometric(ExpectedBernoulli):
    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        return args["probs|log1m"].unsqueeze(-1), -args["probs|log"]


class ExpectedPoisson(Expected):
    wants: ClassVar = {"rate": ("mean", "log")}

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        return args["rate|log"].unsqueeze(-1), args["rate|mean"]


class ExpectedExponential(ExpectedPoisson):
    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        return -args["rate|mean"].unsqueeze(-1), -args["rate|log"]


class ExpectedGamma(Expected):
    """Against the measure dx / x where it is data, dx where it is a latent: its factor's."""

    wants: ClassVar = {"concentration": ("value",), "rate": ("mean", "log")}

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        shape, rate = torch.broadcast_tensors(args["concentration|value"], args["rate|mean"])
        first = shape if self.inner is not None else shape - 1
        return torch.stack([first, -rate], -1), shape.lgamma() - shape * args["rate|log"]


class ExpectedInverseGamma(ExpectedGamma):
    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        shape, rate = torch.broadcast_tensors(args["concentration|value"], args["rate|mean"])
        return torch.stack([-shape - 1, -rate], -1), shape.lgamma() - shape * args["rate|log"]


class ExpectedBeta(Expected):
    wants: ClassVar = {"concentration1": ("value",), "concentration0": ("value",)}

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        a, b = torch.broadcast_tensors(args["concentration1|value"], args["concentration0|value"])
        less = 0.0 if self.inner is not None else 1.0
        return torch.stack([a - less, b - less], -1), a.lgamma() + b.lgamma() - (a + b).lgamma()


class ExpectedDirichlet(Expected):
    wants: ClassVar = {"concentration": ("value",)}
    events: ClassVar = {"concentration": 1}

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        concentration = args["concentration|value"]
        return concentration - 1, concentration.lgamma().sum(-1) - concentration.sum(-1).lgamma()


class ExpectedWishart(Expected):
    wants: ClassVar = {"df": ("value",), "precision_matrix": ("mean", "log_det")}
    events: ClassVar = {"precision_matrix": 2}

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        df, inverse = args["df|value"], args["precision_matrix|mean"]
        size = inverse.shape[-1]
        rows, cols = torch.tril_indices(size, size, device=inverse.device)
        halves = torch.where(rows == cols, -0.5, -1.0).to(inverse)
        packed = inverse[..., rows, cols] * halves
        first = (0.5 * (df - size - 1)).unsqueeze(-1).expand(*packed.shape[:-1], 1)
        scale = size * torch.log(torch.tensor(2.0, dtype=inverse.dtype)) - args["precision_matrix|log_det"]
        return torch.cat([first, packed], -1), 0.5 * df * scale + torch.special.multigammaln(0.5 * df, size)


@singledispatch
def expected_family(fn: object) -> type[Expected] | None:
    """A distribution's class in expectation; None where nothing is known of it."""
    return None


for _cls, _kind in {
    dist.Normal: ExpectedNormal,
    dist.LogNormal: ExpectedLogNormal,
    dist.MultivariateNormal: ExpectedMultivariateNormal,
    dist.Categorical: ExpectedCategorical,
    dist.OneHotCategorical: ExpectedMultinomial,
    dist.Multinomial: ExpectedMultinomial,
    dist.Bernoulli: ExpectedBernoulli,
    dist.Binomial: ExpectedBinomial,
    dist.Geometric: ExpectedGeometric,
    dist.Poisson: ExpectedPoisson,
    dist.Exponential: ExpectedExponential,
    dist.Gamma: ExpectedGamma,
    dist.InverseGamma: ExpectedInverseGamma,
    dist.Beta: ExpectedBeta,
    dist.Dirichlet: ExpectedDirichlet,
    dist.Wishart: ExpectedWishart,
}.items():
    expected_family.register(_cls, lambda fn, _kind=_kind: _kind)


def observed_family(fn: Any) -> Expected | None:
    """The family in expectation of an observed or enumerated site."""
    kind, inner = expected_family(fn), family(fn)
    return kind(inner) if kind is not None and inner is not None else None
