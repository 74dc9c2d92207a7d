"""Items along the quantity that they measure: curves of their answers, and the information that these carry.

For models that observe categories and compute one continuous quantity of each row (`pyro.deterministic`) from a latent.
Between the nodes of the latent, log probabilities are cubic splines; of a logistic model their odds are straight lines.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.interpolate import CubicSpline

from ..posterior.base import Fitted
from ..posterior.exact import program_on
from ..program.deterministic import derived
from ..trace.handlers import engine_state
from .drawing import DATA, LISTED, SUM_LINE, TEXT, TOTAL, color, count, dress, left_out, legend, panels, picture
from .reading import Reading, UnfitKind, part, read_columns
from .tables import Question, questions

SPREAD = 3.5  # standard deviations of the quantity to either side that are drawn
POINTS = 281
PANELS = 6  # items of several answers that are drawn
LINES = (0, (5, 2)), "-", (0, (1, 1))  # of items that share a colour


class Scale(NamedTuple):
    """Items along a quantity of the rows."""

    name: str
    items: tuple[Question, ...]
    grid: np.ndarray  # (G,) values of the quantity
    probs: tuple[np.ndarray, ...]  # of each item (G, C)
    information: np.ndarray  # (J, G) Fisher information of each item
    reading: Reading


def curves(fit: Fitted, data: Any = None) -> Figure:
    """The probability of each item's second answer along the quantity, over a histogram of the rows' posterior means;
    of items of several answers a panel each, for six at most.

    Raises
    ------
    UnfitKind
        No categories are observed, or the model computes no continuous quantity of a row.
    """
    scale = read_scale(fit, data)
    if all(len(item.answers) == 2 for item in scale.items):
        return _crossing(fit, data, scale)
    chosen = range(min(PANELS, len(scale.items)))
    across = 2 if len(chosen) == 4 else min(3, len(chosen))
    down = math.ceil(len(chosen) / across)
    figure = picture(fit, 2.2 + 2.9 * across, 1.2 + 2.4 * down)
    grid = panels(figure, len(chosen), across, sharex=True, sharey=True)
    most = max(len(scale.items[j].answers) for j in chosen)
    for j, axes in zip(chosen, grid, strict=True):
        for c in range(len(scale.items[j].answers)):
            axes.plot(scale.grid, scale.probs[j][:, c], color=color(c), linewidth=2)
        lowest = j >= len(chosen) - across
        dress(axes, scale.items[j].name, scale.name if lowest else "", "")
        axes.tick_params(labelbottom=lowest)
        _unit(axes)
    figure.supylabel("probability of the answer", fontsize=TEXT)
    answers = max((item.answers for item in scale.items), key=len)
    legend(figure, [Line2D([], [], color=color(c), linewidth=2, label=answers[c]) for c in range(most)], "answer")
    if len(scale.items) > PANELS:
        left_out(figure, f"{PANELS} of {len(scale.items)} items")
    return figure


def information(fit: Fitted, data: Any = None) -> Figure:
    """Fisher information of each item and of the test along the quantity, and the standard error 1 / sqrt(information).

    Raises
    ------
    UnfitKind
        As for `curves`.
    """
    scale = read_scale(fit, data)
    figure = picture(fit, 8.2, 6.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    whole = scale.information.sum(0)
    for j, one in enumerate(scale.information):
        top.plot(scale.grid, one, linewidth=1.6, **_style(j))
    top.plot(scale.grid, whole, color=TOTAL, linewidth=2.4, linestyle=SUM_LINE)
    dress(top, "what the answers tell of it", "", "Fisher information")
    top.set_ylim(0)
    error = 1 / np.sqrt(whole)
    bottom.plot(scale.grid, error, color=TOTAL, linewidth=2)
    bottom.set_ylim(0, min(error.max(), 4 * error.min()) * 1.08)
    dress(bottom, "how far the answers alone leave it open", scale.name, "standard error")
    bottom.set_xlim(scale.grid[0], scale.grid[-1])
    handles = [*_handles(scale), Line2D([], [], color=TOTAL, linewidth=2.4, linestyle=SUM_LINE, label="whole test")]
    legend(figure, handles, "item")
    return figure


def read_scale(fit: Fitted, data: Any = None) -> Scale:
    """The items of a fit along its quantity."""
    reading = read_columns(fit, data, "categories")
    name, place = _quantity(fit, reading)
    shares, order = reading.shares.numpy(), np.argsort(place)
    center = (shares * place).sum()
    reach = SPREAD * np.sqrt((shares * (place - center) ** 2).sum())
    grid = np.linspace(max(place.min(), center - reach), min(place.max(), center + reach), POINTS)
    items = tuple(_own_answers(q) for item in reading.items for q in questions(reading, item))
    probs, told = [], []
    for item in items:
        log_probs = item.probs.clamp_min(1e-300).log().numpy()[order, : len(item.answers)]  # (K, C)
        spline = CubicSpline(place[order], log_probs)
        value = np.exp(spline(grid))
        probs.append(value / value.sum(1, keepdims=True))
        slope = spline(grid, 1)
        slope = slope - (probs[-1] * slope).sum(1, keepdims=True)  # the scores of the answers have mean 0
        told.append((probs[-1] * slope**2).sum(1))
    return Scale(name, items, grid, tuple(probs), np.stack(told), reading)


def _own_answers(item: Question) -> Question:
    """Items of one site may differ in how many answers they have: the last ones are impossible for some."""
    possible = (item.probs > 1e-12).any(0).nonzero().max().item() + 1
    return item._replace(answers=item.answers[: int(possible)])


def _quantity(fit: Fitted, reading: Reading) -> tuple[str, np.ndarray]:
    """The quantity's name, and its value at each component."""
    with engine_state(fit.seed), torch.no_grad():
        program, params = program_on(fit, part(reading.dataset, torch.arange(2)))
        for name, one in derived(program, params).items():
            if one.kept or one.value.numel() != len(reading.shares) or len(reading.shares) < 4:
                continue
            value = one.value.flatten().numpy()
            if len(np.unique(value)) == len(value):
                return name, value
    raise UnfitKind("this model computes no continuous quantity of each row (pyro.deterministic): try profiles, bound")


def _crossing(fit: Fitted, data: Any, scale: Scale) -> Figure:
    figure = picture(fit, 8.2, 5.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for j, probs in enumerate(scale.probs):
        top.plot(scale.grid, probs[:, 1], linewidth=2, **_style(j))
    answers = {item.answers[1] for item in scale.items}
    answer = answers.pop() if len(answers) == 1 else "the second"
    dress(top, f"how likely the answer is {answer!r}", "", "probability")
    _unit(top)
    if scale.reading.total:
        means = fit.latents(data)[scale.name].mean.numpy()
        bottom.hist(means, bins=np.linspace(scale.grid[0], scale.grid[-1], 57).tolist(), color=DATA)
        dress(bottom, f"posterior means of the {count(scale.reading.total, 'row')}", scale.name, "rows")
    top.set_xlim(scale.grid[0], scale.grid[-1])
    legend(figure, _handles(scale), "item")
    return figure


def _unit(axes: Axes) -> None:
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.5, 1])
    axes.grid(axis="y", color=DATA, linewidth=0.6, alpha=0.6)


def _style(item: int) -> dict[str, Any]:
    return {"color": color(item), "linestyle": LINES[(item // 8 + 1) % len(LINES)]}


def _handles(scale: Scale) -> list[Line2D]:
    out = [Line2D([], [], linewidth=2, label=q.name, **_style(j)) for j, q in enumerate(scale.items[:LISTED])]
    more = len(scale.items) - LISTED
    return [*out, Line2D([], [], linewidth=0, label=f"and {more} more")] if more > 0 else out
