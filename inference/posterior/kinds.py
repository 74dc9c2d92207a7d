"""Which posterior a fit has."""

from __future__ import annotations

from collections.abc import Callable

from ..amortized.encoder import NAMES, OWN
from ..base.errors import DataError
from ..cavi.counts.model import COUNTS
from ..cavi.fit import CONJUGATE
from ..cavi.graphs.model import GRAPH
from .amortized import Encoder
from .base import Fitted, Posterior
from .conjugate import Conjugate
from .counts import Counts
from .exact import Point
from .graphs import Graph
from .guided import Guided

Kind = Callable[[Fitted], Posterior]
OF_GUIDES: dict[str, Kind] = {"": Point, COUNTS: Counts, GRAPH: Graph, CONJUGATE: Conjugate}
OF_GUIDES |= dict.fromkeys((OWN, *NAMES), Encoder)


def posterior_of(fit: Fitted) -> Posterior:
    """The posterior of a fit, by the name under which its guide is saved; the other names are of guides by SVI."""
    return OF_GUIDES.get(fit.guide, Guided)(fit)


def encoder_of(fit: Fitted, verb: str) -> Encoder:
    """Of a fit with networks.

    Raises
    ------
    DataError
        It has none; the message begins with the verb that wants them.
    """
    if isinstance(fit.kind, Encoder):
        return fit.kind
    raise DataError(f"{verb}: the fit has no encoder: fit the pair with guide='amortized', or use score, latents")


def without_networks(fit: Fitted, verb: str) -> Posterior:
    """Of a fit without networks, whose weights are no quantities to ask after."""
    if isinstance(fit.kind, Encoder):
        raise DataError(f"{verb}: of weights of networks there is a point alone; see sample_posterior, importance")
    return fit.kind
