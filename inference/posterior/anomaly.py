"""How unusual rows are under a fit, and how well that tells rows that are known to be of another kind."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..base.errors import DataError, OptionError
from ..data.schema import Dataset
from .amortized import Encoder
from .base import Fitted

BY = ("density", "reconstruction")


def anomalies(fit: Fitted, dataset: Dataset, by: str, names: Any) -> Any:
    """The scores of rows as a Series; see `Fit.anomaly`."""
    import pandas as pd

    if by not in BY:
        raise OptionError(f"by: met {by!r}, expected one of {', '.join(BY)}")
    if by == "reconstruction" and not isinstance(fit.kind, Encoder):
        raise OptionError("by: 'reconstruction' is for fits with networks: leave it out, for minus log p(x)")
    with fit.kind.on(dataset) as it:
        found = -(it.likelihood() if by == "reconstruction" and isinstance(it, Encoder) else it.log_evidence())
    return pd.Series(found.double().numpy(), index=dataset.names if names is None else names, name="anomaly")


class Roc(NamedTuple):
    """What each threshold of a score says: rows above it are called anomalous."""

    false_alarms: np.ndarray  # share of the usual rows that are above
    found: np.ndarray  # share of the anomalous ones
    auc: float  # area under the curve: chance that an anomalous row scores above a usual one, ties counted half


def roc(scores: Any, labels: Any) -> Roc:
    """The receiver operating characteristic of scores (N,), larger for what is unusual.

    Parameters
    ----------
    labels : (N,) of bool, or of 0 and 1
        Which rows are known to be anomalous.

    Raises
    ------
    DataError
        The labels are of another number, of another kind, or all alike.
    """
    score = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64)
    label = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if label.shape != score.shape or label.ndim != 1:
        raise DataError(f"labels: met shape {label.shape}, expected one for each row, {score.shape}")
    if label.dtype.kind not in "biuf" or not np.isin(label, (0, 1)).all():
        raise DataError("labels: expected True (or 1) for the rows that are anomalous, False (or 0) for the others")
    if not np.isfinite(score).all():
        raise DataError("scores: met one that is no finite number")
    label = label.astype(bool)
    if label.all() or not label.any():
        kind = "anomalous" if label.all() else "usual"
        raise DataError(f"labels: all rows are {kind}, expected some of each kind")
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)  # of rows that tie, a threshold takes all or none
    found = np.append(0.0, np.cumsum(label[order])[last] / label.sum())
    false_alarms = np.append(0.0, np.cumsum(~label[order])[last] / (~label).sum())
    return Roc(false_alarms, found, float((np.diff(false_alarms) * (found[1:] + found[:-1]) / 2).sum()))


def row_names(data: Any, fit: Fitted) -> Any:
    """What the rows of a pandas table are called, where a row of it is a row of the model."""
    own = fit.pair.by is None and fit.pair.graph is None and type(data).__module__.partition(".")[0] == "pandas"
    return data.index if own else None


def renamed(out: Any, data: Any, fit: Fitted) -> Any:
    """A pandas table under the names of the rows that it was computed from."""
    names = row_names(data, fit)
    return out if names is None or not hasattr(out, "set_axis") else out.set_axis(names, axis=0)
