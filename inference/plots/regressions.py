"""A response against an input, each row in the colour of its most probable component, with what each expects."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ..posterior.base import Fitted
from .clusters import certainty, component_handles
from .drawing import TOTAL, color, count, dress, legend, marker, picture
from .reading import Reading, UnfitKind, read_columns


def regressions(fit: Fitted, data: Any = None) -> Figure:
    """Rows by an input and the response, faded where their component is uncertain, and the lines of the components.

    Of more than one input that is drawn which the components' expectations go along with most; as the other inputs
    differ from row to row, each component's expectations are then points and no line.

    Raises
    ------
    UnfitKind
        The model does not observe one column of numbers whose expected value differs from row to row.
    """
    reading = read_columns(fit, data, "numbers")
    reading.require_rows()
    expected = _expected(reading)  # (E, n)
    rows = torch.arange(expected.shape[1])
    table = reading.dataset.values
    if not isinstance(table, Tensor) or table.dim() != 2:
        raise UnfitKind("the data are no table, so no input can be told: try bound")
    table = table[rows].double()
    response = reading.values[rows, 0]
    others = [d for d in range(table.shape[1]) if not torch.equal(table[:, d].nan_to_num(), response.nan_to_num())]
    if not others:
        raise UnfitKind("the data have no column beside the response: try bound")
    place = max(others, key=lambda d: _together(expected, table[:, d]))
    x = table[:, place]
    posterior, filled = reading.posterior(rows)
    figure = picture(fit, 8.6, 5.6)
    axes = figure.add_subplot()
    own, sure = posterior.argmax(1), certainty(posterior)
    order = x.argsort()
    seen = ~response.isnan()
    for k in range(len(expected)):
        mine = (own == k) & seen
        alpha = (0.2 + 0.7 * sure[mine]).numpy()
        tint = np.column_stack([np.tile(to_rgb(color(k)), (len(alpha), 1)), alpha])
        axes.scatter(x[mine], filled[mine, 0], s=22, marker=marker(k), c=tint, linewidth=0)
        line: dict[str, Any] = {"linewidth": 2} if len(others) == 1 else {"linestyle": "", "marker": "_", "alpha": 0.5}
        axes.plot(x[order], expected[k, order], color=color(k), zorder=3, **line)
    names = reading.dataset.schema.columns
    label = names[place] if names else f"column {place}"
    told = "" if len(others) == 1 else f"\non the 1 of {len(others)} inputs that they go along with most"
    title = f"{count(len(rows), 'row')} by most probable component, and what each component expects{told}"
    dress(axes, title, label, reading.columns[0])
    handles = component_handles(reading, lambda k: Line2D([], [], color=color(k), marker=marker(k), linestyle=""))
    what: dict[str, Any] = {"linestyle": "-"} if len(others) == 1 else {"linestyle": "", "marker": "_"}
    handles.append(Line2D([], [], color=TOTAL, label="expected", **what))
    handles.append(Line2D([], [], color=TOTAL, marker="o", linestyle="", alpha=0.25, label="pale: uncertain"))
    legend(figure, handles, "component (share)")
    return figure


def _expected(reading: Reading) -> Tensor:
    """Expected values (E, n) of the one observed column, on the rows whose distributions were read."""
    if len(reading.columns) != 1:
        raise UnfitKind(
            f"this model observes {len(reading.columns)} columns of numbers, and a regression one: try bound"
        )
    item = reading.items[0]
    found = reading.layout.canonical(item.fn.mean, item.inner, keep_rows=True)
    axis = len(reading.drawn)
    if found is None or found.shape[axis] == 1:
        raise UnfitKind("what this model expects is the same in every row: try clusters")
    return found.expand(*reading.drawn, *found.shape[axis:]).reshape(-1, found.shape[axis]).double()


def _together(expected: Tensor, column: Tensor) -> float:
    """Mean absolute correlation of the components' expectations with a column."""
    if column.isnan().any() or column.std() == 0:
        return -1.0
    pairs = [torch.corrcoef(torch.stack([one, column]))[0, 1].abs().nan_to_num(0.0).item() for one in expected]
    return sum(pairs) / len(pairs)
