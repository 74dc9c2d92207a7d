"""Pictures of models in layers: which units of the layer below, and at last which columns, each unit brings."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from .plots_columns import UnfitKind
from .plots_style import dress, picture

NAMED = 20  # columns whose names fit under a panel


def units(fit: Any, data: Any = None) -> Figure:
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


def chain_of(fit: Any) -> list[tuple[str, Tensor]]:
    """Matrices (K_1, V), (K_2, K_1), ... of positive numbers, from the columns upwards."""
    matrices = {n: v for n, v in fit.params.items() if v.dim() == 2 and bool((v > 0).all())}
    chain: list[tuple[str, Tensor]] = []
    width = fit.schema.width
    while fit.guide and (found := next((n for n, v in matrices.items() if v.shape[1] == width), None)) is not None:
        value = matrices.pop(found)
        chain.append((found, value))
        width = len(value)
    if len(chain) < 2:
        raise UnfitKind("it has no layers of positive weights")
    return chain
