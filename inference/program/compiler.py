"""Compiling a model: sorting its sites by how they can be scored."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from ..data.columns import center_and_variance
from ..families.base import Family
from ..trace.idioms import is_one
from ..trace.structure import Structure
from .evidence import Elimination
from .gathered import gathered_site, where_params_have_it
from .missing_patterns import Patterns, find_patterns
from .program import Centers, Program
from .sites import Argument, Layout, Site, chunks, read_arguments

BY_ROW = "its arguments depend on the row"


Reader = Callable[[str, Any, Layout, bool], tuple[Family | None, dict[str, Argument] | None, int]]


def read_plainly(
    name: str, fn: Any, layout: Layout, keep_rows: bool
) -> tuple[Family | None, dict[str, Argument] | None, int]:
    """The arguments of a site as gathers of params."""
    return read_arguments(fn, layout, keep_rows)


def compile_program(
    model: Any,
    data: Any,
    structure: Structure,
    natural: bool = True,
    given: Collection[str] = (),
    read: Reader = read_plainly,
    centers: Centers | None = None,
) -> Program:
    """Sort the sites of a model by how they can be scored.

    Parameters
    ----------
    structure : Structure
        What a reading of the model said, on these data.
    natural : bool
        ``False`` scores every observed site by running the model: slower, the same numbers (the tests compare them).
    given : names
        Continuous latents of a row that each run is given values of, scored like observed sites.
    read : callable
        ``read(name, fn, layout, keep_rows)`` finds the family and arguments of a site (`sites.read_arguments`).
    centers : dict, optional
        Where columns are measured from, by site; of those it does not name, where the params have them. So the score of
        a row does not depend on the rows beside it. Default: from the means of these data.
    """
    layout = Layout.of(structure)
    holding = {p for latent in structure.latents.values() for p in latent.plates if p != structure.data_plate}
    latents: dict[str, Site] = {}
    products: dict[str, Site] = {}
    tables: dict[str, Site] = {}
    patterns: dict[str, Patterns] = {}
    scored: dict[str, str] = {}
    base: Tensor | float = 0.0
    for name in (*structure.latents, *structure.observed, *given):
        node = structure.trace.nodes[name]
        frames = {f.name for f in node["cond_indep_stack"]}
        kind, args, inner = read(name, node["fn"], layout, False)
        reason = _why_scored(node, kind, args, frames, holding, structure, natural)
        if reason == BY_ROW and name in structure.observed:
            found = gathered_site(name, node, layout, read, centers is None)
            if found is not None:
                products[name] = found[0]
                base = base + found[1]
                continue
        reason = "its values change from run to run" if name in given else reason
        if reason is None:
            assert kind is not None
            assert args is not None
            site = _site(name, node, kind, args, inner, layout, centers)
            if name in structure.latents:
                latents[name] = site
                continue
            reason = _sort_patterns(site, patterns)
            if reason is None:
                products[name] = site
                base = base + _base_measure(site, patterns)
                continue
        scored[name] = reason
        table = None if name in given or read is not read_plainly else _table_of(name, node, layout)
        if table is not None:
            tables[name] = table
    has_missing = any(_is_missing(structure.trace.nodes[name]["value"]) for name in structure.observed)

    def again(data: Any, structure: Structure, centers: Centers | None) -> Program:
        return compile_program(model, data, structure, natural, given, read, centers)

    order = _elimination(structure)
    return Program(
        model, data, structure, layout, latents, products, tables, scored, patterns, order, base, has_missing, again
    )


def _elimination(structure: Structure) -> tuple[Elimination, ...]:
    """Latents grouped by the plates they lie in beside the data's, the deepest first."""
    axes = [d for d in range(-structure.nesting, 0) if d != structure.data_dim]
    groups: dict[frozenset[str], list[int]] = {}
    for i, latent in enumerate(structure.latents.values()):
        groups.setdefault(frozenset(latent.plates) - {structure.data_plate}, []).append(1 + i)
    start = 1 + len(structure.latents)
    return tuple(
        Elimination(tuple(found), tuple(start + axes.index(structure.plates[p][0]) for p in inside))
        for inside, found in sorted(groups.items(), key=lambda item: -len(item[0]))
    )


def _sort_patterns(site: Site, patterns: dict[str, Patterns]) -> str | None:
    """Enter a site of vectors with missing cells by its patterns; why it cannot be a product, where it has no rule
    for them.
    """
    if not (site.has_missing and site.event_dim):
        return None
    found = find_patterns(site.value.reshape(len(site.value), -1))
    if torch.Size(site.cells).numel() == 1 and site.family.location is not None:
        patterns[site.name] = found
        return None
    if any(len(p.seen) and len(p.unseen) for p in found.distinct):
        return "it has rows with some cells of one event missing"
    return None


def _why_scored(
    node: Any,
    kind: Family | None,
    args: dict[str, Argument] | None,
    frames: set[str],
    holding: set[str],
    structure: Structure,
    natural: bool,
) -> str | None:
    """Why a site cannot be a matrix product; None where it can."""
    if not natural and node["is_observed"]:
        return "asked for"
    if kind is None:
        return f"{type(node['fn']).__name__} is no known exponential family"
    if kind.augmented:
        return f"{type(node['fn']).__name__} is an exponential family only given a hidden factor"
    if frames & holding:
        return "it lies in a plate that holds latents"
    if not is_one(node["scale"]) or node["mask"] is not None:
        return "it is scaled or masked"
    if args is None:
        return BY_ROW
    for name in kind.fixed:
        if name in args and any(size > 1 for size in args[name].value.shape[: len(structure.latents)]):
            return f"its {name} depends on a latent"
    return None


def _site(
    name: str, node: Any, kind: Family, args: dict[str, Argument], inner: int, layout: Layout, centers: Centers | None
) -> Site:
    count = len(layout.latents)
    batch = [a.value.shape[: a.value.dim() - a.event_dim] for a in args.values()]
    if not node["is_observed"]:
        value = layout.canonical(node["value"], inner + kind.event_dim)
        assert value is not None
        shape = torch.broadcast_shapes(*batch, value.shape[: value.dim() - kind.event_dim])
        return Site(name, kind, args, tuple(shape), kind.event_dim, value, count)
    value = layout.rows_first(node["value"], inner + kind.event_dim)
    cells = torch.broadcast_shapes(*(b[count:] for b in batch), value.shape[1 : value.dim() - kind.event_dim])
    value = value.expand(layout.num_rows, *cells, *value.shape[value.dim() - kind.event_dim :])
    shape = torch.broadcast_shapes(*(b[:count] for b in batch), (1,) * count)
    missing = _is_missing(value)
    center, variance = _center(name, kind, args, value, count, centers)
    return Site(name, kind, args, (*shape, *cells), kind.event_dim, value, count, center, variance, missing)


def _center(
    name: str, kind: Family, args: dict[str, Argument], value: Tensor, count: int, centers: Centers | None
) -> tuple[Tensor | float, Tensor | None]:
    """Where the columns of a site are measured from, and, in training, how they vary."""
    if not kind.spread:
        return 0.0, None
    if centers is None:
        center, variance = center_and_variance(value if kind.location else value.to(torch.float64).log())
        return (center if kind.location else 0.0), variance
    if kind.location is None:
        return 0.0, None
    known = centers.get(name)
    if isinstance(known, Tensor) and known.shape == value.shape[1:]:
        return known, None
    return where_params_have_it(args[kind.location].value, count).expand(value.shape[1:]), None


def _table_of(name: str, node: Any, layout: Layout) -> Site | None:
    """A scored site with its rows as cells, where a closed form can still be had from it."""
    kind, args, inner = read_arguments(node["fn"], layout, keep_rows=True)
    if kind is None or args is None or not is_one(node["scale"]) or node["mask"] is not None:
        return None
    if any(a.computed for a in args.values()) and all(a.index is None for a in args.values()):
        return None
    count = len(layout.latents)
    value = layout.canonical(node["value"], inner + kind.event_dim, keep_rows=True)
    assert value is not None
    batch = [a.value.shape[: a.value.dim() - a.event_dim] for a in args.values()]
    shape = list(torch.broadcast_shapes(*batch, value.shape[: value.dim() - kind.event_dim]))
    for frame in node["cond_indep_stack"]:
        dims = [layout.data_dim, *(d for d in range(-layout.nesting, 0) if d != layout.data_dim)]
        shape[count + dims.index(frame.dim)] = frame.size
    center: Tensor | float = 0.0
    variance = None
    if kind.spread:
        value_of = value if kind.location else value.to(torch.float64).log()
        middle, variance = center_and_variance(value_of[(0,) * count])  # of each cell, over the rows
        center = middle.unsqueeze(0) if kind.location else 0.0
    missing = _is_missing(value)
    if missing and kind.event_dim and not kind.augmented:
        return None
    return Site(name, kind, args, tuple(shape), kind.event_dim, value, count, center, variance, missing)


def _base_measure(site: Site, patterns: dict[str, Patterns]) -> Tensor | float:
    if site.name in patterns:
        return 0.0
    args = {name: a.value.unsqueeze(0) for name, a in site.args.items()}
    parts = [site.base_measure(rows, args) for rows in chunks(len(site.value), 8192)]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else parts[0]


def _is_missing(value: Tensor) -> bool:
    if not value.is_floating_point():
        return False
    return any(bool(part.isnan().any()) for part in value.split(65536))
