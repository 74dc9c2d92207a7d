"""The sites of a model as arrays: arguments in one canonical layout, statistics of rows, matrix products.

Canonical layout of anything that belongs to a site: ``(e_1..e_M, *cells, *event)``, one dim per enumerated latent
(size 1 where it plays no part), then the site's independent cells (its plates other than the data plate, and the dims
that ``to_event`` declared), then the event of the family. Params carry a leading dim R: that many restarts at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..families.base import Args, Family
from ..families.registry import family
from ..trace.polynomials import unbroadcast
from ..trace.provenance import plain, provenance
from ..trace.structure import Structure

Params = dict[str, Tensor]  # each (R, *shape)


@dataclass(frozen=True)
class Argument:
    """One argument of a site's distribution: a constant, or cells gathered from a param."""

    value: Tensor  # canonical
    event_dim: int
    param: str | None = None
    index: Tensor | None = None  # canonical, cell numbers in the param; None when the value was computed
    depends: frozenset[str] = frozenset()
    operation: str | None = None

    @property
    def computed(self) -> bool:
        return bool(self.depends) and self.index is None

    def of(self, params: Params) -> Tensor:
        """Values (R, *canonical) under these params."""
        if self.index is None:
            return self.value.unsqueeze(0)
        assert self.param is not None
        value = params[self.param]
        value = value.reshape(len(value), -1)
        if self.in_order and self.index.numel() == value.shape[1]:
            return value.reshape(-1, *self.index.shape)
        return value[:, self.index]

    def pooled(self, part: Tensor, pool: Tensor) -> Tensor:
        """The transpose of the gather: `pool` (R, cells of the param) plus a tensor (R, *canonical), ties added up."""
        assert self.index is not None
        wanted = (len(part), *self.index.shape)
        if part.shape != wanted:
            dims = [d for d, size in enumerate(wanted) if size == 1 and part.shape[d] > 1]
            part = part.sum(dims, keepdim=True)
        if self.in_order and self.index.numel() == pool.shape[1]:
            return pool + part.reshape(pool.shape)
        return pool.index_add(1, self.index.flatten(), part.reshape(len(part), -1))

    @cached_property
    def in_order(self) -> bool:
        """Whether the gather takes cells 0, 1, 2, ... each once."""
        assert self.index is not None
        return torch.equal(self.index.flatten(), torch.arange(self.index.numel(), device=self.index.device))


@dataclass(frozen=True)
class Layout:
    """Where the dims of a model's tensors are: M enumerated latents, then the plates, the data plate among them."""

    latents: tuple[str, ...]
    sizes: tuple[int, ...]  # of the latents
    nesting: int
    data_dim: int
    num_rows: int

    @classmethod
    def of(cls, structure: Structure) -> Layout:
        sizes = tuple(latent.cardinality for latent in structure.latents.values())
        return cls(tuple(structure.latents), sizes, structure.nesting, structure.data_dim, structure.num_rows)

    def canonical(self, tensor: Tensor, inner: int, keep_rows: bool = False) -> Tensor | None:
        """Bring a tensor of batch, then `inner` further dims, to canonical layout; None where it varies over rows.

        With ``keep_rows`` the rows become the first cell dim.
        """
        tensor = unbroadcast(plain(tensor))
        count = len(self.latents)
        full = count + self.nesting + inner
        tensor = tensor.reshape((1,) * (full - tensor.dim()) + tensor.shape)
        # enumeration allots dims leftward, so the first latent stands nearest to the plates
        order = [*reversed(range(count)), count + self.nesting + self.data_dim]
        tensor = tensor.permute(*order, *(d for d in range(count, full) if d != order[-1]))
        if keep_rows:
            return tensor
        return tensor.squeeze(count) if tensor.shape[count] == 1 else None

    def rows_first(self, value: Tensor, inner: int) -> Tensor:
        """An observed value (batch, inner) as (N, *cells, *event)."""
        value = plain(value)
        full = self.nesting + inner
        value = value.reshape((1,) * (full - value.dim()) + value.shape)
        return value.movedim(self.nesting + self.data_dim, 0)


@dataclass(frozen=True)
class Site:
    """A site with an exponential family: its arguments, and, where it is observed, its values by row."""

    name: str
    family: Family
    args: dict[str, Argument]
    shape: tuple[int, ...]  # canonical batch shape: (e_1..e_M, *cells)
    event_dim: int
    value: Tensor  # observed: (N, *cells, *event); latent: canonical
    num_latents: int
    center: Tensor | float = 0.0  # (*cells, *event): taken from the values, and from the location argument
    variance: Tensor | None = None  # (*cells, *event): of the observed values, the measure of a collapse
    has_missing: bool = False
    gathered: Any = None  # `gathered.Gathered`, where the cells are groups of cells of the rows

    @property
    def cells(self) -> tuple[int, ...]:
        return self.shape[self.num_latents :]

    @property
    def configurations(self) -> tuple[int, ...]:
        return self.shape[: self.num_latents]

    def arguments(self, params: Params, computed: dict[str, Args] | None = None) -> Args:
        """Arguments (R, *canonical), the location measured from the centre."""
        out = {}
        for name, argument in self.args.items():
            value = computed[self.name][name].unsqueeze(0) if argument.computed and computed else argument.of(params)
            out[name] = value - self.center if name == self.family.location else value
        return out

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        """eta (R, *shape, T) and A (R, *shape), from arguments of any broadcastable shapes."""
        eta, log_normalizer = self.family.natural(args)
        lead = eta.shape[0]
        return eta.expand(lead, *self.shape, eta.shape[-1]), log_normalizer.expand(lead, *self.shape)

    # --- rows: everything of a chunk has its rows last ---

    def matrix(self, args: Args) -> tuple[Tensor, Tensor]:
        """Weights (R*E, T') and constant (R*E, 1): a chunk's log probability is ``weights @ features(rows) +
        constant``."""
        eta, log_normalizer = self.natural(args)
        if self.has_missing:  # one more feature per cell says whether it was observed, and carries -A
            eta = torch.cat([eta, -log_normalizer.unsqueeze(-1)], -1)
            log_normalizer = torch.zeros_like(log_normalizer)
        flat = 1 + self.num_latents
        weights = eta.movedim(-1, flat).flatten(0, flat - 1).flatten(1)
        return weights, -log_normalizer.reshape(len(weights), -1).sum(-1, keepdim=True)

    def chunk(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """Centred values (*event, *cells, n) in float64, NaN filled; and which cells (*cells, n) were observed."""
        value = self.value[rows].to(torch.float64)
        value = value.movedim(0, -1).contiguous()
        if isinstance(self.center, Tensor):
            value = value - self.center.unsqueeze(-1)
        missing = None
        if self.has_missing:
            missing = value.isnan()
            value = value.nan_to_num(nan=self.fill)
        if self.event_dim:
            value = value.movedim(-2, 0)
            missing = missing if missing is None else missing.any(-2)
        return value, missing if missing is None else ~missing

    def features(self, rows: slice, args: Args) -> Tensor:
        """Statistics of a chunk, (T', n)."""
        value, observed = self.chunk(rows)
        stats = self.family.statistics(value, args)
        if observed is not None:
            stats = torch.cat([stats * observed, observed.unsqueeze(0).to(stats)])
        return stats.reshape(-1, value.shape[-1])

    def total(self, rows: slice, args: Args, weights: Tensor | None) -> Tensor:
        """Statistics of a chunk summed over its rows, (T',)."""
        value, observed = self.chunk(rows)
        if observed is None:
            return self.family.total(value, args, weights).reshape(-1)
        features = self.features(rows, args)
        return features.sum(1) if weights is None else features @ weights

    def base_measure(self, rows: slice, args: Args) -> Tensor | float:
        """log h(x) of a chunk summed over cells, (n,)."""
        value, observed = self.chunk(rows)
        first = {
            name: a[(0,) * (1 + self.num_latents)].unsqueeze(-1) for name, a in args.items()
        }  # h(x) is the same in all
        base = self.family.base(value, first)
        if not isinstance(base, Tensor):
            return base
        return (base if observed is None else base * observed).reshape(-1, value.shape[-1]).sum(0)

    def centred(self, rows: slice) -> Tensor:
        """Centred values of a site of one cell, (D, n), NaN kept."""
        value = self.value[rows].to(torch.float64)
        return (value - self.center).reshape(len(value), -1).mT.contiguous()

    @cached_property
    def width(self) -> int:
        """Rows of `features`."""
        args = {name: a.value.unsqueeze(0) for name, a in self.args.items()}
        return torch.Size(self.cells).numel() * (self.family.natural(args)[0].shape[-1] + self.has_missing)

    @property
    def fill(self) -> float:
        """A value inside every support that can be asked, so that statistics of filled cells stay finite."""
        return 0.5 if self.family.location is None and self.value.is_floating_point() else 0.0

    def unpack(self, sums: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
        """From sums (R*E, T') and totals (R, *configurations): S1 (R, *shape, T) and S0 (R, *shape or cells of
        size 1)."""
        lead = totals.shape[0]
        sums = sums.reshape(lead, *self.configurations, -1, *self.cells).movedim(1 + self.num_latents, -1)
        if self.has_missing:
            return sums[..., :-1], sums[..., -1]
        return sums, totals.reshape(*totals.shape, *(1,) * len(self.cells))


def chunks(num_rows: int, size: int) -> Iterator[slice]:
    """Slices that cover the rows."""
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def read_arguments(
    fn: Any, layout: Layout, keep_rows: bool = False
) -> tuple[Family | None, dict[str, Argument] | None, int]:
    """Family, canonical arguments (None where one varies over rows), and the number of dims ``to_event`` declared."""
    inner = 0
    while hasattr(fn, "reinterpreted_batch_ndims"):
        inner += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    kind = family(fn)
    if kind is None:
        return None, None, inner
    args = {}
    for name, (tensor, event_dim) in kind.read(fn).items():
        value = layout.canonical(tensor, inner + event_dim, keep_rows)
        if value is None:
            return kind, None, inner
        event = tensor.shape[tensor.dim() - event_dim :]
        value = value.expand((*value.shape[: value.dim() - event_dim], *event))
        if value.is_floating_point():  # a user's own constants may be float32
            value = value.double()
        known = provenance(tensor)
        if known is None:
            args[name] = Argument(value, event_dim)
        elif known.cells is None or (known.normalized and name not in ("probs", "logits")):
            args[name] = Argument(value, event_dim, depends=known.names, operation=known.operation or "a normalisation")
        else:
            index = layout.canonical(known.cells, inner + event_dim, keep_rows)
            assert index is not None
            index = index.expand((*index.shape[: index.dim() - event_dim], *event))
            (param,) = known.names
            args[name] = Argument(value, event_dim, param, index, known.names)
    return kind, args, inner
