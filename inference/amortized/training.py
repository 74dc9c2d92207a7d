"""The ascent of a pair with networks: batches, fused Adam, warm-up, a held-out bound, and when it is at rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.errors import OptionError
from ..base.progress import Progress
from ..base.rng import forked
from ..data.batches import Batches
from ..data.streams import first_rows, with_draws
from ..data.structures import num_rows, slice_rows, tensors_of
from ..svi.annealing import FreeBits, Warmup
from ..svi.ascent import NotFinite
from .bounds import Reweighted, draw, elbo, importance_bound, log_weights, terms, values_from
from .reader import Story, to_dtype
from .replay import Steps

ROUND = 50  # steps, at least, between two looks at where the bound stands
FALL, LOWEST = 0.3, 0.02  # of the learning rate, when the bound has stopped rising
SMOOTH = 0.98  # of the running mean of the gradient's length
EVALUATED = 16_384  # rows, repeated ones too, of one pass without gradients


class Plan(NamedTuple):
    """What the driver was asked for, resolved."""

    objective: str  # "elbo", "iwae" or "dreg"
    num_particles: int
    learning_rate: float
    clip: float
    tol: float
    patience: int
    warmup: Warmup | None
    free_bits: FreeBits | None
    seed: int
    compile: bool | None


class Batch(NamedTuple):
    """Rows of a step."""

    rows: Any
    share: Tensor | None  # their weights, (B,)
    kl_weight: Tensor | None  # how much of the KL divergence counts, where that changes

    @property
    def tensors(self) -> list[Tensor]:
        """What differs from step to step."""
        return [*tensors_of(self.rows).values(), *(one for one in self[1:] if one is not None)]


@dataclass
class Progressed:
    """Where an ascent stands, beside its weights."""

    rate: float
    step: int = 0
    level: float = -math.inf  # the best so far
    waited: int = 0  # rounds since then
    length: float = 0.0  # running mean of the gradient's
    converged: bool = False
    bounds: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)  # weights where the held-out bound was best


@dataclass
class Training:
    """An ascent from one start. The networks of the story hold the weights that are learned."""

    story: Story
    data: Any
    share: Tensor | None  # weights of the rows
    train: Tensor | None  # positions of the rows to learn from; None for all
    held: Tensor | None  # of those held out
    batches: Batches
    leaves: dict[str, Tensor]
    plan: Plan
    missing: bool
    state: Progressed
    optimizer: torch.optim.Optimizer
    decay: Callable[[float], None]
    sound: dict[str, Tensor] = field(default_factory=dict)  # weights whose loss and gradient were numbers, lately

    @property
    def total(self) -> float:
        """Rows that are learned from, or their weight."""
        if self.share is None:
            return float(self.batches.num_rows)
        return float((self.share if self.train is None else self.share[self.train]).sum())

    def rows(self, index: Tensor | None) -> Any:
        """Some rows as the networks take them."""
        rows = first_rows(self.data, self.batches.num_rows) if index is None else slice_rows(self.data, index)
        return to_dtype(rows, self.story.dtype)

    def batch(self, index: Tensor | None) -> Batch:
        """Some rows to take a step on."""
        share = self.share if self.share is None or index is None else self.share[index]
        warmup = self.plan.warmup
        weight = None if warmup is None else torch.tensor(warmup.weight(self.state.step), dtype=self.story.dtype)
        return Batch(self.rows(index), share, weight)

    def loss(self, batch: Batch) -> Tensor:
        """Minus an estimate of the objective, a mean over the rows of a batch."""
        story, plan, (rows, share, weight) = self.story, self.plan, batch
        values = values_from(story, self.leaves)
        if plan.objective == "elbo":
            nats = plan.free_bits.nats if plan.free_bits else 0.0
            found = terms(story, draw(story, values, rows, plan.num_particles, self.missing), nats)
            each = elbo(found, bool(story.guided), 1.0 if weight is None else weight)
        elif plan.objective == "iwae":
            drawn = draw(story, values, rows, plan.num_particles, self.missing)
            each = importance_bound(log_weights(terms(story, drawn, exact=False)))
        else:
            again = Reweighted(story)
            drawn = draw(story, values, rows, plan.num_particles, self.missing, again.hook)
            log_w = log_weights(terms(story, drawn, exact=False, frozen=True))
            again.share = log_w.detach().softmax(0)
            bound = importance_bound(log_w)
            # the weights of the first factor, as numbers: the hook brings the second
            each = (again.share * log_w).sum(0)
            each = each + (bound - each).detach()
        return -(each.mean() if share is None else (share * each).sum() / share.sum())

    def kept(self) -> dict[str, Tensor]:
        """What is learned, and what networks count of the rows that pass (batch norm)."""
        counted = {
            f"buffer/{name}/{key}": value
            for name, network in self.story.networks.items()
            for key, value in network.named_buffers()
        }
        return {**self.leaves, **counted}

    def advance(self, num_steps: int, bar: Progress, after: Callable[[], None]) -> None:
        """Up to `num_steps` steps in all, or until the bound is at rest."""
        state = self.state
        size = self.batches.size or self.batches.num_rows
        every = max(ROUND, self.batches.num_rows // size)
        leaves = list(self.leaves.values())
        steps = Steps(self.loss, leaves, list(self.story.networks.values()), self.plan.compile)
        while state.step < num_steps and not state.converged:
            picked = self.batches.next()
            index = picked if self.train is None else self.train if picked is None else self.train[picked]
            batch = self.batch(index)
            try:
                value = self._guard(steps(batch, batch.tensors), leaves)
            except torch.linalg.LinAlgError as error:
                raise NotFinite from error
            if state.step % every == 0:
                self.sound = {name: value.detach().clone() for name, value in self.kept().items()}
            self.optimizer.step()
            state.step += 1
            state.bounds.append(-value * self.total)
            bar.update(state.bounds[-1])
            if state.step % every == 0:
                self._look(every)
            after()

    def _guard(self, loss: Tensor, leaves: list[Tensor]) -> float:
        """The loss as a number. No step is taken on what is none; a gradient far longer than its like is shortened."""
        state, clip = self.state, self.plan.clip
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        length = torch.stack(torch._foreach_norm(gradients)).norm()
        value, norm = torch.stack([loss, length]).tolist()  # a device is waited for once
        if not math.isfinite(value) or not math.isfinite(norm):
            raise NotFinite
        if clip and state.length and norm > clip * state.length:
            torch._foreach_mul_(gradients, clip * state.length / norm)
            norm = clip * state.length
        state.length = norm if not state.length else SMOOTH * state.length + (1 - SMOOTH) * norm
        return float(value)

    def _look(self, every: int) -> None:
        """Whether the bound still rises: on the rows held out, where there are any."""
        state, plan = self.state, self.plan
        if plan.warmup is not None and state.step <= plan.warmup.ends:
            return
        if self.held is not None:
            level = self.level(self.held, 1)
            if level > state.level:
                state.best = {name: value.detach().clone() for name, value in self.kept().items()}
        else:
            level = sum(state.bounds[-every:]) / every
        if plan.tol <= 0 and self.held is None:
            return
        if level > state.level + plan.tol * (1 + abs(state.level) if math.isfinite(state.level) else 0):
            state.level, state.waited = level, 0
            return
        state.waited += 1
        if state.waited >= plan.patience and plan.tol > 0:
            state.waited = 0
            state.rate *= FALL
            self.decay(state.rate)
            state.converged = state.rate < LOWEST * plan.learning_rate

    def level(self, index: Tensor | None, num: int) -> float:
        """The bound on some rows, a sum, without noise from the networks and with the same draws each time."""
        modes = {name: net.training for name, net in self.story.networks.items()}
        for net in self.story.networks.values():
            net.eval()
        with forked(), torch.no_grad():
            torch.manual_seed(self.plan.seed)
            each = row_bounds(self.story, self.leaves, self.data, index, num, self.missing, self.plan.objective)
        for name, net in self.story.networks.items():
            net.train(modes[name])
        if self.share is not None:
            each = each * (self.share if index is None else self.share[index])
        return float(each.cpu().double().sum())


def row_bounds(
    story: Story, leaves: dict[str, Tensor], data: Any, index: Tensor | None, num: int, missing: bool, objective: str
) -> Tensor:
    """The bound of each row, (N,), a few at a time."""
    values = values_from(story, leaves)
    index = torch.arange(num_rows(data), device="cpu") if index is None else index
    parts = []
    for some in index.split(with_draws(data, EVALUATED, num * story.num_configurations)):
        drawn = draw(story, values, to_dtype(slice_rows(data, some), story.dtype), num, missing)
        if objective == "elbo":
            parts.append(elbo(terms(story, drawn), bool(story.guided)))
        else:
            parts.append(importance_bound(log_weights(terms(story, drawn, exact=False))))
    return torch.cat(parts)


def optimizer_of(
    leaves: dict[str, Tensor], rate: float, kind: Callable[..., Any] | None = None
) -> tuple[torch.optim.Optimizer, Callable[[float], None]]:
    """An optimizer of all leaves, fused Adam unless another is asked for, and how to change its rate.

    Raises
    ------
    OptionError
        What was asked for makes no optimizer of torch's.
    """
    weights = list(leaves.values())
    made: Any = torch.optim.Adam(weights, lr=rate, fused=True) if kind is None else kind(weights, lr=rate)
    if not isinstance(made, torch.optim.Optimizer) or isinstance(made, torch.optim.LBFGS):
        raise OptionError(
            f"optimizer: met one that makes a {type(made).__name__}, expected a torch.optim class that steps without "
            f"looking again, such as torch.optim.AdamW"
        )
    optimizer: torch.optim.Optimizer = made

    def decay(to: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = to

    return optimizer, decay
