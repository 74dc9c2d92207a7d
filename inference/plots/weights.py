"""How large each component is, with the uncertainty of its posterior: which are used at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..posterior.base import Fitted
from ..posterior.exact import program_on
from ..trace.handlers import base_of, engine_state
from ..trace.provenance import plain
from .clusters import EMPTY
from .columns import UnfitKind
from .style import DATA, SMALL, SUM_LINE, TOTAL, color, count, dress, picture

DRAWS = 400
MOST = 40  # components that are drawn: the largest


def weights(fit: Fitted, data: Any = None) -> Figure:
    """The probability of each value of a row's latent: posterior mean and 95 % interval, the largest first.

    Raises
    ------
    UnfitKind
        The fit has no posterior of what rows share; or the model has not one latent of a row, whose probabilities are
        the same in all rows.
    """
    if not fit.kind.guided:
        raise UnfitKind("what its rows share was learned as a point, without a posterior: try bound")
    if fit.data is None and data is None:
        raise UnfitKind("the posterior needs the data that were fitted: pass the data")
    with engine_state(fit.seed), torch.no_grad():
        program, _ = program_on(fit, fit.adapted(data))
    if len(program.structure.latents) != 1:
        raise UnfitKind(f"the rows have {count(len(program.structure.latents), 'latent')}: it draws one")
    (name,) = program.structure.latents
    values = fit.shared_draws(DRAWS, data=data)
    with engine_state(fit.seed), torch.no_grad():
        drawn = torch.stack([_probs(program, name, {n: v[s] for n, v in values.items()}) for s in range(DRAWS)])
    mean = drawn.mean(0)
    order = mean.argsort(descending=True)[:MOST]
    low, high = drawn[:, order].quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    figure = picture(fit, 7.0, 1.7 + 0.32 * len(order))
    axes = figure.subplots()
    place = np.arange(len(order))
    for at, component in enumerate(order.tolist()):
        axes.hlines(at, low[at], high[at], color=color(component), linewidth=2.6, alpha=0.45)
        axes.plot(mean[component], at, "o", color=color(component), markersize=6)
    alike = 1 / len(mean)
    axes.axvline(alike, color=TOTAL, linewidth=0.8, linestyle=SUM_LINE)
    axes.text(alike, -0.75, " all alike", fontsize=SMALL, va="center")
    axes.set_yticks(place, [str(component) for component in order.tolist()])
    axes.set_ylim(len(order) - 0.4, -1.1)
    axes.set_xlim(0, None)
    axes.grid(axis="x", color=DATA, linewidth=0.6, alpha=0.6)
    used = int((fit.latents(data)[name].sum(0) > EMPTY).sum())
    dress(axes, f"share of each of {len(mean)} components, {used} of which hold rows: 95 % interval", "share", name)
    axes.tick_params(axis="y", length=0, labelsize=SMALL)
    return figure


def _probs(program: Any, name: str, values: dict[str, Tensor]) -> Tensor:
    """The probabilities (K,) of a latent in a run of the model."""
    probs = plain(base_of(program.run(values).nodes[name]["fn"]).probs)
    if probs.numel() != probs.shape[-1]:
        raise UnfitKind(f"the probabilities of '{name}' differ from row to row: try bound")
    return probs.flatten()
