"""Factors of the rows: a map of rows with an arrow for each column, and the loadings as bars."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from torch import Tensor

from ..data.schema import Dataset
from ..linear_gaussian.posterior import loadings_of, normal_moments, varimax
from ..posterior.base import Fitted
from ..posterior.exact import program_on
from ..program.posteriors import joint_posterior
from ..trace.handlers import engine_state
from .drawing import DATA, LISTED, SMALL, TOTAL, color, count, dress, legend, marker, panels, percent, picture
from .reading import UnfitKind, part

POINTS = 3000  # rows drawn at most
ARROWS = 16  # columns whose arrows are drawn: the longest; of a mixture half as many in each map
NAME = 18  # letters of a name that an arrow bears
MOST = 40  # columns whose loadings are drawn: the longest
WHITE = [withStroke(linewidth=2.6, foreground="white")]


class Factors(NamedTuple):
    """What the pictures are drawn from."""

    columns: tuple[str, ...]
    loc: Tensor  # (C, D)
    load: Tensor  # (C, D, E)
    noise: Tensor  # (C, D) variances
    scores: Tensor  # (n, E) posterior means of the rows drawn
    own: Tensor  # (n,) the most probable component
    shares: Tensor  # (C,)
    total: int


def read_factors(fit: Fitted, data: Any) -> Factors:
    """The one site of a fit whose normal latent can be summed out, at the centre of what rows share.

    Raises
    ------
    UnfitKind
        There is none, or it varies from row to row.
    """
    if data is None and fit.data is None:
        raise UnfitKind("the rows' factors need the data that were fitted: pass the data")
    dataset: Dataset = fit.adapted(data)
    if not isinstance(dataset.values, Tensor):
        raise UnfitKind("its data are no table: try bound")
    total = len(dataset.values)
    if total > POINTS:
        rows = torch.randperm(total, generator=torch.Generator().manual_seed(fit.seed))[:POINTS].sort().values
        dataset = part(dataset, rows)
    with engine_state(fit.seed), torch.no_grad():
        program, params = program_on(fit, dataset)
        found = loadings_of(program, params)
        if found is None:
            raise UnfitKind(
                "the rows have no normal latent that was summed out, or the mean of what is observed differs from row "
                "to row: try clusters, profiles, bound"
            )
        table = joint_posterior(program, params)
        moments = normal_moments(program, params, table)
    scores = torch.cat([one.mean.reshape(len(one.mean), -1) for one in moments.values()], 1)
    loc, load, noise = found
    if scores.shape[1] != load.shape[2]:
        raise UnfitKind("its factors are not the latents themselves: try bound")
    if fit.kind.guided and len(load) == 1:  # of a posterior no factor comes first: the largest do
        order = load[0].square().sum(0).argsort(descending=True)
        load, scores = load[..., order], scores[:, order]
    width = loc.shape[1]
    names = dataset.schema.columns
    columns = tuple(names) if names and len(names) == width else tuple(f"x{d}" for d in range(width))
    return Factors(columns, loc, load, noise, scores, table.argmax(1), table.mean(0), total)


# --- rows and columns on one map --------------------------------------------------------------------------------------


def biplot(fit: Fitted, data: Any = None) -> Figure:
    """Rows at the posterior means of their first two factors, and an arrow for each column along its loadings.

    A column's arrow is as long as the correlation of the column with the two factors, so the circle of radius 1 is the
    longest that one can be. With a single factor the rows are a histogram of it. Of a mixture, where each component
    has factors of its own, there is a map for each.

    Raises
    ------
    UnfitKind
        The rows have no normal latents that were summed out.
    """
    found = read_factors(fit, data)
    if found.load.shape[2] < 2:
        return loadings(fit, data)
    kinds = len(found.loc)
    across = min(kinds, 3)
    figure = picture(fit, 8.4 if kinds == 1 else 5.2 * across + 1.6, (6.4 if kinds == 1 else 5.4) * -(-kinds // across))
    for k, axes in enumerate(panels(figure, kinds, across)):
        mine = found.own == k
        _map(axes, found, k, found.scores[mine].numpy())
        drawn = f"{count(int(mine.sum()), 'row')}"
        if kinds == 1:
            drawn = drawn if len(found.scores) == found.total else f"{len(found.scores)} of {count(found.total, 'row')}"
            title = f"{drawn} at the posterior means of their factors"
        else:
            title = f"component {k} ({percent(found.shares[k].item())}): {drawn}"
        dress(axes, title, "factor 1", "factor 2")
    handles = [
        Line2D([], [], color=color(0), marker="o", linestyle="", alpha=0.5, label="a row"),
        Line2D([], [], color=TOTAL, label="a column: its correlation\nwith the two factors"),
        Line2D([], [], color=DATA, linestyle="--", label="correlation 1"),
    ]
    legend(figure, handles, "")
    return figure


def _map(axes: Any, found: Factors, k: int, points: np.ndarray) -> None:
    pair = points[:, :2]
    axes.scatter(*pair.T, s=14 if len(pair) > 600 else 26, color=color(k), marker=marker(k), alpha=0.35, linewidth=0)
    spread = (found.noise[k] + found.load[k].square().sum(1)).sqrt()
    arrows = (found.load[k] / spread.unsqueeze(1))[:, :2]  # correlations of columns with factors
    reach = max(float(np.quantile(np.abs(pair), 0.98)) if len(pair) else 1.0, 0.5)
    around = np.linspace(0, 2 * np.pi, 200)
    axes.plot(reach * np.cos(around), reach * np.sin(around), color=DATA, linestyle="--", linewidth=1, zorder=1)
    axes.axhline(0, color=DATA, linewidth=0.6, zorder=0)
    axes.axvline(0, color=DATA, linewidth=0.6, zorder=0)
    longest = arrows.norm(dim=1).argsort(descending=True)[: ARROWS if len(found.loc) == 1 else ARROWS // 2].tolist()
    ends = reach * arrows[longest].numpy()
    places = _apart(ends, 0.075 * reach)
    for (x, y), (a, b), d in zip(ends, places, longest, strict=True):
        axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": TOTAL, "linewidth": 1.2}, zorder=3)
        text = axes.text(
            a, b, _short(found.columns[d]), ha="left" if x >= 0 else "right", va="center", fontsize=SMALL, zorder=4
        )
        text.set_path_effects(WHITE)
    limit = max(1.75 * reach, 1.04 * float(np.abs(pair).max(initial=0.0)))
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.set_aspect("equal", adjustable="box")


def _short(name: str) -> str:
    return name if len(name) <= NAME else name[: NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _apart(ends: np.ndarray, step: float) -> np.ndarray:
    """Places of names, a little beyond the arrows, moved up where names of one side would cover each other."""
    places = ends + 0.06 * step / 0.075 * np.sign(ends)
    for side in (ends[:, 0] >= 0, ends[:, 0] < 0):
        order = np.flatnonzero(side)[np.argsort(places[side, 1])]
        for lower, upper in pairwise(order):
            places[upper, 1] = max(places[upper, 1], places[lower, 1] + step)
        if len(order) > 1:  # as many moved down as up
            places[order, 1] += np.mean(ends[order, 1] - places[order, 1])
    return places


# --- loadings ---------------------------------------------------------------------------------------------------------


def loadings(fit: Fitted, data: Any = None) -> Figure:
    """The correlation of every column with every factor, after varimax, and the share of its variance that is its own.

    Raises
    ------
    UnfitKind
        The rows have no normal latents that were summed out, or there are several components.
    """
    found = read_factors(fit, data)
    if len(found.loc) > 1:
        raise UnfitKind("each component has loadings of its own: try biplot")
    total = found.noise[0] + found.load[0].square().sum(1)
    turned = varimax(found.load[0] / total.sqrt().unsqueeze(1)).loadings  # (D, E)
    unique = found.noise[0] / total
    order = turned.norm(dim=1).argsort(descending=True)[:MOST].sort().values.flip(0).tolist()
    factors = min(turned.shape[1], LISTED)
    figure = picture(fit, 3.2 + 1.9 * (factors + 1), 1.9 + 0.3 * len(order))
    place = np.arange(len(order))
    panels = figure.subplots(1, factors + 1, sharey=True)
    for j, axes in enumerate(panels):
        last = j == factors
        values = (unique if last else turned[:, j])[order].numpy()
        axes.barh(place, values, color=DATA if last else color(j), height=0.72)
        axes.axvline(0, color=TOTAL, linewidth=0.8)
        axes.set_xlim(0 if last else min(-0.35, values.min() - 0.5), 1.05 if last else max(1.0, values.max() + 0.3))
        for y, value in zip(place, values, strict=True):
            shown = f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
            inside = last and value > 0.7
            at = value + (-0.03 if inside or value < 0 else 0.03)
            axes.text(at, y, shown, ha="right" if inside or value < 0 else "left", va="center", fontsize=SMALL - 1)
        share = (turned[:, j].square().sum() / len(turned)).item() if not last else unique.mean().item()
        dress(
            axes, f"{'its own' if last else f'factor {j + 1}'}\n{percent(share)} of variance", "share" if last else ""
        )
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(place, [found.columns[d] for d in order])
    how = "correlation with each factor" + (", turned by varimax" if turned.shape[1] > 1 else "")
    figure.supxlabel(how, fontsize=SMALL + 1, x=0.01, ha="left")
    return figure


# --- how many ---------------------------------------------------------------------------------------------------------


def scree(fit: Fitted, data: Any = None) -> Figure:
    """The variance that each factor explains, over all columns, beside that of the noise in one of them.

    Of a model that empties the factors it does not need, such as `bayesian_pca`, it shows how many it kept.

    Raises
    ------
    UnfitKind
        The rows have no normal latents that can be summed out, or there are several components.
    """
    found = read_factors(fit, data)
    if len(found.loc) > 1:
        raise UnfitKind("each component has loadings of its own: try biplot")
    sizes = found.load[0].square().sum(0)
    total = (sizes.sum() + found.noise[0].sum()).item()
    noise = found.noise[0].mean().item()
    figure = picture(fit, 2.4 + 0.8 * max(len(sizes), 4), 4.6)
    axes = figure.subplots()
    place = np.arange(1, len(sizes) + 1)
    axes.bar(place, sizes.numpy(), color=color(0), width=0.66)
    axes.axhline(noise, color=TOTAL, linestyle="--", linewidth=1.2)
    for x, size in zip(place, sizes.tolist(), strict=True):
        axes.text(float(x), size, percent(size / total), ha="center", va="bottom", fontsize=SMALL)
    axes.set_xticks(place)
    kept = int((sizes > noise).sum())
    dress(
        axes, f"{count(kept, 'factor')} of {len(sizes)} above the noise of one column", "factor", "variance explained"
    )
    legend(figure, [Line2D([], [], color=TOTAL, linestyle="--", label="noise of\none column")], "")
    return figure
