"""Numbers with their intervals: params of a model that has no latents of its rows, and how large components are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..data.columns import common_codes
from ..data.schema import Schema
from ..linear_gaussian.posterior import summed_out
from ..posterior.base import Fitted
from ..posterior.exact import program_on
from ..trace.handlers import base_of, engine_state
from ..trace.provenance import plain
from .clusters import EMPTY
from .drawing import SMALL, SUM_LINE, TOTAL, color, count, dress, intervals, picture
from .reading import UnfitKind

DRAWS, SHARED = 1000, 400  # of params; of what rows share, each a run of the model
MOST = 60  # numbers of a param that are drawn: the largest
COMPONENTS = 40  # that are drawn: the largest


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
        names = _names(fit.schema, len(value))
        dress(axes, title, name)
        intervals(axes, value[order], low, high, [names[i] for i in order.tolist()], [color(0)] * len(order))
        axes.margins(y=0.5 / len(order))
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
    values = fit.shared_draws(SHARED, data=data)
    with engine_state(fit.seed), torch.no_grad():
        drawn = torch.stack([_probs(program, name, {n: v[s] for n, v in values.items()}) for s in range(SHARED)])
    mean = drawn.mean(0)
    order = mean.argsort(descending=True)[:COMPONENTS]
    low, high = drawn[:, order].quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
    figure = picture(fit, 7.0, 1.7 + 0.32 * len(order))
    axes = figure.subplots()
    used = int((fit.latents(data)[name].sum(0) > EMPTY).sum())
    dress(axes, f"share of each of {len(mean)} components, {used} of which hold rows: 95 % interval", "share", name)
    largest = order.tolist()
    intervals(axes, mean[order], low, high, [str(k) for k in largest], [color(k) for k in largest])
    alike = 1 / len(mean)
    axes.axvline(alike, color=TOTAL, linewidth=0.8, linestyle=SUM_LINE)
    axes.text(alike, -0.75, " all alike", fontsize=SMALL, va="center")
    axes.set_ylim(len(order) - 0.4, -1.1)
    axes.set_xlim(0, None)
    return figure


def _probs(program: Any, name: str, values: dict[str, Tensor]) -> Tensor:
    """The probabilities (K,) of a latent in a run of the model."""
    probs = plain(base_of(program.run(values).nodes[name]["fn"]).probs)
    if probs.numel() != probs.shape[-1]:
        raise UnfitKind(f"the probabilities of '{name}' differ from row to row: try bound")
    return probs.flatten()
