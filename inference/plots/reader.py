"""Reading the observed columns of a fitted model, whichever model it is, from runs of it on rows of the data."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..base.options import row_weights
from ..data.schema import Dataset
from ..data.structures import map_tensors, num_rows
from ..posterior.base import Fitted
from ..posterior.compiled import structure_on
from ..posterior.generate import empty_rows
from ..program.sites import Layout
from ..trace.handlers import Bind, engine_state, run, sample_sites
from ..trace.provenance import plain, provenance, symbol
from ..trace.structure import Structure
from .columns import Item, Reading, UnfitKind, part

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
