"""The E-step: one pass over the rows, which leaves the expected sufficient statistics of every site."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..families.base import Args
from .complete_data import fixed_expectations, is_fixed
from .evidence import posterior
from .program import Prepared, Program
from .sites import Params, Site, chunks


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
