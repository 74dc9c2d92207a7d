"""Pictures of fits with networks: where the rows lie among the latents, and what the decoder makes of a plane."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..base.errors import DataError
from ..data.adapt import numbers_of
from ..data.schema import Dataset
from ..data.streams import Rows
from ..data.structures import slice_rows
from ..posterior.amortized import decode
from ..posterior.base import Fitted
from ..program.deterministic import Moments
from .columns import UnfitKind
from .style import DATA, PALETTE, dress, percent, picture

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


def sheet(images: Tensor) -> Tensor:
    """Images (rows, columns, side, side) side by side, white between them."""
    down, across, side, _ = images.shape
    framed = torch.nn.functional.pad(images, (1, 1, 1, 1), value=float("nan"))
    return framed.permute(0, 2, 1, 3).reshape(down * (side + 2), across * (side + 2))


def means_of(fit: Fitted, data: Any) -> Tensor:
    """Posterior means (N, K) of all continuous latents of the rows."""
    if not fit.kind.guided:
        raise UnfitKind("its latents have no guide")
    found = [one.mean.reshape(len(one.mean), -1) for one in fit.latents(data).values() if isinstance(one, Moments)]
    if not found:
        raise UnfitKind("its rows have no continuous latents")
    return torch.cat(found, 1)
