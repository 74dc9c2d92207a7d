"""What every picture shares: a figure of its own, colours that colour-blind readers tell apart, plain titles, and the
primitives that pictures are drawn with: panels, heat maps with numbers, intervals, sheets of images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from ..posterior.base import Fitted

# Okabe and Ito (2008) without black, which stands for totals, and yellow, which white paper swallows;
# then two of Paul Tol's.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DATA, TOTAL = "#C4C8CC", "#1A1A1A"
SUM_LINE = (0, (4, 2))
SMALL, TEXT, HEAD = 9, 10.5, 13
MISSING = "#F3C9A5"  # cells that nobody has seen
LISTED = 12  # components that a legend names
LETTERS, MOST = 9, 60  # of a headline: by inch, and of its options at most


class Picture(Figure):
    """A matplotlib Figure that belongs to no window and to no `pyplot` state, and that a notebook shows by itself."""

    def _repr_png_(self) -> bytes:
        stream = BytesIO()
        self.savefig(stream, format="png", bbox_inches="tight")
        return stream.getvalue()


def picture(fit: Fitted, width: float, height: float) -> Picture:
    """An empty figure under the fit's headline."""
    figure = Picture(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(headline(fit, width), x=0.01, ha="left", fontsize=HEAD, fontweight="bold")
    return figure


def headline(fit: Fitted, width: float) -> str:
    """Model, its hyper-parameters, and the log-likelihood (and bound) that the fit reached; `width` in inches."""
    origin = fit.pair.origin
    name = origin.name if origin else getattr(fit.pair.model, "__name__", "model")
    shown = [one for one in origin.hyperparameters.items() if one[1] is not None] if origin else []
    options = shortened([f"{key}={value}" for key, value in shown], int(LETTERS * width) - len(f"{name}(, ...)"))
    doubts = {"not converged": not fit.converged, "degenerate": fit.mode_map[0].degenerate}
    state = f"  ({', '.join(word for word, met in doubts.items() if met)})" if any(doubts.values()) else ""
    reached = f"log-likelihood {number(fit.log_likelihood)}"
    if fit.kind.guided:
        centre = "" if math.isnan(fit.entropy) else f", {reached} at the centre"
        reached = f"evidence lower bound {number(fit.history[-1].item())}{centre}"
    return f"{name}{f'({options})' if options else ''}\n{reached}{state}"


def shortened(words: list[str], room: int) -> str:
    """As many of some words as there is room for, `MOST` letters at most."""
    room = min(room, MOST)
    kept = [word for n, word in enumerate(words) if len(", ".join(words[: n + 1])) <= room or n == 0]
    return ", ".join(kept + ["..."] * (len(kept) < len(words)))


def dress(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Titles and readable, quiet axes."""
    axes.set_title(title, fontsize=TEXT, loc="left")
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, handles: list[Any], title: str) -> None:
    """A legend beside the axes, where it covers nothing."""
    found = figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=SMALL, title=title)
    found.set_alignment("left")
    found.get_title().set_fontsize(TEXT)


def color(component: int) -> str:
    return PALETTE[component % len(PALETTE)]


def marker(component: int) -> str:
    return MARKERS[component % len(MARKERS)]


def percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0095 or share == 0 else "< 1 %"


def number(value: float) -> str:
    """A number with two decimals, and a minus sign as printed."""
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def count(many: int, what: str) -> str:
    """ "1 row", "2 rows", "2 classes"."""
    plural = what + ("es" if what.endswith("s") else "s")
    return f"{many} {what if many == 1 else plural}"


# --- primitives -------------------------------------------------------------------------------------------------------


def panels(figure: Figure, number: int, across: int, **shared: Any) -> list[Axes]:
    """So many axes in rows of `across`; what is left of the last row stays empty."""
    grid = figure.subplots(math.ceil(number / across), across, squeeze=False, **shared).ravel()
    for axes in grid[number:]:
        axes.set_visible(False)
    return list(grid[:number])


def left_out(figure: Figure, words: str) -> None:
    """A note in the corner on what is not drawn."""
    figure.text(0.99, 0.99, words, ha="right", va="top", fontsize=SMALL)


def intervals(axes: Axes, middle: Any, low: Any, high: Any, names: Sequence[str], shades: Sequence[str]) -> None:
    """Numbers as dots on the bars of their intervals, one above the other."""
    place = np.arange(len(names))
    axes.hlines(place, low, high, color=list(shades), linewidth=2.4, alpha=0.45)
    for shade in dict.fromkeys(shades):
        mine = np.array([one == shade for one in shades])
        axes.plot(np.asarray(middle)[mine], place[mine], "o", color=shade, markersize=6)
    axes.set_yticks(place, list(names))
    axes.grid(axis="x", color=DATA, linewidth=0.6, alpha=0.6)
    axes.tick_params(axis="y", length=0, labelsize=SMALL)


def heat_map(axes: Axes, table: np.ndarray, norm: Normalize, digits: str) -> None:
    """Cells of a table (lines, columns) as colours, with their numbers in a colour that stands out."""
    axes.imshow(table, cmap=_cmap(), norm=norm, aspect="auto")
    axes.set_xticks(np.arange(-0.5, table.shape[1]), minor=True)
    axes.set_yticks(np.arange(-0.5, table.shape[0]), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0, labelsize=SMALL)
    axes.spines[:].set_visible(False)
    if not digits:
        return
    for (line, column), value in np.ndenumerate(table):
        dark = norm(value) > 0.55
        axes.text(
            column,
            line,
            digits.format(value),
            ha="center",
            va="center",
            fontsize=SMALL,
            color="white" if dark else TOTAL,
        )


def _cmap() -> Colormap:
    return colormaps["Blues"]


def color_bar(figure: Figure, norm: Normalize, label: str) -> None:
    bar = figure.colorbar(ScalarMappable(norm, _cmap()), ax=figure.axes, shrink=0.9, aspect=30, pad=0.02)
    bar.set_label(label, fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)


def sheet(images: Tensor) -> Tensor:
    """Images (rows, columns, side, side) side by side, white between them."""
    down, across, side, _ = images.shape
    framed = torch.nn.functional.pad(images, (1, 1, 1, 1), value=float("nan"))
    return framed.permute(0, 2, 1, 3).reshape(down * (side + 2), across * (side + 2))


def images(axes: Axes, images: Tensor, title: str) -> None:
    """Images (rows, columns, side, side), ink dark; missing cells in a colour of their own."""
    cells = sheet(images.nan_to_num(nan=-math.inf))
    shown, gaps = cells.clone(), cells == -math.inf
    shown[gaps] = math.nan
    finite = shown[shown.isfinite()]
    limits: dict[str, Any] = {"vmin": float(finite.min()), "vmax": float(finite.max())} if len(finite) else {}
    axes.imshow(shown.numpy(), cmap="gray_r", interpolation="nearest", **limits)
    if bool(gaps.any()):
        axes.imshow(torch.where(gaps, 1.0, math.nan).numpy(), cmap=ListedColormap([MISSING]), interpolation="nearest")
        title += " (coloured: missing)"
    dress(axes, title)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
