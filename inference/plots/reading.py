"""What a picture shows of a fitted model: its observed columns, and their moments and densities by component.

A component is a configuration of the latents of a row on which the drawn sites depend: a value of z, or a pair of
values where two latents bear on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..base.errors import OptionError
from ..base.options import row_weights
from ..data.schema import Dataset
from ..data.structures import map_tensors, num_rows, slice_rows
from ..posterior.base import Fitted
from ..posterior.compiled import structure_on
from ..posterior.exact import program_on
from ..posterior.expected import expected_value
from ..posterior.generate import empty_rows
from ..program.posteriors import joint_posterior
from ..program.sites import Layout
from ..trace.handlers import Bind, engine_state, run, sample_sites
from ..trace.provenance import plain, provenance, symbol
from ..trace.structure import Structure


class UnfitKind(OptionError):
    """A kind of picture that does not fit the model: the message names what was met, and the kinds that do."""


class Item(NamedTuple):
    """An observed site."""

    name: str
    fn: Any  # its distribution, on a few rows
    shape: torch.Size  # of its values on these rows
    values: Tensor  # (N, *cells, *event) float64
    columns: tuple[str, ...]  # a name for each cell of a row

    @property
    def inner(self) -> int:
        return len(self.fn.event_shape)

    @property
    def base(self) -> Any:
        """The distribution under every ``to_event``."""
        fn = self.fn
        while isinstance(fn, dist.Independent):
            fn = fn.base_dist
        return fn

    @property
    def declared(self) -> int:
        """Dims that ``to_event`` declared."""
        return self.inner - len(self.base.event_shape)


@dataclass(frozen=True)
class Reading:
    """The observed sites of one nature ("numbers", "categories" or "counts") on the rows that were read."""

    fit: Fitted
    dataset: Dataset
    items: tuple[Item, ...]
    layout: Layout
    drawn: tuple[int, ...]  # sizes of the latents, 1 where the sites do not depend on one
    shares: Tensor  # (E,) of the components
    weights: Tensor | None  # (N,) of the rows
    total: int  # rows of the data, 0 where the fit holds none and none were given

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column for item in self.items for column in item.columns)

    @property
    def values(self) -> Tensor:
        """(N, C)."""
        return torch.cat([item.values.reshape(len(item.values), -1) for item in self.items], 1)

    @property
    def components(self) -> tuple[str, ...]:
        """What to call each component: "0", "1", ..., or "z=0, c=1" where several latents bear on the sites."""
        out = []
        for values in product(*map(range, self.drawn)):
            named = zip(self.layout.latents, values, self.drawn, strict=True)
            own = [(name, value) for name, value, size in named if size > 1]
            out.append(", ".join(f"{n}={v}" for n, v in own) if len(own) > 1 else f"{sum(v for _, v in own)}")
        return tuple(out)

    # --- the model --------------------------------------------------------------------------------------------------

    def by_component(self, item: Item, tensor: Tensor, inner: int, cells: torch.Size) -> Tensor:
        """A tensor of the site's batch and `inner` further dims, by component: (E, *cells).

        Raises
        ------
        UnfitKind
            It differs from row to row, or is not finite.
        """
        found = self.layout.canonical(tensor, inner, keep_rows=True)
        assert found is not None
        axis = len(self.drawn)
        first = found.narrow(axis, 0, 1)
        if not torch.isfinite(found).all():
            raise UnfitKind(
                f"site '{item.name}' has a {type(item.base).__name__} without a finite mean and variance: try bound"
            )
        if not torch.allclose(found, first.expand_as(found), rtol=1e-9, atol=0):
            raise UnfitKind(
                f"site '{item.name}' has a {type(item.base).__name__} that differs from row to row: try bound"
            )
        first = first.squeeze(axis)
        cells = torch.broadcast_shapes(first.shape[axis:], cells)
        return first.expand(*self.drawn, *cells).reshape(-1, *cells)

    def mean(self) -> Tensor:
        """(E, C)."""
        return torch.cat([self._moment(item, "mean") for item in self.items], 1)

    def variance(self) -> Tensor:
        """(E, C)."""
        return torch.cat([self._moment(item, "variance") for item in self.items], 1)

    def _moment(self, item: Item, which: str) -> Tensor:
        try:
            moment = getattr(item.fn, which)
        except (NotImplementedError, AttributeError):
            raise UnfitKind(
                f"site '{item.name}' has a {type(item.base).__name__}, which knows no {which}: try bound"
            ) from None
        found = self.by_component(item, moment, item.inner, item.values.shape[1:])
        return found.reshape(len(found), -1)

    def covariance(self, columns: list[int]) -> Tensor:
        """(E, c, c) of some columns; sites are independent given the component."""
        out = torch.diag_embed(self.variance()[:, columns])
        start = 0
        for item in self.items:
            width = len(item.columns)
            own = [(i, c - start) for i, c in enumerate(columns) if start <= c < start + width]
            matrix = getattr(item.base, "covariance_matrix", None)
            if isinstance(item.base, dist.MultivariateStudentT):  # there it is that of the normal behind it
                df = item.base.df[..., None, None]
                matrix = matrix * df / (df - 2)
            if matrix is not None and own:
                places, cells = map(list, zip(*own, strict=True))
                whole = self.by_component(item, matrix, item.inner + 1, item.values.shape[1:] + item.values.shape[-1:])
                blocks = whole.reshape(len(whole), -1, *whole.shape[-2:])  # (E, cells, D, D)
                size = blocks.shape[-1]
                for place, cell in zip(places, cells, strict=True):
                    for other, cell2 in zip(places, cells, strict=True):
                        if cell // size == cell2 // size:
                            out[:, place, other] = blocks[:, cell // size, cell % size, cell2 % size]
            start += width
        return out

    def density(self, item: Item, grid: Tensor) -> Tensor:
        """Density or probability of a site of one column at (G,) points, by component: (E, G)."""
        with engine_state(self.fit.seed), torch.no_grad():
            room = item.shape.numel()
            parts = []
            for points in grid.split(room):  # the points stand where the rows would
                value = torch.cat([points, points[-1:].expand(room - len(points))]).reshape(item.shape)
                found = self.layout.canonical(item.fn.log_prob(value), 0, keep_rows=True)
                assert found is not None
                found = found.expand(*self.drawn, room, *found.shape[1 + len(self.drawn) :])
                inside = item.base.support.check(value).reshape(-1)
                parts.append(torch.where(inside, found.reshape(-1, room).exp(), 0.0)[:, : len(points)])
            return torch.cat(parts, 1)

    # --- the rows ---------------------------------------------------------------------------------------------------

    def require_rows(self) -> None:
        """Say that rows must be given, where the fit was loaded and none were."""
        if not self.total:
            self.fit.adapted(None)

    def posterior(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of some rows: the posterior of the components (n, E), and the values (n, C), missing cells imputed."""
        with engine_state(self.fit.seed), torch.no_grad():
            program, params = program_on(self.fit, part(self.dataset, rows))

            def table(sizes: tuple[int, ...] | None) -> Tensor:
                found = joint_posterior(program, params, sizes)
                return found if len(found) == len(rows) else found[rows]

            mine = table(self.drawn).flatten(1)
            filled = []
            for item in self.items:
                value = item.values[rows]
                if value.isnan().any():
                    if isinstance(item.fn, dist.MultivariateNormal | dist.MultivariateStudentT):
                        expected = expected_value(item.fn, program, table, value, False).reshape(value.shape)
                    else:
                        expected = (mine @ self._moment(item, "mean")).reshape(value.shape)
                    value = torch.where(value.isnan(), expected, value)
                filled.append(value.reshape(len(value), -1))
            return mine, torch.cat(filled, 1)


def part(dataset: Dataset, rows: Tensor) -> Dataset:
    """Some rows of a tensor; a structure, whose fields need not have a row each, stays whole."""
    values = dataset.values
    return Dataset(slice_rows(values, rows), dataset.schema) if isinstance(values, Tensor) else dataset


ROWS = 100_000  # rows that are read at most
ROWS_OF_ARGUMENTS = 256  # rows on which the arguments of distributions are read: they are the same in every row
MANY = 100  # components that can be drawn

KIND_OF = {"numbers": "clusters", "categories": "profiles", "counts": "rates"}


def read_columns(fit: Fitted, data: Any, nature: str) -> Reading:
    """Read the observed sites of one nature.

    Parameters
    ----------
    fit : Fit
    data : anything `Fit.adapted` takes
        None for the data of the fit; a fit without data is read without rows.
    nature : {"numbers", "categories", "counts"}

    Raises
    ------
    UnfitKind
        The model observes nothing of that nature, or its latents are not such that components can be told apart.
    """
    with engine_state(fit.seed), torch.no_grad():
        dataset, weights, total = rows_of(fit, data)
        structure = structure_on(fit, dataset)
        names = _of_nature(structure, nature)
        _check_latents(structure)
        layout = Layout.of(structure)
        few = part(dataset, torch.arange(min(ROWS_OF_ARGUMENTS, num_rows(dataset.values))))
        known, places = trace_of(fit, few.values, layout), trace_of(fit, dataset.values, layout)
        items = tuple(_item(name, known[name], places[name], dataset, layout) for name in names)
        sizes = tuple(size if _bears(items, layout, i) else 1 for i, size in enumerate(layout.sizes))
        found = torch.Size(sizes).numel()
        if found > MANY:
            raise UnfitKind(f"the latents of a row have {found} configurations, too many to tell apart: try bound")
        return Reading(fit, dataset, items, layout, sizes, _shares(places, weights, layout, sizes), weights, total)


def rows_of(fit: Fitted, data: Any) -> tuple[Dataset, Tensor | None, int]:
    if data is None and fit.data is None:
        if fit.pair.by is not None:
            raise UnfitKind("this fit was loaded from a folder, without the groups that its data come in: try bound")
        return Dataset(empty_rows(fit, 2), fit.schema), None, 0
    dataset = fit.adapted(data)
    dataset = Dataset(map_tensors(lambda t: t.detach().cpu(), dataset.values), dataset.schema)
    total = num_rows(dataset.values)
    weights = row_weights(fit.weights if data is None else None, total, "cpu")
    if total <= ROWS or not isinstance(dataset.values, Tensor):
        return dataset, weights, total
    rows = torch.randperm(total)[:ROWS].sort().values
    return part(dataset, rows), None if weights is None else weights[rows], total


def trace_of(fit: Fitted, values: Any, layout: Layout) -> dict[str, Any]:
    marked = symbol(values, "data") if isinstance(values, Tensor) else values
    return sample_sites(run(fit.pair.model, marked, Bind(fit.params), layout.nesting))


def _of_nature(structure: Structure, nature: str) -> list[str]:
    natures = {name: _nature(structure.trace.nodes[name]["fn"]) for name in structure.observed}
    if nature not in natures.values():
        first, met = next(iter(natures.items()))
        also = f" and {len(natures) - 1} more" if len(natures) > 1 else ""
        fitting = ", ".join([*(KIND_OF[n] for n in dict.fromkeys(natures.values())), "bound", "decomposition"])
        raise UnfitKind(f"this model observes {met} (site '{first}'{also}), and it draws {nature}: try {fitting}")
    return [name for name, met in natures.items() if met == nature]


def _nature(fn: Any) -> str:
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    if isinstance(fn, dist.Categorical | dist.OneHotCategorical | dist.Bernoulli):
        return "categories"
    return "counts" if fn.support.is_discrete else "numbers"


def _check_latents(structure: Structure) -> None:
    if not structure.latents:
        raise UnfitKind("the rows have no latent, so they fall into no components: try params, bound")
    if structure.continuous:
        raise UnfitKind(
            f"latent '{structure.continuous[0]}' is continuous, so the rows fall into no components: try bound"
        )
    for name, latent in structure.latents.items():
        if len(latent.plates) > 1:
            raise UnfitKind(
                f"latent '{name}' has several values in each row, so the rows fall into no components: try bound"
            )


def _item(name: str, known: Any, place: Any, dataset: Dataset, layout: Layout) -> Item:
    fn = known["fn"]
    inner = len(fn.event_shape)
    values = layout.rows_first(place["value"], inner).to(torch.float64)
    places, given = list(range(values.shape[1:].numel())), None
    origin = provenance(place["value"])
    if origin is not None and origin.cells is not None:  # cells of the data themselves: call them as the data do
        places, given = layout.rows_first(origin.cells, inner)[0].flatten().tolist(), dataset.schema.columns
    if given is not None:
        wide = len(given)
        columns = tuple(given[j] if j < wide else f"{given[j % wide]} {j // wide}" for j in places)  # of a group's rows
    else:
        columns = tuple(f"{name}{j}" for j in places) if len(places) > 1 else (name,)
    return Item(name, fn, plain(known["value"]).shape, values, columns)


def _bears(items: tuple[Item, ...], layout: Layout, latent: int) -> bool:
    """Whether a site depends on a latent: its distribution has a dim for it, left of the plates."""
    dim = layout.nesting + 1 + latent
    return any(len(item.fn.batch_shape) >= dim and item.fn.batch_shape[-dim] > 1 for item in items)


def _shares(known: dict[str, Any], weights: Tensor | None, layout: Layout, sizes: tuple[int, ...]) -> Tensor:
    """Prior probability of each component, averaged over the rows where it depends on them."""
    log_prob: Tensor = torch.zeros((1,) * (len(sizes) + layout.nesting))
    for name in layout.latents:
        own = layout.canonical(known[name]["fn"].log_prob(plain(known[name]["value"])), 0, keep_rows=True)
        assert own is not None
        log_prob = log_prob + own
    probs = log_prob.exp().flatten(len(sizes))  # (K_1..K_M, N or 1)
    if weights is not None and probs.shape[-1] > 1:
        probs = probs * (weights / weights.mean())
    idle = [i for i, size in enumerate(sizes) if size == 1]
    probs = probs.mean(-1).expand(layout.sizes)
    return (probs.sum(idle) if idle else probs).flatten()
