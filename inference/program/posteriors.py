"""Posteriors of a row's discrete latents: joint, marginal, and their entropy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..base.errors import ModelError
from .evidence import posterior
from .program import Program
from .sites import Params, chunks


def joint_posterior(program: Program, params: Params) -> Tensor:
    """p(z_1..z_M | x_n) of the latents of a row, (N, E): all configurations of a row as one table.

    A latent that is alone, in a plate inside the rows, has a table of its own in each of its cells, (N, *cells, K).
    """
    if not program.layout.latents:
        return torch.ones(program.num_rows, 1)
    if len(program.layout.latents) == 1:
        return marginals(program, params)[program.layout.latents[0]]
    if any(step.plates for step in program.order):
        raise ModelError(
            "a latent lies in a plate of its own inside the rows: joint posteriors are not tabulated for it"
        )
    return torch.cat([table.reshape(len(table), -1) for table in _joint_tables(program, params)])


def _joint_tables(program: Program, params: Params) -> Iterator[Tensor]:
    """p(z_1..z_M | x_n) chunk by chunk, (n, K_1..K_M): the gradient for a factor of zeros over all latents."""
    with torch.no_grad():
        ready = program.prepare(params)
        blank = torch.zeros(1, *program.layout.sizes, *(1,) * program.layout.nesting)
        for rows in chunks(program.num_rows, program.chunk_size(params)):
            factors, _ = program.factors(ready, rows)
            size = max(f.shape[-1] for f in factors)
            _, counts = posterior([*factors, blank.expand(*blank.shape[:-1], size)], program.order)
            yield counts[-1].reshape(*program.layout.sizes, size).movedim(-1, 0)


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
    inner = set(program.structure.latents[name].plates) - {program.structure.data_plate}
    keep = [
        i for i, dim in enumerate(_other_dims(program)) if any(program.structure.plates[p][0] == dim for p in inner)
    ]
    table = table.reshape(len(table), *table.shape[count:])
    shape = [size for i, size in enumerate(table.shape[1:-1]) if i in keep]
    return table.reshape(len(table), *shape, table.shape[-1])


def _other_dims(program: Program) -> list[int]:
    return [d for d in range(-program.layout.nesting, 0) if d != program.layout.data_dim]


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
