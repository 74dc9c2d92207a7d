"""A model compiled for exact inference: which sites are matrix products, which must be scored by running the model.

`compiler.compile_program` reads the model once. After that, a model whose every site is an exponential family with
arguments gathered from params is never run again: its E-step is two matrix products and a sum over configurations, in
chunks that stay in cache. Arguments that are computed (a link function, a network) are read from a run of the model;
sites whose computed arguments differ from row to row, or which have no exponential family, are scored in that run too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.structures import slice_rows
from ..distributions.missing import PartlyObserved, scoring
from ..families.base import Args
from ..trace.handlers import Bind, OneRow, Run, run
from ..trace.idioms import is_one
from ..trace.provenance import plain
from ..trace.structure import Structure, read_again
from .evidence import Elimination, log_evidence
from .missing_patterns import Patterns, PatternSums
from .sites import Layout, Params, Site, chunks, read_arguments

Centers = Mapping[str, Tensor | float]  # site -> where its columns are measured from

KEPT_BYTES = 1 << 24  # features of all rows up to this size are computed once
CHUNK_BYTES = (
    1 << 22
)  # of the features and weights of a chunk, so that they stay in cache: measured best at 2k to 8k rows


class Prepared(NamedTuple):
    """All that a pass over the rows needs under given params."""

    trace: Any
    latent: list[Tensor]
    scored: dict[str, Tensor]
    groups: dict[tuple[int, ...], tuple[list[str], Tensor, Tensor]]
    args: dict[str, Args]
    patterns: dict[str, PatternSums]
    gathered: dict[str, Tensor]  # weights (T', R*E) of the sites whose cells are groups


@dataclass(frozen=True)
class Program:
    """A model on its data, ready to be scored. Made by `compiler.compile_program`."""

    model: Any
    data: Any
    structure: Structure
    layout: Layout
    latents: dict[str, Site]  # enumerated, row-free
    products: dict[str, Site]  # observed, arguments row-free or gathered by row: the natural-parameter path
    tables: dict[
        str, Site
    ]  # scored by running the model, yet of a family with gathered arguments (rows are a cell dim)
    scored: dict[str, str]  # scored by running the model: site -> reason
    patterns: dict[str, Patterns]
    order: tuple[Elimination, ...]
    base: Tensor | float  # sum of log h(x) over sites, (N,) or a number
    has_missing: bool
    again: Callable[[Any, Structure, Centers | None], Program]  # compiles the same on other data
    reached: Params = field(default_factory=dict)  # where a fit ended, and other data are looked at
    kept: dict[Any, Any] = field(default_factory=dict, compare=False)

    # --- other rows ---

    def on(self, data: Any, structure: Structure | None = None, anew: bool = False) -> Program:
        """The program on other data, of any number of rows; the model is not read again.

        Where every observed value is a cell of the table as it stands, and no argument depends on the row, nothing is
        run. Otherwise (values that are computed from the data, arguments that are, sites that are scored in a run, data
        that are a structure) what they are is found by one run of the model.

        Parameters
        ----------
        structure : Structure, optional
            `structure_on` these data, where it has been asked for.
        anew : bool
            Columns are measured from the means of the new data, whose variances are kept too, as a fit to them wants.
            Default: from where they were, so that the score of a row does not depend on the rows beside it.
        """
        found = self.structure_on(data) if structure is None else structure
        return self.again(data, found, None if anew else self.centers)

    @property
    def centers(self) -> Centers:
        """Where columns are measured from, by site; groups of cells are others on other data."""
        return {name: site.center for name, site in self.products.items() if site.gathered is None}

    @property
    def centred_by_group(self) -> bool:
        """Whether something is measured from the means of groups of these very data."""
        return any(site.gathered is not None and isinstance(site.center, Tensor) for site in self.products.values())

    def structure_on(self, data: Any) -> Structure:
        """The structure of the model on other data, by the cheapest way there is."""
        structure, dim = self.structure, self.structure.data_dim
        by_row = self.scored or structure.outside or any(site.gathered for site in self.products.values())
        by_row = by_row or isinstance(structure.scale, Tensor)
        nodes = structure.trace.nodes
        values = {} if by_row else {n: _same_view(nodes[n], self.data, data, dim) for n in structure.observed}
        if by_row or any(value is None for value in values.values()):
            return read_again(self.model, data, structure, self.reached)
        seen = {name: {**nodes[name], "value": value} for name, value in values.items()}
        plates = {**structure.plates, structure.data_plate: (dim, len(data))}
        return replace(structure, num_rows=len(data), plates=plates, trace=Run({**nodes, **seen}))

    def on_rows(self, rows: Tensor) -> Program:
        """The program on some of its own rows (B,), which may repeat; nothing is run."""
        scale = self.structure.scale
        return replace(
            self,
            data=slice_rows(self.data, rows),
            structure=replace(
                self.structure, num_rows=len(rows), scale=scale[rows] if isinstance(scale, Tensor) else scale
            ),
            layout=replace(self.layout, num_rows=len(rows)),
            products={name: _site_on(site, rows) for name, site in self.products.items()},
            patterns={name: found._replace(of_row=found.of_row[rows]) for name, found in self.patterns.items()},
            tables={},
            base=self.base[rows] if isinstance(self.base, Tensor) else self.base,
            kept={},
        )

    # --- what a pass needs ---

    @property
    def runs_model(self) -> bool:
        """Whether a pass needs a run of the model (and so holds one restart at a time)."""
        sites = [*self.latents.values(), *self.products.values()]
        return bool(self.scored) or any(a.computed for site in sites for a in site.args.values())

    @property
    def on_gpu(self) -> bool:
        """Whether the values live on a GPU, which wants large chunks and no threads."""
        return any(site.value.is_cuda for site in self.products.values())

    @property
    def size(self) -> int:
        """Rows times configurations."""
        return self.num_rows * torch.Size(self.layout.sizes).numel()

    @property
    def num_rows(self) -> int:
        return self.structure.num_rows

    def trace(self, params: Params) -> Run:
        """A run of the model under one set of params, (1, *shape) each; gradients flow to them."""
        return self.run({name: value[0] for name, value in params.items()})

    def run(self, values: Params) -> Run:
        """A run of the model under one set of params, as they are."""
        bind = Bind(values)
        with OneRow(self.structure.data_plate) if self.stands_on_one_row else scoring(self.has_missing):
            return run(self.model, self.data, bind, self.layout.nesting, enumerated=bool(self.layout.latents))

    @cached_property
    def stands_on_one_row(self) -> bool:
        """Whether a run on one row tells all that is asked of one: no site is scored in it, so its arguments are the
        same on all rows, unless the model itself spreads them.
        """
        if self.scored:
            return False
        bind = Bind({name: param.value for name, param in self.structure.params.items()})
        try:
            with OneRow(self.structure.data_plate):
                one = self.computed(run(self.model, self.data, bind, self.layout.nesting))
        except (ValueError, RuntimeError, IndexError):
            return False
        every = self.computed(self.structure.trace)
        return all(torch.equal(value, every[site][key]) for site, args in one.items() for key, value in args.items())

    def computed(self, trace: Any) -> dict[str, Args]:
        """Arguments that are no plain gather, canonical, as a run of the model has them."""
        out: dict[str, Args] = {}
        for name, site in {**self.latents, **self.products, **self.tables}.items():
            if any(a.computed for a in site.args.values()):
                fn = trace.nodes[name]["fn"]
                fn = fn.fn if isinstance(fn, PartlyObserved) else fn
                _, args, _ = read_arguments(fn, self.layout, keep_rows=name in self.tables)
                assert args is not None
                out[name] = {key: a.value for key, a in args.items()}
        return out

    def log_factor(self, trace: Any, name: str) -> Tensor:
        """The log probability of a scored site, (1, e..., plates, N or 1): plates without latents are summed."""
        site = trace.nodes[name]
        whole_rows = not is_one(self.structure.scale)  # scaled outside the sum over latents
        log_prob = site_log_prob({**site, "scale": 1.0} if whole_rows else site)
        count, nesting = len(self.layout.latents), self.layout.nesting
        log_prob = log_prob.reshape((1,) * (count + nesting - log_prob.dim()) + log_prob.shape)
        sizes = [-1] * count + [1] * nesting
        for frame in site["cond_indep_stack"]:
            sizes[frame.dim] = frame.size
        log_prob = log_prob.expand(sizes)
        rows = count + nesting + self.layout.data_dim
        rest = [d for d in range(count, count + nesting) if d != rows]
        out = log_prob.permute(*reversed(range(count)), *rest, rows).unsqueeze(0)
        inner = {axis for step in self.order for axis in step.plates}
        idle = [axis for axis in range(1 + count, out.dim() - 1) if axis not in inner]
        return out.sum(idle, keepdim=True) if idle else out

    def prepare(self, params: Params) -> Prepared:
        """Everything but the rows."""
        trace = self.trace(params) if self.runs_model else None
        computed = self.computed(trace) if trace is not None else {}
        sites = {**self.latents, **self.products, **self.tables}
        args = {n: s.arguments(params, computed) for n, s in sites.items()}
        latent = []
        for name, site in self.latents.items():
            factor = latent_log_prob(site, args[name])
            latent.append(factor.reshape(*factor.shape[: 1 + site.num_latents], *(1,) * self.layout.nesting))
        scored = {name: self.log_factor(trace, name) for name in self.scored}
        patterns = {
            name: PatternSums(found, whole(flat(args[name], self.products[name]), self.products[name]), lead)
            for name, found in self.patterns.items()
            for lead in [self._lead(params, name)]
        }
        gathered = {}
        groups: dict[tuple[int, ...], tuple[list[str], list[Tensor], list[Tensor]]] = {}
        for name, site in self.products.items():
            names, weights, constants = groups.setdefault(site.configurations, ([], [], []))
            names.append(name)
            if name in patterns:
                continue
            weight, constant = site.matrix(args[name])
            if site.gathered is not None:
                gathered[name] = weight.mT.contiguous()
                continue
            weights.append(weight)
            constants.append(constant)
        joined = {
            key: (names, torch.cat(weights, 1) if weights else torch.empty(0), sum(constants, torch.zeros(())))
            for key, (names, weights, constants) in groups.items()
        }
        return Prepared(trace, latent, scored, joined, args, patterns, gathered)

    def _lead(self, params: Params, name: str) -> tuple[int, ...]:
        restarts = 1 if self.runs_model else len(next(iter(params.values()))) if params else 1
        return (restarts, *self.products[name].configurations)

    def chunk_size(self, params: Params) -> int:
        """Rows per chunk: all of them where the model itself is run."""
        if self.scored:
            return self.num_rows
        restarts = max((len(value) for value in params.values()), default=1)
        features = sum(site.width for site in self.products.values() if site.gathered is None)
        sparse = [site.gathered for site in self.products.values() if site.gathered is not None]
        features += sum(one.per_row for one in sparse)
        widest = max((torch.Size(s.configurations).numel() for s in self.products.values()), default=1) * restarts
        size = max(256, CHUNK_BYTES // (8 * (features + 2 * widest)))
        return 1 << (size.bit_length() - 1) if sparse else size  # few sizes, since features are kept for each

    def factors(self, ready: Prepared, rows: slice) -> tuple[list[Tensor], dict[tuple[int, ...], Tensor]]:
        """The factors of a chunk, (R, e..., plates, n) each, and the features behind every group of products."""
        plates = (1,) * (self.layout.nesting - 1)
        out, features = [], {}
        for key, (names, weights, constant) in ready.groups.items():
            plain = [n for n in names if n not in ready.patterns and n not in ready.gathered]
            score: Tensor | float = 0.0
            if plain:
                features[key] = self._features(key, plain, rows, ready)
                score = torch.addmm(constant, weights, features[key])
            for n in names:
                if n in ready.patterns:
                    score = score + ready.patterns[n].scores(rows, self.products[n].centred(rows))
                if n in ready.gathered:
                    score = score + self.products[n].gathered.features(rows).times(ready.gathered[n]).mT
            assert isinstance(score, Tensor)
            restarts = len(score) // torch.Size(key).numel()
            out.append(score.contiguous().reshape(restarts, *key, *plates, score.shape[-1]))
        scored = [f[..., rows] if f.shape[-1] > 1 else f for f in ready.scored.values()]
        return [*ready.latent, *out, *scored], features

    def _features(self, key: tuple[int, ...], names: list[str], rows: slice, ready: Prepared) -> Tensor:
        """Features (T', n) of the sites of a group; of small data they are kept, since no iteration changes them."""
        place = (key, rows.start, rows.stop)
        if place in self.kept:
            return self.kept[place]
        parts = [self.products[n].features(rows, ready.args[n]) for n in names]
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        if 8 * self.num_rows * sum(self.products[n].width for n in names) <= KEPT_BYTES:
            self.kept[place] = found
        return found

    def base_of(self, rows: slice) -> Tensor | float:
        """log h(x) of a chunk, (n,) or a number."""
        return self.base[rows] if isinstance(self.base, Tensor) else self.base

    def scale_of(self, rows: slice) -> Tensor | float:
        """The scale of the rows of a chunk, (n,) or a number."""
        scale = self.structure.scale
        return scale[rows] if isinstance(scale, Tensor) else scale

    def row_log_prob(self, params: Params) -> Tensor:
        """log p(x_n) of every row, (R, N). Gradients flow to the params."""
        return self.prepared_log_prob(self.prepare(params), params)

    def prepared_log_prob(self, ready: Prepared, params: Params) -> Tensor:
        """`row_log_prob` of params that are prepared."""
        parts = [
            (log_evidence(self.factors(ready, rows)[0], self.order) + self.base_of(rows)) * self.scale_of(rows)
            for rows in chunks(self.num_rows, self.chunk_size(params))
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def site_log_prob(site: Any) -> Tensor:
    """The log probability of a site of a run, with its mask and scale."""
    log_prob = site["fn"].log_prob(site["value"])
    if site["mask"] is not None:
        log_prob = torch.where(torch.as_tensor(site["mask"]), log_prob, 0.0)
    return (log_prob if is_one(site["scale"]) else log_prob * site["scale"]).double()


def latent_log_prob(site: Site, args: Args) -> Tensor:
    """log p(z | its parents) over all configurations, (R, *shape)."""
    eta, log_normalizer = site.natural(args)
    stats = site.family.statistics_last(site.value, args)
    base = site.family.base(site.value.movedim(-1, 0) if site.event_dim else site.value, args)
    return (stats * eta).sum(-1) - log_normalizer + base


def whole(args: Args, site: Site) -> Args:
    """Location and Cholesky factor of a normal family of vectors; in expectation, of the one that stands in for it."""
    family = site.family
    if hasattr(family, "stand_in"):
        found: Args = family.stand_in(args)
        return found
    return {"loc": args["loc"], "scale_tril": family.cholesky(args)} if hasattr(family, "cholesky") else args


def flat(args: Args, site: Site) -> Args:
    """Arguments of a site of one cell, its cell dims dropped."""
    start = 1 + site.num_latents
    return {name: a.flatten(start, start + len(site.cells)) if site.cells else a for name, a in args.items()}


def _site_on(site: Site, rows: Tensor) -> Site:
    """An observed site on some of its rows."""
    gathered = None if site.gathered is None else site.gathered.on_rows(rows)
    return replace(site, value=site.value[rows], gathered=gathered)


def _same_view(node: Any, old: Any, new: Any, data_dim: int) -> Tensor | None:
    """What a site observes of a new table, where its value is a view of the old one: the same cells of each row; None
    where it is not, or the tables are not alike.
    """
    value, tables = plain(node["value"]), (old, new)
    if not all(isinstance(table, Tensor) and table.dim() and table.is_contiguous() for table in tables):
        return None
    if len(old) < 2 or old.shape[1:] != new.shape[1:] or not old.dtype == new.dtype == value.dtype:
        return None
    if value.untyped_storage().data_ptr() != old.untyped_storage().data_ptr():
        return None
    axis, width = value.dim() + data_dim - len(node["fn"].event_shape), old.stride(0)
    first = value.storage_offset() - old.storage_offset()
    if axis < 0 or value.shape[axis] != len(old) or value.stride(axis) != width:
        return None
    inner = [(size - 1) * value.stride(d) for d, size in enumerate(value.shape) if d != axis]
    if first < 0 or first + sum(inner) >= width:
        return None
    shape = [len(new) if d == axis else size for d, size in enumerate(value.shape)]
    return new.as_strided(shape, value.stride(), new.storage_offset() + first)
