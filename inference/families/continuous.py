"""Exponential families of real and positive values: normal, exponential, gamma, beta, and Student's t given weights."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..distributions.missing import complete, observed_part
from .base import LOG_2PI, Args, Family, Ratio, positive, square


class NormalFamily(Family):
    arguments: ClassVar[dict[str, int]] = {"loc": 0, "scale": 0}
    order = ("loc", "scale")
    location: str | None = "loc"
    spread = ("scale",)

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        return torch.stack([value, value * value])

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        loc, precision = args["loc"], args["scale"] ** -2
        log_normalizer = 0.5 * precision * loc**2 + args["scale"].log() + 0.5 * LOG_2PI
        eta = torch.stack(torch.broadcast_tensors(precision * loc, -0.5 * precision), -1)
        return eta, log_normalizer

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        if name == "loc":
            precision = args["scale"] ** -2
            return Ratio("mean", precision * s1[..., 0], precision * s0)
        loc = args["loc"]
        return Ratio("scale", s1[..., 1] - 2 * loc * s1[..., 0] + loc**2 * s0, s0)


class LogNormalFamily(NormalFamily):
    def read(self, fn: Any) -> dict[str, tuple[Tensor, int]]:
        return {"loc": (fn.loc, 0), "scale": (fn.scale, 0)}

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        return super().statistics(value.log(), args)

    def base(self, value: Tensor, args: Args) -> Tensor | float:
        return -value.log()

    location: str | None = None


class MultivariateNormalFamily(Family):
    """t(x) = (x, the products x_i x_j of the lower triangle)."""

    arguments: ClassVar[dict[str, int]] = {"loc": 1, "covariance_matrix": 2, "scale_tril": 2, "precision_matrix": 2}
    order: tuple[str, ...] = ("loc", "covariance_matrix", "scale_tril", "precision_matrix")
    event_dim = 1
    location: str | None = "loc"
    spread: tuple[str, ...] = ("covariance_matrix", "scale_tril", "precision_matrix")

    def cholesky(self, args: Args) -> Tensor:
        if "scale_tril" in args:
            return args["scale_tril"]
        if "covariance_matrix" in args:
            return torch.linalg.cholesky(args["covariance_matrix"])
        return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(args["precision_matrix"])))

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        size = len(value)
        # row by row of the triangle into one buffer: gathers took six times as long
        out = value.new_empty(size + size * (size + 1) // 2, *value.shape[1:])
        out[:size] = value
        start = size
        for i in range(size):
            torch.mul(value[i], value[: i + 1], out=out[start : start + i + 1])
            start += i + 1
        return out

    def total(self, value: Tensor, args: Args, weights: Tensor | None) -> Tensor:
        size = len(value)
        weighed = value if weights is None else value * weights
        by = weighed.reshape(size, -1, value.shape[-1]).movedim(0, 1)  # (cells, D, n): one product in place of many
        products = by @ value.reshape(size, -1, value.shape[-1]).movedim(0, 1).mT
        rows, cols = torch.tril_indices(size, size, device=value.device)
        found = torch.cat([by.sum(-1), products[:, rows, cols]], -1)
        return found.mT.reshape(-1, *value.shape[1:-1])

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        loc, tril = args["loc"], self.cholesky(args)
        size = loc.shape[-1]
        precision = torch.cholesky_inverse(tril)
        shift = (precision @ loc.unsqueeze(-1)).squeeze(-1)
        rows, cols = torch.tril_indices(size, size, device=loc.device)
        halves = torch.where(rows == cols, -0.5, -1.0).to(loc)
        eta = torch.cat([shift, (precision[..., rows, cols] * halves).expand(*shift.shape[:-1], -1)], -1)
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return eta, 0.5 * (loc * shift).sum(-1) + log_det + 0.5 * size * LOG_2PI

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        size = args["loc"].shape[-1]
        first, second = s1[..., :size], square(s1[..., size:], size)
        if name == "loc":
            return Ratio("mean", first, s0.unsqueeze(-1))
        loc = args["loc"]
        cross = first.unsqueeze(-1) * loc.unsqueeze(-2)
        outer = loc.unsqueeze(-1) * loc.unsqueeze(-2)
        weight = s0[..., None, None]
        return Ratio(name, second - cross - cross.mT + weight * outer, weight)


class ExponentialFamily(Family):
    arguments: ClassVar[dict[str, int]] = {"rate": 0}
    order = ("rate",)

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        return value.unsqueeze(0)

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        return -args["rate"].unsqueeze(-1), -positive(args["rate"]).log()

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        return Ratio("rate", s0, s1[..., 0])


class GammaFamily(Family):
    arguments: ClassVar[dict[str, int]] = {"concentration": 0, "rate": 0}
    order = ("rate",)

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        return torch.stack([value.log(), value])

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        shape, rate = torch.broadcast_tensors(args["concentration"], args["rate"])
        return torch.stack([shape, -rate], -1), shape.lgamma() - shape * rate.log()

    def base(self, value: Tensor, args: Args) -> Tensor | float:
        return -value.log()

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        return Ratio("rate", args["concentration"] * s0, s1[..., 1])


class BetaFamily(Family):
    """Statistics (log x, log(1 - x)); its arguments have no closed-form maximiser."""

    arguments: ClassVar[dict[str, int]] = {"concentration1": 0, "concentration0": 0}

    def read(self, fn: Any) -> dict[str, tuple[Tensor, int]]:
        return {name: (getattr(fn, name), 0) for name in self.arguments}

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        return torch.stack([value.log(), (-value).log1p()])

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        a, b = torch.broadcast_tensors(args["concentration1"], args["concentration0"])
        return torch.stack([a, b], -1), a.lgamma() + b.lgamma() - (a + b).lgamma()

    def base(self, value: Tensor, args: Args) -> Tensor | float:
        return -value.log() - (-value).log1p()


class StudentTFamily(NormalFamily):
    arguments: ClassVar[dict[str, int]] = {"df": 0, "loc": 0, "scale": 0}
    augmented = True

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        df = args["df"]
        u = (df + 1) / (df + ((value - args["loc"]) / args["scale"]) ** 2)
        return torch.stack([u * value, u * value * value, u])

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        eta, log_normalizer = super().natural(args)
        half = 0.5 * args["loc"] * eta[..., 0]
        return torch.cat([eta, -half.unsqueeze(-1)], -1), log_normalizer - half

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        kind, num, den = super().ratio(name, args, s1[..., :2], s1[..., 2])
        return Ratio(kind, num, den if name == "loc" else s0)


class MultivariateStudentTFamily(Family):
    arguments: ClassVar[dict[str, int]] = {"df": 0, "loc": 1, "scale_tril": 2}
    order = ("loc", "scale_tril")
    event_dim = 1
    location: str | None = "loc"
    spread = ("scale_tril",)
    augmented = True

    def read(self, fn: Any) -> dict[str, tuple[Tensor, int]]:
        return {"df": (fn.df, 0), "loc": (fn.loc, 1), "scale_tril": (fn._unbroadcasted_scale_tril, 2)}

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        value = value.movedim(0, -1)
        loc, tril = args["loc"], args["scale_tril"]
        observed = ~value.isnan()
        covariance = tril @ tril.mT
        part = observed_part(value, observed, loc, covariance)
        filled, left = complete(value, observed, loc, covariance, part)
        u = (args["df"] + observed.sum(-1)) / (args["df"] + part.distance)
        rows, cols = torch.tril_indices(value.shape[-1], value.shape[-1], device=value.device)
        products = u.unsqueeze(-1) * (filled[..., rows] * filled[..., cols]) + left[..., rows, cols]
        return torch.cat([u.unsqueeze(-1) * filled, products, u.unsqueeze(-1)], -1).movedim(-1, 0)

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        normal = {name: args[name] for name in ("loc", "scale_tril")}
        eta, log_normalizer = MultivariateNormalFamily().natural(normal)
        half = 0.5 * (args["loc"] * eta[..., : args["loc"].shape[-1]]).sum(-1)
        return torch.cat([eta, -half.unsqueeze(-1)], -1), log_normalizer - half

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        kind, num, den = MultivariateNormalFamily().ratio(name, args, s1[..., :-1], s1[..., -1])
        return Ratio(kind, num, den if name == "loc" else s0[..., None, None])
