"""Models whose rows are normal given a normal latent that enters in a line: log p(x) has a closed form.

What a model is, is found by asking its mean (`trace.linear`); no model is known by name.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..data.structures import num_rows, slice_rows
from ..trace.handlers import Bind, base_of
from ..trace.linear import linear_in
from .bounds import values_from
from .reader import Story, free_value

REACH = (0.1, 1.0, 10.0, 100.0)  # sizes of latents where the mean must lie on the line
TOGETHER = 40_000  # rows of the model, times the directions in which it is asked, that are run together
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
    met: dict[str, Any] = {}

    def cells(given: dict[str, Tensor]) -> Tensor:
        """Means and standard deviations (B, 2C)."""
        play = Bind({**values, name: given[name].expand(size, K)}, centred=False)
        with play:
            story.pair.model(rows)
        met.update({site: _cells(play.nodes[site], size) for site in story.observed}, prior=play.nodes[name]["fn"])
        if any(met[site] is None for site in story.observed):
            return torch.full((size, 0), torch.nan)
        _, mean, scale = (torch.cat(parts, -1) for parts in zip(*(met[s] for s in story.observed), strict=True))
        return torch.cat([mean, scale], -1)

    found = linear_in(cells, {name: torch.zeros(K, dtype=story.dtype)}, (name,), REACH)
    C = found.base.shape[1] // 2
    if C == 0 or not found.exact or bool(found.jacobian[:, C:].any()):
        return None
    value = torch.cat([met[site][0] for site in story.observed], -1)
    origin, load, scale = found.base[:, :C], found.jacobian[:, :C], found.base[:, C:]
    base = base_of(met["prior"])
    center = base.loc.expand(size, K).unsqueeze(-1)
    if isinstance(base, dist.MultivariateNormal):
        spread = base.scale_tril.expand(size, K, K)
    else:
        spread = torch.diag_embed(base.scale.expand(size, K))
    return Line(value, origin + (load @ center).squeeze(-1), load @ spread, scale)


def _cells(msg: Any, size: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Values, means and standard deviations (B, C) of a normal site; None where it is another."""
    fn, value = msg["fn"], msg["value"]
    base = base_of(fn)
    if type(base) is not dist.Normal or fn.event_dim > 1 or msg["mask"] is not None:
        return None
    shape = value.shape if value.dim() else (size,)
    value, loc, scale = (part.expand(shape).reshape(size, -1) for part in (value, base.loc, base.scale))
    return value, loc, scale


def exact(story: Story, values: dict[str, Tensor], data: Any) -> Tensor | None:
    """log p(x_n), (N,), of a model that is such a line; None where it is none."""
    each = max(1, TOGETHER // (1 + sum(fn.event_shape.numel() for fn in story.latents.values())))
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
