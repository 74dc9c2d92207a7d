"""Bad input met before the first step of a pair with networks: which column holds what, and the way out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal, Multinomial, MultivariateNormal, Normal

from .arrays import DataError, num_rows, slice_rows, tensors_of
from .checks import expected_words, fits_support
from .data import Schema
from .deep_bound import draw, kl_of, values_from
from .deep_counts import check_row_counts
from .deep_story import Story, at_rest, free_value
from .errors import OptionError
from .structure import base_of

ROWS = 4096  # looked at together


def check_sites(story: Story, data: Any, schema: Schema, spread: bool = True) -> None:
    """Observed values lie in the support of their distribution; a column whose spread is learned varies."""
    with at_rest(story):
        _check_sites(story, data, schema, spread)


def _check_sites(story: Story, data: Any, schema: Schema, spread: bool) -> None:
    leaves = {name: free_value(leaf, leaf.declared) for name, leaf in story.leaves.items()}
    first: dict[str, Tensor] = {}
    varies: dict[str, Tensor] = {}
    with torch.no_grad():
        values = values_from(story, leaves)
        for start in range(0, num_rows(data), ROWS):
            some = slice_rows(data, torch.arange(start, min(start + ROWS, num_rows(data))))
            for name, msg in draw(story, values, some, 1, False).model.items():
                if name not in story.observed:
                    continue
                fn, value = base_of(msg["fn"]), msg["value"]
                _check_support(name, fn, value, start, schema)
                if story.num_configurations == 1 and value.dim() == 2:
                    first.setdefault(name, value[0])
                    away = ((value != first[name]) & ~value.isnan()).any(0)
                    varies[name] = away | varies.get(name, away)
    if spread:
        _check_spread(
            story, values_from(story, {n: v.requires_grad_() for n, v in leaves.items()}), data, varies, schema
        )


def _check_support(name: str, fn: Any, value: Tensor, start: int, schema: Schema) -> None:
    if isinstance(fn, Multinomial) and value.dim() == 2:
        check_row_counts(name, value, start, schema)
    support = fn.support
    seen = ~value.isnan() if value.is_floating_point() else torch.ones_like(value, dtype=torch.bool)
    whole = torch.where(seen, value, torch.zeros_like(value))
    if hasattr(fn, "param_shape") and hasattr(fn, "logits") and type(fn).__name__ == "Categorical":
        fits = (whole >= 0) & (whole < fn.param_shape[-1]) & (whole == whole.floor())
    else:
        fits = fits_support(fn, support, whole)
    fits = fits | ~(seen.flatten(-support.event_dim).all(-1) if support.event_dim else seen)
    if bool(fits.all()):
        return
    place = (~fits).nonzero()[0].tolist()
    met = value[tuple(place)]
    shown = f"{met.item():g}" if met.numel() == 1 else str(met.tolist()[:6])
    where = f"row {place[0] + start}" + (f", {column(place[1], schema)}," if len(place) > 1 else "")
    raise DataError(
        f"site '{name}': {where} holds {shown}, which {type(fn).__name__} cannot take: expected {expected_words(fn)}"
    )


def column(number: int, schema: Schema) -> str:
    """A column by its name, where it has one."""
    names = schema.columns
    return f"column {names[number]!r}" if names and number < len(names) else f"column {number}"


def _check_spread(
    story: Story, values: dict[str, Tensor], data: Any, varies: dict[str, Tensor], schema: Schema
) -> None:
    if num_rows(data) < 2:
        return
    nodes = draw(story, values, slice_rows(data, slice(2)), 1, False).model
    for name, moving in varies.items():
        fn = base_of(nodes[name]["fn"])
        spread = getattr(fn, "scale", None) if isinstance(fn, Normal) else None
        if isinstance(fn, MultivariateNormal | LowRankMultivariateNormal):
            spread = fn.variance
        if spread is None or not spread.requires_grad or bool(moving.all()):
            continue
        if spread.stride(-1) == 0:  # one number for all columns
            continue
        number = int((~moving).nonzero()[0])
        raise DataError(
            f"{column(number, schema)} of site '{name}' is constant, so its learned variance would be 0: drop the "
            f"column, or fix the scale in the model"
        )


def check_batch(story: Story, rows: int) -> None:
    """Batch norm needs rows to compare."""
    for network, found in story.networks.items():
        for place, layer in found.named_modules():
            if rows == 1 and isinstance(layer, nn.modules.batchnorm._BatchNorm):
                raise OptionError(
                    f"batch_size: met 1 row a step, and layer '{place}' of network '{network}' ({layer}) compares "
                    f"rows: give batches of at least 2"
                )


def check_free_bits(story: Story, data: Any) -> None:
    """Free bits are of numbers whose divergence is known in closed form."""
    leaves = {name: free_value(leaf, leaf.declared) for name, leaf in story.leaves.items()}
    with torch.no_grad(), at_rest(story):
        drawn = draw(story, values_from(story, leaves), slice_rows(data, slice(2)), 1, False)
    alone = bool(story.guided) or story.num_configurations == 1
    for name in story.latents:
        known = kl_of(drawn.guide[name]["fn"], drawn.model[name]["fn"]) if alone else None
        if known is None or not (story.ordered or len(story.latents) == 1):
            raise OptionError(
                f"free_bits: the KL divergence of '{name}' has no closed form in this pair, so its numbers cannot have "
                f"any each: use warmup"
            )


def check_rows_seen(story: Story, data: Any) -> None:
    """Every row has an observed cell: another would say nothing, and cost its latents."""
    size = num_rows(data)
    tables = [t.reshape(size, -1) for t in tensors_of(data).values() if t.is_floating_point() and len(t) == size]
    empty = torch.stack([t.isnan().all(1) for t in tables]).all(0)
    if bool(empty.any()):
        raise DataError(
            f"data: row {int(empty.nonzero()[0])} has no observed cell, so there is nothing to learn from it: drop it"
        )
