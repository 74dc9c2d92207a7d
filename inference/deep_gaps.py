"""Where a bound loses: in the family of the guide, or in the encoder (Cremer, Li and Duvenaud 2018)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .arrays import num_rows
from .checks import check_counts
from .data import Dataset
from .deep_bound import draw, elbo, importance_bound, log_weights, terms
from .deep_verbs import Opened, opened
from .errors import ModelError
from .networks import positive, tril_of
from .rows import as_one
from .structure import base_of

RATE = 0.1  # of Adam, falling to a hundredth


class Gaps(NamedTuple):
    """Three estimates of each row's log probability, (N,) each, from below; their differences are the gaps."""

    encoder: Tensor  # the bound under the encoder's factors
    best: Tensor  # the bound under the best factors of that family, found for each row by itself
    log_prob: Tensor  # the importance-weighted bound

    @property
    def amortization(self) -> float:
        """Lost by the encoder, a mean over the rows, in nats."""
        return float((self.best - self.encoder).mean())

    @property
    def approximation(self) -> float:
        """Lost by the family of the guide."""
        return float((self.log_prob - self.best).mean())


def gaps(fit: Any, dataset: Dataset, num_steps: int, num: int) -> Gaps:
    """Optimise the factors of each row by themselves; compare bounds from `num` draws."""
    check_counts(num_steps=(num_steps, 1), num=(num, 1))
    dataset = replace(dataset, values=as_one(dataset.values, "gaps"))
    with opened(fit, dataset, fit.seed) as it:
        if len(it.story.latents) != 1 or it.story.discrete or it.story.data_dim != -1:
            raise ModelError("gaps: they are known of models with one continuous latent of each row, and no other")
        before = _bound(it, num)
        best = _climbed(it, num_steps)
        after = _bound(best, num)
        exact = _weighed(best, num)
    return Gaps(before, torch.maximum(before, after), exact)


def _bound(it: Opened, num: int) -> Tensor:
    """The bound of each row, with the same noise each time."""
    torch.manual_seed(0)
    found = [
        elbo(terms(it.story, draw(it.story, it.values, it.data, 10, it.missing), scaled=False), False)
        for _ in range(max(1, num // 10))
    ]
    return torch.stack(found).double().mean(0)


def _weighed(it: Opened, num: int) -> Tensor:
    """The importance-weighted bound of each row."""
    drawn = draw(it.story, it.values, it.data, num, it.missing)
    return importance_bound(log_weights(terms(it.story, drawn, exact=False, scaled=False)).double())


def _climbed(it: Opened, num_steps: int) -> Opened:
    """The same model with a guide whose every row has numbers of its own, climbed from the encoder's."""
    (name,) = it.story.latents
    fn = draw(it.story, it.values, it.data, 1, it.missing).guide[name]["fn"]
    base, size = base_of(fn), num_rows(it.data)
    if not isinstance(base, dist.Normal | dist.MultivariateNormal) or fn.event_dim != 1:
        raise ModelError(f"gaps: the guide's {type(base).__name__} is not normal, so it cannot be climbed row by row")
    full = isinstance(base, dist.MultivariateNormal)
    loc = base.loc.detach().expand(size, -1).clone().requires_grad_()
    raw = _raw(base).detach().expand(size, -1).clone().requires_grad_()

    def guide(rows: Any) -> None:
        times = num_rows(rows) // size
        with pyro.plate("data", num_rows(rows)):
            if full:
                q: Any = dist.MultivariateNormal(loc, scale_tril=tril_of(raw, loc.shape[1]))
            else:
                q = dist.Normal(loc, positive(raw)).to_event(1)
            pyro.sample(name, q if times == 1 else _repeated(q, times))

    own = it._replace(story=replace(it.story, pair=replace(it.story.pair, guide=guide)))
    optimizer = torch.optim.Adam([loc, raw], lr=RATE)
    falling = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / num_steps))
    with torch.enable_grad():
        for _ in range(num_steps):
            drawn = draw(own.story, own.values, own.data, 2, own.missing)
            # gradients through the draws alone: their noise is gone where the family holds the posterior (Roeder et
            # al. 2017)
            found = terms(own.story, drawn, exact=False, scaled=False, frozen=True)
            loss = -elbo(found, False).sum()
            (grads_loc, grads_raw) = torch.autograd.grad(loss, [loc, raw])
            loc.grad, raw.grad = grads_loc, grads_raw
            optimizer.step()
            falling.step()
    return own


def _raw(base: Any) -> Tensor:
    """Free numbers of a spread."""

    def inverse(value: Tensor) -> Tensor:
        return value + torch.log(-torch.expm1(-value))

    if not isinstance(base, dist.MultivariateNormal):
        return inverse(base.scale)
    tril = base.scale_tril
    rows, cols = torch.tril_indices(tril.shape[-1], tril.shape[-1], -1)
    return torch.cat([inverse(tril.diagonal(dim1=-2, dim2=-1)), tril[..., rows, cols]], -1)


def _repeated(q: Any, times: int) -> Any:
    if isinstance(q, dist.MultivariateNormal):
        return dist.MultivariateNormal(q.loc.repeat(times, 1), scale_tril=q.scale_tril.repeat(times, 1, 1))
    return dist.Normal(q.base_dist.loc.repeat(times, 1), q.base_dist.scale.repeat(times, 1)).to_event(1)
