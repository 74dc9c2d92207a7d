"""Pictures of rows: what a fit expects of them, what it makes up, and what it finds on the way from one to another.

Rows that are square images are drawn as images, of other tables each column by itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from ..base.errors import DataError, ModelError
from ..data.adapt import numbers_of
from ..data.schema import Dataset
from ..data.streams import Rows
from ..data.structures import num_rows, slice_rows
from ..posterior.base import Fitted
from .drawing import DATA, PALETTE, SMALL, dress, images, legend, panels, percent, picture
from .latents import means_of, side_of
from .reading import UnfitKind

ACROSS, COLUMNS = 12, 12  # images side by side; columns of a table that are drawn
SHOWN, MADE = 500, 1000  # rows of a table that are drawn; rows that are made up
WIDEST = 100  # columns of a table: of more, a dozen say little
PATHS, STEPS = 5, 9  # ways from row to row, and rows on each
BARS, NAMED = 30, 6  # of a histogram; labels that an axis names


def reconstruction(fit: Fitted, data: Any = None) -> Figure:
    """Rows beside what the fit expects of them; of images with missing cells also as they are filled in."""
    dataset = table(fit, data)
    side = side_of(dataset)
    places = spread(dataset.values, ACROSS if side else SHOWN)
    rows = picked(fit, dataset, places)
    given, own = numbers_of(rows, fit.schema), data is None and fit.kind.guided and not fit.kind.networks

    def said(verb: str) -> Tensor:
        """Of rows that it was fitted to a guide knows; of others it would have to learn."""
        return told(fit, verb)[places] if own else told(fit, verb, rows)

    expected = said("reconstruct")
    if side:
        strips = [("the data", given), ("expected", expected)]
        if bool(given.isnan().any()):
            strips.append(("filled in", said("impute")))
        return _strips(fit, strips, side)
    figure, each = _panels(fit, dataset)
    for axes, column, name, labels in each:
        seen = ~given[:, column].isnan()
        x, y = given[seen, column], expected[seen, column]
        if not len(x):
            dress(axes, f"{name}: missing in all of these rows")
        elif labels:
            _crossed(axes, x, y, labels)
            right = percent(float((x == y).double().mean()))
            dress(axes, name, f"in the data ({right} told right)", "expected")
        else:
            axes.plot(x.numpy(), y.numpy(), ".", color=PALETTE[0], alpha=0.35, markersize=4)
            ends = [float(x.min()), float(x.max())]
            axes.plot(ends, ends, color=DATA, linewidth=1.2, zorder=0)
            left = float(((x - y) ** 2).mean() / x.var(unbiased=False).clamp_min(1e-300))
            dress(axes, name, f"in the data ({percent(max(0.0, 1 - left))} explained)", "expected")
    return figure


def samples(fit: Fitted, data: Any = None) -> Figure:
    """Rows that the fit makes up, beside those of the data."""
    dataset = table(fit, data)
    side = side_of(dataset)
    made = told(fit, "generate", 4 * ACROSS if side else MADE)
    given = numbers_of(picked(fit, dataset, spread(dataset.values, 2 * ACROSS if side else SHOWN)), fit.schema)
    if side:
        figure: Figure = picture(fit, 9.4, 6.2)
        both = figure.subplots(2, 1, height_ratios=(2, 4))
        for axes, rows, title in zip(both, (given, made), ("rows of the data", "rows made up"), strict=True):
            across = min(ACROSS, len(rows))
            images(axes, rows[: len(rows) // across * across].reshape(-1, across, side, side), title)
        return figure
    figure, each = _panels(fit, dataset)
    for axes, column, name, labels in each:
        both = [part[:, column][~part[:, column].isnan()] for part in (given, made)]
        if not all(map(len, both)):
            dress(axes, f"{name}: missing in all of these rows")
            continue
        if labels:
            for shift, part, shade in zip((-0.2, 0.2), both, (DATA, PALETTE[0]), strict=True):
                share = torch.bincount(part.long(), minlength=len(labels)).double() / max(1, len(part))
                axes.bar(torch.arange(len(labels)).numpy() + shift, share.numpy(), 0.4, color=shade)
            _named(axes, labels)
        else:
            edges = _edges(torch.cat(both))
            inside = [part.clamp(edges[0], edges[-1]).numpy() for part in both]
            axes.hist(inside[0], edges.tolist(), density=True, color=DATA)
            axes.hist(inside[1], edges.tolist(), density=True, histtype="step", color=PALETTE[0], linewidth=1.6)
        axes.set_yticks([])
        dress(axes, name)
    legend(figure, [Patch(color=DATA, label="the data"), Patch(color=PALETTE[0], label="made up")], "rows")
    return figure


def interpolation(fit: Fitted, data: Any = None) -> Figure:
    """Expected rows on the way from one row to the one that lies farthest from it among the latents."""
    dataset = table(fit, data)
    rows = picked(fit, dataset, spread(dataset.values, 200))
    means = means_of(fit, rows)
    side = side_of(dataset)
    starts = torch.linspace(0, len(means) - 1, PATHS if side else 1).long().tolist()
    ends = [int((means - means[start]).norm(dim=1).argmax()) for start in starts]
    paths = [told(fit, "interpolate", *ends, STEPS, rows) for ends in zip(starts, ends, strict=True)]
    if side:
        figure: Figure = picture(fit, 8.2, 5.6)
        images(
            figure.add_subplot(), torch.stack(paths).reshape(-1, STEPS, side, side), "from row to row: expected rows"
        )
        return figure
    figure, each = _panels(fit, dataset)
    for axes, column, name, labels in each:
        draw = axes.step if labels else axes.plot
        draw(range(STEPS), paths[0][:, column].numpy(), color=PALETTE[0], linewidth=2, marker="o", markersize=4)
        if labels:
            axes.set_yticks(range(len(labels))[:NAMED], [str(label) for label in labels[:NAMED]], fontsize=SMALL)
        dress(axes, str(name), "steps on the way")
    return figure


# --- what they share --------------------------------------------------------------------------------------------------


def table(fit: Fitted, data: Any) -> Dataset:
    """The data, where they are a table of rows with several columns."""
    dataset: Dataset = fit.adapted(data)
    if not isinstance(dataset.values, Tensor | Rows) or len(dataset.values.shape) != 2:
        raise UnfitKind("its data are no table")
    width = int(dataset.values.shape[1])
    if width > WIDEST and not side_of(dataset):
        raise UnfitKind(f"its rows have {width} columns, which no picture of theirs can show")
    return dataset


def spread(values: Any, num: int) -> Tensor:
    """Places of so many rows, evenly apart."""
    size = num_rows(values)
    return torch.linspace(0, size - 1, min(num, size)).round().long()


def picked(fit: Fitted, dataset: Dataset, places: Tensor) -> Any:
    """Some rows in the form that the data came in."""
    return fit.schema.decode(slice_rows(dataset.values, places), None)


def told(fit: Fitted, verb: str, *args: Any) -> Tensor:
    """Rows that a verb of the fit gives, as numbers."""
    try:
        return numbers_of(getattr(fit, verb)(*args), fit.schema)
    except (DataError, ModelError) as error:
        raise UnfitKind(str(error)) from None


def _strips(fit: Fitted, strips: list[tuple[str, Tensor]], side: int) -> Figure:
    figure = picture(fit, 9.4, 1.2 + 1.05 * len(strips))
    for axes, (title, rows) in zip(panels(figure, len(strips), 1), strips, strict=True):
        images(axes, rows.reshape(1, -1, side, side), title)
    return figure


def _panels(fit: Fitted, dataset: Dataset) -> tuple[Figure, list[tuple[Axes, int, str, tuple[Any, ...]]]]:
    """A small panel for each of the first columns: its axes, its place, its name, and its labels."""
    width = int(dataset.values.shape[1])
    names = dataset.schema.columns or tuple(f"column {place}" for place in range(width))
    count = min(width, COLUMNS)
    across = min(4, count)
    figure = picture(fit, max(5.2, 2.9 * across), 1.0 + 2.5 * -(-count // across))
    labels = [tuple(dataset.schema.labels.get(name, ())) for name in names]
    found = enumerate(panels(figure, count, across))
    return figure, [(axes, place, str(names[place]), labels[place]) for place, axes in found]


def _edges(values: Tensor) -> Tensor:
    """Of the bars of a histogram: whole numbers each have their own, where they are few."""
    low, high = values.quantile(torch.tensor([0.005, 0.995], dtype=torch.float64)).tolist()
    if bool((values == values.round()).all()) and high - low <= BARS:
        return torch.arange(math.floor(low), math.ceil(high) + 2) - 0.5
    return torch.linspace(low, high + 1e-12 * (1 + abs(high)), BARS + 1)


def _crossed(axes: Axes, x: Tensor, y: Tensor, labels: tuple[Any, ...]) -> None:
    """How often each label is expected where each stands, as shares of the latter."""
    size = len(labels)
    counts = torch.bincount((size * y.long() + x.long()), minlength=size**2).reshape(size, size).double()
    axes.imshow(
        (counts / counts.sum(0).clamp_min(1)).numpy(), cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto"
    )
    _named(axes, labels)
    axes.set_yticks(range(size)[:NAMED], [str(label) for label in labels[:NAMED]], fontsize=SMALL)


def _named(axes: Axes, labels: tuple[Any, ...]) -> None:
    shown = [str(label) for label in labels[:NAMED]]
    long = max(map(len, shown)) > 6
    turn: dict[str, Any] = {"rotation": 30, "ha": "right"} if long else {}
    axes.set_xticks(range(len(shown)), shown, fontsize=SMALL, **turn)
