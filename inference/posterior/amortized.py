"""What a fit with networks says of data: scores, embeddings, draws."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..amortized.bounds import Centred, Drawn, configurations, draw, encode, log_weights, terms
from ..amortized.checks import check_sites
from ..amortized.encoder import OWN, amortize, shape_of
from ..amortized.linear import exact, line_of
from ..amortized.reader import SAMPLE, Story, installed, read_story, to_dtype
from ..base.errors import DataError
from ..base.options import check_counts, check_seed
from ..data.schema import Dataset
from ..data.streams import as_one, with_draws
from ..data.structures import is_missing, num_rows, slice_rows
from ..program.deterministic import Moments
from ..trace.handlers import DIVIDER, Bind, base_of, engine_state
from .generate import empty_rows
from .psis import k_hat

ROW_DRAWS = 100  # of the importance-weighted bound, and of moments that have no closed form
FEWEST = 20  # of them, under each of many configurations
HELD = 10_000  # rows of the model, repeated ones too, that are looked at together


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
def opened(fit: Any, dataset: Dataset, seed: int) -> Iterator[Opened]:
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


def importance(fit: Any, dataset: Dataset, num: int, seed: int | None = None) -> Importance:
    """The importance-weighted bound of each row, with its error and the tail of its weights."""
    check_counts(num=(num, 1))
    with opened(fit, dataset, fit.seed if seed is None else check_seed(seed)) as it:
        check_sites(it.story, it.data, dataset.schema, spread=False)
        found = []
        for _, drawn in it.parts(num if it.story.latents else 1):
            weights = log_weights(terms(it.story, drawn, exact=False, scaled=False)).double()
            mean = weights.logsumexp(0) - math.log(len(weights))
            share = (weights - mean).exp()
            error = (share.var(0) / num).sqrt() if len(weights) > 1 else torch.zeros_like(mean)
            found.append((mean, error, k_hat(weights), seen_rows(it.story, drawn)))
        log_prob, error, tail, seen = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Importance(torch.where(seen, log_prob, 0.0), torch.where(seen, error, 0.0), tail, num)


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


def weights(fit: Any, dataset: Dataset, num: int, seed: int) -> Tensor:
    """Log importance weights of `num` draws of each row, (num, N); those of rows of which nothing is known are 0."""
    with opened(fit, dataset, seed) as it:
        found = []
        for _, drawn in it.parts(num):
            each = log_weights(terms(it.story, drawn, exact=False, scaled=False)).double()
            found.append(torch.where(seen_rows(it.story, drawn), each, 0.0))
    return torch.cat(found, 1)


def score(fit: Any, dataset: Dataset) -> Tensor:
    """log p(x_n), (N,), where the model is linear and normal; of any other the importance-weighted bound."""
    with opened(fit, dataset, fit.seed) as it:
        check_sites(it.story, it.data, dataset.schema, spread=False)
        found = exact(it.story, it.values, it.data)
    return importance(fit, dataset, ROW_DRAWS).log_prob if found is None else found


def score_kind(fit: Any) -> str:
    """How `score` is computed."""
    with contextlib.suppress(DataError):
        few = slice_rows(fit.data.values, slice(SAMPLE)) if fit.data is not None else empty_rows(fit, SAMPLE)
        with opened(fit, Dataset(few, fit.schema), fit.seed) as it:
            if line_of(it.story, it.values, it.data) is not None:
                return "exact: the model is normal, and linear in its latent"
    return f"importance-weighted bound of {ROW_DRAWS} draws"


def likelihood(fit: Any, dataset: Dataset) -> Tensor:
    """E log p(x_n | latents) of each row under its posterior, (N,): how well it is described by its own code."""
    with opened(fit, dataset, fit.seed) as it:
        check_sites(it.story, it.data, dataset.schema, spread=False)
        found = []
        for _, drawn in it.parts(ROW_DRAWS if it.story.latents else 1):
            each = terms(it.story, drawn, exact=False, scaled=False).likelihood.mean(1)  # (K, B)
            found.append((shares(it.story, drawn) * each).sum(0) if it.story.discrete else each[0])
    return torch.cat(found).double()


def shares(story: Story, drawn: Drawn) -> Tensor:
    """Posterior probability of each configuration of the enumerated latents, (K, B), by importance weights."""
    found = terms(story, drawn, exact=False, scaled=False)
    joint = found.likelihood + found.prior + found.discrete - found.log_q
    return joint.double().logsumexp(1).softmax(0)


def latents(fit: Any, dataset: Dataset) -> dict[str, Any]:
    """Probabilities of the discrete latents of a row, moments of continuous ones and of what is computed of them."""
    with opened(fit, dataset, fit.seed) as it:
        story = it.story
        closed = _closed(it)
        if closed is not None and not story.computed:
            return closed
        num = max(FEWEST, ROW_DRAWS // story.num_configurations) if story.latents else 1
        probs: dict[str, list[Tensor]] = {name: [] for name in story.discrete}
        moments: dict[str, list[Moments]] = {name: [] for name in (*story.latents, *story.computed)}
        table = configurations(story, 1) if story.discrete else {}
        for _, drawn in it.parts(num):
            share = shares(story, drawn) if story.discrete else torch.ones(1, drawn.lead[2])
            for name, size in story.discrete.items():
                hot = torch.nn.functional.one_hot(table[name].flatten(), size).to(share)
                probs[name].append(share.mT @ hot)
            for name, parts in moments.items():
                msg = drawn.model[name]
                event = 0 if (msg["infer"] or {}).get("_deterministic") else msg["fn"].event_dim
                parts.append(_moments(story, drawn, msg["value"], event, share))
        out: dict[str, Any] = {name: torch.cat(parts).double() for name, parts in probs.items()}
        for name, found in moments.items():
            out[name] = Moments(*(torch.cat(part).double() for part in zip(*found, strict=True)))
        return {**out, **(closed or {})}


def _moments(story: Story, drawn: Drawn, value: Tensor, event: int, share: Tensor) -> Moments:
    laid = laid_out(story, drawn, value, event)  # (K, S, B, ...)
    weight = (share.unsqueeze(1) / laid.shape[1]).reshape(len(share), 1, -1, *(1,) * (laid.dim() - 3))
    mean = (weight * laid).sum((0, 1))
    return Moments(mean, (weight * (laid - mean) ** 2).sum((0, 1)).sqrt())


def laid_out(story: Story, drawn: Drawn, value: Tensor, event: int) -> Tensor:
    """Values of the rows of the model as (K, S, B, *plates, *event)."""
    if event or story.data_dim != -1:
        value = value.movedim(story.data_dim - event, 0) if value.dim() >= event - story.data_dim else value
    return value.reshape(*drawn.lead, *value.shape[1:])


def _closed(it: Opened, sd: bool = True) -> dict[str, Moments] | None:
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


def factor(fit: Any, site: str, dataset: Dataset) -> Any:
    """The guide's factor of a latent of the rows, as a distribution."""
    dataset = replace(dataset, values=as_one(dataset.values, "posterior"))
    with opened(fit, dataset, fit.seed) as it:
        if site not in it.story.latents:
            raise DataError(f"posterior: no latent named '{site}' in the guide; it has {sorted(it.story.latents)}")
        return draw(it.story, it.values, it.data, 1, it.missing).guide[site]["fn"]


def sample_posterior(fit: Any, dataset: Dataset, num: int, seed: int) -> dict[str, Tensor]:
    """Draws (num, N, ...) of every latent of a row from the guide, the model's params beside them."""
    check_counts(num=(num, 1))
    with opened(fit, dataset, check_seed(seed)) as it:
        story = it.story
        found: dict[str, list[Tensor]] = {name: [] for name in (*story.discrete, *story.latents, *story.computed)}
        for _, drawn in it.parts(num):
            share = shares(story, drawn) if story.discrete else torch.ones(1, drawn.lead[2])
            pick = dist.Categorical(share.mT).sample((num,))  # (S, B)
            s, b = torch.arange(num).unsqueeze(1), torch.arange(drawn.lead[2]).unsqueeze(0)
            for name, parts in found.items():
                msg = drawn.model[name]
                event = 0 if (msg["infer"] or {}).get("_deterministic") else msg["fn"].event_dim
                laid = laid_out(story, drawn, msg["value"], event)
                parts.append(laid[pick, s, b])
    out = {name: value.expand(num, *value.shape) for name, value in plain_params(fit).items()}
    return {**out, **{name: torch.cat(parts, 1) for name, parts in found.items()}}


def plain_params(fit: Any) -> dict[str, Tensor]:
    """The params that are no weights of a network."""
    return {name: value for name, value in fit.params.items() if DIVIDER not in name}


def embeddings(fit: Any, dataset: Dataset) -> Any:
    """Posterior means of the continuous latents as a DataFrame, a column for each number."""
    import pandas as pd

    with opened(fit, dataset, fit.seed) as it:
        found = None if it.story.computed else _closed(it, sd=False)
    parts, names = [], []
    for name, one in (latents(fit, dataset) if found is None else found).items():
        if isinstance(one, Moments):
            parts.append(one.mean.reshape(len(one.mean), -1))
            width = parts[-1].shape[1]
            names += [f"{name}_{k}" for k in range(width)] if width > 1 else [name]
    table = parts[0] if len(parts) == 1 else torch.cat(parts, 1) if parts else torch.empty(num_rows(dataset.values), 0)
    return pd.DataFrame(table.numpy(), index=dataset.names, columns=names, copy=False)
