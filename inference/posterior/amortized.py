"""Encoders: posteriors of latents of rows that a network computes from the row."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from ..amortized.bounds import Centred, Drawn, configurations, draw, encode, log_weights, terms
from ..amortized.checks import check_sites
from ..amortized.columns import places
from ..amortized.encoder import OWN, amortize, shape_of
from ..amortized.linear import exact, line_of
from ..amortized.reader import SAMPLE, Story, installed, read_story, to_dtype
from ..base.errors import DataError
from ..base.options import check_counts, check_seed
from ..data.adapt import numbers_of
from ..data.schema import Dataset, Schema
from ..data.streams import as_one, with_draws
from ..data.structures import is_missing, listed, num_rows, slice_rows
from ..distributions.missing import complete, observed_part
from ..distributions.mixed_rows import parts_of
from ..program.deterministic import Moments
from ..program.sites import Params
from ..trace.handlers import DIVIDER, Bind, base_of, engine_state
from ..trace.provenance import plain
from .base import Cells, Draws, Fitted, Latents, Posterior, Replicates
from .expected import rounded
from .generate import Draw, as_given, check_given, empty_rows
from .psis import k_hat

ROW_DRAWS = 100  # of the importance-weighted bound, and of moments that have no closed form
FEWEST = 20  # of them, under each of many configurations
HELD = 10_000  # rows of the model, repeated ones too, that are looked at together
GROUPS, SHORT = 40, 10  # scores under each of many draws: so many of so many draws each
TOGETHER = 50_000  # new rows made at once
RECONSTRUCTED = 50  # draws that a reconstruction is averaged over
COMPUTED = "a site observes values computed from the data, so they cannot be put back in place"


class Opened(NamedTuple):
    """A fit's networks with its weights, and data as they take them."""

    story: Story
    values: dict[str, Tensor]
    data: Any
    missing: bool

    def pieces(self, num: int) -> Iterator[tuple[Tensor, Any]]:
        """The rows in turn, some at a time where each is there `num` times."""
        each = with_draws(self.data, HELD, num * self.story.num_configurations)
        for index in torch.arange(num_rows(self.data)).split(each):
            yield index, slice_rows(self.data, index)

    def parts(self, num: int) -> Iterator[tuple[Tensor, Drawn]]:
        """The same, with `num` draws of each."""
        for index, rows in self.pieces(num):
            yield index, draw(self.story, self.values, rows, num, self.missing)


class Importance(NamedTuple):
    """An importance-weighted estimate of log p(x_n) (Burda et al. 2016): from below, and tighter with more draws."""

    log_prob: Tensor  # (N,)
    error: Tensor  # (N,) its Monte Carlo standard error
    k_hat: Tensor  # (N,) tail of the weights: above 0.7 it cannot be relied on
    num: int  # draws of each row

    @property
    def total(self) -> float:
        return float(self.log_prob.sum())

    @property
    def total_error(self) -> float:
        return float(self.error.square().sum().sqrt())


@contextmanager
def opened(fit: Fitted, dataset: Dataset, seed: int) -> Iterator[Opened]:
    """A fit at work on data, its networks as in use (no dropout, no noise)."""
    with engine_state(seed, "cpu", torch.float32), torch.no_grad():
        values = to_dtype(dataset.values, torch.float32)
        pair, shape = fit.pair, None
        if fit.guide != OWN:
            pair = replace(pair, guide=None)
            shape = shape_of(fit.guide, fit.guide_parts)
        story = read_story(pair, values)
        if story.dtype is not torch.float32:
            torch.set_default_dtype(story.dtype)
            values = to_dtype(dataset.values, story.dtype)
        under = {name.partition("/")[0]: {} for name in fit.guide_parts}  # type: ignore[var-annotated]
        for name, value in fit.guide_parts.items():
            kind, _, rest = name.partition("/")
            under[kind][rest] = value
        if shape is not None:
            pair, _ = amortize(pair, story, values, fit.schema, shape, under["fixed"])
            story = read_story(pair, values, story.dtype)
        learned = {**fit.params, **under.get("value", {})}
        with installed(story, learned) as at:
            for name, network in story.networks.items():
                for key, buffer in network.named_buffers():
                    buffer.copy_(under["buffer"][f"{name}/{key}"])
            torch.manual_seed(seed)  # networks built just now have drawn their first weights
            yield Opened(story, at, values, is_missing(values))


@dataclass(frozen=True)
class Encoder(Posterior):
    """Factors of the latents of a row by a network; all that rows share is a point."""

    networks = True

    fit: Fitted
    dataset: Dataset | None = None
    work: Opened | None = None

    @contextmanager
    def on(self, dataset: Dataset, seed: int | None = None) -> Iterator[Self]:
        with opened(self.fit, dataset, self.fit.seed if seed is None else check_seed(seed)) as work:
            yield replace(self, dataset=dataset, work=work)

    @property
    def at(self) -> Opened:
        assert self.work is not None, "inside `with posterior.on(dataset)`"
        return self.work

    @property
    def score_kind(self) -> str:
        fit = self.fit
        with contextlib.suppress(DataError):
            few = slice_rows(fit.data.values, slice(SAMPLE)) if fit.data is not None else empty_rows(fit, SAMPLE)
            with self.on(Dataset(few, fit.schema)) as it:
                if line_of(it.at.story, it.at.values, it.at.data) is not None:
                    return "exact: the model is normal, and linear in its latent"
        return f"importance-weighted bound of {ROW_DRAWS} draws"

    def _check(self) -> None:
        check_sites(self.at.story, self.at.data, self.data.schema, spread=False)

    # --- how probable rows are ----------------------------------------------------------------------------------------

    def log_evidence(self) -> Tensor:
        """log p(x_n), (N,), where the model is linear and normal; of any other the importance-weighted bound."""
        self._check()
        found = exact(self.at.story, self.at.values, self.at.data)
        if found is not None:
            return found
        torch.manual_seed(self.fit.seed)  # the draws of `importance`, whatever the look for a closed form has drawn
        return self.importance(ROW_DRAWS).log_prob

    def importance(self, num: int) -> Importance:
        """The importance-weighted bound of each row, with its error and the tail of its weights."""
        check_counts(num=(num, 1))
        self._check()
        found = []
        for each, seen in self._weights(num if self.at.story.latents else 1):
            mean = each.logsumexp(0) - math.log(len(each))
            share = (each - mean).exp()
            error = (share.var(0) / num).sqrt() if len(each) > 1 else torch.zeros_like(mean)
            found.append((mean, error, k_hat(each), seen))
        log_prob, error, tail, seen = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Importance(torch.where(seen, log_prob, 0.0), torch.where(seen, error, 0.0), tail, num)

    def _weights(self, num: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Log importance weights (num, B) of some rows at a time, and which of these have an observed cell, (B,)."""
        for _, drawn in self.at.parts(num):
            found = log_weights(terms(self.at.story, drawn, exact=False, scaled=False)).double()
            yield found, seen_rows(self.at.story, drawn)

    def log_weights(self, num: int) -> Tensor:
        """Log importance weights of `num` draws of each row, (num, N); of rows of which nothing is known they are 0."""
        return torch.cat([torch.where(seen, each, 0.0) for each, seen in self._weights(num)], 1)

    def likelihood(self) -> Tensor:
        """E log p(x_n | latents) of each row under its posterior, (N,): how well it is described by its own code."""
        self._check()
        story, found = self.at.story, []
        for _, drawn in self.at.parts(ROW_DRAWS if story.latents else 1):
            each = terms(story, drawn, exact=False, scaled=False).likelihood.mean(1)  # (K, B)
            found.append((shares(story, drawn) * each).sum(0) if story.discrete else each[0])
        return torch.cat(found).double()

    # --- latents ------------------------------------------------------------------------------------------------------

    def marginals(self) -> Latents:
        story = self.at.story
        closed = closed_moments(self.at)
        if closed is not None and not story.computed:
            return {**closed}
        num = max(FEWEST, ROW_DRAWS // story.num_configurations) if story.latents else 1
        probs: dict[str, list[Tensor]] = {name: [] for name in story.discrete}
        moments: dict[str, list[Moments]] = {name: [] for name in (*story.latents, *story.computed)}
        table = configurations(story, 1) if story.discrete else {}
        for _, drawn in self.at.parts(num):
            share = shares(story, drawn)
            for name, size in story.discrete.items():
                hot = torch.nn.functional.one_hot(table[name].flatten(), size).to(share)
                probs[name].append(share.mT @ hot)
            for name, parts in moments.items():
                parts.append(_moments(laid_site(story, drawn, name), share))
        out: Latents = {name: torch.cat(parts).double() for name, parts in probs.items()}
        for name, found in moments.items():
            out[name] = Moments(*(torch.cat(part).double() for part in zip(*found, strict=True)))
        return {**out, **(closed or {})}

    def embeddings(self) -> Any:
        """Posterior means of the continuous latents as a DataFrame, a column for each number."""
        import pandas as pd

        found = None if self.at.story.computed else closed_moments(self.at, sd=False)
        parts, names = [], []
        for name, one in (self.marginals() if found is None else found).items():
            if isinstance(one, Moments):
                parts.append(one.mean.reshape(len(one.mean), -1))
                width = parts[-1].shape[1]
                names += [f"{name}_{k}" for k in range(width)] if width > 1 else [name]
        table = (
            parts[0] if len(parts) == 1 else torch.cat(parts, 1) if parts else torch.empty(num_rows(self.at.data), 0)
        )
        return pd.DataFrame(table.numpy(), index=self.data.names, columns=names, copy=False)

    def factor(self, site: str) -> Any:
        if site not in self.at.story.latents:
            return None
        rows = to_dtype(as_one(self.data.values, "posterior"), self.at.story.dtype)
        return draw(self.at.story, self.at.values, rows, 1, self.at.missing).guide[site]["fn"]

    def shared(self, num: int) -> Params:
        return {name: value.expand(num, *value.shape) for name, value in plain_params(self.fit).items()}

    def draw(self, num: int, scored: bool = False) -> Draws:
        story = self.at.story
        found: dict[str, list[Tensor]] = {name: [] for name in (*story.discrete, *story.latents, *story.computed)}
        for _, drawn in self.at.parts(num):
            pick = dist.Categorical(shares(story, drawn).mT).sample((num,))  # (S, B)
            s, b = torch.arange(num).unsqueeze(1), torch.arange(drawn.lead[2]).unsqueeze(0)
            for name, parts in found.items():
                parts.append(laid_site(story, drawn, name)[pick, s, b])
        scores = None
        if scored:
            groups = min(num, GROUPS)
            each = self.log_weights(SHORT * groups).unflatten(0, (groups, SHORT)).logsumexp(1)
            scores = (each - math.log(SHORT))[torch.arange(num) % groups]
        return Draws(self.shared(num), {name: torch.cat(parts, 1) for name, parts in found.items()}, scores)

    # --- rows ---------------------------------------------------------------------------------------------------------

    def expected(self, everywhere: bool) -> Iterator[Cells]:
        """By importance weights where cells are missing (Mattei and Frellsen 2019)."""
        it = self.at
        where = places(it.story, it.values, it.data)
        if where is None:
            raise DataError(COMPUTED)
        num = (RECONSTRUCTED if everywhere else ROW_DRAWS) if it.story.latents else 1
        for index, drawn in it.parts(num):
            weight = _weights(it, drawn, everywhere)  # (K, S, B)
            rows = None if everywhere else torch.as_tensor(slice_rows(it.data, index)).reshape(len(index), -1)
            width = torch.Size(self.data.values.shape[1:]).numel()
            for name, columns in where.items():
                found = _expected(it, drawn, name, weight, None if rows is None else rows[:, columns])
                yield Cells((index.unsqueeze(1) * width + columns).flatten(), found.double().flatten())

    def generate(self, num: Any, given: dict[str, Any], seed: int) -> Any:
        check_counts(num=(num, 1))
        fit = self.fit
        rows, said, fixed = with_conditions(empty_rows(fit, num), given, fit.schema)
        with self.on(Dataset(rows, fit.schema), seed) as posterior:
            it = posterior.at
            story = it.story
            if not story.latents and not story.discrete:
                raise DataError("generate: the model has no latents, so there is nothing to draw rows from")
            where = places(story, it.values, it.data)
            known = {*story.latents, *story.discrete, *story.observed}
            fixed |= {name: given[name] for name in no_conditions(said, where, known, fit.schema)}
            check_given(fixed, known)
            play = Bind(it.values, centred=False)
            with play, Draw({name: _as_value(value, num, story.dtype) for name, value in fixed.items()}):
                story.pair.model(it.data)
            if where is None:
                return {name: plain(play.nodes[name]["value"]) for name in story.observed}
            out = torch.as_tensor(rows).to(torch.float64).clone().reshape(num, -1)
            for name, columns in where.items():
                msg = play.nodes[name]
                value = msg["value"].movedim(story.data_dim - msg["fn"].event_dim, 0).reshape(num, -1)
                out[:, columns] = value.double()
        return fit.schema.decode(as_given(out.reshape(rows.shape), rows))

    def interpolate(self, dataset: Dataset, first: int, second: int, num: int) -> Any:
        """Expected rows along the line between the posterior means of two rows, (num, D)."""
        check_counts(num=(num, 2))
        values, size = dataset.values, num_rows(dataset.values)
        for place in (first, second):
            if not 0 <= place < size:
                raise DataError(f"interpolate: met row {place}, expected one of 0 to {size - 1}")
        path = {}
        with self.on(replace(dataset, values=slice_rows(values, torch.tensor([first, second])))) as two:
            for name, found in two.marginals().items():
                if isinstance(found, Moments):
                    steps = torch.linspace(0, 1, num, dtype=found.mean.dtype)
                    steps = steps.reshape(-1, *(1,) * (found.mean.dim() - 1))
                    path[name] = found.mean[:1] + steps * (found.mean[1:] - found.mean[:1])
        return decode(self.fit, slice_rows(values, torch.full((num,), first)), path)

    def replicate(self, draws: Draws) -> Replicates | None:
        """A set beside the data for each draw; of a model without latents there is none."""
        fit, values = self.fit, as_one(self.data.values, "to_arviz")
        assert draws.log_prob is not None
        num, size = draws.log_prob.shape
        most, parts = max(1, TOGETHER // size), []
        seed = int(torch.randint(1 << 31, ()))
        with contextlib.suppress(DataError):
            for start in range(0, num, most):
                rows = self.generate(size * min(most, num - start), {}, seed + start)
                if isinstance(rows, dict):
                    return None
                parts.append(numbers_of(rows, fit.schema).unflatten(0, (-1, size)))
            return Replicates({"x": torch.as_tensor(values)}, {"x": torch.cat(parts)})
        return None


# --- in parts of the rows ---------------------------------------------------------------------------------------------


def seen_rows(story: Story, drawn: Drawn) -> Tensor:
    """Rows with an observed cell, (B,): nothing at all has probability 1."""
    size = drawn.lead[2]
    seen = torch.zeros(size, dtype=torch.bool)
    for name in story.observed:
        msg = drawn.model[name]
        cells = getattr(msg["fn"], "observed", None)
        if cells is None:
            return torch.ones(size, dtype=torch.bool)
        rows = cells.movedim(story.data_dim - msg["fn"].event_dim, 0)[:size]
        seen |= rows.reshape(size, -1).any(1)
    return seen


def shares(story: Story, drawn: Drawn) -> Tensor:
    """Posterior probability of each configuration of the enumerated latents, (K, B), by importance weights."""
    if not story.discrete:
        return torch.ones(1, drawn.lead[2])
    found = terms(story, drawn, exact=False, scaled=False)
    joint = found.likelihood + found.prior + found.discrete - found.log_q
    return joint.double().logsumexp(1).softmax(0)


def _moments(laid: Tensor, share: Tensor) -> Moments:
    """Of values (K, S, B, ...)."""
    weight = (share.unsqueeze(1) / laid.shape[1]).reshape(len(share), 1, -1, *(1,) * (laid.dim() - 3))
    mean = (weight * laid).sum((0, 1))
    return Moments(mean, (weight * (laid - mean) ** 2).sum((0, 1)).sqrt())


def laid_site(story: Story, drawn: Drawn, name: str) -> Tensor:
    """Values of a latent, or of what is computed of latents, as (K, S, B, *plates, *event)."""
    msg = drawn.model[name]
    event = 0 if (msg["infer"] or {}).get("_deterministic") else msg["fn"].event_dim
    return laid_out(story, drawn, msg["value"], event)


def laid_out(story: Story, drawn: Drawn, value: Tensor, event: int) -> Tensor:
    """Values of the rows of the model as (K, S, B, *plates, *event)."""
    if event or story.data_dim != -1:
        value = value.movedim(story.data_dim - event, 0) if value.dim() >= event - story.data_dim else value
    return value.reshape(*drawn.lead, *value.shape[1:])


def closed_moments(it: Opened, sd: bool = True) -> dict[str, Moments] | None:
    """Moments of a single latent whose factors are normal, (N, *event); with `sd` left out both are the means."""
    if len(it.story.latents) != 1 or it.story.discrete or it.story.data_dim != -1:
        return None
    (name,) = it.story.latents
    out: list[Tensor] = []
    for index, rows in it.pieces(1):
        fn = encode(it.story, it.values, rows, {}, Bind if it.story.computed else Centred)[name]["fn"]
        if not isinstance(base_of(fn), dist.Normal | dist.MultivariateNormal):
            return None
        for place, part in enumerate([fn.mean, fn.variance.sqrt()] if sd else [fn.mean]):
            if len(out) <= place:
                out.append(torch.empty(num_rows(it.data), *part.shape[1:], dtype=torch.float64))
            out[place][int(index[0]) : int(index[-1]) + 1] = part
    return {name: Moments(out[0], out[-1])}


def plain_params(fit: Fitted) -> dict[str, Tensor]:
    """The params that are no weights of a network."""
    return {name: value for name, value in fit.params.items() if DIVIDER not in name}


def _weights(it: Opened, drawn: Drawn, everywhere: bool) -> Tensor:
    """Of each draw under each configuration; they sum to 1 in each row."""
    configs, num, size = drawn.lead
    if everywhere:
        return (shares(it.story, drawn) / num).unsqueeze(1).expand(configs, num, size)
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


def _as_value(value: Any, num: int, dtype: torch.dtype) -> Tensor:
    found = torch.as_tensor(value)
    found = found.to(dtype) if found.is_floating_point() else found
    return found if found.dim() and len(found) == num else found.expand(num, *found.shape)


def decode(fit: Fitted, rows: Any, given: dict[str, Tensor]) -> Any:
    """Expected rows where the latents stand at given values (num, ...); all else as in `rows`."""
    with opened(fit, Dataset(rows, fit.schema), fit.seed) as it:
        story = it.story
        if missing := [name for name in story.latents if name not in given]:
            raise DataError(f"decode: no value of latent '{missing[0]}'")
        if not story.latents:
            raise DataError("the model has no latents, so nothing can be decoded")
        values = {name: _as_value(value, num_rows(rows), story.dtype) for name, value in given.items()}
        play = Bind({**it.values, **values}, centred=False)
        with play:
            story.pair.model(it.data)
        where = places(it.story, it.values, it.data)
        if where is None:
            raise DataError(COMPUTED)
        out = torch.as_tensor(rows).to(torch.float64).clone().reshape(len(rows), -1)
        drawn = Drawn({}, play.nodes, (1, 1, len(out)))
        for name, columns in where.items():
            out[:, columns] = _expected(it, drawn, name, torch.ones(1, 1, len(out)), None).double()
    return fit.schema.decode(rounded(out.reshape(rows.shape), fit.schema), None)


def with_conditions(
    rows: Any, given: Mapping[Any, Any], schema: Schema
) -> tuple[Any, dict[str | int, int], dict[str, Any]]:
    """Rows that hold the values given for columns (by name, or by number), where those columns stand, and what is given
    of anything else.
    """
    said = {name: place for name in given if (place := _place(name, schema)) is not None}
    others = {str(name): value for name, value in given.items() if name not in said}
    if said:
        rows = rows.to(torch.float64).clone()
        for name, place in said.items():
            rows[:, place] = _values(name, given[name], len(rows), schema)
    return rows, said, others


def no_conditions(
    said: Mapping[str | int, int], where: Mapping[str, Tensor] | None, sites: Collection[str], schema: Schema
) -> list[str]:
    """Of the names of columns that were given, those that are meant as sites of the same name.

    Raises
    ------
    DataError
        For a column that the model makes itself.
    """
    made = {place for cells in (where or {}).values() for place in cells.tolist()}
    wrong = [name for name, place in said.items() if place in made and name not in sites]
    if wrong:
        names: Sequence[str | int] = schema.columns or range(schema.width or 0)
        free = listed(names[place] for place in range(len(names)) if place not in made)
        words = f"its conditions are {free}" if free else "it has no conditions"
        raise DataError(f"generate: given names column {wrong[0]!r}, which the model makes itself: {words}")
    return [str(name) for name, place in said.items() if place in made]


def _place(name: str | int, schema: Schema) -> int | None:
    if isinstance(name, int):
        return name if 0 <= name < (schema.width or 0) else None
    return schema.columns.index(name) if schema.columns and name in schema.columns else None


def _values(name: str | int, value: Any, num: int, schema: Schema) -> Tensor:
    """One value of a column, or one for each row, labels as their codes."""
    cells = np.atleast_1d(np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value))
    if cells.shape not in ((1,), (num,)):
        raise DataError(f"generate: given {name!r} has shape {cells.shape}, expected one value, or one for each row")
    labels = schema.labels.get(str(name), ())
    if labels:
        codes = [_code(name, cell, labels) for cell in cells.tolist()]
        return torch.tensor(codes, dtype=torch.float64)
    if cells.dtype.kind not in "biuf" or not np.isfinite(cells).all():
        raise DataError(f"generate: given {name!r} is {value!r}, expected a number: the column held no labels")
    return torch.as_tensor(cells.astype(np.float64))


def _code(name: str | int, cell: Any, labels: tuple[str, ...]) -> int:
    text = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
    if text not in labels:
        raise DataError(f"generate: given {name!r} is {cell!r}, expected one of its labels {listed(labels)}")
    return labels.index(text)
