"""Pictures of anomaly scores: how well they tell rows of another kind from the usual ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..base.errors import OptionError
from ..posterior.anomaly import BY, roc
from ..posterior.base import Fitted
from .drawing import DATA, PALETTE, SMALL, dress, picture

WORDS = {"density": "minus log p(x)", "reconstruction": "reconstruction"}
BINS = 30


def curves(fit: Fitted, data: Any = None, labels: Any = None) -> Figure:
    """ROC curves of the anomaly scores of rows, of which `labels` (N,) says which are anomalous; and how the scores of
    the two kinds of rows lie.
    """
    if labels is None:
        raise OptionError("labels: a ROC curve needs to know which rows are anomalous: plot('roc', data, labels=...)")
    found = {by: fit.anomaly(data, by) for by in (BY if fit.kind.networks else BY[:1])}
    figure = picture(fit, 10.4, 4.9)
    left, right = figure.subplots(1, 2)
    for number, (by, scores) in enumerate(found.items()):
        curve = roc(scores, labels)
        name = f"{WORDS[by]}: AUC {curve.auc:.3f}"
        left.plot(curve.false_alarms, curve.found, color=PALETTE[number], linewidth=2, label=name)
    left.plot([0, 1], [0, 1], color=DATA, linewidth=1.2, zorder=0, label="chance: AUC 0.500")
    left.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    left.legend(frameon=False, fontsize=SMALL, loc="lower right")
    strange = np.asarray(labels).astype(bool)
    dress(
        left,
        f"{int(strange.sum())} anomalous rows among {len(strange)}",
        "share of usual rows called anomalous",
        "share of anomalous rows found",
    )
    scores = np.asarray(found["density"])
    edges = np.histogram_bin_edges(np.clip(scores, None, np.quantile(scores, 0.995)), BINS)
    for kind, shade, chosen in (("usual", DATA, ~strange), ("anomalous", PALETTE[2], strange)):
        inside = np.clip(scores[chosen], None, edges[-1])  # the last bar holds all above
        right.hist(inside, edges, density=True, color=shade, alpha=0.75, label=f"{kind} rows")
    right.legend(frameon=False, fontsize=SMALL)
    right.set_yticks([])
    right.spines["left"].set_visible(False)
    dress(right, "how the scores lie, each kind by itself", "minus log p(x), nats")
    return figure
