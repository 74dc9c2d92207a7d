"""Posteriors of a row's discrete latents: joint, marginal, and their entropy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..base.errors import ModelError
from .evidence import backward_draws, posterior
from .program import Program
from .sites import Params, chunks


def joint_posterior(program: Program, params: Params, sizes: Sequence[int] | None = None) -> Tensor:
    """p(z_1..z_M | x_n) of the latents of a row, (N, E): all configurations of a row as one table.

    Parameters
    ----------
    sizes : sequence of int, optional
        Of the latents that the table is of; 1 for those that are summed over. Then it is (N, *others, E), with the
        plates inside the rows that any of these lies in, and 1 for the other plates.

    Raises
    ------
    ModelError
        No table holds them all: they lie in plates of which none is inside the others.
    """
    layout = program.layout
    whole, sizes = sizes is None, layout.sizes if sizes is None else tuple(sizes)
    plates = [inner_plates(program, name) for name, size in zip(layout.latents, sizes, strict=True) if size > 1]
    within = dict(sorted({place for own in plates for place in own}))
    if within and (whole or not any(len(own) == len(within) for own in plates)):
        raise ModelError(
            "a latent lies in a plate of its own inside the rows: joint posteriors are not tabulated for it"
        )
    cells = [program.structure.plates[within[axis]][1] if axis in within else 1 for axis in range(layout.nesting - 1)]
    parts = []
    with torch.no_grad():
        ready = program.prepare(params)
        for rows in chunks(program.num_rows, program.chunk_size(params)):
            factors, _ = program.factors(ready, rows)
            blank = torch.zeros(1, *sizes, *cells, len(range(program.num_rows)[rows]))
            # the gradient for a factor of zeros is the posterior of the latents that it speaks of
            _, counts = posterior([*factors, blank], program.order)
            parts.append(counts[-1].reshape(math.prod(sizes), *cells, -1).movedim((-1, 0), (0, -1)))
    found = torch.cat(parts)
    return found.flatten(0, -2) if whole else found


def latent_draws(program: Program, params: Params, num: int) -> dict[str, Tensor]:
    """Joint draws of the latents of each row, (num, N, *others): the plates but the rows', 1 where one lies outside."""
    names = program.layout.latents
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    if not names:
        return {}
    with torch.no_grad():
        ready = program.prepare(params)
        for rows in chunks(program.num_rows, program.chunk_size(params)):
            factors, _ = program.factors(ready, rows)
            size = len(range(program.num_rows)[rows])
            spread = [f.expand(*f.shape[:-1], size) for f in factors]
            drawn = backward_draws(spread, program.order, num)
            for axis, name in enumerate(names, 1):
                one = drawn.get(axis, torch.zeros(num, *(1,) * (program.layout.nesting - 1), size, dtype=torch.long))
                parts[name].append(one.movedim(-1, 1))
    return {name: torch.cat(found, 1) for name, found in parts.items()}


def inner_plates(program: Program, name: str) -> list[tuple[int, str]]:
    """The plates inside the rows that a latent lies in, each with its place among the plates but the rows'."""
    structure = program.structure
    others = [d for d in range(-program.layout.nesting, 0) if d != program.layout.data_dim]
    own = set(structure.latents[name].plates) - {structure.data_plate}
    return sorted((others.index(structure.plates[p][0]), p) for p in own)


def own_shape(program: Program, name: str, drawn: Tensor) -> Tensor:
    """Draws of `latent_draws` without the plates that the latent lies outside of, (num, N, *cells)."""
    kept = [axis for axis, _ in inner_plates(program, name)]
    return drawn.reshape(*drawn.shape[:2], *(drawn.shape[2 + axis] for axis in kept))


def expected_counts(program: Program, params: Params) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Posterior expected counts of each latent's own factor by row: (n, e..., plates), for one set of params."""
    with torch.no_grad():
        ready = program.prepare(params)
        for rows in chunks(program.num_rows, program.chunk_size(params)):
            factors, _ = program.factors(ready, rows)
            size = max(f.shape[-1] for f in factors)
            spread = [f.expand(*f.shape[:-1], size) if i < len(ready.latent) else f for i, f in enumerate(factors)]
            _, counts = posterior(spread, program.order)
            named = dict(zip(program.latents, counts, strict=False))
            named |= dict(zip(program.scored, counts[len(counts) - len(program.scored) :], strict=True))
            yield rows, {name: named[name].squeeze(0).movedim(-1, 0) for name in program.structure.latents}


def marginals(program: Program, params: Params) -> dict[str, Tensor]:
    """Marginal posterior of each latent from the counts of its own factor: its parents are summed over."""
    parts: dict[str, list[Tensor]] = {name: [] for name in program.structure.latents}
    for _, found in expected_counts(program, params):
        for name, table in found.items():
            parts[name].append(_marginal(program, name, table))
    return {name: torch.cat(found) for name, found in parts.items()}


def _marginal(program: Program, name: str, table: Tensor) -> Tensor:
    count = len(program.structure.latents)
    own = list(program.structure.latents).index(name)
    others = [1 + i for i in range(count) if i != own]
    table = (table.sum(others, keepdim=True) if others else table).movedim(1 + own, -1)  # (n, 1s, plates, K)
    table = table.reshape(len(table), *table.shape[count:])
    shape = [table.shape[1 + axis] for axis, _ in inner_plates(program, name)]
    return table.reshape(len(table), *shape, table.shape[-1])


def entropy(program: Program, params: Params, weights: Tensor | None) -> float:
    """Sum over rows and latents of the entropy of the posterior (of the joint, where there is one latent), in nats."""
    total = 0.0
    if not program.structure.latents:
        return total
    for rows, found in expected_counts(program, params):
        for name, table in found.items():
            probs = _marginal(program, name, table)
            values = -torch.special.xlogy(probs, probs).reshape(len(probs), -1).sum(1)
            total += float(values.sum() if weights is None else (values * weights[rows]).sum())
    return total
