"""Which functions know a fit's posterior, by the guide that it was fitted with."""

from __future__ import annotations

from types import ModuleType

from . import allocated, factor_guide, generate, guided, guided_rows, predictions, related, verbs

# guides of encoders, and of pairs with networks
NETWORKS = ("networks", "amortized", "amortized_full", "amortized_mixture", "amortized_flow")
OWN = {allocated.GUIDE: allocated, related.GUIDE: related}  # guides with verbs of their own


def posterior_of(guide: str) -> ModuleType:
    """Scores, latents, draws of the posterior."""
    if guide in NETWORKS:
        from . import deep_verbs  # what it is made of makes fits

        return deep_verbs
    return OWN.get(guide, guided) if guide else verbs


def filling_of(guide: str) -> ModuleType:
    """What its observed sites are expected to be."""
    if guide in NETWORKS:
        from . import deep_rows  # what it is made of makes fits

        return deep_rows
    return {**OWN, factor_guide.GUIDE: predictions}.get(guide, guided_rows if guide else generate)


def making_of(guide: str) -> ModuleType:
    """New rows."""
    if guide in NETWORKS:
        return filling_of(guide)
    return related if guide == related.GUIDE else generate
