"""Topics of a fit with networks: what it says of a row that is wholly of one topic."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..amortized.bounds import draw
from ..data.schema import Dataset
from ..data.structures import slice_rows
from ..program.deterministic import Moments
from ..trace.handlers import Bind
from .amortized import Opened, laid_out, opened
from .base import Fitted


class Standing(Messenger):
    """What a model computes of its latents stands at a value."""

    def __init__(self, name: str, value: Tensor) -> None:
        super().__init__()
        self.name, self.value = name, value

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.name:
            msg["value"] = self.value


def topics_of(fit: Fitted) -> Tensor | None:
    """Shares (K, V) of the columns in rows wholly of one topic, float64; None of a fit whose rows mix none.

    Rows mix topics where the model computes of their latents numbers that are positive and sum to 1, and observes
    counts.
    """
    width = fit.schema.width
    if width is None or fit.schema.container == "structure":
        return None
    with opened(fit, Dataset(torch.ones(2, width), fit.schema), fit.seed) as it:
        name, size = theta_of(it)
        if not name:
            return None
        rows = slice_rows(it.data, torch.zeros(size, dtype=torch.long))
        drawn = draw(it.story, it.values, rows, 1, False).guide
        play = Bind({**it.values, **{n: msg["value"] for n, msg in drawn.items()}}, centred=False)
        with play, Standing(name, torch.eye(size, dtype=it.story.dtype)):
            it.story.pair.model(rows)
        found: Tensor = play.nodes[it.story.observed[0]]["fn"].logits.double().softmax(-1)
    return found


def shares_of(fit: Fitted, dataset: Dataset) -> Tensor:
    """Expected shares (N, K) of the topics in rows."""
    with opened(fit, Dataset(slice_rows(dataset.values, slice(2)), dataset.schema), fit.seed) as it:
        name, _ = theta_of(it)
    with fit.kind.on(dataset) as posterior:
        found = posterior.marginals()[name]
    assert isinstance(found, Moments)
    return found.mean


def theta_of(it: Opened) -> tuple[str, int]:
    """The computed site that holds the shares of topics in a row, and how many; none and 0 where there are none."""
    story = it.story
    if story.discrete or len(story.computed) != 1 or len(story.observed) != 1 or not story.latents:
        return "", 0
    drawn = draw(story, it.values, slice_rows(it.data, slice(2)), 1, False)
    if not isinstance(drawn.model[story.observed[0]]["fn"], dist.Multinomial):
        return "", 0
    value = laid_out(story, drawn, drawn.model[story.computed[0]]["value"], 0)[0, 0]
    if value.dim() != 2 or bool((value < 0).any()) or not torch.allclose(value.sum(-1), torch.ones(len(value))):
        return "", 0
    return story.computed[0], value.shape[1]
