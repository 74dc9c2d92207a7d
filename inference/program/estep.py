"""The E-step: one pass over the rows, which leaves the expected sufficient statistics of every site.

Where the rows have nothing left to sum, these are the same at every iteration: they are made once, and an iteration
costs nothing by the row. Missing cells of vectors are completed from the sums of their pattern, made once too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..families.base import LOG_2PI, Args, square
from ..families.expected import Expected
from ..trace.idioms import is_one
from .evidence import posterior
from .program import Prepared, Program
from .sites import Params, Site, chunks

NUMBERS = 1 << 22  # of the matrices of patterns that are worked on together


class Expectations(NamedTuple):
    """What an E-step hands to the M-step; sums are weighted by row, and R restarts stand side by side."""

    log_prob: Tensor  # (R,) sum over rows of w_n log p(x_n)
    sums: dict[str, tuple[Tensor, Tensor]]  # site -> S1 (R, *shape, T), S0
    weights: dict[str, Tensor]  # scored sites -> posterior weights of their factor


@dataclass
class _Sums:
    """Running sums of one worker; those of several workers add up."""

    log_prob: Tensor | float = 0.0
    latents: list[Tensor] = field(default_factory=list)
    groups: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)
    gathered: dict[str, Tensor] = field(default_factory=dict)
    weights: list[Tensor] = field(default_factory=list)

    def add(self, other: _Sums) -> _Sums:
        """Take in the sums of another worker or chunk."""
        self.log_prob = self.log_prob + other.log_prob
        self.latents = (
            [a + b for a, b in zip(self.latents, other.latents, strict=True)] if self.latents else other.latents
        )
        for key, (sums, totals) in other.groups.items():
            old = self.groups.get(key)
            self.groups[key] = (sums, totals) if old is None else (old[0] + sums, old[1] + totals)
        for name, new in other.gathered.items():
            self.gathered[name] = self.gathered[name] + new if name in self.gathered else new
        self.weights = self.weights or other.weights
        return self


def expectations(
    program: Program, params: Params, weights: Tensor | None = None, workers: int | None = None
) -> Expectations:
    """Posterior expectations under `params`, each row weighted by `weights` (N,); on `workers` threads (torch's)."""
    workers = workers or torch.get_num_threads()
    with torch.no_grad():
        ready = program.prepare(params)
        if is_fixed(program):
            return Expectations(*fixed_expectations(program, ready, weights), {})
        rows = list(chunks(program.num_rows, program.chunk_size(params)))
        alone = program.scored or ready.patterns or len(rows) < 4 or program.on_gpu or workers == 1
        if alone:
            sums = _pass(program, ready, rows, weights)
        else:
            # chunks are too small for torch's own threads, so each worker takes a run of them on one thread
            bounds = [len(rows) * w // workers for w in range(workers + 1)]
            parts = [rows[a:b] for a, b in pairwise(bounds)]
            with one_thread():
                done = list(pool(workers).map(lambda part: _quietly(program, ready, part, weights), parts))
            sums = _Sums()
            for part in done:  # in order, so that the same machine gives the same bits
                sums.add(part)
        return _finish(program, ready, sums)


@contextmanager
def one_thread(when: bool = True) -> Iterator[int]:
    """Keep torch from splitting small operations, which costs far more than it gains on a busy machine.

    Yields the number of threads there were.
    """
    before = torch.get_num_threads()
    if when:
        torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


@cache
def pool(workers: int) -> ThreadPoolExecutor:
    """Threads that are kept, each running torch's operations by itself: starting them costs more than a small pass."""
    return ThreadPoolExecutor(workers, "latentzoo", initializer=torch.set_num_threads, initargs=(1,))


def _quietly(program: Program, ready: Prepared, rows: Sequence[slice], weights: Tensor | None) -> _Sums:
    with torch.no_grad():  # which each thread must say for itself
        return _pass(program, ready, rows, weights)


def _pass(program: Program, ready: Prepared, rows: Sequence[slice], weights: Tensor | None) -> _Sums:
    sums = _Sums()
    for chunk in rows:
        sums.add(_chunk(program, ready, chunk, None if weights is None else weights[chunk]))
    return sums


def _chunk(program: Program, ready: Prepared, rows: slice, share: Tensor | None) -> _Sums:
    factors, features = program.factors(ready, rows)
    if not is_one(scale := program.scale_of(rows)):
        share = scale * (torch.ones(program.num_rows)[rows] if share is None else share)
    row_log_prob, counts = posterior(factors, program.order, share)
    row_log_prob = row_log_prob + program.base_of(rows)
    out = _Sums((row_log_prob if share is None else row_log_prob * share).sum(1), counts[: len(ready.latent)])
    for count, (key, (names, _, _)) in zip(counts[len(ready.latent) :], ready.groups.items(), strict=False):
        count = count.reshape(-1, count.shape[-1])
        new = count @ features[key].mT if key in features else count.new_zeros(len(count), 0)
        out.groups[key] = (new, count.sum(1))
        for name in names:
            if name in ready.patterns:
                ready.patterns[name].collect(rows, program.products[name].centred(rows), count)
            if name in ready.gathered:
                out.gathered[name] = program.products[name].gathered.features(rows).mT.times(count.mT.contiguous())
    out.weights = counts[len(counts) - len(program.scored) :] if program.scored else []
    return out


def _finish(program: Program, ready: Prepared, sums: _Sums) -> Expectations:
    out = {}
    for key, (names, _, _) in ready.groups.items():
        features, totals = sums.groups[key]
        totals = totals.reshape(-1, *key)
        start = 0
        for name in names:
            site = program.products[name]
            if name in ready.patterns:
                s1, s0 = ready.patterns[name].total()
                cells = (1,) * len(site.cells)
                out[name] = (s1.reshape(*s0.shape, *cells, -1), s0.reshape(*s0.shape, *cells))
                continue
            if name in ready.gathered:
                out[name] = site.unpack(sums.gathered[name].mT, totals)
                continue
            out[name] = site.unpack(features[:, start : start + site.width], totals)
            start += site.width
    for (name, site), count in zip(program.latents.items(), sums.latents, strict=True):
        out[name] = latent_sums(site, count.squeeze(-1), ready.args[name])
    weights = dict(zip(program.scored, sums.weights, strict=True))
    for name, site in program.tables.items():
        out[name] = table_sums(site, weights[name], ready.args[name])
    assert isinstance(sums.log_prob, Tensor)
    return Expectations(sums.log_prob, out, weights)


def latent_sums(site: Site, counts: Tensor, args: Args) -> tuple[Tensor, Tensor]:
    """S1, S0 of an enumerated site from the posterior counts (R, e..., plates) of its configurations."""
    counts = counts.reshape(counts.shape[: 1 + site.num_latents] + (1,) * len(site.cells)).expand(-1, *site.shape)
    return counts.unsqueeze(-1) * site.family.statistics_last(site.value, args), counts


def table_sums(site: Site, counts: Tensor, args: Args) -> tuple[Tensor, Tensor]:
    """S1, S0 of a scored site with gathered arguments: rows are its first cell dim."""
    counts = counts.movedim(-1, 1 + site.num_latents)  # (1, e..., N, plates)
    counts = counts.reshape(*counts.shape, *(1,) * (1 + len(site.shape) - counts.dim()))
    value = site.value.to(torch.float64) - site.center
    if site.has_missing:
        observed = ~value.isnan()
        if site.event_dim:  # its family completes what is missing of an event
            counts = counts * observed.flatten(observed.dim() - site.event_dim).any(-1)
        else:
            counts, value = counts * observed, value.nan_to_num(nan=site.fill)
    counts = counts.expand(1, *site.shape)
    return counts.unsqueeze(-1) * site.family.statistics_last(value, args), counts


# --- rows with nothing left to sum ------------------------------------------------------------------------------------


class ByPattern(NamedTuple):
    """Sums over the rows that have the same cells, of vectors; 0 where a cell is missing."""

    seen: Tensor  # (P, D) bool
    weight: Tensor  # (P,)
    first: Tensor  # (P, D)
    second: Tensor  # (P, D, D)


class Fixed(NamedTuple):
    """Sums over the rows."""

    weights: Tensor | None  # of the rows
    sums: dict[str, tuple[Tensor, Tensor]]  # site -> S1 (1, *shape, T), S0
    patterns: dict[str, ByPattern]
    base: float  # sum of log h(x)


def is_fixed(program: Program) -> bool:
    """Whether no iteration changes the sums over the rows."""
    sites = program.products.values()
    in_expectation = [n for n in program.patterns if isinstance(program.products[n].family, Expected)]
    still = all(site.gathered is None and not site.family.augmented for site in sites) and not in_expectation
    return bool(sites) and still and not program.latents and not program.scored


def fixed_sums(program: Program, ready: Prepared, weights: Tensor | None) -> Fixed:
    """The sums, made at the first call with these weights."""
    found = program.kept.get("fixed")
    if isinstance(found, Fixed) and found.weights is weights:
        return found
    sums, patterns = {}, {}
    for name, site in program.products.items():
        if name in ready.patterns:
            patterns[name] = _pattern_sums(program, ready, name, weights)
        else:
            sums[name] = _sums(program, ready, site, weights)
    base = program.base
    if isinstance(base, Tensor):
        base = float(base.sum() if weights is None else base @ weights)
    else:
        base = base * (program.num_rows if weights is None else float(weights.sum()))
    found = Fixed(weights, sums, patterns, base)
    program.kept["fixed"] = found
    return found


def known_weights(program: Program) -> Tensor | None:
    """The weights of the rows with which the sums were made."""
    found = program.kept.get("fixed")
    return found.weights if isinstance(found, Fixed) else None


def _sums(program: Program, ready: Prepared, site: Site, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    args = {name: value[:1] for name, value in ready.args[site.name].items()}
    total = torch.zeros(site.width, dtype=torch.float64)
    for rows in chunks(program.num_rows, 8192):
        share = None if weights is None else weights[rows]
        total = total + site.total(rows, args, share)
    count = torch.tensor(float(program.num_rows)) if weights is None else weights.sum()
    return site.unpack(total.unsqueeze(0), count.reshape(1))


def _pattern_sums(program: Program, ready: Prepared, name: str, weights: Tensor | None) -> ByPattern:
    one = replace(ready.patterns[name], shape=(1,), args={key: a[:1] for key, a in ready.patterns[name].args.items()})
    site = program.products[name]
    for rows in chunks(program.num_rows, 8192):
        value = site.centred(rows)
        share = value.new_ones(1, value.shape[1]) if weights is None else weights[rows].unsqueeze(0)
        one.collect(rows, value, share)
    size, count = one.loc.shape[-1], len(one.patterns.distinct)
    seen = torch.zeros(count, size, dtype=torch.bool)
    weight, first, second = torch.zeros(count), torch.zeros(count, size), torch.zeros(count, size, size)
    for number, (sums, total) in one.sums.items():
        places = one.patterns.distinct[number].seen
        seen[number, places] = True
        weight[number] = total
        first[number, places] = sums[0, : len(places)]
        second[number, places.unsqueeze(1), places] = square(sums[0, len(places) :], len(places))
    return ByPattern(seen, weight, first, second)


def completed(known: ByPattern, loc: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p of what is observed (R,), and the sums of x (R, D) and xx' (R, D, D) with missing cells completed.

    As `missing_patterns.PatternSums` does it, all patterns at once.
    """
    lead, size = loc.shape
    eye = torch.eye(size, dtype=loc.dtype)
    log_prob, moved, spread = loc.new_zeros(lead), loc.new_zeros(lead, size), loc.new_zeros(lead, size, size)
    loc, covariance = loc.unsqueeze(1), covariance.unsqueeze(1)
    for rows in chunks(len(known.seen), max(1, NUMBERS // (lead * size * size))):
        seen, weight, first, second = (part[rows] for part in known)
        both = seen.unsqueeze(-1) & seen.unsqueeze(-2)
        tril = torch.linalg.cholesky(torch.where(both, covariance, eye))
        inverse = torch.cholesky_inverse(tril)
        cross = first.unsqueeze(-1) * loc.unsqueeze(-2)
        scatter = second - cross - cross.mT + weight[:, None, None] * (loc.unsqueeze(-1) * loc.unsqueeze(-2))
        scatter = torch.where(both, scatter, 0.0)  # (R, P, D, D)
        log_det = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) + seen.sum(-1) * LOG_2PI
        log_prob = log_prob - 0.5 * (weight * log_det + (inverse * scatter).sum((-2, -1))).sum(1)
        # a cell given the observed ones: itself where it is one of them, its regression on them where it is not
        slope = torch.where(seen.unsqueeze(-1), eye, (covariance * seen.unsqueeze(-2)) @ (inverse * both))
        left = covariance - slope @ (covariance * seen.unsqueeze(-1))
        left = torch.where(~seen.unsqueeze(-1) & ~seen.unsqueeze(-2), left, 0.0)
        slope = slope * seen.unsqueeze(-2)
        away = torch.where(seen, first - weight.unsqueeze(-1) * loc, 0.0)
        moved = moved + (slope @ away.unsqueeze(-1)).squeeze(-1).sum(1)
        spread = spread + (slope @ scatter @ slope.mT + weight[:, None, None] * left).sum(1)
    loc, count = loc.squeeze(1), known.weight.sum()
    cross = moved.unsqueeze(-1) * loc.unsqueeze(-2)
    total = spread + cross + cross.mT + count * loc.unsqueeze(-1) * loc.unsqueeze(-2)
    return log_prob, moved + count * loc, total


def fixed_expectations(
    program: Program, ready: Prepared, weights: Tensor | None
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """log p(x) of each restart, (R,), and S1, S0 of each site."""
    known = fixed_sums(program, ready, weights)
    total: Tensor = torch.tensor(known.base, dtype=torch.float64)
    out = {}
    for name, site in program.products.items():
        if name in ready.patterns:
            one = ready.patterns[name]
            log_prob, first, second = completed(known.patterns[name], one.loc, one.covariance)
            lower = torch.tril_indices(*second.shape[1:]).unbind()
            s0 = known.patterns[name].weight.sum().expand(len(first), *site.shape)
            out[name] = (torch.cat([first, second[:, lower[0], lower[1]]], 1).reshape(*s0.shape, -1), s0)
        else:
            s1, s0 = known.sums[name]
            eta, log_normalizer = site.natural(ready.args[name])
            lead = len(eta)
            log_prob = (s1 * eta).reshape(lead, -1).sum(1) - (s0 * log_normalizer).reshape(lead, -1).sum(1)
            out[name] = (s1.expand(lead, *s1.shape[1:]), s0.expand(lead, *s0.shape[1:]))
        total = total + log_prob
    return total, out
