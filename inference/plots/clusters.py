"""Rows of numbers by component: a scatter with ellipses, or, of a single column, a histogram with densities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch
from matplotlib.patheffects import withStroke
from torch import Tensor

from ..posterior.base import Fitted
from .drawing import DATA, LISTED, SUM_LINE, TEXT, TOTAL, color, count, dress, legend, marker, percent, picture
from .reading import Reading, read_columns

POINTS = 3000  # rows drawn at most
EMPTY = 0.5  # rows: a component with fewer among those drawn tells nothing of them, and is left out
CANDIDATES = 30  # columns whose pairs are compared
BLUR = 0.1  # of a column's standard deviation
BINS = (8, 80)  # of a histogram
DEVIATIONS: dict[int, Any] = {1: "-", 2: "--"}  # sd -> line of the ellipse


def clusters(fit: Fitted, data: Any = None) -> Figure:
    """Rows coloured by their most probable component, faded where that is uncertain, with ellipses of 1 and 2 sd.

    Of more than two columns those two are drawn on which the components lie furthest apart (`telling_pair`). A row with
    a missing cell among them is hollow, the cell at its expected value given the rest of the row. Of many rows a random
    `POINTS` are drawn. A single column is a histogram, with the density of each component and their sum.

    Raises
    ------
    UnfitKind
        No continuous values are observed, or the components have no means and covariances of their own.
    """
    reading = read_columns(fit, data, "numbers")
    reading.require_rows()
    figure = picture(fit, 8.6, 5.6)
    axes = figure.add_subplot()
    if len(reading.columns) == 1:
        histogram(figure, axes, reading)
    else:
        scatter(figure, axes, reading)
    return figure


# --- two columns ------------------------------------------------------------------------------------------------------


def scatter(figure: Figure, axes: Axes, reading: Reading) -> None:
    mean, pair = reading.mean(), telling_pair(reading)
    covariance = reading.covariance(pair)
    rows = torch.arange(len(reading.values))
    if len(rows) > POINTS:
        generator = torch.Generator().manual_seed(reading.fit.seed)
        rows = torch.randperm(len(rows), generator=generator)[:POINTS].sort().values
    posterior, filled = reading.posterior(rows)
    points = filled[:, pair].numpy()
    imputed = reading.values[rows][:, pair].isnan().any(1).numpy()
    weights = (
        np.ones(len(rows)) if reading.weights is None else (reading.weights / reading.weights.mean())[rows].numpy()
    )
    _draw_rows(axes, points, posterior, imputed, weights)
    for k in range(len(mean)):
        if posterior[:, k].sum() < EMPTY:
            continue
        for deviations, line in DEVIATIONS.items():
            shape = ellipse(mean[k, pair], covariance[k], deviations)
            shape.set(facecolor="none", edgecolor=color(k), linestyle=line, linewidth=1.6, zorder=3)
            shape.set_path_effects([withStroke(linewidth=3.4, foreground="white")])
            axes.add_patch(shape)
        tag(axes, mean[k, pair].tolist(), reading.components[k], k)
    _limits(axes, points, mean[:, pair], covariance)
    drawn = f"{len(rows)} of {count(reading.total, 'row')}" if len(rows) < reading.total else count(len(rows), "row")
    width = len(reading.columns)
    told = (
        "the 2 of {} columns that set the components furthest apart" if len(mean) > 1 else "the first 2 of {} columns"
    )
    where = f"\non {told.format(width)}" if width > 2 else ""
    names = [reading.columns[j] for j in pair]
    dress(axes, f"{drawn}, each in the colour of its most probable component{where}", *names)
    handles = component_handles(reading, lambda k: Line2D([], [], color=color(k), marker=marker(k), linestyle=""))
    handles += [Line2D([], [], color=TOTAL, linestyle=line, label=f"{d} sd") for d, line in DEVIATIONS.items()]
    point: dict[str, Any] = {"color": TOTAL, "marker": "o", "linestyle": ""}
    handles.append(Line2D([], [], **point, alpha=0.25, markeredgewidth=0, label="pale: uncertain"))
    if imputed.any():
        handles.append(Line2D([], [], **point, markerfacecolor="none", label="hollow: a cell is\nmissing, imputed"))
    legend(figure, handles, "component (share)")


def _draw_rows(axes: Axes, points: np.ndarray, posterior: Tensor, imputed: np.ndarray, weights: np.ndarray) -> None:
    """Rows at `points` (n, 2): hue and marker of the most probable component, hollow where imputed, areas by weight."""
    crowded = len(points) > 600
    alpha = (0.15 + 0.7 * certainty(posterior).numpy()) * (0.6 if crowded else 1.0)
    area = (14.0 if crowded else 26.0) * np.sqrt(weights.clip(0.1, 10))
    own = posterior.argmax(1).numpy()
    for k in range(posterior.shape[1]):
        for hollow in (False, True):
            mine = (own == k) & (imputed == hollow)
            if not mine.any():
                continue
            tint = np.column_stack([np.tile(to_rgb(color(k)), (mine.sum(), 1)), alpha[mine]])
            drawn = axes.scatter(points[mine, 0], points[mine, 1], s=area[mine], marker=marker(k), zorder=2)
            drawn.set(facecolor="none" if hollow else tint, edgecolor=tint, linewidth=1.1 if hollow else 0)
            drawn.set_gid(f"{'imputed' if hollow else 'rows'} {k}")


def telling_pair(reading: Reading) -> list[int]:
    """The two columns on which the components lie furthest apart.

    Apart means: the Hellinger distance of the Gaussians of their moments, 1 - BC with BC the Bhattacharyya coefficient,
    averaged over pairs of components by their shares. It saturates at 1, so one far component does not decide alone,
    and it sees different spreads as well as different means; differences finer than `BLUR` of a column's spread, which
    no eye sees, are blurred. Of many columns only the `CANDIDATES` that tell most by themselves are paired. The pair is
    returned in the order of the columns.
    """
    width = len(reading.columns)
    if width == 2:
        return [0, 1]
    mean, variance, shares = reading.mean(), reading.variance(), reading.shares.unsqueeze(1)
    between = (shares * (mean - (shares * mean).sum(0)) ** 2).sum(0)
    blur = BLUR**2 * (between + (shares * variance).sum(0))  # (C,)
    one = apart(mean.unsqueeze(-1), (variance + blur)[..., None, None], reading.shares)
    best = one.argsort(descending=True, stable=True)[:CANDIDATES].sort().values
    covariance = reading.covariance(best.tolist()) + torch.diag(blur[best])
    pairs = torch.combinations(torch.arange(len(best)))  # (P, 2)
    blocks = covariance[:, pairs.unsqueeze(-1), pairs.unsqueeze(-2)]  # (E, P, 2, 2)
    return best[pairs[apart(mean[:, best][:, pairs], blocks, reading.shares).argmax()]].tolist()


def apart(mean: Tensor, covariance: Tensor, shares: Tensor) -> Tensor:
    """Mean of 1 - BC over pairs of Gaussians, (P,), from means (E, P, d) and covariances (E, P, d, d)."""
    total = mean.new_zeros(mean.shape[1])
    for a in range(len(mean)):
        for b in range(a):
            between = (covariance[a] + covariance[b]) / 2
            away = (mean[a] - mean[b]).unsqueeze(-1)
            square = (away.mT @ torch.linalg.solve(between, away)).flatten(1).squeeze(1)
            spread = between.logdet() - (covariance[a].logdet() + covariance[b].logdet()) / 2
            total += shares[a] * shares[b] * (1 - (-square / 8 - spread / 2).exp())
    return total


def certainty(posterior: Tensor) -> Tensor:
    """How far the largest of K probabilities lies between 1/K and 1, (N,)."""
    size = posterior.shape[1]
    return (posterior.amax(1) * size - 1).clamp(0, size - 1) / (size - 1) if size > 1 else torch.ones(len(posterior))


def ellipse(center: Tensor, covariance: Tensor, deviations: float) -> Ellipse:
    """The points at a Mahalanobis distance of `deviations` from the center."""
    values, vectors = torch.linalg.eigh(covariance)
    wide, high = (2 * deviations * values.clamp_min(0).sqrt()).tolist()
    angle = torch.rad2deg(torch.atan2(vectors[1, 0], vectors[0, 0])).item()
    return Ellipse((center[0].item(), center[1].item()), wide, high, angle=angle)


def tag(axes: Axes, place: list[float], name: str, component: int) -> None:
    """A component's name on a white ground, so that it is read above any points."""
    ground = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": color(component), "alpha": 0.9}
    text = axes.text(place[0], place[1], name, ha="center", va="center", bbox=ground, zorder=4)
    text.set(fontsize=TEXT, fontweight="bold", color=color(component), clip_on=True)


def _limits(axes: Axes, points: np.ndarray, mean: Tensor, covariance: Tensor) -> None:
    """All points, and of the ellipses what lies within a third of the points' range around them."""
    low, high = points.min(0), points.max(0)
    room = np.where(high > low, high - low, 1.0)
    reach = 2 * covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    least = np.maximum((mean - reach).numpy().min(0), low - room / 3)
    most = np.minimum((mean + reach).numpy().max(0), high + room / 3)
    low, high = np.minimum(low, least) - 0.04 * room, np.maximum(high, most) + 0.04 * room
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])


def component_handles(reading: Reading, make: Any) -> list[Any]:
    """Legend entries of the components with their shares: the largest `LISTED` of them, and how many are left out."""
    shares = reading.shares
    shown = shares.argsort(descending=True, stable=True)[:LISTED].sort().values.tolist()
    handles = []
    for k in shown:
        handle = make(k)
        handle.set_label(f"{reading.components[k]}   {percent(shares[k].item())}")
        handles.append(handle)
    if len(shares) > LISTED:
        handles.append(Line2D([], [], linestyle="", label=f"and {len(shares) - LISTED} smaller ones"))
    return handles


# --- one column -------------------------------------------------------------------------------------------------------


def histogram(figure: Figure, axes: Axes, reading: Reading) -> None:
    values = reading.values[:, 0]
    seen = ~values.isnan()
    weights = None if reading.weights is None else reading.weights[seen].numpy()
    shown = values[seen].numpy()
    edges = np.histogram_bin_edges(shown, bins=bins_of(shown, reading))
    heights, _, _ = axes.hist(
        shown, edges.tolist(), weights=weights, density=True, color=DATA, edgecolor="white", linewidth=0.6
    )
    grid = _grid(reading, float(edges[0]), float(edges[-1]))
    parts = reading.shares.unsqueeze(1) * reading.density(reading.items[0], grid)
    total = parts.sum(0)
    axes.plot(grid, total, color=TOTAL, linewidth=1.6, linestyle=SUM_LINE, zorder=3)
    ceiling = 1.12 * max(np.max(heights), min(total.max().item(), 2 * np.max(heights)))  # a spike may leave the top
    axes.set_ylim(0, ceiling)
    for k, part in enumerate(parts):
        axes.plot(grid, part, color=color(k), linewidth=1.8)
        axes.fill_between(grid, part, color=color(k), alpha=0.12, linewidth=0)
        peak = int(part.argmax())
        tag(axes, [grid[peak].item(), min(part[peak].item(), 0.96 * ceiling)], reading.components[k], k)
    axes.set_xlim(grid[0].item(), grid[-1].item())
    title = f"{rows_read(reading)} as a histogram, and the density of each component times its share"
    dress(axes, title, reading.columns[0], "density")
    handles = component_handles(reading, lambda k: Line2D([], [], color=color(k), linewidth=1.8))
    handles.append(Line2D([], [], color=TOTAL, linewidth=1.6, linestyle=SUM_LINE, label="their sum"))
    handles.append(Patch(color=DATA, label="data"))
    legend(figure, handles, "component (share)")


def bins_of(values: np.ndarray, reading: Reading) -> int:
    """How many bins of one width: no fewer than the square root of N, no more than leaves them three rows on average.

    Between these the width is that of Freedman and Diaconis (1981), 2 IQR / n^(1/3), of the component for which it is
    narrowest: that of the whole column would be set by the distance between components, and hide the narrow ones.
    """
    deviation, rows = reading.variance()[:, 0].sqrt(), (reading.shares * len(values)).clamp_min(1)
    width = (2 * 1.349 * deviation / rows ** (1 / 3)).min().item()  # the IQR of a normal is 1.349 sd
    told = np.ptp(values) / width if width > 0 else 0.0
    return int(np.clip(np.clip(told, len(values) ** 0.5, len(values) / 3), *BINS))


def rows_read(reading: Reading) -> str:
    """How many rows a picture of one column counts, in words."""
    read, missing = len(reading.values), int(reading.values.isnan().sum())
    words = f"{read} of {count(reading.total, 'row')}" if read < reading.total else count(read, "row")
    return f"{words} ({missing} missing)" if missing else words


def _grid(reading: Reading, low: float, high: float) -> Tensor:
    """Points close enough to draw the narrowest component."""
    pad = 0.05 * (high - low)
    points = [torch.linspace(low - pad, high + pad, 400, dtype=torch.float64)]
    for mean, variance in zip(reading.mean()[:, 0], reading.variance()[:, 0], strict=True):
        points.append(mean + variance.sqrt() * torch.linspace(-5, 5, 101, dtype=torch.float64))
    grid = torch.cat(points).unique()
    return grid[(grid >= low - pad) & (grid <= high + pad)]
