"""Bad input met before the first step of a pair with networks: which column holds what, and the way out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal, Multinomial, MultivariateNormal, Normal

from ..base.errors import DataError, OptionError
from ..data.schema import Schema
from ..data.sparse import bags_of, check_counts, check_rows_count
from ..data.streams import pieces, together
from ..data.structures import num_rows, slice_rows, tensors_of
from ..distributions.mixed_rows import parts_of
from ..program.checks import expected_words, fits_support
from ..trace.handlers import base_of
from .bounds import draw, kl_of, values_from
from .columns import places
from .reader import Story, at_rest, free_value

ROWS = 4096  # looked at together


def check_sites(story: Story, data: Any, schema: Schema, spread: bool = True) -> None:
    """Observed values lie in the support of their distribution; a column whose spread is learned varies."""
    with at_rest(story):
        _check_sites(story, data, schema, spread)


def _check_sites(story: Story, data: Any, schema: Schema, spread: bool) -> None:
    leaves = {name: free_value(leaf, leaf.value) for name, leaf in story.leaves.items()}
    first: dict[str, Tensor] = {}
    varies: dict[str, Tensor] = {}
    with torch.no_grad():
        values = values_from(story, leaves)
        size = together(data, ROWS)
        for start in range(0, num_rows(data), size):
            some = slice_rows(data, torch.arange(start, min(start + size, num_rows(data))))
            for name, msg in draw(story, values, some, 1, False).model.items():
                if name not in story.observed:
                    continue
                value = msg["value"]
                called = Columns(story, values, data, schema, name)
                for own, fn in parts_of(msg["fn"], value.shape[-1] if value.dim() > 1 else 1):
                    cells = value if fn is msg["fn"] else value[..., own]
                    _check_support(called, own, base_of(fn), cells, start)
                    if start == 0:
                        _check_text(called, own, base_of(fn))
                if story.num_configurations == 1 and value.dim() == 2:
                    first.setdefault(name, value[0])
                    away = ((value != first[name]) & ~value.isnan()).any(0)
                    varies[name] = away | varies.get(name, away)
    if spread:
        _check_spread(
            story, values_from(story, {n: v.requires_grad_() for n, v in leaves.items()}), data, varies, schema
        )


class Columns(NamedTuple):
    """The columns that an observed site holds, looked up when a message names them."""

    story: Story
    values: dict[str, Tensor]
    data: Any
    schema: Schema
    site: str

    def places(self) -> list[int]:
        """Where they stand in the table; () where the site holds computed values."""
        found = places(self.story, self.values, self.data)
        return [] if found is None else found[self.site].tolist()

    def column(self, number: int) -> str:
        """One of them, by its name, where it has one."""
        places, names = self.places(), self.schema.columns
        number = places[number] if number < len(places) else number
        return f"column {names[number]!r}" if names and number < len(names) else f"column {number}"


def _check_support(called: Columns, own: list[int], fn: Any, value: Tensor, start: int) -> None:
    if isinstance(fn, Multinomial) and value.dim() == 2:
        counts = bags_of(value)
        check_counts(counts, called.site, called.column, start)
        check_rows_count(counts, called.site, start)
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
    number = own[place[1]] if len(place) > 1 else 0 if value.dim() == 1 else None
    where = f"row {place[0] + start}" + (f", {called.column(number)}," if number is not None else "")
    raise DataError(
        f"site '{called.site}': {where} holds {shown}, which {type(fn).__name__} cannot take: expected "
        f"{expected_words(fn)}"
    )


def _check_text(called: Columns, own: list[int], fn: Any) -> None:
    """Codes of labels are names, not numbers."""
    schema = called.schema
    if not schema.labels or type(fn).__name__ in ("Categorical", "OneHotCategorical", "Bernoulli"):
        return
    found = called.places()
    for number in own if found else ():
        name = (schema.columns or ())[found[number]]
        if name in schema.labels:
            raise DataError(
                f"column {name!r} holds labels ({', '.join(map(repr, schema.labels[name][:3]))}, ...), and site "
                f"'{called.site}' is numeric ({type(fn).__name__}): take a likelihood of categories, such as "
                f'likelihood="mixed", or drop the column'
            )


def _check_spread(
    story: Story, values: dict[str, Tensor], data: Any, varies: dict[str, Tensor], schema: Schema
) -> None:
    if num_rows(data) < 2:
        return
    nodes = draw(story, values, slice_rows(data, slice(2)), 1, False).model
    for name, moving in varies.items():
        for own, part in parts_of(nodes[name]["fn"], len(moving)):
            fn = base_of(part)
            spread = getattr(fn, "scale", None) if isinstance(fn, Normal) else None
            if isinstance(fn, MultivariateNormal | LowRankMultivariateNormal):
                spread = fn.variance
            if spread is None or not spread.requires_grad or bool(moving[own].all()):
                continue
            if spread.stride(-1) == 0 and spread.shape[-1] > 1:  # one number for all columns
                continue
            number = own[int((~moving[own]).nonzero()[0])]
            raise DataError(
                f"{Columns(story, values, data, schema, name).column(number)} of site '{name}' is constant, so its "
                f"learned variance would be 0: drop the column, or fix the scale in the model"
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
    leaves = {name: free_value(leaf, leaf.value) for name, leaf in story.leaves.items()}
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
    start = 0
    for piece in pieces(data):
        size = num_rows(piece)
        tables = [t.reshape(size, -1) for t in tensors_of(piece).values() if t.is_floating_point() and len(t) == size]
        empty = torch.stack([t.isnan().all(1) for t in tables]).all(0)
        if bool(empty.any()):
            row = start + int(empty.nonzero()[0])
            raise DataError(f"data: row {row} has no observed cell, so there is nothing to learn from it: drop it")
        start += size
