"""Which functions know a fit's posterior, by the guide that it was fitted with."""

from __future__ import annotations

from types import ModuleType

from ..cavi.counts.model import COUNTS
from ..cavi.fit import CONJUGATE
from ..cavi.graphs.model import GRAPH
from . import amortized, amortized_rows, counts, exact, generate, graphs, guided, guided_rows, new_graphs, predictions

# guides of encoders, and of pairs with networks
NETWORKS = ("networks", "amortized", "amortized_full", "amortized_mixture", "amortized_flow")
OWN = {COUNTS: counts, GRAPH: graphs}  # guides with verbs of their own


def posterior_of(guide: str) -> ModuleType:
    """Scores, latents, draws of the posterior."""
    if guide in NETWORKS:
        return amortized
    return OWN.get(guide, guided) if guide else exact


def filling_of(guide: str) -> ModuleType:
    """What its observed sites are expected to be."""
    if guide in NETWORKS:
        return amortized_rows
    return {**OWN, CONJUGATE: predictions}.get(guide, guided_rows if guide else generate)


def making_of(guide: str) -> ModuleType:
    """New rows."""
    if guide in NETWORKS:
        return filling_of(guide)
    return new_graphs if guide == GRAPH else generate
