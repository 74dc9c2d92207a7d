"""Pictures of a graph by blocks: its adjacency matrix, the nodes of a block together, and what is between blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..data.graph import of_bags, of_table
from ..data.sparse import Bags
from ..posterior.base import Fitted
from ..posterior.graphs import Graph, block_table
from .drawing import DATA, SMALL, TOTAL, color, count, dress, picture
from .reading import UnfitKind

CELLS = 800  # a side of the picture: of larger graphs a cell stands for several nodes of each side
NAMED = 60  # nodes whose names are written
PRINTED = 12  # blocks between which numbers are printed


def blocks(fit: Fitted, data: Any = None) -> Figure:
    """The adjacency matrix sorted by block (largest first) and within it by degree, blocks framed; beside it what a
    pair of nodes of two blocks is expected to have.

    Raises
    ------
    UnfitKind
        The data are no graph.
    """
    if not isinstance(fit.kind, Graph):
        raise UnfitKind("the data are no graph: try clusters, profiles, bound")
    dataset = fit.adapted(data)
    (probs,) = fit.latents(data).values()
    labels, values = probs.argmax(-1).numpy(), dataset.values
    cells = of_bags(values) if isinstance(values, Bags) else of_table(values.double().numpy())
    sizes = np.bincount(labels, minlength=probs.shape[1])
    order = [k for k in np.argsort(-sizes, kind="stable") if sizes[k]]
    known = ~np.isnan(cells.value)
    degree = np.bincount(cells.first[known], cells.value[known], cells.size)
    degree = degree + np.bincount(cells.second[known], cells.value[known], cells.size)
    rank = {k: place for place, k in enumerate(order)}
    nodes = np.lexsort((-degree, np.array([rank[k] for k in labels])))

    figure = picture(fit, 12.5, 7.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    _matrix(left, cells, nodes, dataset.schema.graph == "directed")
    edge = 0
    for place, k in enumerate(order):
        box: dict[str, Any] = {"linewidth": 2.0, "edgecolor": color(place), "clip_on": False, "zorder": 3}
        left.add_patch(Rectangle((edge - 0.5, edge - 0.5), sizes[k], sizes[k], fill=False, **box))
        strip = Rectangle((-0.02, 0), 0.012, 1, transform=left.transAxes, clip_on=False)
        strip.set(y=1 - (edge + sizes[k]) / len(nodes), height=sizes[k] / len(nodes), facecolor=color(place))
        left.add_patch(strip)
        if edge > 0:
            left.axhline(edge - 0.5, color=DATA, linewidth=0.8)
            left.axvline(edge - 0.5, color=DATA, linewidth=0.8)
        edge += sizes[k]
    names = list(dataset.schema.columns or range(len(nodes)))
    if len(nodes) <= NAMED:
        left.set_xticks(range(len(nodes)), [str(names[n]) for n in nodes], rotation=90)
        left.set_yticks(range(len(nodes)), [str(names[n]) for n in nodes])
        left.tick_params(labelsize=7, length=0)
        left.tick_params(axis="y", pad=10)
    else:
        left.set_xticks([])
        left.set_yticks([])
        left.yaxis.labelpad = 14
    table, what = block_table(fit)
    of_blocks = [f"{k}: {count(sizes[k], 'node')}" for k in order]
    _between(right, table.numpy()[np.ix_(order, order)], of_blocks, f"{what}, by block of both nodes")
    return figure


def _matrix(axes: Axes, cells: Any, nodes: np.ndarray, directed: bool) -> None:
    """Edges dark, pairs that are not known hatched by their colour."""
    place = np.argsort(nodes)
    width = -(-len(nodes) // CELLS)
    side = -(-len(nodes) // width)
    gaps = np.isnan(cells.value)
    where = (place[cells.first] // width, place[cells.second] // width)
    table = np.zeros((side, side))
    np.add.at(table, (where[0][~gaps], where[1][~gaps]), cells.value[~gaps] / width**2)
    limit = 1.0 if width == 1 else max(float(np.quantile(table[table > 0], 0.99)), 1e-12)
    missing = np.full((side, side), np.nan)
    if width == 1:
        missing[where[0][gaps], where[1][gaps]] = 1.0
        table[where[0][gaps], where[1][gaps]] = np.nan
        limit = max(1.0, float(np.nanmax(table)))
    ink = LinearSegmentedColormap.from_list("ink", ["#FFFFFF", "#7F8C99" if limit > 1 else "#4A5560", TOTAL])
    extent = (-0.5, side * width - 0.5, side * width - 0.5, -0.5)
    axes.imshow(table, cmap=ink, vmin=0, vmax=limit, extent=extent, interpolation="nearest")
    if gaps.any() and width == 1:
        pale = LinearSegmentedColormap.from_list("pale", ["#F3D9B0", "#F3D9B0"])
        axes.imshow(missing, cmap=pale, extent=extent, interpolation="nearest")
    axes.set(xlim=(-0.5, len(nodes) - 0.5), ylim=(len(nodes) - 0.5, -0.5))
    edges = int((~gaps).sum()) if directed else int((~gaps).sum()) // 2
    unknown = f", {count(int(gaps.sum()) if directed else int(gaps.sum()) // 2, 'pair')} not known (pale)"
    title = f"{count(len(nodes), 'node')} and {count(edges, 'edge')}{unknown if gaps.any() else ''}, by block"
    dress(axes, title, "to" if directed else "", "from" if directed else "")
    axes.spines[["top", "right"]].set_visible(True)
    axes.spines[:].set_color(DATA)


def _between(axes: Axes, table: np.ndarray, names: list[str], title: str) -> None:
    """What pairs have by both blocks, as shades and numbers."""
    image = axes.imshow(table, cmap="Blues", vmin=0)
    size = len(table)
    if size <= PRINTED:
        for k in range(size):
            for other in range(size):
                shade = "white" if table[k, other] > 0.6 * table.max() else TOTAL
                axes.text(other, k, f"{table[k, other]:.2g}", ha="center", va="center", color=shade, fontsize=SMALL + 1)
    axes.set_xticks(range(size), [name.partition(":")[0] for name in names])
    axes.set_yticks(range(size), names)
    for place, label in enumerate(axes.get_yticklabels()):
        label.set_color(color(place))
        label.set_fontweight("bold")
    dress(axes, title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(image, ax=axes, shrink=0.5, pad=0.03).ax.tick_params(labelsize=SMALL)
