"""Where a bound loses: in the family of the guide, in the encoder (Cremer, Li and Duvenaud 2018), or in the params."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from ..amortized.bounds import draw, elbo, importance_bound, log_weights, terms
from ..amortized.linear import exact, optimum
from ..base.errors import ModelError
from ..base.options import check_counts
from ..data.schema import Dataset
from ..data.streams import as_one
from ..data.structures import num_rows, tensors_of
from ..nn.posteriors import free_numbers
from ..posterior.amortized import Opened, opened
from ..posterior.base import Fitted

RATE = 0.1  # of Adam, falling to a hundredth


class Gaps(NamedTuple):
    """Three numbers of each row, (N,) each, that rise to its log probability; their differences are the gaps.

    Where the model is normal and linear in its latent, a fourth: its log probability where all params of the model are
    at the maximum of their likelihood.
    """

    encoder: Tensor  # the bound under the encoder's factors
    best: Tensor  # the bound under the best factors of that family, found for each row by itself
    log_prob: Tensor  # exact where it can be, otherwise the importance-weighted bound
    optimum: Tensor | None  # of the rows that were fitted, where there is a closed form

    @property
    def amortization(self) -> float:
        """Lost by the encoder, a mean over the rows, in nats."""
        return float((self.best - self.encoder).mean())

    @property
    def approximation(self) -> float:
        """Lost by the family of the guide."""
        return float((self.log_prob - self.best).mean())

    @property
    def optimization(self) -> float | None:
        """Lost by params that are not where their likelihood is highest; None where nobody knows that place."""
        return None if self.optimum is None else float((self.optimum - self.log_prob).mean())

    def __str__(self) -> str:
        lines = [("approximation", self.approximation, "by the family of the guide")]
        lines += [("amortization", self.amortization, "by the encoder")]
        lines += [("optimization", self.optimization, "by the params")] if self.optimization is not None else []
        head = f"bound {float(self.encoder.mean()):.4f} nats a row, log p(x) {float(self.log_prob.mean()):.4f}; lost:"
        return "\n".join([head, *(f"  {name:<14}{value:9.4f}  {why}" for name, value, why in lines)])


def gaps(fit: Fitted, dataset: Dataset, num_steps: int, num: int) -> Gaps:
    """Optimise the factors of each row by themselves; compare bounds from `num` draws."""
    check_counts(num_steps=(num_steps, 1), num=(num, 1))
    dataset = replace(dataset, values=as_one(dataset.values, "gaps"))
    with opened(fit, dataset, fit.seed) as it:
        if len(it.story.latents) != 1 or it.story.discrete or it.story.data_dim != -1:
            raise ModelError("gaps: they are known of models with one continuous latent of each row, and no other")
        before = _bound(it, num)
        best = _climbed(it, num_steps)
        after = _bound(best, num)
        known = exact(it.story, it.values, it.data)
        log_prob = _weighed(best, num) if known is None else known
        own = known is not None and _of_fit(fit, dataset)
        highest = optimum(it.story, it.values, it.data, fit.weights) if own else None
    return Gaps(before, torch.maximum(before, after), log_prob, highest)


def _of_fit(fit: Fitted, dataset: Dataset) -> bool:
    """Whether these are the rows that were fitted: of others nobody asks where their own maximum lies."""
    if fit.data is None:
        return False
    both = zip(tensors_of(dataset.values).values(), tensors_of(fit.adapted(None).values).values(), strict=True)
    return all(a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in both)


def _bound(it: Opened, num: int) -> Tensor:
    """The bound of each row, with the same noise each time, and none where the factor is the posterior itself."""
    torch.manual_seed(0)
    found = [
        elbo(terms(it.story, draw(it.story, it.values, it.data, 10, it.missing), exact=False, scaled=False), False)
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
    found, size = free_numbers(fn), num_rows(it.data)
    if found is None:
        raise ModelError(f"gaps: the guide's {type(fn).__name__} of '{name}' cannot be climbed row by row")
    start, factor = found
    free = start.detach().expand(size, -1).clone().requires_grad_()

    def guide(rows: Any) -> None:
        with pyro.plate("data", num_rows(rows)):
            pyro.sample(name, factor(free.repeat(num_rows(rows) // size, 1)))

    own = it._replace(story=replace(it.story, pair=replace(it.story.pair, guide=guide)))
    optimizer = torch.optim.Adam([free], lr=RATE)
    falling = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / num_steps))
    with torch.enable_grad():
        for _ in range(num_steps):
            drawn = draw(own.story, own.values, own.data, 2, own.missing)
            # gradients through the draws alone: their noise is gone where the family holds the posterior (Roeder et
            # al. 2017)
            found_terms = terms(own.story, drawn, exact=False, scaled=False, frozen=True)
            (free.grad,) = torch.autograd.grad(-elbo(found_terms, False).sum(), [free])
            optimizer.step()
            falling.step()
    return own
