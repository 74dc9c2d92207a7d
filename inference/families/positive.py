"""Exponential families of positive values and of proportions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Args, Family, Ratio, positive


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
