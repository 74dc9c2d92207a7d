"""Pictures of counts that mix shared profiles: the profiles' first words, and how rows mix them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..diagnose.topics import mixes_topics, shared_matrix, topic_shares
from ..posterior.base import Fitted
from .drawing import DATA, SMALL, TEXT, color, count, dress, left_out, panels, picture
from .reading import UnfitKind

WORDS = 8  # of a topic that are drawn
PANELS = 12  # topics at most
NAME = 22  # characters of a word


def topics(fit: Fitted, data: Any = None) -> Figure:
    """Each topic's most probable words, as bars of their shares in it, the topics that rows hold most of first.

    Raises
    ------
    UnfitKind
        The rows mix no shared profiles of counts.
    """
    matrix, shares, order = _read(fit, data)
    names = _names(fit, matrix.shape[1])
    chosen = order[:PANELS]
    across = min(4, len(chosen))
    down = math.ceil(len(chosen) / across)
    figure = picture(fit, 1.0 + 2.7 * across, 1.0 + 2.3 * down)
    for place, (k, axes) in enumerate(zip(chosen, panels(figure, len(chosen), across), strict=True)):
        best = matrix[k].argsort()[::-1][: min(WORDS, matrix.shape[1])]
        axes.barh(range(len(best)), matrix[k, best], color=color(place), height=0.72)
        axes.set_yticks(range(len(best)), [names[v] for v in best])
        axes.invert_yaxis()
        part = f", {100 * shares[k]:.0f} % of all" if shares is not None else ""
        dress(axes, f"topic {k}{part}", "share in the topic" if place >= len(chosen) - across else "")
        axes.tick_params(axis="y", length=0)
    if len(matrix) > PANELS:
        left_out(figure, f"{PANELS} of {len(matrix)} topics")
    return figure


def mixtures(fit: Fitted, data: Any = None) -> Figure:
    """What each row mixes: a line of the picture a row, sorted by the topic it holds most of, dark where it holds much.

    Raises
    ------
    UnfitKind
        As for `topics`.
    """
    _, _, order = _read(fit, data)
    theta = topic_shares(fit, data).numpy()[:, order]
    first = theta.argmax(1)
    rows = np.lexsort((-theta.max(1), first))
    figure = picture(fit, 4.0 + 0.42 * max(10, min(len(order), 40)), 6.0)
    axes = figure.subplots()
    image = axes.imshow(theta[rows], aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    borders = np.flatnonzero(np.diff(first[rows])) + 0.5
    axes.hlines(borders, -0.5, len(order) - 0.5, color=DATA, linewidth=0.8)
    every = max(1, len(order) // 40 + (len(order) % 40 > 0))
    axes.set_xticks(range(0, len(order), every), [str(k) for k in order[::every]])
    dress(axes, f"{count(len(theta), 'row')}, those of one leading topic together", "topic", "row")
    axes.set_yticks([])
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("share of the topic in the row", fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def _read(fit: Fitted, data: Any) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Profiles (K, V) that sum to 1, their shares in all rows (None without data), and these' order."""
    if not mixes_topics(fit):
        raise UnfitKind("its rows mix no shared profiles of counts: try profiles, rates, bound")
    matrix = shared_matrix(fit).numpy()
    matrix = matrix / matrix.sum(1, keepdims=True)
    if data is None and fit.data is None:
        return matrix, None, np.arange(len(matrix))
    shares = topic_shares(fit, data).numpy().mean(0)
    return matrix, shares, shares.argsort()[::-1]


def _names(fit: Fitted, width: int) -> list[str]:
    columns = fit.schema.columns
    names = [str(c) for c in columns] if columns is not None and len(columns) == width else list(map(str, range(width)))
    return [name if len(name) <= NAME else name[: NAME - 1] + "\N{HORIZONTAL ELLIPSIS}" for name in names]


NAMED = 20  # columns whose names fit under a panel


def units(fit: Fitted, data: Any = None) -> Figure:
    """The matrices of positive weights between layers, the columns at the bottom; each line as a share of its sum."""
    chain = chain_of(fit)
    heights = [2.0 + 0.25 * len(value) for _, value in reversed(chain)]
    figure = picture(fit, 7.2, sum(heights))
    panels = figure.subplots(len(chain), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (name, value) in zip(panels, reversed(chain), strict=True):
        share = value / value.sum(1, keepdim=True)
        shown = axes.imshow(share.numpy(), cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
        figure.colorbar(shown, ax=axes, label="share of the unit")
        below = "column" if value is chain[0][1] else "unit of the layer below"
        columns = fit.schema.columns if value is chain[0][1] else None
        if columns and len(columns) <= NAMED:
            axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
        axes.set_yticks(range(len(value)))
        dress(axes, f"what each unit brings ({name})", below, "unit")
    return figure


def chain_of(fit: Fitted) -> list[tuple[str, Tensor]]:
    """Matrices (K_1, V), (K_2, K_1), ... of positive numbers, from the columns upwards."""
    matrices = {n: v for n, v in fit.params.items() if v.dim() == 2 and bool((v > 0).all())}
    chain: list[tuple[str, Tensor]] = []
    width = fit.schema.width
    while (
        fit.kind.guided and (found := next((n for n, v in matrices.items() if v.shape[1] == width), None)) is not None
    ):
        value = matrices.pop(found)
        chain.append((found, value))
        width = len(value)
    if len(chain) < 2:
        raise UnfitKind("it has no layers of positive weights")
    return chain
