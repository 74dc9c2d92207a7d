"""The `Fit` of what a training has reached."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .amortized import Amortized
from .data import Dataset
from .deep_bound import values_from
from .deep_story import Story
from .finish import free_dims
from .fit import Fit
from .modes import Mode, ModeMap
from .pair import Pair
from .saving import versions

OWN = "networks"  # the guide of a fit whose pair brings its own
DRAWS, MANY = 200, 20_000  # of the bound that was reached, on up to so many draws of rows


def deep_fit(
    pair: Pair,
    dataset: Dataset,
    training: Any,
    shape: Amortized | None,
    fixed: dict[str, Tensor],
    start: dict[str, Tensor],
    ends: list[float],
) -> Fit:
    """Plain values of the weights, and the bound where they are."""
    story, state = training.story, training.state
    reached = {name: v.detach().cpu().clone() for name, v in values_from(story, training.leaves).items()}
    params = {name: value for name, value in reached.items() if story.leaves[name].of_model}
    parts = {f"value/{name}": value for name, value in reached.items() if not story.leaves[name].of_model}
    parts |= {f"fixed/{name}": value.cpu() for name, value in fixed.items()}
    for name, network in story.networks.items():
        parts |= {f"buffer/{name}/{key}": value.cpu().clone() for key, value in network.named_buffers()}
    rows = training.batches.num_rows
    level = training.level(training.train, max(1, min(DRAWS, MANY // (rows * story.num_configurations))))
    mode = Mode(level, max(1, len(ends)), 0.0, state.converged, False, {})
    return Fit(
        pair,
        "svi",
        params,
        torch.tensor([*state.bounds, level], dtype=torch.float64, device="cpu"),
        state.converged,
        level,
        num_free(story, params),
        training.total,
        math.nan,
        ModeMap((mode,), tuple(ends) or (level,)),
        {},
        training.plan.seed,
        dataset.schema,
        guide=OWN if shape is None else shape.name,
        guide_parts=parts,
        versions=versions(),
        data=dataset,
        weights=None if training.share is None else training.share.cpu(),
    )


def num_free(story: Story, params: dict[str, Tensor]) -> int:
    """Free dimensions of the model's params, weights of networks among them."""
    return sum(free_dims(story.leaves[name].constraint, value) for name, value in params.items())
