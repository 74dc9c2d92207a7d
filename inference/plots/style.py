"""What every picture shares: a figure of its own, colours that colour-blind readers tell apart, and plain titles."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..posterior.base import Fitted

# Okabe and Ito (2008) without black, which stands for totals, and yellow, which white paper swallows;
# then two of Paul Tol's.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DATA, TOTAL = "#C4C8CC", "#1A1A1A"
SUM_LINE = (0, (4, 2))
SMALL, TEXT, HEAD = 9, 10.5, 13
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
