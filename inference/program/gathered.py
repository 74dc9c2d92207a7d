"""Sites whose arguments are gathered by row, such as ``confusion[rater, z]``: cells that gather alike form a group.

Groups are to such a site what columns are to others. With g the group of a cell of row n and e a configuration of the
latents, log p(x_n | e) is the sum over the row's cells of eta[e, g] . t(x) - A[e, g]: the product of a sparse matrix of
features, which no iteration changes, with one matrix of weights. Its transpose times the posterior leaves the expected
statistics of every group.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ..data.columns import center_and_variance
from ..families.base import Family
from .sites import Argument, Layout, Site


class Sparse(NamedTuple):
    """A sparse matrix with its transpose, both by rows."""

    matrix: Tensor
    transposed: Tensor

    def times(self, dense: Tensor) -> Tensor:
        """The matrix product; gradients of any order flow to `dense`."""
        if torch.is_grad_enabled() and dense.requires_grad:
            return _Times.apply(dense, self)
        return self.matrix @ dense

    @property
    def mT(self) -> Sparse:
        return Sparse(self.transposed, self.matrix)


class _Times(torch.autograd.Function):
    """torch differentiates a sparse product once; as a function whose backward is itself, it does so any number of
    times."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, sparse: Sparse) -> Tensor:
        ctx.sparse = sparse
        return sparse.matrix @ dense

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.sparse.mT.times(gradient), None


@dataclass(frozen=True)
class Gathered:
    """The observed cells of a site, in the order of their rows."""

    row: Tensor  # (P,)
    group: Tensor  # (P,)
    stats: Tensor  # (P, T) statistics of the centred values
    first: Tensor  # (G,) a cell of a row where each group is met
    num_rows: int
    kept: dict[tuple[int, int], Sparse] = field(default_factory=dict, compare=False)

    @property
    def per_row(self) -> int:
        """Features of a row that are not 0, about."""
        return -(-self.stats.numel() // max(self.num_rows, 1)) + -(-len(self.row) // max(self.num_rows, 1))

    def features(self, rows: slice) -> Sparse:
        """Of a chunk of rows, (n, (T + 1) G): the statistics of each group, then how often it was met."""
        place = (rows.start, rows.stop)
        if place not in self.kept:
            start, stop = torch.searchsorted(self.row, torch.tensor(place, device=self.row.device)).tolist()
            stats, group = self.stats[start:stop], self.group[start:stop]
            block = torch.cat([stats, torch.ones_like(stats[:, :1])], 1)
            entry, number = block.nonzero(as_tuple=True)
            column = number * len(self.first) + group[entry]
            size = (rows.stop - rows.start, block.shape[1] * len(self.first))
            self.kept[place] = _sparse(self.row[start:stop][entry] - rows.start, column, block[entry, number], size)
        return self.kept[place]

    def on_rows(self, rows: Tensor) -> Gathered:
        """The cells of some rows, which may repeat."""
        bounds = torch.searchsorted(self.row, torch.arange(self.num_rows + 1, device=self.row.device))
        count = bounds.diff()[rows]
        row = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), count)
        before = torch.repeat_interleave(count.cumsum(0) - count, count)
        entry = bounds[rows][row] + torch.arange(len(row), device=rows.device) - before
        return Gathered(row, self.group[entry], self.stats[entry], self.first, len(rows))


def _sparse(row: Tensor, column: Tensor, value: Tensor, size: tuple[int, int]) -> Sparse:
    found = csr_matrix((value.cpu().numpy(), (row.cpu().numpy(), column.cpu().numpy())), size)  # repeated cells add up
    return Sparse(by_rows(found, value.device), by_rows(found.T.tocsr(), value.device))


def by_rows(found: Any, device: torch.device) -> Tensor:
    """A scipy matrix in CSR as torch's."""
    starts, columns, values = (torch.from_numpy(part).to(device) for part in (found.indptr, found.indices, found.data))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        return torch.sparse_csr_tensor(starts, columns, values, found.shape, check_invariants=False)


# --- finding the groups -----------------------------------------------------------------------------------------------


def gathered_site(
    name: str, node: Any, layout: Layout, read: Any, by_data: bool = True
) -> tuple[Site, Tensor | float] | None:
    """A site by groups, and log h(x) of its rows; None where its arguments are no gathers, or an event is torn.

    Values are measured from their means, or, unless `by_data`, from where the params have them.
    """
    kind, args, inner = read(name, node["fn"], layout, True)
    if kind is None or args is None or any(a.computed for a in args.values()):
        return None
    count = len(layout.latents)
    args = {key: _narrowed(a, count) if a.index is None else a for key, a in args.items()}
    if any(name in args and any(s > 1 for s in args[name].value.shape[:count]) for name in kind.fixed):
        return None
    value = layout.rows_first(node["value"], inner + kind.event_dim)
    batch = [a.value.shape[: a.value.dim() - a.event_dim] for a in args.values()]
    cells = torch.broadcast_shapes(*(b[count + 1 :] for b in batch), value.shape[1 : value.dim() - kind.event_dim])
    event = value.shape[value.dim() - kind.event_dim :]
    value = value.expand(layout.num_rows, *cells, *event).reshape(-1, *event).to(torch.float64)
    seen = ~value.isnan()
    if kind.event_dim:
        whole = seen.flatten(1).all(1)
        if bool((whole != seen.flatten(1).any(1)).any()):
            return None
        seen = whole
    entry = seen.nonzero().flatten()
    if len(entry) == 0:
        return None
    width, shape = torch.Size(cells).numel(), (layout.num_rows, *cells)
    told = {key: _by_cell(a.value if a.index is None else a.index, count, len(shape)) for key, a in args.items()}
    group, chosen = _groups(list(told.values()), entry, shape, bool(kind.spread))
    if not all(torch.equal(_at(one, entry, shape), _at(one, chosen[group], shape)) for one in told.values()):
        return None
    out = {key: _argument(a, told[key], chosen, shape, count) for key, a in args.items()}
    if by_data:
        center, variance = _spread(kind, value, entry, group, chosen, width)
    else:
        moves = kind.spread and kind.location
        center, variance = (where_params_have_it(out[moves].value, count) if moves else 0.0), None
    seen_value = value[entry]
    own = {key: a.value for key, a in out.items()}
    moved = seen_value - center[group] if isinstance(center, Tensor) else seen_value
    stats = kind.statistics_last(moved, own)
    configurations = torch.broadcast_shapes(*(b[:count] for b in batch), (1,) * count)
    row = torch.div(entry, width, rounding_mode="floor")
    gathered = Gathered(row, group, stats, chosen % width, layout.num_rows)
    value, shape = value.reshape(*shape, *event), (*configurations, len(chosen))
    site = Site(name, kind, out, shape, kind.event_dim, value, count, center, variance, True, gathered)
    return site, _base(kind, seen_value, own, gathered, count)


def _narrowed(argument: Argument, count: int) -> Argument:
    """A constant that was copied over configurations, once."""
    value = argument.value
    for dim in range(count):
        first = value.narrow(dim, 0, 1)
        value = first if torch.equal(first.expand_as(value), value) else value
    return Argument(value, argument.event_dim)


def _by_cell(tensor: Tensor, count: int, room: int) -> Tensor:
    """A canonical tensor with rows kept, as (N, *cells, configurations, event); sizes of 1 stay."""
    moved = tensor.movedim(list(range(count)), list(range(room, room + count)))
    return moved.flatten(room) if moved.dim() > room else moved.unsqueeze(-1)


def _at(tensor: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What stands at some cells of some rows, (P, configurations * event)."""
    sizes = tensor.shape[: len(shape)]
    index = torch.unravel_index(places, shape)
    return tensor[tuple(i if size > 1 else torch.zeros_like(i) for i, size in zip(index, sizes, strict=True))]


def _groups(told: list[Tensor], entry: Tensor, shape: tuple[int, ...], apart: bool) -> tuple[Tensor, Tensor]:
    """The group of each of the cells `entry`, and one cell of each group: by the sums of what they gather, times
    random numbers. Constants count by their bits. With `apart`, columns do not share a group."""
    random = torch.Generator().manual_seed(0)
    mark = torch.zeros_like(entry)
    for tensor in told:
        bits = tensor.view(torch.int64) if tensor.is_floating_point() else tensor
        factor = torch.randint(2**62, tensor.shape[-1:], generator=random).to(entry.device)
        mark = mark * 1_000_003 + _at((bits * factor).sum(-1, keepdim=True), entry, shape).squeeze(-1)
    if apart:
        mark = mark * 1_000_003 + entry % torch.Size(shape[1:]).numel()
    _, group = torch.unique(mark, return_inverse=True)
    chosen = entry.new_zeros(int(group.max()) + 1)
    chosen[group.flip(0)] = entry.flip(0)
    return group, chosen


def _argument(argument: Argument, told: Tensor, chosen: Tensor, shape: tuple[int, ...], count: int) -> Argument:
    """The argument with the groups as its one cell dim."""
    whole = argument.value.shape
    own = (len(chosen), *whole[:count], *whole[len(whole) - argument.event_dim :])

    def picked(tensor: Tensor) -> Tensor:
        return _at(tensor, chosen, shape).reshape(own).movedim(0, count).contiguous()

    if argument.index is None:
        return Argument(picked(told), argument.event_dim)
    value = picked(_by_cell(argument.value, count, len(shape)))
    return Argument(value, argument.event_dim, argument.param, picked(told), argument.depends)


def where_params_have_it(location: Tensor, count: int) -> Tensor:
    """The middle one of the locations (e_1..e_M, ...) of all configurations, (...)."""
    return location.flatten(0, count - 1).median(0).values if count else location


def _spread(
    kind: Family, value: Tensor, entry: Tensor, group: Tensor, chosen: Tensor, width: int
) -> tuple[Tensor | float, Tensor | None]:
    """Mean of each group, which is taken from its values; and the variance of the column it lies in."""
    if not kind.spread:
        return 0.0, None
    columns = value.reshape(-1, width, *value.shape[1:])
    variance = center_and_variance(columns if kind.location else columns.log())[1][chosen % width]
    if not kind.location:
        return 0.0, variance
    seen = value[entry]
    total = torch.zeros_like(variance).index_add(0, group, seen)
    size = torch.zeros_like(variance).index_add(0, group, torch.ones_like(seen))
    return total / size, variance


def _base(kind: Family, value: Tensor, args: dict[str, Tensor], gathered: Gathered, count: int) -> Tensor | float:
    """log h(x), summed over the cells of each row."""
    first = {name: a[(0,) * count][gathered.group] for name, a in args.items()}
    found = kind.base(value.movedim(-1, 0) if kind.event_dim else value, first)
    if not isinstance(found, Tensor):
        return found
    return torch.zeros(gathered.num_rows, device=found.device).index_add(0, gathered.row, found)
