"""Pictures of fits with networks: where the rows lie among the latents, and what the decoder makes of a plane."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import MixtureSameFamily

from ..amortized.bounds import configurations, draw
from ..base.errors import DataError
from ..data.adapt import numbers_of
from ..data.schema import Dataset
from ..data.streams import Rows
from ..data.structures import slice_rows
from ..posterior.amortized import Opened, decode, opened
from ..posterior.base import Fitted
from ..program.deterministic import Moments
from ..trace.handlers import Bind
from .drawing import DATA, PALETTE, SMALL, count, dress, percent, picture, sheet
from .reading import UnfitKind

GRID = 15  # decoded images along a side
SHOWN = 3000  # rows of a scatter at most


def embedding(fit: Fitted, data: Any = None) -> Figure:
    """Posterior means of the rows: as a scatter of two numbers, of more along their first two principal axes."""
    means = means_of(fit, data)
    figure = picture(fit, 6.4, 5.6)
    axes = figure.add_subplot()
    if means.shape[1] == 1:
        axes.hist(means[:, 0].numpy(), bins=40, color=PALETTE[0])
        dress(axes, "posterior means of the latent", "z", "rows")
        return figure
    scattered(axes, plane_of(means), means)
    return figure


class Plane(NamedTuple):
    """Two directions among the latents."""

    center: Tensor  # (K,)
    axes: Tensor  # (K, 2)
    labels: list[str]
    note: str

    def of(self, points: Tensor) -> Tensor:
        """Where points (n, K) lie in it, (n, 2)."""
        return (points - self.center) @ self.axes


def plane_of(means: Tensor) -> Plane:
    """The two numbers of the latents, of more their first two principal axes."""
    size = means.shape[1]
    if size == 2:
        return Plane(torch.zeros_like(means[0]), torch.eye(2).to(means), ["z, first number", "z, second number"], "")
    center = means.mean(0)
    _, sd, axis = torch.linalg.svd(means - center, full_matrices=False)
    share = [percent(float(s)) for s in (sd**2 / (sd**2).sum())[:2]]
    labels = [f"first principal axis ({share[0]} of their variance)", f"second principal axis ({share[1]})"]
    return Plane(center, axis[:2].mT, labels, f" of {size} numbers")


def scattered(axes: Any, plane: Plane, means: Tensor) -> None:
    """Posterior means in a plane."""
    step = max(1, len(means) // SHOWN)
    shown = plane.of(means[::step])
    axes.axhline(0, color=DATA, linewidth=0.8, zorder=0)
    axes.axvline(0, color=DATA, linewidth=0.8, zorder=0)
    axes.scatter(shown[:, 0].numpy(), shown[:, 1].numpy(), s=10, color=PALETTE[0], alpha=0.5, linewidths=0)
    every = "" if step == 1 else f" (every {step}th shown)"
    dress(axes, f"posterior means of the rows{plane.note}{every}", *plane.labels)
    axes.set_aspect("equal", adjustable="datalim")


def manifold(fit: Fitted, data: Any = None) -> Figure:
    """What the decoder makes of a grid of the first two latents, of square images; the others stand at 0."""
    dataset = fit.adapted(data)
    if not isinstance(dataset.values, Tensor | Rows) or dataset.values.dim() != 2:
        raise UnfitKind("its data are no table")
    side = side_of(dataset)
    if not side:
        raise UnfitKind(f"its rows are no square images (they have {dataset.values.shape[1]} cells)")
    means = means_of(fit, slice_rows(dataset.values, slice(2)))
    if means.shape[1] < 2:
        raise UnfitKind("it has fewer than two latent numbers")
    site = next(
        name for name, found in fit.latents(slice_rows(dataset.values, slice(2))).items() if isinstance(found, Moments)
    )
    points = torch.special.ndtri(torch.linspace(0.05, 0.95, GRID, dtype=torch.float64))
    grid = torch.zeros(GRID**2, means.shape[1], dtype=torch.float64)
    grid[:, 0], grid[:, 1] = points.repeat(GRID), points.flip(0).repeat_interleave(GRID)
    try:
        rows = decode(fit, slice_rows(dataset.values, torch.zeros(GRID**2, dtype=torch.long)), {site: grid})
    except DataError as error:
        raise UnfitKind(str(error)) from None
    images = numbers_of(rows, fit.schema).reshape(GRID, GRID, side, side)
    figure = picture(fit, 6.6, 6.6)
    axes = figure.add_subplot()
    axes.imshow(sheet(images).numpy(), cmap="gray_r", extent=(0, GRID, 0, GRID), interpolation="nearest")
    ticks = [0, GRID // 2, GRID - 1]
    axes.set_xticks([t + 0.5 for t in ticks], [f"{points[t]:.2f}" for t in ticks])
    axes.set_yticks([t + 0.5 for t in ticks], [f"{points[t]:.2f}" for t in ticks])
    others = "" if means.shape[1] == 2 else f", the other {means.shape[1] - 2} at 0"
    dress(axes, f"expected images over nine tenths of the prior{others}", "z, first number", "z, second number")
    return figure


def side_of(dataset: Dataset) -> int:
    """Cells along a side of the square images that the rows are; 0 where they are none."""
    width = dataset.schema.width or 0
    side = math.isqrt(width)
    return side if side**2 == width and side >= 4 else 0


def means_of(fit: Fitted, data: Any) -> Tensor:
    """Posterior means (N, K) of all continuous latents of the rows."""
    if not fit.kind.guided:
        raise UnfitKind("its latents have no guide")
    found = [one.mean.reshape(len(one.mean), -1) for one in fit.latents(data).values() if isinstance(one, Moments)]
    if not found:
        raise UnfitKind("its rows have no continuous latents")
    return torch.cat(found, 1)


PARTS = PALETTE[1]
IMAGES = 25  # of the parts of a mixture, the heaviest
TOPS, EACH = 9, 8  # draws of the upper layer, and of the lower for each of them


class Parts(NamedTuple):
    """The parts of a mixture, the heaviest first."""

    site: str
    weights: Tensor  # (C,)
    means: Tensor  # (C, K)


def prior(fit: Fitted, data: Any = None) -> Figure:
    """Posterior means of the rows and, among them, the means of the parts that the prior is a mixture of: each with the
    image that it stands for, where rows are images.

    Raises
    ------
    UnfitKind
        The prior of a row's latent is no mixture.
    """
    means = means_of(fit, data)
    if means.shape[1] == 1:
        raise UnfitKind("its latent is one number")
    dataset = fit.adapted(data)
    side = side_of(dataset)
    with opened(fit, Dataset(slice_rows(dataset.values, slice(2)), dataset.schema), fit.seed) as it:
        parts = _parts(it)
        images = _expected_rows(it, {parts.site: parts.means[:IMAGES]}) if side else torch.empty(0)
    figure = picture(fit, 11.4 if side else 6.4, 5.8)
    panels = figure.subplots(1, 2 if side else 1, squeeze=False)[0]
    plane = plane_of(means)
    scattered(panels[0], plane, means)
    at = plane.of(parts.means)
    area = 600 * parts.weights / parts.weights.sum() ** 0.5
    panels[0].scatter(*at.mT.numpy(), s=area.numpy(), facecolors="none", edgecolors=PARTS, linewidths=1.4, zorder=3)
    if not side:
        return figure
    for place, (x, y) in enumerate(at[: len(images)].tolist()):
        panels[0].annotate(f" {place}", (x, y), fontsize=SMALL, color=PARTS, ha="left", va="bottom")
    across = math.ceil(len(images) ** 0.5)
    down = math.ceil(len(images) / across)
    blank = torch.full((across * down - len(images), side * side), torch.nan, dtype=images.dtype)
    tiles = torch.cat([images, blank]).reshape(down, across, side, side)
    panels[1].imshow(sheet(tiles).numpy(), cmap="gray_r", extent=(0, across, down, 0), interpolation="nearest")
    for place in range(len(images)):
        where = (place % across + 0.08, place // across + 0.06)
        panels[1].annotate(str(place), where, fontsize=SMALL, color=PARTS, ha="left", va="top")
    share = percent(float(parts.weights[: len(images)].sum()))
    most = f"the heaviest {len(images)} of " if len(images) < len(parts.means) else ""
    dress(panels[1], f"{most}{count(len(parts.means), 'part')} of the prior ({share}), expected images")
    panels[1].set_axis_off()
    return figure


def layers(fit: Fitted, data: Any = None) -> Figure:
    """What the upper layer of latents decides, and what it leaves to the lower: a line of images for each draw of the
    upper, the first of the lower's mean, the others of draws of it.

    Raises
    ------
    UnfitKind
        Rows are no square images, or have latents of one layer alone.
    """
    dataset = fit.adapted(data)
    side = side_of(dataset)
    if not side:
        raise UnfitKind(f"its rows are no square images (they have {dataset.schema.width} cells)")
    rows = slice_rows(dataset.values, torch.zeros(TOPS * (1 + EACH), dtype=torch.long))
    with opened(fit, Dataset(rows, dataset.schema), fit.seed) as it:
        story = it.story
        if len(story.latents) < 2 or story.discrete:
            raise UnfitKind("its rows have latents of one layer alone")
        upper = next(iter(story.latents))
        prior_of = draw(story, it.values, it.data, 1, False).model[upper]["fn"]
        drawn = prior_of.sample()[:TOPS].repeat_interleave(1 + EACH, 0)
        middle = torch.arange(len(drawn)) % (1 + EACH) == 0
        images = _expected_rows(it, {upper: drawn}, middle)
    figure = picture(fit, 7.4, 6.8)
    axes = figure.add_subplot()
    axes.imshow(sheet(images.reshape(TOPS, 1 + EACH, side, side)).numpy(), cmap="gray_r", extent=(0, 1 + EACH, TOPS, 0))
    axes.axvline(1, color=PARTS, linewidth=1.2)
    axes.set_xticks([0.5, 1 + EACH / 2], ["at its mean", f"draws of '{list(story.latents)[1]}' given '{upper}'"])
    axes.set_yticks([])
    axes.tick_params(length=0)
    dress(axes, f"expected images: each line has one draw of '{upper}'", "", f"draws of '{upper}'")
    return figure


class Middle(Messenger):
    """Some rows of some latents stand at their means."""

    def __init__(self, names: tuple[str, ...], which: Tensor) -> None:
        super().__init__()
        self.names, self.which = names, which

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["value"] = torch.where(self.which.unsqueeze(-1), msg["fn"].mean, msg["value"])


def _parts(it: Opened) -> Parts:
    """The mixture that the prior of a row's one latent is; also where the part is a latent of its own."""
    story = it.story
    if len(story.latents) != 1 or story.data_dim != -1:
        raise UnfitKind("its rows have other than one continuous latent")
    (site,) = story.latents
    drawn = draw(story, it.values, it.data, 1, False)
    fn = drawn.model[site]["fn"]
    if isinstance(fn, MixtureSameFamily):
        weights = fn.mixture_distribution.probs.expand(*fn.batch_shape, -1).reshape(-1, fn._num_component)[0]
        means = fn.component_distribution.mean
        means = means.reshape(-1, *means.shape[-2:])[0]
    elif len(story.discrete) == 1:
        (name,) = story.discrete
        probs = drawn.model[name]["fn"].probs
        weights = probs.reshape(-1, probs.shape[-1])[0][configurations(story, 1)[name]]
        means = fn.mean.reshape(*drawn.lead, -1)[:, 0, 0]
    else:
        raise UnfitKind("the prior of its latent is no mixture")
    if bool((means == means[0]).all()):
        raise UnfitKind("the prior of its latent is no mixture")
    order = weights.argsort(descending=True)
    return Parts(site, weights[order].double(), means[order].double())


def _expected_rows(it: Opened, given: dict[str, Tensor], middle: Tensor | None = None) -> Tensor:
    """Expected cells (n, D) where some latents stand at given values; the others are drawn, those of the rows `middle`
    at their means.
    """
    size = len(next(iter(given.values())))
    rows = slice_rows(it.data, torch.zeros(size, dtype=torch.long))
    play = Bind({**it.values, **{n: value.to(it.story.dtype) for n, value in given.items()}}, centred=False)
    others = tuple(name for name in it.story.latents if name not in given)
    with play, nullcontext() if middle is None else Middle(others, middle):
        it.story.pair.model(rows)
    (site,) = it.story.observed
    found: Tensor = play.nodes[site]["fn"].mean.double()
    return found
