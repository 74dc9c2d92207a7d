"""Quantities of each row that a model computes from its latents: what `pyro.deterministic` keeps inside the data plate.

A latent that is enumerated over nodes is a number of a node; ``pyro.deterministic("ability", nodes[z])`` gives it its
meaning. Such a quantity has a posterior as the latents have, told by its mean and standard deviation, or by draws.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from ..base.errors import ModelError
from ..base.rng import forked
from ..trace.handlers import Bind
from .evidence import posterior
from .program import Program
from .sites import Params, chunks


class Moments(NamedTuple):
    """Posterior of a continuous quantity of each row."""

    mean: Tensor  # (N, ...)
    sd: Tensor  # (N, ...)


class Derived(NamedTuple):
    """A quantity at every configuration of the latents that it depends on."""

    value: Tensor  # (e_1..e_M, N or 1, plates, *event) float64
    plates: tuple[int, ...]  # sizes of the other plates, 1 where the site lies outside
    kept: tuple[int, ...]  # (*plates it lies in, *event), the shape of one row's quantity


def derived(program: Program, params: Params) -> dict[str, Derived]:
    """The derived quantities of a model under one set of params, (1, *shape) each."""
    known = {name: node for name, node in program.structure.trace.nodes.items() if _is_derived(program, node)}
    if not known:
        return {}
    layout, nodes = program.layout, program.trace(params).nodes
    inner = _event_dims(program, known)
    out = {}
    for name in known:
        node, depth = nodes[name], inner[name]
        value = layout.canonical(node["value"], depth, keep_rows=True)
        assert value is not None
        sizes = {frame.dim: frame.size for frame in node["cond_indep_stack"]}
        within = {frame.name for frame in node["cond_indep_stack"]}
        for axis, (latent, found) in enumerate(program.structure.latents.items()):
            if value.shape[axis] > 1 and not within.issuperset(found.plates):
                raise ModelError(
                    f"'{name}' is computed of '{latent}' outside of its plates, of all its cells at once: their joint "
                    f"values are not tabulated; compute it inside {', '.join(found.plates)}"
                )
        others = [d for d in range(-layout.nesting, 0) if d != layout.data_dim]
        plates = tuple(sizes.get(d, 1) for d in others)
        event = value.shape[value.dim() - depth :]
        kept = (*(size for d, size in zip(others, plates, strict=True) if d in sizes), *event)
        out[name] = Derived(value.double(), plates, kept)
    return out


def _is_derived(program: Program, node: Any) -> bool:
    return (
        node["type"] == "sample"
        and bool((node["infer"] or {}).get("_deterministic"))
        and any(frame.name == program.structure.data_plate for frame in node["cond_indep_stack"])
    )


def _event_dims(program: Program, nodes: dict[str, Any]) -> dict[str, int]:
    """Dims of each value's own. `pyro.deterministic` without ``event_dim`` counts those of plates and of enumeration
    in; a plain run, which has no enumeration, tells them apart.
    """
    found = {name: node["fn"].event_dim for name, node in nodes.items()}
    unsaid = [name for name, node in nodes.items() if found[name] == node["value"].dim() > 0]
    if unsaid:
        values = {name: param.value for name, param in program.structure.params.items()}
        with forked(), Bind(values):
            plain = poutine.trace(program.model).get_trace(program.data).nodes
        for name in unsaid:
            depth = max(-frame.dim for frame in plain[name]["cond_indep_stack"])
            found[name] = max(plain[name]["value"].dim() - depth, 0)
    return found


def moments(program: Program, params: Params) -> dict[str, Moments]:
    """Posterior mean and standard deviation of every derived quantity, each (N, *plates, *event)."""
    found = derived(program, params)
    if not found:
        return {}
    count = len(program.layout.latents)
    holding = {axis - 1 - count for step in program.order for axis in step.plates}
    parts: dict[str, list[Moments]] = {name: [] for name in found}
    with torch.no_grad():
        ready = program.prepare(params)
        for rows in chunks(program.num_rows, program.chunk_size(params)):
            factors, _ = program.factors(ready, rows)
            size = len(range(program.num_rows)[rows])
            # the gradient for a factor of zeros is the posterior of the latents that it speaks of
            blanks = [
                torch.zeros(
                    1, *one.value.shape[:count], *(s if a in holding else 1 for a, s in enumerate(one.plates)), size
                )
                for one in found.values()
            ]
            _, counts = posterior([*factors, *blanks], program.order)
            for (name, one), share in zip(found.items(), counts[len(factors) :], strict=True):
                parts[name].append(_moments(one, share.squeeze(0).movedim(-1, count), rows, count))
    return {name: Moments(*(torch.cat(part) for part in zip(*each, strict=True))) for name, each in parts.items()}


def _moments(one: Derived, share: Tensor, rows: slice, count: int) -> Moments:
    """Of a chunk of rows; `share` (e_1..e_M, n, plates) is the posterior."""
    value = one.value[(slice(None),) * count + (rows,)] if one.value.shape[count] > 1 else one.value
    share = share.reshape(*share.shape, *(1,) * (value.dim() - share.dim()))
    size, event = share.shape[count], value.shape[1 + count + len(one.plates) :]
    summed = tuple(range(count))
    mean = (share * value).sum(summed, keepdim=True) if count else share * value
    square = share * (value - mean) ** 2
    square = square.sum(summed, keepdim=True) if count else square
    full = (size, *one.plates, *event)
    shape = (size, *one.kept)
    return Moments(*(part.reshape(part.shape[count:]).expand(full).reshape(shape) for part in (mean, square.sqrt())))


def derived_draws(program: Program, params: Params, latents: dict[str, Tensor], num: int) -> dict[str, Tensor]:
    """Derived quantities (num, N, *plates, *event) at joint draws (num, N, *other plates) of the latents."""
    out = {}
    size, others = program.num_rows, program.layout.nesting - 1
    for name, one in derived(program, params).items():
        count, nothing = len(program.layout.latents), torch.zeros((), dtype=torch.long)
        cells = (size, *one.plates)
        places = [latents[z] for z in program.layout.latents]
        places += [torch.arange(s).reshape(-1, *(1,) * (others - d)) for d, s in enumerate(cells)]
        index = [p if s > 1 else nothing for p, s in zip(places, one.value.shape, strict=False)]
        drawn = one.value[tuple(index)]  # (num, N, plates, *event), 1 or no dim where all are the same
        event = one.value.shape[1 + count + len(one.plates) :]
        out[name] = drawn.expand(num, *cells, *event).reshape(num, size, *one.kept)
    return out
