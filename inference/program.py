"""A model compiled for exact inference: which sites are matrix products, which must be scored by running the model.

`compile_program` reads the model once. After that, a model whose every site is an exponential family with arguments gathered
from params is never run again: its E-step is two matrix products and a sum over configurations, in chunks that stay in cache.
Arguments that are computed (a link function, a network) are read from a run of the model; sites whose arguments differ from
row to row, or which have no exponential family, are scored in that run too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .columns import center_and_variance
from .evidence import Elimination, log_evidence, posterior
from .families import Args
from .missing import PartlyObserved, scoring
from .patterns import PatternSums, Patterns, find_patterns
from .sites import Argument, Layout, Params, Site, chunks, read_arguments
from .structure import Bind, Structure, run

CHUNK_BYTES = 1 << 22  # of the features and weights of a chunk, so that they stay in cache: measured best at 2k to 8k rows


class Expectations(NamedTuple):
    """What an E-step hands to the M-step; sums are weighted by row, and R restarts stand side by side."""

    log_prob: Tensor  # (R,) sum over rows of w_n log p(x_n)
    sums: dict[str, tuple[Tensor, Tensor]]  # site -> S1 (R, *shape, T), S0
    weights: dict[str, Tensor]  # scored sites -> posterior weights of their factor


class Prepared(NamedTuple):
    """All that a pass over the rows needs under given params."""

    trace: Any
    latent: list[Tensor]
    scored: dict[str, Tensor]
    groups: dict[tuple[int, ...], tuple[list[str], Tensor, Tensor]]
    args: dict[str, Args]
    patterns: dict[str, PatternSums]


@dataclass(frozen=True)
class Program:
    """A model on its data, ready to be scored. Made by `compile_program`."""

    model: Any
    data: Any
    structure: Structure
    layout: Layout
    latents: dict[str, Site]  # enumerated, row-free
    products: dict[str, Site]  # observed, row-free arguments: the natural-parameter path
    tables: dict[str, Site]  # scored by running the model, yet of a family with gathered arguments (rows are a cell dim)
    scored: dict[str, str]  # scored by running the model: site -> reason
    patterns: dict[str, Patterns]
    order: tuple[Elimination, ...]
    base: Tensor | float  # sum of log h(x) over sites, (N,) or a number
    has_missing: bool

    @property
    def runs_model(self) -> bool:
        """Whether a pass needs a run of the model (and so holds one restart at a time)."""
        sites = [*self.latents.values(), *self.products.values()]
        return bool(self.scored) or any(a.computed for site in sites for a in site.args.values())

    @property
    def num_rows(self) -> int:
        return self.structure.num_rows

    def trace(self, params: Params) -> Any:
        """A run of the model under one set of params, (1, *shape) each; gradients flow to them."""
        bind = Bind({name: value[0] for name, value in params.items()})
        with scoring(self.has_missing):
            return run(self.model, self.data, bind, self.layout.nesting)

    def computed(self, trace: Any) -> dict[str, Args]:
        """Arguments that are no plain gather, canonical, as a run of the model has them."""
        out: dict[str, Args] = {}
        for name, site in {**self.latents, **self.products}.items():
            if any(a.computed for a in site.args.values()):
                fn = trace.nodes[name]["fn"]
                _, args, _ = read_arguments(fn.fn if isinstance(fn, PartlyObserved) else fn, self.layout)
                assert args is not None
                out[name] = {key: a.value for key, a in args.items()}
        return out

    def log_factor(self, trace: Any, name: str) -> Tensor:
        """The log probability of a scored site, (N or 1, 1, e..., plates): plates without latents are summed."""
        site = trace.nodes[name]
        log_prob = site["fn"].log_prob(site["value"])
        if site["mask"] is not None:
            log_prob = torch.where(torch.as_tensor(site["mask"]), log_prob, 0.0)
        log_prob = log_prob * site["scale"]
        count, nesting = len(self.layout.latents), self.layout.nesting
        log_prob = log_prob.reshape((1,) * (count + nesting - log_prob.dim()) + log_prob.shape)
        sizes = [-1] * count + [1] * nesting
        for frame in site["cond_indep_stack"]:
            sizes[frame.dim] = frame.size
        log_prob = log_prob.expand(sizes)
        rows = count + nesting + self.layout.data_dim
        rest = [d for d in range(count, count + nesting) if d != rows]
        out = log_prob.permute(rows, *reversed(range(count)), *rest).unsqueeze(1)
        inner = {axis for step in self.order for axis in step.plates}
        idle = [axis for axis in range(2 + count, out.dim()) if axis not in inner]
        return out.sum(idle, keepdim=True) if idle else out

    def prepare(self, params: Params) -> Prepared:
        """Everything but the rows."""
        trace = self.trace(params) if self.runs_model else None
        computed = self.computed(trace) if trace is not None else {}
        args = {n: s.arguments(params, computed) for n, s in {**self.latents, **self.products}.items()}
        plates = (1,) * (self.layout.nesting - 1)
        latent = []
        for name, site in self.latents.items():
            factor = latent_log_prob(site, args[name])
            latent.append(factor.reshape(factor.shape[: 1 + site.num_latents] + plates).unsqueeze(0))
        scored = {name: self.log_factor(trace, name) for name in self.scored}
        patterns = {
            name: PatternSums(found, flat(args[name], self.products[name]), self._lead(params, name))
            for name, found in self.patterns.items()
        }
        groups: dict[tuple[int, ...], tuple[list[str], list[Tensor], list[Tensor]]] = {}
        for name, site in self.products.items():
            names, weights, constants = groups.setdefault(site.configurations, ([], [], []))
            names.append(name)
            if name not in patterns:
                weight, constant = site.matrix(args[name])
                weights.append(weight)
                constants.append(constant)
        joined = {
            key: (names, torch.cat(weights) if weights else torch.empty(0), sum(constants, torch.zeros(())))
            for key, (names, weights, constants) in groups.items()
        }
        return Prepared(trace, latent, scored, joined, args, patterns)

    def _lead(self, params: Params, name: str) -> tuple[int, ...]:
        restarts = 1 if self.runs_model else len(next(iter(params.values()))) if params else 1
        return (restarts, *self.products[name].configurations)

    def chunk_size(self, params: Params) -> int:
        """Rows per chunk: all of them where the model itself is run."""
        if self.scored:
            return self.num_rows
        restarts = max((len(value) for value in params.values()), default=1)
        features = sum(site.width for site in self.products.values())
        widest = max((torch.Size(s.configurations).numel() for s in self.products.values()), default=1) * restarts
        return max(256, CHUNK_BYTES // (8 * (features + 2 * widest)))

    def factors(self, ready: Prepared, rows: slice) -> tuple[list[Tensor], dict[tuple[int, ...], Tensor]]:
        """The factors of a chunk, (n, R, e..., plates) each, and the features behind every group of products."""
        plates = (1,) * (self.layout.nesting - 1)
        out, features = [], {}
        for key, (names, weights, constant) in ready.groups.items():
            plain = [n for n in names if n not in ready.patterns]
            score: Tensor | float = 0.0
            if plain:
                parts = [self.products[n].features(rows, ready.args[n]) for n in plain]
                features[key] = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
                score = torch.addmm(constant, features[key], weights)
            for n in names:
                if n in ready.patterns:
                    score = score + ready.patterns[n].scores(rows, self.products[n].centred(rows))
            assert isinstance(score, Tensor)
            restarts = score.shape[1] // torch.Size(key).numel()
            out.append(score.reshape(len(score), restarts, *key, *plates))
        scored = [f[rows] if len(f) > 1 else f for f in ready.scored.values()]
        return [*ready.latent, *out, *scored], features

    def expectations(self, params: Params, weights: Tensor | None = None) -> Expectations:
        """The E-step: one pass over the rows. `weights` (N,) weighs them."""
        with torch.no_grad():
            ready = self.prepare(params)
            total: Tensor | float = 0.0
            latent: list[Tensor] | None = None
            sums: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
            kept: dict[str, list[Tensor]] = {name: [] for name in self.scored}
            for rows in chunks(self.num_rows, self.chunk_size(params)):
                factors, features = self.factors(ready, rows)
                share = None if weights is None else weights[rows]
                row_log_prob, counts = posterior(factors, self.order, share)
                row_log_prob = row_log_prob + self.base_of(rows)
                total = total + (row_log_prob if share is None else row_log_prob * share.unsqueeze(-1)).sum(0)
                here = counts[: len(ready.latent)]
                latent = here if latent is None else [a + b for a, b in zip(latent, here, strict=True)]
                for count, (key, (names, _, _)) in zip(counts[len(ready.latent) :], ready.groups.items(), strict=False):
                    count = count.reshape(len(count), -1)
                    new = count.mT @ features[key] if key in features else count.new_zeros(count.shape[1], 0)
                    old = sums.get(key)
                    sums[key] = (new, count.sum(0)) if old is None else (old[0] + new, old[1] + count.sum(0))
                    for name in names:
                        if name in ready.patterns:
                            ready.patterns[name].collect(rows, self.products[name].centred(rows), count)
                for name, count in zip(self.scored, counts[len(counts) - len(self.scored) :], strict=True):
                    kept[name].append(count)
            assert isinstance(total, Tensor)
            out = self._unpack(ready, sums)
            for (name, site), count in zip(self.latents.items(), latent or [], strict=True):
                out[name] = latent_sums(site, count.squeeze(0), ready.args[name])
            posteriors = {name: parts[0] for name, parts in kept.items()}
            for name, site in self.tables.items():
                out[name] = table_sums(site, posteriors[name])
            return Expectations(total, out, posteriors)

    def _unpack(self, ready: Prepared, sums: dict) -> dict[str, tuple[Tensor, Tensor]]:
        out = {}
        for key, (names, _, _) in ready.groups.items():
            features, totals = sums[key]
            totals = totals.reshape(-1, *key)
            start = 0
            for name in names:
                site = self.products[name]
                if name in ready.patterns:
                    s1, s0 = ready.patterns[name].total()
                    cells = (1,) * len(site.cells)
                    out[name] = (s1.reshape(*s0.shape, *cells, -1), s0.reshape(*s0.shape, *cells))
                    continue
                out[name] = site.unpack(features[:, start : start + site.width], totals)
                start += site.width
        return out

    def base_of(self, rows: slice) -> Tensor | float:
        """log h(x) of a chunk, (n, 1) or a number."""
        return self.base[rows].unsqueeze(-1) if isinstance(self.base, Tensor) else self.base

    def row_log_prob(self, params: Params) -> Tensor:
        """log p(x_n) of every row, (N, R). Gradients flow to the params."""
        ready = self.prepare(params)
        parts = [
            log_evidence(self.factors(ready, rows)[0], self.order) + self.base_of(rows)
            for rows in chunks(self.num_rows, self.chunk_size(params))
        ]
        return torch.cat(parts)

    def joint_posteriors(self, params: Params) -> Iterator[Tensor]:
        """p(z_1..z_M | x_n) chunk by chunk, (n, K_1..K_M): the gradient for a factor of zeros over all latents."""
        with torch.no_grad():
            ready = self.prepare(params)
            blank = torch.zeros(1, 1, *self.layout.sizes, *(1,) * (self.layout.nesting - 1))
            for rows in chunks(self.num_rows, self.chunk_size(params)):
                factors, _ = self.factors(ready, rows)
                size = max(len(f) for f in factors)
                _, counts = posterior([*factors, blank.expand(size, *blank.shape[1:])], self.order)
                yield counts[-1].reshape(size, *self.layout.sizes)

    def posteriors(self, params: Params) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Posterior expected counts of each latent's own factor by row: (n, e..., plates), for one set of params."""
        with torch.no_grad():
            ready = self.prepare(params)
            for rows in chunks(self.num_rows, self.chunk_size(params)):
                factors, _ = self.factors(ready, rows)
                size = max(len(f) for f in factors)
                spread = [f.expand(size, *f.shape[1:]) if i < len(ready.latent) else f for i, f in enumerate(factors)]
                _, counts = posterior(spread, self.order)
                named = dict(zip(self.latents, counts, strict=False))
                named |= dict(zip(self.scored, counts[len(counts) - len(self.scored) :], strict=True))
                yield rows, {name: named[name].squeeze(1) for name in self.structure.latents}


def latent_log_prob(site: Site, args: Args) -> Tensor:
    """log p(z | its parents) over all configurations, (R, *shape)."""
    eta, log_normalizer = site.natural(args)
    stats = site.family.statistics(site.value, args)
    return (stats * eta).sum(-1) - log_normalizer


def latent_sums(site: Site, counts: Tensor, args: Args) -> tuple[Tensor, Tensor]:
    """S1, S0 of an enumerated site from the posterior counts (R, e..., plates) of its configurations."""
    counts = counts.reshape(counts.shape[: 1 + site.num_latents] + (1,) * len(site.cells)).expand(-1, *site.shape)
    return counts.unsqueeze(-1) * site.family.statistics(site.value, args), counts


def table_sums(site: Site, counts: Tensor) -> tuple[Tensor, Tensor]:
    """S1, S0 of a scored site with gathered arguments: rows are its first cell dim."""
    counts = counts.movedim(0, 1 + site.num_latents)  # (1, e..., N, plates)
    counts = counts.reshape(*counts.shape, *(1,) * (1 + len(site.shape) - counts.dim()))
    value, args = site.value.to(torch.float64), {name: a.value for name, a in site.args.items()}
    if site.has_missing:
        observed = ~value.isnan()
        observed = observed.flatten(observed.dim() - site.event_dim).all(-1) if site.event_dim else observed
        counts, value = counts * observed, value.nan_to_num(nan=0.5)
    counts = counts.expand(1, *site.shape)
    return counts.unsqueeze(-1) * site.family.statistics(value, args), counts


def flat(args: Args, site: Site) -> Args:
    """Arguments of a site of one cell, its cell dims dropped."""
    start = 1 + site.num_latents
    return {name: a.flatten(start, start + len(site.cells)) if site.cells else a for name, a in args.items()}


def compile_program(model: Any, data: Any, structure: Structure, natural: bool = True) -> Program:
    """Sort the sites of a model by how they can be scored.

    Parameters
    ----------
    natural : bool
        ``False`` scores every observed site by running the model: slower, the same numbers (the tests compare them).
    """
    layout = Layout.of(structure)
    plates = structure.plates
    holding = {p for latent in structure.latents.values() for p in latent.plates if p != structure.data_plate}
    latents, products, tables, patterns = {}, {}, {}, {}
    scored: dict[str, str] = {}
    base: Tensor | float = 0.0
    for name in (*structure.latents, *structure.observed):
        node = structure.trace.nodes[name]
        frames = {f.name for f in node["cond_indep_stack"]}
        kind, args, inner = read_arguments(node["fn"], layout)
        reason = _why_scored(node, kind, args, frames, holding, structure, natural)
        if reason is None:
            assert kind is not None and args is not None
            site = _site(name, node, kind, args, inner, layout, structure)
            if name in structure.latents:
                latents[name] = site
                continue
            if site.has_missing and site.event_dim:
                found = find_patterns(site.value.reshape(len(site.value), -1))
                if torch.Size(site.cells).numel() == 1 and kind.location is not None:
                    patterns[name] = found
                elif any(len(p.seen) and len(p.unseen) for p in found.distinct):
                    reason = "rows with some cells of one event missing"
            if reason is None:
                products[name] = site
                base = base + _base_measure(site, patterns)
                continue
        scored[name] = reason
        kind, args, inner = read_arguments(node["fn"], layout, keep_rows=True)
        plain = node["scale"] == 1.0 and node["mask"] is None
        if kind is not None and args is not None and plain and not any(a.computed for a in args.values()):
            table = _table(name, node, kind, args, inner, layout)
            if not (table.has_missing and kind.event_dim):
                tables[name] = table
    has_missing = any(_is_missing(structure.trace.nodes[name]["value"]) for name in structure.observed)
    axes = [d for d in range(-structure.nesting, 0) if d != structure.data_dim]
    groups: dict[frozenset, list[int]] = {}
    for i, latent in enumerate(structure.latents.values()):
        groups.setdefault(frozenset(latent.plates) - {structure.data_plate}, []).append(2 + i)
    start = 2 + len(structure.latents)
    order = tuple(
        Elimination(tuple(found), tuple(start + axes.index(plates[p][0]) for p in inside))
        for inside, found in sorted(groups.items(), key=lambda item: -len(item[0]))
    )
    return Program(model, data, structure, layout, latents, products, tables, scored, patterns, order, base, has_missing)


def _why_scored(node, kind, args, frames, holding, structure, natural) -> str | None:
    """Why a site cannot be a matrix product; None where it can."""
    if not natural and node["is_observed"]:
        return "asked for"
    if kind is None:
        return f"{type(node['fn']).__name__} is no known exponential family"
    if args is None:
        return "its arguments depend on the row"
    if frames & holding:
        return "it lies in a plate that holds latents"
    if node["scale"] != 1.0 or node["mask"] is not None:
        return "it is scaled or masked"
    if node["is_observed"] and structure.data_plate not in frames:
        return "it is observed outside the data plate"
    return None


def _site(name, node, kind, args: dict[str, Argument], inner, layout: Layout, structure: Structure) -> Site:
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
    center: Tensor | float = 0.0
    variance = None
    if kind.spread:
        center, variance = center_and_variance(value if kind.location else value.to(torch.float64).log())
        center = center if kind.location else 0.0
    return Site(name, kind, args, (*shape, *cells), kind.event_dim, value, count, center, variance, missing)


def _table(name, node, kind, args: dict[str, Argument], inner, layout: Layout) -> Site:
    count = len(layout.latents)
    value = layout.canonical(node["value"], inner + kind.event_dim, keep_rows=True)
    assert value is not None
    batch = [a.value.shape[: a.value.dim() - a.event_dim] for a in args.values()]
    shape = list(torch.broadcast_shapes(*batch, value.shape[: value.dim() - kind.event_dim]))
    for frame in node["cond_indep_stack"]:
        dims = [layout.data_dim, *(d for d in range(-layout.nesting, 0) if d != layout.data_dim)]
        shape[count + dims.index(frame.dim)] = frame.size
    variance = None
    if kind.spread:
        _, one = center_and_variance(value.reshape(-1, *value.shape[value.dim() - kind.event_dim :]))
        variance = one
    return Site(name, kind, args, tuple(shape), kind.event_dim, value, count, 0.0, variance, _is_missing(value))


def _base_measure(site: Site, patterns: dict) -> Tensor | float:
    if site.name in patterns:
        return 0.0
    args = {name: a.value.unsqueeze(0) for name, a in site.args.items()}
    parts = [site.base_measure(rows, args) for rows in chunks(len(site.value), 8192)]
    return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]


def _is_missing(value: Tensor) -> bool:
    if not value.is_floating_point():
        return False
    return any(bool(part.isnan().any()) for part in value.split(65536))
