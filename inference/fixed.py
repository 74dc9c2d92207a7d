"""The E-step of a model whose rows have nothing left to sum: its sums are the same at every iteration.

So they are made once, and an iteration costs nothing by the row. Missing cells of vectors are completed from the sums
of their pattern, which are made once too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .program import Prepared, Program
from .sites import Site, chunks


class Fixed(NamedTuple):
    """Sums over the rows."""

    weights: Tensor | None  # of the rows
    sums: dict[str, tuple[Tensor, Tensor]]  # site -> S1 (1, *shape, T), S0
    patterns: dict[str, dict[int, tuple[Tensor, Tensor]]]  # site -> pattern -> sums of its statistics, weight
    base: float  # sum of log h(x)


def is_fixed(program: Program) -> bool:
    """Whether no iteration changes the sums over the rows."""
    sites = program.products.values()
    still = all(site.gathered is None and not site.family.augmented for site in sites)
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
    program.kept["fixed"] = found  # type: ignore[assignment]
    return found


def _sums(program: Program, ready: Prepared, site: Site, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    args = {name: value[:1] for name, value in ready.args[site.name].items()}
    total = torch.zeros(site.width, dtype=torch.float64)
    for rows in chunks(program.num_rows, 8192):
        share = None if weights is None else weights[rows]
        total = total + site.total(rows, args, share)
    count = torch.tensor(float(program.num_rows)) if weights is None else weights.sum()
    return site.unpack(total.unsqueeze(0), count.reshape(1))


def _pattern_sums(
    program: Program, ready: Prepared, name: str, weights: Tensor | None
) -> dict[int, tuple[Tensor, Tensor]]:
    one = replace(ready.patterns[name], shape=(1,), args={key: a[:1] for key, a in ready.patterns[name].args.items()})
    site = program.products[name]
    for rows in chunks(program.num_rows, 8192):
        value = site.centred(rows)
        share = value.new_ones(1, value.shape[1]) if weights is None else weights[rows].unsqueeze(0)
        one.collect(rows, value, share)
    return one.sums


def fixed_expectations(
    program: Program, ready: Prepared, weights: Tensor | None
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """log p(x) of each restart, (R,), and S1, S0 of each site."""
    known = fixed_sums(program, ready, weights)
    total: Tensor = torch.tensor(known.base, dtype=torch.float64)
    out = {}
    for name, site in program.products.items():
        if name in ready.patterns:
            log_prob, s1, s0 = ready.patterns[name].of_sums(known.patterns[name])
            cells = (1,) * len(site.cells)
            out[name] = (s1.reshape(*s0.shape, *cells, -1), s0.reshape(*s0.shape, *cells))
        else:
            s1, s0 = known.sums[name]
            eta, log_normalizer = site.natural(ready.args[name])
            lead = len(eta)
            log_prob = (s1 * eta).reshape(lead, -1).sum(1) - (s0 * log_normalizer).reshape(lead, -1).sum(1)
            out[name] = (s1.expand(lead, *s1.shape[1:]), s0.expand(lead, *s0.shape[1:]))
        total = total + log_prob
    return total, out
