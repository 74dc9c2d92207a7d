"""How a fit got there: the bound by iteration, where the restarts ended, and EM's half-steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..diagnose.decomposition import HalfStep
from ..posterior.base import Fitted
from .drawing import DATA, SMALL, TEXT, TOTAL, color, count, dress, legend, number, picture
from .reading import UnfitKind

MODES = 12  # optima drawn at most
PANELS = 4  # iterations of the decomposition
ELBO, KL = color(4), color(1)


def bound(fit: Fitted, data: Any = None) -> Figure:
    """The bound at every iteration, the way left to its end, and where the restarts ended. `data` plays no part."""
    restarts = len(fit.mode_map.bounds) + fit.mode_map.failed
    history = fit.history.numpy()
    figure = picture(fit, 10.5 if restarts == 1 else 14, 4.6)
    panels = figure.subplots(1, 2 if restarts == 1 else 3)
    iterations = np.arange(len(history))
    panels[0].plot(
        iterations, history, color=color(0), linewidth=1.8, marker="o" if len(history) <= 60 else "", markersize=3.5
    )
    ended = "until the tolerance was met" if fit.converged else "and then stopped: the tolerance was NOT met"
    best = "The bound of the best start" if restarts > 1 else "The bound"
    dress(panels[0], f"{best}: {count(len(history) - 1, 'iteration')}\n{ended}", "iteration", "bound (nats)")
    panels[0].ticklabel_format(axis="y", useOffset=False, style="plain")
    gap = history[-1] - history[:-1]
    sound = gap > 0
    if sound.any():
        panels[1].semilogy(iterations[:-1][sound], gap[sound], color=color(0), linewidth=1.8)
    else:
        panels[1].text(0.5, 0.5, "the bound never moved", ha="center", transform=panels[1].transAxes, fontsize=TEXT)
    dress(
        panels[1],
        "The way left to its end, log scale\n(a straight line is a steady rate)",
        "iteration",
        "end of the bound minus bound (nats)",
    )
    for axes in panels[:2]:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    if restarts > 1:
        _modes(panels[2], fit)
    return figure


def _modes(axes: Axes, fit: Fitted) -> None:
    modes = list(fit.mode_map)[:MODES]
    for place, mode in enumerate(modes):
        doubtful = mode.degenerate or not mode.converged
        bar = axes.barh(place, mode.count, 0.7, color=DATA if doubtful else color(0) if place == 0 else color(4))
        notes = [n for n, yes in (("degenerate", mode.degenerate), ("not converged", not mode.converged)) if yes]
        axes.bar_label(bar, [f" {mode.count}" + (f"  {', '.join(notes)}" if notes else "")], fontsize=SMALL)
    axes.set_yticks(range(len(modes)), [number(mode.bound) for mode in modes])
    axes.set_ylim(max(len(modes), 3) - 0.4, -0.6)
    axes.margins(x=0.35)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    more = f"; the best {MODES} of {len(fit.mode_map)}" if len(fit.mode_map) > MODES else ""
    failed = f"; {count(fit.mode_map.failed, 'start')} failed" if fit.mode_map.failed else ""
    ends = f"{count(len(fit.mode_map), 'optimum')}".replace("optimums", "optima")
    title = f"Where {count(len(fit.mode_map.bounds), 'start')} ended: {ends}{more}{failed}\n(best first)"
    dress(axes, title, "starts that ended there", "bound (nats)")


def decomposition(fit: Fitted, data: Any = None) -> Figure:
    r"""EM as bars, a panel for each iteration: :math:`\log p(x) = \mathrm{ELBO} + \mathrm{KL}(q \| p(z \mid x))`.

    In each panel the M-step raises the ELBO and opens a gap to log p(x), and the next E-step closes it: the KL becomes
    ELBO (Neal and Hinton 1998). Each panel has a scale of its own. Iterations after which nothing moves are left out.

    Raises
    ------
    UnfitKind
        The fit is not by EM.
    """
    if fit.inference != "em":
        raise UnfitKind(f"the fit is by {fit.inference}, and half-steps are those of EM: try bound")
    panels = iterations(fit.half_steps(PANELS + 1, data))
    figure = picture(fit, max(9, 1.6 + 3.3 * len(panels)), 5.2)
    for place, (axes, steps) in enumerate(zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True)):
        _panel(axes, steps)
        axes.set_title(f"iteration {place + 1}", fontsize=TEXT, loc="left")
        if place == 0:
            axes.set_ylabel("nats", fontsize=TEXT)
    words = "The M-step raises the ELBO and opens a gap to log p(x); the next E-step closes it."
    figure.supxlabel(f"{words} Each panel has its own scale.", x=0.01, ha="left", fontsize=TEXT)
    handles: list[Any] = [
        Patch(color=KL, label="KL(q ‖ p(z | x)): the gap"),
        Patch(color=ELBO, label="ELBO, above the panel's foot"),
        Line2D([], [], color=TOTAL, linewidth=2, label="log p(x) = ELBO + KL"),
    ]
    legend(figure, handles, "")
    return figure


def iterations(steps: list[HalfStep]) -> list[tuple[HalfStep, HalfStep, HalfStep]]:
    """The half-steps of each iteration that moves: after its E-step, after its M-step, and after the next E-step."""
    after_e = [s for s in steps if s.moment == "after E"]
    after_m = [s for s in steps if s.moment == "after M"]
    found = list(zip(after_e[:-1], after_m, after_e[1:], strict=False))
    moving = [t for t in found if t[2].elbo - t[0].elbo > 1e-9 * (1 + abs(t[0].elbo))]
    return moving or found[:1]


def _panel(axes: Axes, steps: tuple[HalfStep, HalfStep, HalfStep]) -> None:
    low, high = steps[0].elbo, steps[1].log_evidence
    reach = max(high - low, 1e-9 * (1 + abs(low)))
    foot = low - 0.2 * reach
    for place, step in enumerate(steps):
        axes.bar(place, step.elbo - foot, 0.72, bottom=foot, color=ELBO)
        axes.bar(place, step.kl, 0.72, bottom=step.elbo, color=KL)
        axes.hlines(step.log_evidence, place - 0.36, place + 0.36, color=TOTAL, linewidth=2)
    gain, gap = steps[1].elbo - steps[0].elbo, steps[1].kl
    axes.set_ylim(foot, high + 0.16 * reach)
    axes.set_xticks(range(3), ["after\nE-step", "after\nM-step", "after next\nE-step"])
    dress(axes)
    axes.annotate("", (0.5, low + gain), (0.5, low), arrowprops={"arrowstyle": "->", "color": TOTAL})
    axes.text(
        1,
        high + 0.02 * reach,
        f"gap {_size(gap)}" if gap > 1e-9 * reach else "no gap",
        ha="center",
        va="bottom",
        fontsize=SMALL,
        color=KL,
    )
    axes.text(
        0, low + 0.02 * reach, f"M-step:\nELBO\n+{_size(gain)}", ha="center", va="bottom", fontsize=SMALL, color=TOTAL
    )
    axes.text(
        2,
        high + 0.02 * reach,
        "gap closed" if gap > 1e-9 * reach else "",
        ha="center",
        va="bottom",
        fontsize=SMALL,
        color=TOTAL,
    )
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _size(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1e}"
