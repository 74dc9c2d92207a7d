"""Confusion matrices: a heat map for each rater, or whoever else a column of codes names, of labels given a latent
class.

For models that observe one column of categories whose probabilities depend on another column of codes and on one latent
of each row.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from ..posterior.base import Fitted
from ..posterior.compiled import structure_on
from ..program.sites import Layout
from ..trace.handlers import engine_state
from ..trace.provenance import plain, provenance
from .drawing import TEXT, color_bar, count, heat_map, left_out, panels, percent, picture
from .reading import UnfitKind, rows_of, trace_of

PANELS = 12  # raters that are drawn: those of most labels
WRITTEN = 8  # classes of a matrix whose numbers are written out


class Confusion(NamedTuple):
    """What each rater says of each class."""

    raters: tuple[str, ...]  # most active first
    counts: tuple[int, ...]  # of their labels
    probs: Tensor  # (J, K, C)
    classes: tuple[str, ...]
    labels: tuple[str, ...]
    shares: Tensor  # (K,) of the classes among the rows
    rater_column: str
    label_column: str


def confusion(fit: Fitted, data: Any = None) -> Figure:
    """The probability of each label in each class, in one heat map for each rater: for twelve at most, those of most
    labels first.

    Raises
    ------
    UnfitKind
        No column of categories depends on another column of codes and on a latent.
    """
    found = read_confusion(fit, data)
    shown = range(min(PANELS, len(found.raters)))
    across = min(len(shown), 3 if len(shown) <= 6 else 4)
    down = math.ceil(len(shown) / across)
    size = max(len(found.classes), 3)
    side = 0.62 * size if size <= WRITTEN else 5.0
    figure = picture(fit, 2.6 + across * (side + 0.5), 1.9 + down * (0.8 * side + 0.6))
    lines = [f"{name}   {percent(share)}" for name, share in zip(found.classes, found.shares.tolist(), strict=True)]
    for j, axes in zip(shown, panels(figure, len(shown), across), strict=True):
        heat_map(axes, found.probs[j].numpy(), Normalize(0, 1), "{:.2f}" if size <= WRITTEN else "")
        axes.set_title(f"{found.raters[j]}  ({count(found.counts[j], 'label')})", fontsize=TEXT, loc="left")
        axes.set_xticks(range(len(found.labels)), list(found.labels))
        axes.set_yticks(range(len(lines)), lines if j % across == 0 else list(found.classes))
    figure.supxlabel(f"{found.label_column} given", fontsize=TEXT)
    figure.supylabel("class, and its share of the rows", fontsize=TEXT)
    color_bar(figure, Normalize(0, 1), "probability in the class")
    if len(found.raters) > PANELS:
        left_out(figure, f"{PANELS} of {len(found.raters)}, those of most labels")
    return figure


def read_confusion(fit: Fitted, data: Any = None) -> Confusion:
    """The confusion matrices of a fit."""
    if data is None and fit.data is None:
        raise UnfitKind("this fit was loaded from a folder, which holds no data to tell raters by: pass the data")
    with engine_state(fit.seed), torch.no_grad():
        dataset, _, _ = rows_of(fit, data)
        values = dataset.values
        if not isinstance(values, Tensor) or values.dim() < 2:
            raise UnfitKind("the data are no table of several columns: try profiles, bound")
        structure = structure_on(fit, dataset)
        layout = Layout.of(structure)
        sites = trace_of(fit, values, layout)
        for name in structure.observed:
            found = _of_site(sites[name], values, layout)
            if found is not None:
                break
        else:
            raise UnfitKind("no column of categories depends on another column of codes and on a latent: try profiles")
    probs, counts, latent, rater, label = found
    order = counts.argsort(descending=True, stable=True)
    order = order[counts[order] > 0]
    columns = dataset.schema.columns or ("rater", "label")[: values.shape[-1]]
    known = {c: dataset.schema.labels.get(columns[c], ()) for c in (rater, label) if c < len(columns)}
    names = tuple(_name(known.get(rater, ()), j, "rater ") for j in order.tolist())
    labels = tuple(_name(known.get(label, ()), c) for c in range(probs.shape[-1]))
    same = probs.shape[1] == probs.shape[2]
    classes = labels if same else tuple(map(str, range(probs.shape[1])))
    shares = fit.latents(data)[layout.latents[latent]].mean(0)
    title = columns[label] if label < len(columns) else "label"
    return Confusion(
        names, tuple(counts[order].int().tolist()), probs[order], classes, labels, shares, columns[rater], title
    )


def _name(labels: tuple[str, ...], code: int, what: str = "") -> str:
    return labels[code] if code < len(labels) else f"{what}{code}"


def _of_site(site: Any, values: Tensor, layout: Layout) -> tuple[Tensor, Tensor, int, int, int] | None:
    """Probabilities (J, K, C) by code of another column, how often each code was met, the latent, and both columns."""
    fn, declared = site["fn"], 0
    while isinstance(fn, dist.Independent):
        declared += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    known = provenance(site["value"])
    if not isinstance(fn, dist.Categorical) or known is None or known.cells is None:
        return None
    latents = len(layout.latents)
    probs = layout.canonical(fn.probs, declared + 1, keep_rows=True)
    assert probs is not None
    bearing = [i for i in range(latents) if probs.shape[i] > 1]
    if len(bearing) != 1 or probs.shape[latents] == 1:
        return None
    probs = probs.squeeze([i for i in range(latents) if i not in bearing])  # (K, N, *cells, C)
    cells = layout.rows_first(known.cells, declared)
    label = int(cells.flatten()[0]) % values.shape[-1]
    seen = ~values.flatten()[cells].isnan()
    probs = probs.expand(len(probs), *cells.shape, probs.shape[-1])[:, seen]  # (K, P, C)
    for column in (c for c in range(values.shape[-1]) if c != label):
        codes = plain(values)[..., column]
        if codes.numel() != cells.numel() or not len(codes):
            continue
        codes = codes.reshape(cells.shape)[seen]
        if bool((codes != codes.floor()).any()) or bool((codes < 0).any()):
            continue
        codes = codes.long()
        chosen = torch.zeros(int(codes.max()) + 1, dtype=torch.long)
        chosen[codes] = torch.arange(len(codes))
        own = probs[:, chosen]  # (K, J, C)
        if torch.allclose(own[:, codes], probs, rtol=1e-9, atol=1e-12):
            return own.movedim(1, 0), torch.bincount(codes).double(), bearing[0], column, label
    return None
