"""Derived guides: normal distributions over the unconstrained values of continuous latents.

A guide acts on vectors of d numbers, with any leading dims: () for latents that all rows share, (B,) for those of each
row. What it learns are named tensors ("parts"), free to take any real values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.unconstrained import Parts
from ..families.base import LOG_2PI

EVEN = 1_000  # numbers, at most, that draws are spread evenly over
RANK = 5  # of the low-rank guide, or half the numbers where that is less


class Draw(NamedTuple):
    """Unconstrained values and what they cost."""

    value: Tensor  # (m, *lead, d)
    log_q: Tensor  # (m, *lead): log density at the value
    entropy: Tensor  # (*lead,): its exact expectation, sign turned


class GuideShape(NamedTuple):
    """One family of normal guides."""

    name: str
    declare: Callable[[Tensor, Tensor], Parts]  # centre (*lead, d) and unit (d,) -> starting values of the parts
    draw: Callable[[Parts, int, bool], Draw]  # so many, spread evenly or not
    covariance: Callable[[Parts], Tensor]  # (*lead, d, d)
    noisy: bool = True


def _normal(value: Tensor, noise: Tensor, log_det: Tensor) -> Draw:
    constant = 0.5 * LOG_2PI * noise.shape[-1]
    log_q = -0.5 * (noise**2).sum(-1) - log_det - constant
    return Draw(value, log_q, log_det + constant + 0.5 * noise.shape[-1])


def antithetic(num: int, like: Tensor, *shape: int, even: bool = False) -> Tensor:
    """Standard normal draws (num, *shape) in pairs of opposite sign.

    What is odd in the noise, which is most of the noise of a gradient near a symmetric posterior, cancels in a pair.
    Those that are spread evenly (a scrambled Sobol sequence) are not independent, and their mean is closer by far.
    """
    size = torch.Size(shape).numel()
    if even and 0 < size <= EVEN:
        seed = int(torch.randint(2**31, (), device="cpu"))
        points = torch.quasirandom.SobolEngine(size, scramble=True, seed=seed).draw((num + 1) // 2, dtype=torch.float64)
        half = torch.special.ndtri(points.clamp(1e-12, 1 - 1e-12)).to(like).reshape(-1, *shape)
        return torch.cat([half, -half])[:num]
    half = torch.randn((num + 1) // 2, *shape, dtype=like.dtype, device=like.device)
    return torch.cat([half, -half])[:num] if num > 1 else half


def _declare_mean_field(center: Tensor, unit: Tensor) -> Parts:
    return {"loc": center, "log_scale": (FIRST_SCALE * unit).log().expand_as(center)}


def _draw_mean_field(parts: Parts, num: int, even: bool) -> Draw:
    loc, log_scale = parts["loc"], parts["log_scale"]
    noise = antithetic(num, loc, *loc.shape, even=even)
    return _normal(loc + log_scale.exp() * noise, noise, log_scale.sum(-1))


def _declare_full_rank(center: Tensor, unit: Tensor) -> Parts:
    size = center.shape[-1]
    lower = center.new_zeros(*center.shape[:-1], size * (size - 1) // 2)
    return {**_declare_mean_field(center, unit), "lower": lower}


def _tril(parts: Parts) -> Tensor:
    """Cholesky factor: each row is in units of its own standard deviation, so its cells are numbers of order one."""
    size = parts["loc"].shape[-1]
    rows, cols = torch.tril_indices(size, size, -1, device=parts["loc"].device)
    out = torch.eye(size, dtype=parts["loc"].dtype, device=parts["loc"].device)
    out = out.expand(*parts["loc"].shape[:-1], size, size).clone()
    out[..., rows, cols] = parts["lower"]
    return parts["log_scale"].exp().unsqueeze(-1) * out


def _draw_full_rank(parts: Parts, num: int, even: bool) -> Draw:
    loc = parts["loc"]
    noise = antithetic(num, loc, *loc.shape, even=even)
    value = loc + (_tril(parts) @ noise.unsqueeze(-1)).squeeze(-1)
    return _normal(value, noise, parts["log_scale"].sum(-1))


def _declare_low_rank(center: Tensor, unit: Tensor) -> Parts:
    rank = min(RANK, center.shape[-1] // 2)
    if rank == 0:
        return _declare_mean_field(center, unit)
    # small and distinct, so that the columns can grow apart
    pattern = torch.cos(torch.arange(center.shape[-1] * rank, dtype=center.dtype)).reshape(-1, rank)
    factor = 0.1 * FIRST_SCALE * unit.unsqueeze(-1) * pattern
    return {**_declare_mean_field(center, unit), "factor": factor.expand(*center.shape, rank).clone()}


def _draw_low_rank(parts: Parts, num: int, even: bool) -> Draw:
    if "factor" not in parts:
        return _draw_mean_field(parts, num, even)
    normal = torch.distributions.LowRankMultivariateNormal(
        parts["loc"], parts["factor"], (2 * parts["log_scale"]).exp(), validate_args=False
    )
    lead = normal.loc.shape[:-1]
    wide = antithetic(num, normal.loc, *lead, parts["factor"].shape[-1], even=even)
    own = antithetic(num, normal.loc, *normal.loc.shape, even=even)
    value = parts["loc"] + (parts["factor"] @ wide.unsqueeze(-1)).squeeze(-1) + parts["log_scale"].exp() * own
    return Draw(value, normal.log_prob(value), normal.entropy())


def _draw_delta(parts: Parts, num: int, even: bool) -> Draw:
    loc = parts["loc"]
    value = loc.expand(num, *loc.shape)
    return Draw(value, value.new_zeros(value.shape[:-1]), loc.new_zeros(loc.shape[:-1]))


def _diagonal(parts: Parts) -> Tensor:
    return torch.diag_embed((2 * parts["log_scale"]).exp())


FIRST_SCALE = 0.1  # standard deviation at the start, in units of the latent

SHAPES = {
    shape.name: shape
    for shape in (
        GuideShape("mean_field", _declare_mean_field, _draw_mean_field, _diagonal),
        GuideShape("full_rank", _declare_full_rank, _draw_full_rank, lambda p: _tril(p) @ _tril(p).mT),
        GuideShape(
            "low_rank",
            _declare_low_rank,
            _draw_low_rank,
            lambda p: p["factor"] @ p["factor"].mT + _diagonal(p) if "factor" in p else _diagonal(p),
        ),
        GuideShape(
            "delta",
            lambda center, unit: {"loc": center},
            _draw_delta,
            lambda p: p["loc"].new_zeros(*p["loc"].shape, p["loc"].shape[-1]),
            noisy=False,
        ),
    )
}
