"""What is raised with networks: a bound on the rows of a batch, and where it stands on many."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.rng import forked
from ..data.streams import first_rows, with_draws
from ..data.structures import num_rows, slice_rows, tensors_of
from ..svi.options import SVIOptions, Warmup
from ..svi.training import ERROR, Level
from .bounds import Reweighted, draw, elbo, elbos, importance_bound, log_weights, terms, values_from
from .reader import Story, at_rest, to_dtype

DRAWS, MANY = 200, 20_000  # of the bound that was reached, on up to so many draws of rows, however few steps there were
EVALUATED = 16_384  # rows, repeated ones too, of one pass without gradients


class Batch(NamedTuple):
    """Rows of a step."""

    rows: Any
    share: Tensor | None  # their weights, (B,)
    kl_weight: Tensor | None  # how much of the KL divergence counts, where that changes

    @property
    def tensors(self) -> list[Tensor]:
        """What differs from step to step."""
        return [*tensors_of(self.rows).values(), *(one for one in self[1:] if one is not None)]


@dataclass(frozen=True)
class Objective:
    """A bound of a pair with networks, on some rows. The networks of the story hold the weights that are learned."""

    story: Story
    data: Any
    leaves: dict[str, Tensor]
    options: SVIOptions
    missing: bool = False
    share: Tensor | None = None  # weights of the rows
    train: Tensor | None = None  # positions of the rows to learn from; None for all
    held: Tensor | None = None  # of those held out

    @property
    def num_rows(self) -> int:
        """Rows that are learned from."""
        return num_rows(self.data) if self.train is None else len(self.train)

    def rows(self, index: Tensor | None) -> Any:
        """Some rows as the networks take them."""
        rows = first_rows(self.data, self.num_rows) if index is None else slice_rows(self.data, index)
        return to_dtype(rows, self.story.dtype)

    def step(self, picked: Tensor | None, step: int) -> tuple[Batch, list[Tensor]]:
        """The batch of a step, of some of the rows that are learned from, and what differs from step to step."""
        batch = self.batch(picked if self.train is None else self.train if picked is None else self.train[picked], step)
        return batch, batch.tensors

    def batch(self, index: Tensor | None, step: int = 0) -> Batch:
        """Some rows to take a step on."""
        share = self.share if self.share is None or index is None else self.share[index]
        warmup, dtype = self.options.warmup, self.story.dtype
        weight = torch.tensor(warmup.weight(step), dtype=dtype) if isinstance(warmup, Warmup) else None
        return Batch(self.rows(index), share, weight)

    def loss(self, batch: Batch) -> Tensor:
        """Minus an estimate of the objective, a mean over the rows of a batch."""
        story, (rows, share, weight) = self.story, batch
        values, num = values_from(story, self.leaves), self.options.num_particles or 1
        if not self.options.weighted:
            found = terms(story, draw(story, values, rows, num, self.missing), self.options.nats)
            each = elbo(found, bool(story.guided), 1.0 if weight is None else weight)
        elif self.options.objective == "iwae":
            drawn = draw(story, values, rows, num, self.missing)
            each = importance_bound(log_weights(terms(story, drawn, exact=False)))
        else:
            again = Reweighted()
            drawn = draw(story, values, rows, num, self.missing, again.hook)
            log_w = log_weights(terms(story, drawn, exact=False, frozen=True))
            again.share = log_w.detach().softmax(0)
            bound = importance_bound(log_w)
            # the weights of the first factor, as numbers: the hook brings the second
            each = (again.share * log_w).sum(0)
            each = each + (bound - each).detach()
        return -(each.mean() if share is None else (share * each).sum() / share.sum())

    def held_level(self) -> float:
        """The bound of the rows held out, a sum, with the same draws each time."""
        return self.level(self.held, 1, True).bound

    def reached_level(self, most: float) -> Level:
        """The bound of the rows that were learned from, by as many draws as make its error small, where these are at
        most so many of each row; with closed forms or without, whichever has the less noise.
        """
        first = max(2, min(DRAWS, MANY // (self.num_rows * self.story.num_configurations)))
        tried = {closed: self.level(self.train, first, closed) for closed in (True, False)[self.options.weighted :]}
        closed, found = min(tried.items(), key=lambda one: one[1].error)
        wanted = first * (found.error / ERROR) ** 2
        return self.level(self.train, math.ceil(wanted), closed) if first < wanted <= most else found

    def level(self, index: Tensor | None, num: int, closed: bool) -> Level:
        """The bound of some rows, a sum, without noise from the networks, by `num` draws of each; and its error.

        Closed forms stand in place of draws where that is asked for; without them the estimate has the less noise the
        nearer the guide is to the posterior.
        """
        index = torch.arange(num_rows(self.data), device="cpu") if index is None else index
        bound, square = 0.0, 0.0
        with forked(), torch.no_grad(), at_rest(self.story):
            torch.manual_seed(self.options.seed)
            for some in index.split(with_draws(self.data, EVALUATED, num * self.story.num_configurations)):
                share = 1.0 if self.share is None else self.share[some]
                mean, variance = self._estimates(some, num, closed)
                bound += float((share * mean).double().sum())
                square += float((share**2 * variance).double().sum())
        return Level(bound, math.sqrt(square))

    def _estimates(self, index: Tensor, num: int, closed: bool) -> tuple[Tensor, Tensor]:
        """The bound of each row, (B,), by some draws, and the variance of that."""
        values = values_from(self.story, self.leaves)
        found = terms(self.story, draw(self.story, values, self.rows(index), num, self.missing), exact=closed)
        if not self.options.weighted:
            each = elbos(found, bool(self.story.guided))
            mean = each.mean(0)
        else:
            weights = log_weights(found)
            mean = importance_bound(weights)
            each = (weights - mean).exp()
        return mean, each.var(0) / num if num > 1 else torch.zeros_like(mean)
