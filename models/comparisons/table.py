"""Tables of contests: columns first, second and result as the models of comparisons take them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...inference.base.errors import DataError
from ...inference.data.columns import common_codes
from ...inference.data.schema import Schema

COLUMNS = ("first", "second", "result")
WORDS = {"loss": "loss lost lose l false", "tie": "tie tied draw drawn t d", "win": "win won w true"}


class Comparisons(NamedTuple):
    """Contests of two."""

    first: Tensor  # (N,) code of the one, 0 to P - 1
    second: Tensor  # (N,) of the other
    result: Tensor  # (N,) code
    outcome: Tensor  # (C,) of each code of the result: 0 the first lost, 1 a tie, 2 the first won
    names: tuple[str, ...] = ()  # of the players, where they have any


def comparisons(table: Tensor, schema: Schema, ties: bool) -> Comparisons:
    """The columns named first, second and result, or, where none is named so, the first three."""
    columns = schema.columns or ()
    places = [columns.index(name) for name in COLUMNS if name in columns]
    if len(places) < 3:
        places = [0, 1, 2]
    if table.dim() != 2 or table.shape[1] < 3:
        raise DataError(f"data: met shape {tuple(table.shape)}, expected three columns: {', '.join(COLUMNS)}")
    first, second, result = (table[:, place] for place in places)
    for column, place in ((first, 0), (second, 1)):
        if column.is_floating_point() and bool(column.isnan().any()):
            row = int(column.isnan().nonzero()[0])
            raise DataError(f"column '{COLUMNS[place]}' is missing in row {row}: a comparison needs both of the two")
    named = [columns[place] for place in places] if columns else []
    names, codes = common_codes(schema, named[:2])
    if names:
        first, second = (code[column.long()] for code, column in zip(codes, (first, second), strict=True))
    outcome = _outcomes(schema.labels.get(named[2], ()) if named else (), ties)
    return Comparisons(first.long(), second.long(), result, outcome.to(table.device), names)


def _outcomes(labels: tuple[str, ...], ties: bool) -> Tensor:
    order = ["loss", "tie", "win"]
    known = {word: order.index(kind) for kind, words in WORDS.items() for word in words.split()}
    met = []
    for label in labels:
        if label.lower() not in known:
            raise DataError(f"column 'result' holds {label!r}: expected win, tie or loss, of the first of the two")
        met.append(known[label.lower()])
    if 1 in met and not ties:
        raise DataError(f"column 'result' holds {labels[met.index(1)]!r}: create the model with ties=True")
    return torch.tensor([*met, *(o for o in (0, 1, 2) if o not in met and (o != 1 or ties))])


def require_connected(x: Comparisons, outcome: Tensor, players: int) -> None:
    """Refuse contests in which some players never lost to the others (Ford 1957): their strengths would run off.

    Parameters
    ----------
    outcome : Tensor (N,)
        As `Comparisons.outcome` has them, -1 where the result is missing.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    first, second, points = (t.cpu().numpy() for t in (x.first, x.second, outcome))
    up, down = points >= 1, (points == 0) | (points == 1)  # a tie is half a win of either
    beaten = np.concatenate([second[up], first[down]]), np.concatenate([first[up], second[down]])
    graph = coo_matrix((np.ones(len(beaten[0])), beaten), shape=(players, players))
    count, group = connected_components(graph, directed=True, connection="strong")
    if count == 1:
        return
    losers, winners = group[beaten[0]], group[beaten[1]]
    for number in np.unique(group):  # there is always a group that never lost outside itself
        if not ((losers == number) & (winners != number)).any():
            own = [x.names[i] if x.names else str(i) for i in np.flatnonzero(group == number)[:5]]
            raise DataError(
                f"player {', '.join(own)}{' and others' if (group == number).sum() > 5 else ''} never lost to any "
                f"other player, so no finite strength is the most likely: leave them out, or add contests"
            )
