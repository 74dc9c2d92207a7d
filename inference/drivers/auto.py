"""Which inference fits a model, picked by looking at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..base.errors import DataError, HasNetworks, ModelError
from ..cavi.counts.model import read_allocation, sample_of
from ..cavi.derivation import mean_field
from ..data.devices import in_double
from ..data.schema import Dataset
from ..data.sparse import Bags, densified
from ..data.streams import Rows, first_rows
from ..linear_gaussian.marginalize import sum_out
from ..pair import Pair
from ..trace.handlers import engine_state
from ..trace.structure import Structure, read
from .inputs import in_memory, take_in

COST_OF_SVI = "SVI took 10 times as long to the same maximum on iris"  # measured in tutorial 4
LOOK = 64  # rows of the run that looks for networks where the others are read when asked for
REASONS = {
    "em": f"auto: every latent of a row can be summed out, so EM is exact; {COST_OF_SVI}",
    "cavi": "auto: the latents that rows share have conjugate priors, so coordinate ascent follows from the model",
    "graph": "auto: the latents of nodes meet in pairs, and a mean field over nodes follows from the model",
    "svi": "auto: the model has no closed form, so its bound is climbed by gradient",
}


def pick(pair: Pair, data: Any = None, fits: Sequence[str] = ()) -> tuple[str, str]:
    """The driver that suits a pair, and why: EM wherever it is exact, CAVI where the posterior of shared latents is
    wanted and conjugate.

    Parameters
    ----------
    fits : sequence of str
        Of a registered model: the drivers that fit it, best first.
    """
    if pair.guide is not None:
        return "svi", "auto: the pair brings a guide of its own"
    if fits:
        return fits[0], REASONS[fits[0]]
    if pair.graph is not None:
        return "cavi", REASONS["graph"]
    if data is not None:
        bound, dataset, home = take_in(pair, data, None, sparse=True, rows=True)
        with engine_state(0, home):
            try:
                if isinstance(dataset.values, Rows):
                    few = in_double(replace(dataset, values=first_rows(dataset.values, LOOK)))
                    _look_for_networks(bound, few)
                    dataset = in_memory(dataset, None, sparse=True)
                structure = read(bound.model, sample_of(dataset.values))
            except HasNetworks as error:
                return "svi", f"auto: the model has a network, '{error.network}', whose weights are climbed by gradient"
            try:
                if read_allocation(bound.model, dataset.values, structure, dataset.schema) is not None:
                    return "cavi", REASONS["cavi"]
            except ModelError:
                pass
            if isinstance(dataset.values, Bags):
                dataset = replace(dataset, values=densified(dataset.values))
                structure = read(bound.model, dataset.values)
            priors = any(param.prior is not None for param in structure.params.values())
            if priors and _derives(mean_field, bound, dataset, structure):
                return "cavi", REASONS["cavi"]
            if structure.continuous:
                name = structure.continuous[0]
                if _derives(sum_out, bound, dataset, structure):
                    return "em", f"auto: latent '{name}' is normal, the model linear in it: summed out, EM is exact"
                return "svi", f"auto: latent '{name}' of each row is continuous, and cannot be summed out"
    return "em", REASONS["em"]


def _look_for_networks(pair: Pair, few: Dataset) -> None:
    """Raise HasNetworks where the model runs one; whatever else is wrong will be said by who reads all of the data."""
    try:
        read(pair.model, few.values)
    except HasNetworks:
        raise
    except (DataError, ModelError):
        return


def _derives(derivation: Any, pair: Pair, dataset: Dataset, structure: Structure) -> bool:
    """Whether a derivation from the model succeeds."""
    try:
        derivation(pair.model, dataset.values, structure)
    except ModelError:
        return False
    return True
