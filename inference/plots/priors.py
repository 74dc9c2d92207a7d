"""Pictures of priors that networks make: the parts of a mixture, and what each of two layers decides."""

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
from ..data.schema import Dataset
from ..data.structures import slice_rows
from ..posterior.amortized import Opened, opened
from ..posterior.base import Fitted
from ..trace.handlers import Bind
from .columns import UnfitKind
from .latents import means_of, plane_of, scattered, sheet, side_of
from .style import PALETTE, SMALL, count, dress, percent, picture

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
