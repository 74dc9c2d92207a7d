"""Exponential families of codes and counts, and families whose cells a mask leaves out."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions.utils import clamp_probs, logits_to_probs, probs_to_logits

from .base import Args, Family, Ratio, log_probs, positive


class CategoricalFamily(Family):
    """t(x) indicates the categories after the first."""

    arguments: ClassVar[dict[str, int]] = {"probs": 1, "logits": 1}
    order = ("probs", "logits")

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        size = args["probs" if "probs" in args else "logits"].shape[-1]
        categories = torch.arange(1, size, device=value.device).reshape(-1, *(1,) * value.dim())
        return (value == categories).to(torch.get_default_dtype())

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        logits = log_probs(args)
        return logits[..., 1:] - logits[..., :1], -logits[..., 0]

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        counts = torch.cat([(s0 - s1.sum(-1)).clamp_min(0).unsqueeze(-1), s1], -1)
        return Ratio("simplex" if name == "probs" else "logits", counts, s0.unsqueeze(-1))


class MultinomialFamily(Family):
    arguments: ClassVar[dict[str, int]] = {"probs": 1, "logits": 1}
    order = ("probs", "logits")
    event_dim = 1

    def read(self, fn: Any) -> dict[str, tuple[Tensor, int]]:
        inner = fn._categorical if hasattr(fn, "_categorical") else fn
        return super().read(inner)

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        return value

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        logits = log_probs(args)
        return logits, torch.zeros_like(logits[..., 0])

    def base(self, value: Tensor, args: Args) -> Tensor | float:
        return (value.sum(0) + 1).lgamma() - (value + 1).lgamma().sum(0)

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        return Ratio("simplex" if name == "probs" else "logits", s1, s1.sum(-1, keepdim=True))


class OneHotFamily(MultinomialFamily):
    def base(self, value: Tensor, args: Args) -> Tensor | float:
        return 0.0


class BernoulliFamily(Family):
    arguments: ClassVar[dict[str, int]] = {"probs": 0, "logits": 0}
    order = ("probs", "logits")

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        return value.unsqueeze(0)

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        logits = args["logits"] if "logits" in args else probs_to_logits(args["probs"], is_binary=True)
        return logits.unsqueeze(-1), torch.nn.functional.softplus(logits)

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        return Ratio("proportion" if name == "probs" else "log_odds", s1[..., 0], s0)


class BinomialFamily(BernoulliFamily):
    arguments: ClassVar[dict[str, int]] = {"probs": 0, "logits": 0, "total_count": 0}
    fixed = ("total_count",)

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        eta, log_normalizer = super().natural(args)
        return eta, log_normalizer * args["total_count"]

    def base(self, value: Tensor, args: Args) -> Tensor | float:
        count = args["total_count"]
        return (count + 1).lgamma() - (value + 1).lgamma() - (count - value + 1).lgamma()

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        kind, num, den = super().ratio(name, args, s1, s0)
        return Ratio(kind, num, den * args["total_count"])


class PoissonFamily(Family):
    arguments: ClassVar[dict[str, int]] = {"rate": 0}
    order = ("rate",)

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        return value.unsqueeze(0)

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        return positive(args["rate"]).log().unsqueeze(-1), args["rate"]

    def base(self, value: Tensor, args: Args) -> Tensor | float:
        return -(value + 1).lgamma()

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        return Ratio("rate", s1[..., 0], s0)


class GeometricFamily(Family):
    arguments: ClassVar[dict[str, int]] = {"probs": 0, "logits": 0}
    order = ("probs",)

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        return value.unsqueeze(0)

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        probs = clamp_probs(args["probs"] if "probs" in args else logits_to_probs(args["logits"], is_binary=True))
        return (-probs).log1p().unsqueeze(-1), -probs.log()

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        return Ratio("proportion", s0, s0 + s1[..., 0])


class MaskedFamily(Family):
    augmented = True

    def __init__(self, first: Family) -> None:
        self.first = first
        self.order = first.order

    def read(self, fn: Any) -> dict[str, tuple[Tensor, int]]:
        fn = getattr(fn, "base_dist", fn)
        return {**self.first.read(fn.component0), "mask": (fn.mask, 0)}

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        kept = (~args["mask"]).to(value)
        stats = [one * kept for one in self.first.statistics(value, args)]
        return torch.stack([*stats, kept.expand_as(stats[0])])

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        eta, log_normalizer = self.first.natural(args)
        return torch.cat([eta, -log_normalizer.unsqueeze(-1)], -1), torch.zeros_like(log_normalizer)

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        return self.first.ratio(name, args, s1[..., :-1], s1[..., -1])
