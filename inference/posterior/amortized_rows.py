"""Rows that a fit with networks makes: new ones, reconstructions, imputations, those between two others."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..amortized.bounds import Drawn, terms
from ..amortized.columns import places
from ..base.errors import DataError
from ..base.options import check_counts, check_seed
from ..data.adapt import numbers_of
from ..data.schema import Dataset, Schema
from ..data.streams import Rows, as_one, in_full
from ..data.structures import is_missing, num_rows, slice_rows
from ..distributions.missing import complete, observed_part
from ..distributions.mixed_rows import parts_of
from ..trace.handlers import Bind, base_of
from ..trace.provenance import plain
from .amortized import ROW_DRAWS, Opened, laid_out, opened, plain_params, sample_posterior, shares, weights
from .conditions import no_conditions, with_conditions
from .generate import Draw, as_given, empty_rows

GROUPS, SHORT = 40, 10  # scores that ArviZ gets: so many of so many draws each
TOGETHER = 50_000  # new rows made at once
RECONSTRUCTED = 50  # draws that a reconstruction is averaged over


def generate(fit: Any, num: int, given: dict[str, Any], seed: int) -> Any:
    """`num` new rows from the model."""
    check_counts(num=(num, 1))
    rows, said, fixed = with_conditions(empty_rows(fit, num), given, fit.schema)
    with opened(fit, Dataset(rows, fit.schema), check_seed(seed)) as it:
        story = it.story
        if not story.latents and not story.discrete:
            raise DataError("generate: the model has no latents, so there is nothing to draw rows from")
        where = places(story, it.values, it.data)
        known = {*story.latents, *story.discrete, *story.observed}
        fixed |= {name: given[name] for name in no_conditions(said, where, known, fit.schema)}
        if unknown := sorted(set(fixed) - known):
            raise DataError(f"generate: given names {unknown}, which are no sites of the model: it has {sorted(known)}")
        fixed = {name: _as_value(value, num, story.dtype) for name, value in fixed.items()}
        play = Bind(it.values, centred=False)
        with play, Draw(fixed):
            story.pair.model(it.data)
        if where is None:
            return {name: plain(play.nodes[name]["value"]) for name in story.observed}
        out = torch.as_tensor(rows).to(torch.float64).clone().reshape(num, -1)
        for name, columns in where.items():
            msg = play.nodes[name]
            value = msg["value"].movedim(story.data_dim - msg["fn"].event_dim, 0).reshape(num, -1)
            out[:, columns] = value.double()
    return _decoded(fit, out.reshape(rows.shape), rows, None)


def _as_value(value: Any, num: int, dtype: torch.dtype) -> Tensor:
    found = torch.as_tensor(value)
    found = found.to(dtype) if found.is_floating_point() else found
    return found if found.dim() and len(found) == num else found.expand(num, *found.shape)


def _decoded(fit: Any, out: Tensor, like: Any, names: Any) -> Any:
    return fit.schema.decode(as_given(out, like), names)


def reconstruct(fit: Any, dataset: Dataset) -> Any:
    """Every cell at its expected value under the posterior of its row's latents."""
    return _fill(fit, dataset, everywhere=True)


def impute(fit: Any, dataset: Dataset) -> Any:
    """Missing cells at their expected value given the rest of their row, by importance weights (Mattei and Frellsen
    2019).
    """
    return _fill(fit, dataset, everywhere=False)


def _fill(fit: Any, dataset: Dataset, everywhere: bool) -> Any:
    values = dataset.values
    if not isinstance(values, Tensor | Rows):
        raise DataError("reconstruct and impute take data of one tensor or table; this model's data are a structure")
    out = in_full(values).reshape(len(values), -1)
    with opened(fit, dataset, fit.seed) as it:
        where = places(it.story, it.values, it.data)
        if where is None:
            raise DataError("a site observes values computed from the data, so they cannot be put back in place")
        if not everywhere and not is_missing(out):
            whole = as_given(out.reshape(values.shape), values) if isinstance(values, Rows) else values
            return fit.schema.decode(whole, dataset.names)
        num = (RECONSTRUCTED if everywhere else ROW_DRAWS) if it.story.latents else 1
        for index, drawn in it.parts(num):
            weight = _weights(it, drawn, everywhere)  # (K, S, B)
            for name, columns in where.items():
                found = _expected(it, drawn, name, weight, None if everywhere else out[index][:, columns]).double()
                old = out[index.unsqueeze(1), columns]
                out[index.unsqueeze(1), columns] = found if everywhere else torch.where(old.isnan(), found, old)
    out = _rounded(out.reshape(values.shape), dataset.schema)
    return _decoded(fit, out, values, dataset.names)


def _rounded(out: Tensor, schema: Schema) -> Tensor:
    """Expected rows in which a label is a label: of two, too, the more probable."""
    for number, column in enumerate(schema.columns or () if schema.container == "frame" else ()):
        if column in schema.labels:
            out.reshape(len(out), -1)[:, number].round_()
    return out


def _weights(it: Opened, drawn: Drawn, everywhere: bool) -> Tensor:
    """Of each draw under each configuration; they sum to 1 in each row."""
    configs, num, size = drawn.lead
    if everywhere:
        share = shares(it.story, drawn) if it.story.discrete else torch.ones(1, size)
        return (share / num).unsqueeze(1).expand(configs, num, size)
    found = terms(it.story, drawn, exact=False, scaled=False)
    joint = found.likelihood + found.prior + found.discrete - found.log_q
    return joint.reshape(-1, size).softmax(0).reshape(joint.shape)


def _expected(it: Opened, drawn: Drawn, name: str, weight: Tensor, cells: Tensor | None) -> Tensor:
    """Expected cells (B, C) of one site."""
    msg = drawn.model[name]
    fn = getattr(msg["fn"], "fn", msg["fn"])  # behind the mask of missing cells
    width = fn.event_shape.numel() if fn.event_shape else 1
    found: dict[int, Tensor] = {}
    for columns, part in parts_of(fn, width):
        own = None if cells is None or len(columns) == width else cells[:, columns]
        values = _expected_part(it, drawn, part, weight, cells if own is None else own)
        if len(columns) == width:
            return values
        found |= dict(zip(columns, values.double().unbind(1), strict=True))
    return torch.stack([found[place] for place in range(width)], 1)


def _expected_part(it: Opened, drawn: Drawn, fn: Any, weight: Tensor, cells: Tensor | None) -> Tensor:
    """Expected cells (B, C) under one distribution."""
    base = base_of(fn)
    event = len(fn.event_shape)
    if isinstance(base, dist.Categorical):
        probs = laid_out(it.story, drawn, base.probs, event + 1)
        return _mean(weight, probs).argmax(-1).reshape(weight.shape[-1], -1)
    mean = fn.mean
    if cells is not None and isinstance(base, dist.MultivariateNormal | dist.LowRankMultivariateNormal):
        value = cells.to(mean).repeat(weight.shape[0] * weight.shape[1], 1)
        seen = ~value.isnan()
        part = observed_part(value.nan_to_num(nan=0.0), seen, base.mean, base.covariance_matrix)
        mean, _ = complete(value.nan_to_num(nan=0.0), seen, base.mean, base.covariance_matrix, part)
    return _mean(weight, laid_out(it.story, drawn, mean, event)).reshape(weight.shape[-1], -1)


def _mean(weight: Tensor, laid: Tensor) -> Tensor:
    return (weight.reshape(*weight.shape, *(1,) * (laid.dim() - 3)) * laid).sum((0, 1))


def interpolate(fit: Any, dataset: Dataset, first: int, second: int, num: int) -> Any:
    """Expected rows along the line between the posterior means of two rows, (num, D)."""
    check_counts(num=(num, 2))
    size = num_rows(dataset.values)
    for place in (first, second):
        if not 0 <= place < size:
            raise DataError(f"interpolate: met row {place}, expected one of 0 to {size - 1}")
    two = slice_rows(dataset.values, torch.tensor([first, second]))
    path = {}
    for name, found in fit.latents(two).items():
        mean = getattr(found, "mean", None)
        if isinstance(mean, Tensor):
            steps = torch.linspace(0, 1, num, dtype=mean.dtype).reshape(-1, *(1,) * (mean.dim() - 1))
            path[name] = mean[:1] + steps * (mean[1:] - mean[:1])
    return decode(fit, slice_rows(dataset.values, torch.full((num,), first)), path)


def decode(fit: Any, rows: Any, given: dict[str, Tensor]) -> Any:
    """Expected rows where the latents stand at given values (num, ...); all else as in `rows`."""
    with opened(fit, Dataset(rows, fit.schema), fit.seed) as it:
        story = it.story
        if missing := [name for name in story.latents if name not in given]:
            raise DataError(f"decode: no value of latent '{missing[0]}'")
        if not story.latents:
            raise DataError("the model has no latents, so nothing can be decoded")
        play = Bind(
            {**it.values, **{n: _as_value(v, num_rows(rows), story.dtype) for n, v in given.items()}}, centred=False
        )
        with play:
            story.pair.model(it.data)
        where = places(it.story, it.values, it.data)
        if where is None:
            raise DataError("a site observes values computed from the data, so they cannot be put back in place")
        out = torch.as_tensor(rows).to(torch.float64).clone().reshape(len(rows), -1)
        drawn = Drawn({}, play.nodes, (1, 1, len(out)))
        for name, columns in where.items():
            out[:, columns] = _expected(it, drawn, name, torch.ones(1, 1, len(out)), None).double()
    return fit.schema.decode(_rounded(out.reshape(rows.shape), fit.schema), None)


def arviz_groups(fit: Any, dataset: Dataset, num: int, seed: int) -> dict[str, Any]:
    """Arguments of `export.to_arviz`: draws of latents from the guide, scores of rows, new rows."""
    dataset = replace(dataset, values=as_one(dataset.values, "to_arviz"))
    drawn = {name: value.numpy()[None] for name, value in sample_posterior(fit, dataset, num, seed).items()}
    held = plain_params(fit)
    groups_of = min(num, GROUPS)
    each = weights(fit, dataset, SHORT * groups_of, seed).unflatten(0, (groups_of, SHORT)).logsumexp(1)
    scores = (each - math.log(SHORT))[torch.arange(num) % groups_of]
    values = dataset.values
    predicted = _predicted(fit, num_rows(values), num, seed)
    width = dataset.schema.width
    names = list(dataset.schema.columns) if dataset.schema.columns else list(range(width or 1))
    dims = {"x": ["data", "column"] if width else ["data"], "rows": ["data"]}
    dims |= {n: ["data", *(f"{n}_dim_{i}" for i in range(1, v.ndim - 2))] for n, v in drawn.items() if n not in held}
    groups = {
        "posterior": drawn,
        "log_likelihood": {"x": scores.numpy()[None]},
        "sample_stats": {"lp": scores.sum(1).numpy()[None]},
        "observed_data": {"x": torch.as_tensor(values).numpy()},
        "posterior_predictive": {"x": predicted.numpy()[None]} if predicted is not None else {},
    }
    return {
        "groups": {name: group for name, group in groups.items() if group},
        "coords": {"data": list(range(num_rows(values))), "column": names},
        "dims": dims,
        "attrs": {"inference": fit.inference, "seed": fit.seed, "draws": "guide"},
    }


def _predicted(fit: Any, size: int, num: int, seed: int) -> Tensor | None:
    """New rows beside each of those of the data, (num, N, ...); None where there is nothing to draw."""
    most = max(1, TOGETHER // size)
    parts = []
    try:
        for start in range(0, num, most):
            rows = generate(fit, size * min(most, num - start), {}, seed + start)
            if isinstance(rows, dict):
                return None
            parts.append(numbers_of(rows, fit.schema).unflatten(0, (-1, size)))
    except DataError:
        return None
    return torch.cat(parts)
