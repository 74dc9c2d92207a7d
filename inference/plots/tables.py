"""Categories and counts by component: heat maps, or, of a single column of counts, bars with probabilities."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..posterior.base import Fitted
from .clusters import component_handles, rows_read
from .drawing import DATA, SUM_LINE, TEXT, TOTAL, color, color_bar, dress, heat_map, legend, marker, percent, picture
from .reading import Item, Reading, read_columns

LINES = 30  # of a block of a heat map; more stand in blocks side by side
BARS = 60  # counts with a bar each; a wider range is binned
WRITTEN = 24  # columns of a heat map whose numbers are written out


class Question(NamedTuple):
    """An observed column of categories."""

    name: str
    answers: tuple[str, ...]
    probs: Tensor  # (E, C)

    @property
    def lines(self) -> list[int]:
        """The answers that are drawn: of two only the second, the first being what is left to 1."""
        return [1] if len(self.answers) == 2 else list(range(len(self.answers)))


def profiles(fit: Fitted, data: Any = None) -> Figure:
    """A heat map of the probability of every answer in every class: items down, classes with their shares across.

    Of an item with two answers only the second is drawn.

    Raises
    ------
    UnfitKind
        No categories are observed, or their probabilities differ from row to row.
    """
    reading = read_columns(fit, data, "categories")
    asked = [question for item in reading.items for question in questions(reading, item)]
    blocks = _blocks(asked)
    classes = len(reading.shares)
    lines = max(sum(len(q.lines) for q in block) for block in blocks)
    cell = 0.62 if classes <= 10 else 0.4
    figure = picture(fit, max(6.5, 1.2 + len(blocks) * (2.0 + cell * classes)), 2.2 + 0.3 * max(lines, 5))
    for axes, block in zip(np.atleast_1d(figure.subplots(1, len(blocks))), blocks, strict=True):
        table = torch.cat([q.probs[:, q.lines] for q in block], 1).T.numpy()
        heat_map(axes, table, Normalize(0, 1), "{:.2f}" if classes <= WRITTEN else "")
        axes.set_yticks(range(len(table)), [_line(q, a) for q in block for a in q.lines])
        starts = np.cumsum([len(q.lines) for q in block])[:-1]
        if len(starts) < len(table) - 1:  # some item has several lines: rule the items off
            axes.hlines(starts - 0.5, -0.5, classes - 0.5, color="white", linewidth=3)
        axes.set_xticks(range(classes), [f"{name}\n{share}" for name, share in _named_shares(reading)])
        axes.xaxis.tick_top()
        axes.set_xlabel("class, and its share of the rows", fontsize=TEXT)
        axes.xaxis.set_label_position("top")
    color_bar(figure, Normalize(0, 1), "probability of the answer in the class")
    return figure


def questions(reading: Reading, item: Item) -> list[Question]:
    """The columns of a site with the probability of each answer by component."""
    fn, cells = item.base, item.values.shape[1:]
    if isinstance(fn, dist.OneHotCategorical):
        probs = reading.by_component(item, fn.probs, item.declared + 1, cells)
        probs = probs.reshape(len(probs), -1, probs.shape[-1])  # (E, items, C)
        groups = np.array(item.columns).reshape(-1, probs.shape[-1])
        names = [item.name] if len(groups) == 1 else [f"{item.name}{j}" for j in range(len(groups))]
        return [Question(n, tuple(g), probs[:, j]) for j, (n, g) in enumerate(zip(names, groups.tolist(), strict=True))]
    if isinstance(fn, dist.Bernoulli):
        one = reading.by_component(item, fn.probs, item.declared, cells)
        probs = torch.stack([1 - one, one], -1)
    else:
        probs = reading.by_component(item, fn.probs, item.declared + 1, cells + fn.probs.shape[-1:])
    probs = probs.reshape(len(probs), -1, probs.shape[-1])
    labels = reading.dataset.schema.labels
    out = []
    for j, name in enumerate(item.columns):
        known = labels.get(name, ())
        answers = [known[c] if c < len(known) else str(c) for c in range(probs.shape[-1])]
        out.append(Question(name, tuple(answers), probs[:, j]))
    return out


def _line(question: Question, answer: int) -> str:
    if len(question.lines) == 1 or answer == 0:
        return f"{_short(question.name)} = {_short(question.answers[answer])}"
    return f"= {_short(question.answers[answer])}"


def _short(text: str) -> str:
    return text if len(text) <= 24 else text[:23] + "…"


def _blocks(asked: list[Question]) -> list[list[Question]]:
    """Items in blocks of about `LINES` lines, none torn apart."""
    total = sum(len(q.lines) for q in asked)
    room = math.ceil(total / math.ceil(total / LINES))
    blocks: list[list[Question]] = [[]]
    used = 0
    for question in asked:
        if blocks[-1] and used + len(question.lines) > room:
            blocks.append([])
            used = 0
        blocks[-1].append(question)
        used += len(question.lines)
    return blocks


# --- counts -----------------------------------------------------------------------------------------------------------


def rates(fit: Fitted, data: Any = None) -> Figure:
    """Of one column of counts, how often each was met and its probability in each component; of more, expected counts.

    Raises
    ------
    UnfitKind
        No counts are observed, or the components have no expected counts of their own.
    """
    reading = read_columns(fit, data, "counts")
    return _one_count(reading) if len(reading.columns) == 1 else _many_counts(reading)


def _one_count(reading: Reading) -> Figure:
    reading.require_rows()
    values = reading.values[:, 0]
    seen = ~values.isnan()
    shown = values[seen].numpy()
    weights = np.ones(len(shown)) if reading.weights is None else reading.weights[seen].numpy()
    low, high = int(shown.min()), int(shown.max())
    low = 0 if low <= (high - low) else low - 1
    step = math.ceil((high + 2 - low) / BARS)
    edges = np.arange(low, high + 2 + step, step) - 0.5
    grid = torch.arange(low, int(edges[-1] + 0.5), dtype=torch.float64)
    parts = reading.shares.unsqueeze(1) * reading.density(reading.items[0], grid)
    figure = picture(reading.fit, 8.6, 5.2)
    axes = figure.add_subplot()
    heights = np.histogram(shown, edges, weights=weights)[0] / weights.sum() / step
    axes.bar((edges[:-1] + edges[1:]) / 2, heights, 0.86 * step, color=DATA, zorder=1)
    few = len(grid) <= 40
    for k, part in enumerate(parts):
        axes.plot(grid, part, color=color(k), marker=marker(k) if few else "", markersize=5, linewidth=1.5, zorder=3)
    level: dict[str, Any] = {"color": TOTAL, "marker": "_" if few else "", "linestyle": SUM_LINE}
    axes.plot(grid, parts.sum(0), **level, markersize=16, markeredgewidth=2.2, linewidth=1.2, zorder=2)
    axes.set_ylim(0, 1.1 * max(np.max(heights), min(parts.sum(0).max().item(), 2 * np.max(heights))))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    title = f"{rows_read(reading)}: how often each count was met, and its probability in each component times its share"
    unit = "share of rows" if step == 1 else f"share of rows per count (bars of {step} counts)"
    dress(axes, title, reading.columns[0], unit)
    handles = component_handles(reading, lambda k: Line2D([], [], color=color(k), marker=marker(k) if few else ""))
    handles += [Line2D([], [], **level, markersize=12, label="their sum"), Patch(color=DATA, label="data")]
    legend(figure, handles, "component (share)")
    return figure


def _many_counts(reading: Reading) -> Figure:
    table, what = expected_counts(reading)
    size, width = table.shape
    largest = max(table.max().item(), 1e-300)
    least = max(table.min().item(), 1e-4 * largest)
    norm = LogNorm(least, largest, clip=True) if 50 * least < largest and table.min() > 0 else Normalize(0, largest)
    digits = "{:.0f}" if table.min() >= 100 else "{:.1f}" if table.min() >= 10 else "{:.2f}"
    figure = picture(reading.fit, min(15.0, max(6.5, 2.2 + 0.6 * width)), 2.6 + 0.38 * max(size, 3))
    axes = figure.add_subplot()
    heat_map(axes, table.numpy(), norm, digits if width <= WRITTEN else "")
    axes.set_yticks(range(size), [f"{name}   {share}" for name, share in _named_shares(reading)])
    every = math.ceil(width / 40)
    turned: dict[str, Any] = (
        {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, reading.columns)) > 5 else {}
    )
    axes.set_xticks(range(0, width, every), [_short(name) for name in reading.columns[::every]], **turned)
    dress(axes, f"The {what} of each column in each component", "", "component, and its share")
    axes.spines[:].set_visible(False)
    color_bar(figure, norm, what)
    return figure


def _named_shares(reading: Reading) -> list[tuple[str, str]]:
    return list(zip(reading.components, map(percent, reading.shares.tolist()), strict=True))


def expected_counts(reading: Reading) -> tuple[Tensor, str]:
    """Expected counts (E, C), and what to call them; of a Multinomial the probabilities, which know no total."""
    if all(isinstance(item.base, dist.Multinomial) for item in reading.items):
        parts = [reading.by_component(i, i.base.probs, i.inner, i.values.shape[1:]).flatten(1) for i in reading.items]
        return torch.cat(parts, 1), "share of all counts"
    return reading.mean(), "expected count"
