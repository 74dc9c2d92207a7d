r"""Student's t, as a normal whose precision is scaled by a hidden factor (Liu and Rubin 1995; McLachlan and Peel 2000,
ch. 7).

.. math:: u \sim \mathrm{Gamma}(\nu / 2, \nu / 2), \qquad x \mid u \sim \mathcal{N}(\mu, \Sigma / u)

Given u this is an exponential family of statistics u x, u x x' and u. Their expected values under the arguments as they
stand minorise the log density, so the closed forms for loc and scale never lower it; the degrees of freedom climb the
density itself (ECME). Cells that are missing are as latent as u, and have expected values of their own.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..distributions.missing import complete, observed_part
from .base import Args, Family, Ratio
from .normal import MultivariateNormalFamily, NormalFamily


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
