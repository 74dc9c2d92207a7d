"""Pictures of a fit, each a matplotlib Figure of its own: no window opens, and nothing global is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from ..base.errors import ModelError, OptionError
from ..posterior.base import Fitted
from .anomalies import curves as roc
from .bound import bound, decomposition
from .clusters import clusters
from .factors import biplot, loadings, scree
from .graphs import blocks
from .intervals import params, weights
from .items import curves, information
from .latents import embedding, layers, manifold, prior
from .raters import confusion
from .reading import UnfitKind
from .regressions import regressions
from .rows import interpolation, reconstruction, samples
from .tables import profiles, rates
from .topics import mixtures, topics, units

KINDS: dict[str, Callable[..., Figure]] = {
    "bound": bound,
    "biplot": biplot,
    "loadings": loadings,
    "scree": scree,
    "clusters": clusters,
    "params": params,
    "curves": curves,
    "information": information,
    "confusion": confusion,
    "topics": topics,
    "mixtures": mixtures,
    "units": units,
    "profiles": profiles,
    "rates": rates,
    "regressions": regressions,
    "decomposition": decomposition,
    "prior": prior,
    "layers": layers,
    "manifold": manifold,
    "embedding": embedding,
    "weights": weights,
    "blocks": blocks,
    "roc": roc,
    "reconstruction": reconstruction,
    "samples": samples,
    "interpolation": interpolation,
}
"""Name of each kind -> the function of a fit, and data where it takes other than the fit's, that draws it."""

DECODED = ("prior", "layers", "manifold", "interpolation")  # kinds that ask a network of points of the latents
OF_ROWS = ("reconstruction", "samples", "interpolation")  # kinds that no model has for its own
LABELLED = ("roc",)  # kinds that take labels of the rows as well

# what a model observes: numbers, categories, counts; before these, whether its rows have latents, and of what kind
BY_STRUCTURE = (
    "blocks",
    "biplot",
    "topics",
    "units",
    "params",
    "clusters",
    "regressions",
    "confusion",
    "curves",
    "profiles",
    "rates",
    "embedding",
)


OF_NETWORKS = (
    "topics",
    "prior",
    "layers",
    "manifold",
    "embedding",
    "bound",
    "mixtures",
)  # of a fit with networks, the first that suits


def plot(fit: Fitted, kind: str | None = None, data: Any = None, labels: Any = None) -> Figure:
    """Draw a fit.

    Parameters
    ----------
    fit : Fit
    kind : str, optional
        One of `KINDS`. Without it: "blocks" of a graph; "biplot" where rows have normal latents that can be summed out;
        "topics" of a model whose rows mix shared profiles of counts; "units" where these have layers above them;
        "params" of one whose rows have no latents; "clusters" of one that observes numbers, "profiles" of categories
        ("curves" where a quantity of each row is computed from its latent, "confusion" where another column says who
        gave them), "rates" of counts, "embedding" where rows have continuous latents that a guide knows, and "bound" of
        any other. Of a fit with networks "topics" again; "prior" where that of a row is a mixture; of square images
        "layers" where rows have latents of two layers, "manifold" where they have two numbers or more; otherwise
        "embedding". Only when asked for: "reconstruction", "samples" and "interpolation", rows as the fit expects them,
        makes them up, and finds them between two.
    data : anything `Fit.adapted` takes, optional
        Rows to draw in place of those of the fit.
    labels : (N,) of bool, optional
        For "roc": which rows are known to be anomalous.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.savefig(path)`` writes it; a notebook shows it by itself.

    Raises
    ------
    OptionError
        No such kind, or one that does not fit the model.
    """
    if kind is None:
        for name in OF_NETWORKS if fit.kind.networks else BY_STRUCTURE:
            try:
                return _drawn(name, fit, data)
            except UnfitKind:
                continue
        return bound(fit, data)
    if kind not in KINDS:
        raise OptionError(f"kind: met {kind!r}, expected one of {', '.join(KINDS)}")
    if labels is not None and kind not in LABELLED:
        raise OptionError(f"labels: kind {kind!r} takes none, {', '.join(LABELLED)} does")
    own = (*OF_NETWORKS, *LABELLED, *OF_ROWS)
    if fit.kind.networks and kind not in own:
        raise OptionError(f"kind: met {kind!r}, but a fit with networks has {', '.join(own)}")
    try:
        return KINDS[kind](fit, data, labels) if kind in LABELLED else _drawn(kind, fit, data)
    except UnfitKind as error:
        raise OptionError(f"kind: met {kind!r}, but {error}") from None


def _drawn(kind: str, fit: Fitted, data: Any) -> Figure:
    if kind in DECODED and not fit.kind.networks:
        raise UnfitKind("it has no networks")
    try:
        return KINDS[kind](fit, data)
    except ModelError:
        if fit.pair.graph is not None:
            raise UnfitKind("the nodes of a graph meet in pairs: try blocks, bound") from None
        raise UnfitKind("its rows have continuous latents that nothing sums out: try topics, bound") from None
