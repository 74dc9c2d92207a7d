"""The E-step of a model whose rows have nothing left to sum: its sums are the same at every iteration.

So they are made once, and an iteration costs nothing by the row. Missing cells of vectors are completed from the sums
of their pattern, which are made once too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..families.base import LOG_2PI, square
from ..families.expected import Expected
from .program import Prepared, Program
from .sites import Site, chunks

NUMBERS = 1 << 22  # of the matrices that are worked on together


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

    As `patterns.PatternSums` does it, all patterns at once.
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
