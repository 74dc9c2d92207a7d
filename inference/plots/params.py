"""Params as estimates with their intervals: the picture of a model that has no latents of its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ..data.columns import common_codes
from ..data.schema import Schema
from ..linear_gaussian.posterior import summed_out
from ..posterior.base import Fitted
from ..posterior.exact import program_on
from ..trace.handlers import engine_state
from .columns import UnfitKind
from .style import DATA, SMALL, color, dress, picture

DRAWS = 1000
MOST = 60  # numbers of a param that are drawn: the largest


def params(fit: Fitted, data: Any = None) -> Figure:
    """Each list of numbers that was learned, in order of size, with intervals of 95 %: of its posterior, or, where it
    was learned as a point, by Laplace's approximation.

    Raises
    ------
    UnfitKind
        The rows have latents, which have pictures of their own; or nothing learned is a list of numbers.
    """
    if fit.data is None and data is None:
        raise UnfitKind("the intervals need the data that were fitted: pass the data")
    with engine_state(fit.seed), torch.no_grad():
        program, _ = program_on(fit, fit.adapted(data))
    if program.structure.latents:
        raise UnfitKind(f"the rows have a latent, '{next(iter(program.structure.latents))}': try profiles, bound")
    if summed_out(program):
        raise UnfitKind("the rows have factors: try biplot, loadings")
    found = {name: value for name, value in fit.params.items() if value.dim() == 1 and len(value) > 1}
    if not found:
        raise UnfitKind("no param of this model is a list of numbers: try bound")
    draws = fit.shared_draws(DRAWS, data=data) if fit.kind.guided else fit.param_draws(DRAWS)
    title = "posterior mean and 95 % interval" if fit.kind.guided else "estimate and 95 % interval (Laplace)"
    tallest = max(min(len(value), MOST) for value in found.values())
    figure = picture(fit, 3.4 + 3.6 * len(found), 1.6 + 0.28 * tallest)
    for axes, (name, value) in zip(np.atleast_1d(figure.subplots(1, len(found))), found.items(), strict=True):
        order = value.argsort()[-MOST:]
        low, high = draws[name][:, order].quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
        place = np.arange(len(order))
        axes.hlines(place, low, high, color=color(0), linewidth=2.2, alpha=0.45)
        axes.plot(value[order], place, "o", color=color(0), markersize=6)
        axes.set_yticks(place, [_names(fit.schema, len(value))[i] for i in order.tolist()])
        axes.grid(axis="x", color=DATA, linewidth=0.6, alpha=0.6)
        axes.margins(y=0.5 / len(order))
        dress(axes, title, name)
        axes.tick_params(axis="y", length=0, labelsize=SMALL)
    return figure


def _names(schema: Schema, size: int) -> list[str]:
    """What a list of that size is about: the columns, or the labels that columns share; numbers where it is neither."""
    if schema.columns and len(schema.columns) == size:
        return list(schema.columns)
    for first in schema.labels:
        shared = [other for other, labels in schema.labels.items() if set(labels) & set(schema.labels[first])]
        names, _ = common_codes(schema, shared)
        if len(names) == size:
            return list(names)
    return [str(number) for number in range(size)]
