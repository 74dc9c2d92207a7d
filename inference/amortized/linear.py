"""Models whose rows are normal given a normal latent that enters in a line: log p(x) has a closed form.

What a model is, is found by probing its mean at values of the latent; no model is known by name.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..data.structures import num_rows, slice_rows
from ..trace.handlers import Bind, base_of
from .bounds import repeated, values_from
from .reader import Story, free_value

PROBES = (0.1, 1.0, 1.0, 10.0, 10.0, 100.0)  # lengths of latents where the mean must lie on the line
EXACT = 1e-4  # how far from it rounding may take it, relative
TOGETHER = 40_000  # rows of the model, repeated ones too, that are run together
CLIMBS, GAIN = 2000, 1e-9  # steps of L-BFGS at most, and the gain, of a mean over rows, below which it is at rest


class Line(NamedTuple):
    """Rows x = loc + load e + scale noise, with e standard normal: cells C, latent numbers K."""

    value: Tensor  # (B, C), NaN where missing
    loc: Tensor  # (B, C)
    load: Tensor  # (B, C, K)
    scale: Tensor  # (B, C)

    @property
    def log_prob(self) -> Tensor:
        """log p(x_n) of what was observed, (B,) in float64 (Tipping and Bishop 1999, equation 4; by the inverse of a
        K x K matrix).
        """
        value, loc, load, scale = (part.double() for part in self)
        seen = ~value.isnan()
        away = torch.where(seen, value - loc, 0.0)
        weight = seen / scale**2
        inner = torch.einsum("bck,bc,bcj->bkj", load, weight, load)
        tril = torch.linalg.cholesky(inner + torch.eye(load.shape[-1], dtype=inner.dtype))
        pull = torch.einsum("bck,bc->bk", load, weight * away).unsqueeze(-1)
        found = torch.linalg.solve_triangular(tril, pull, upper=False).squeeze(-1)
        log_det = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        each = torch.where(seen, math.log(2 * math.pi) + 2 * scale.log(), 0.0).sum(-1)
        return -0.5 * (each + log_det + (weight * away**2).sum(-1) - (found**2).sum(-1))


def line_of(story: Story, values: dict[str, Tensor], rows: Any) -> Line | None:
    """Some rows of a model that is such a line; None where it is none."""
    if len(story.latents) != 1 or story.discrete or story.computed or story.data_dim != -1:
        return None
    (name,) = story.latents
    prior = story.latents[name]
    if prior.event_dim != 1 or not isinstance(base_of(prior), dist.Normal | dist.MultivariateNormal):
        return None
    size, K = num_rows(rows), prior.event_shape[0]
    draws = torch.randn(len(PROBES), K, generator=torch.Generator().manual_seed(0)).to(story.dtype)
    far = draws / draws.norm(dim=-1, keepdim=True) * torch.tensor(PROBES).to(draws).unsqueeze(-1)
    points = torch.cat([torch.zeros(1, K), torch.eye(K), far.to(torch.get_default_dtype())])  # (P, K)
    play = Bind({**values, name: points.repeat_interleave(size, 0)}, centred=False)
    with play:
        story.pair.model(repeated(rows, len(points)))
    found = [_cells(play.nodes[site], len(points), size) for site in story.observed]
    if any(one is None for one in found):
        return None
    value, mean, scale = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    origin, load = mean[0], (mean[1 : K + 1] - mean[0]).movedim(0, -1)  # (B, C), (B, C, K)
    line = origin + torch.einsum("pk,bck->pbc", points, load)
    room = EXACT * (origin.abs() + load.abs().sum(-1) * points.norm(dim=-1)[:, None, None])
    if bool(((mean - line).abs() > room + 1e-30).any()) or bool((scale != scale[0]).any()):
        return None
    base, times = base_of(play.nodes[name]["fn"]), len(points) * size
    center = base.loc.expand(times, K)[:size].unsqueeze(-1)
    if isinstance(base, dist.MultivariateNormal):
        spread = base.scale_tril.expand(times, K, K)[:size]
    else:
        spread = torch.diag_embed(base.scale.expand(times, K)[:size])
    return Line(value[0], origin + (load @ center).squeeze(-1), load @ spread, scale[0])


def _cells(msg: Any, times: int, size: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Values, means and standard deviations (times, B, C) of a normal site; None where it is another."""
    fn, value = msg["fn"], msg["value"]
    base = base_of(fn)
    if type(base) is not dist.Normal or fn.event_dim > 1 or msg["mask"] is not None:
        return None
    shape = value.shape if value.dim() else (times * size,)
    value, loc, scale = (part.expand(shape).reshape(times, size, -1) for part in (value, base.loc, base.scale))
    return value, loc, scale


def exact(story: Story, values: dict[str, Tensor], data: Any) -> Tensor | None:
    """log p(x_n), (N,), of a model that is such a line; None where it is none."""
    each = max(1, TOGETHER // (1 + len(PROBES) + sum(fn.event_shape.numel() for fn in story.latents.values())))
    parts = []
    for index in torch.arange(num_rows(data)).split(each):
        line = line_of(story, values, slice_rows(data, index))
        if line is None:
            return None
        parts.append(line.log_prob)
    return torch.cat(parts)


def optimum(story: Story, values: dict[str, Tensor], data: Any, share: Tensor | None) -> Tensor:
    """log p(x_n), (N,), where all params of the model are at the maximum of its (weighted) sum, climbed to from where
    they are. Moves the weights of the networks.
    """
    own = story.model.params
    free = {name: free_value(leaf, values[name]) for name, leaf in own.items() if leaf.weight is None}
    leaves = {
        name: free[name].clone(memory_format=torch.contiguous_format).requires_grad_() if name in free else values[name]
        for name in own
    }
    kept = {name: value for name, value in values.items() if name not in leaves}

    def rows() -> Tensor:
        found = exact(story, {**kept, **values_from(story, leaves)}, data)
        assert found is not None
        return found

    options = {"max_iter": CLIMBS, "tolerance_change": GAIN, "line_search_fn": "strong_wolfe"}
    climb = torch.optim.LBFGS(list(leaves.values()), **options)  # type: ignore[arg-type]

    def loss() -> Tensor:
        climb.zero_grad()
        each = rows()
        total = -(each if share is None else each * share).mean()
        total.backward()
        return total

    with torch.enable_grad():
        climb.step(loss)
    with torch.no_grad():
        return rows()
