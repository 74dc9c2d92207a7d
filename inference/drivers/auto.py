"""Which inference fits a model, picked by looking at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..base.errors import DataError, HasNetworks, ModelError
from ..cavi.counts.model import read_allocation, sample_of
from ..cavi.derivation import mean_field
from ..data.devices import in_double
from ..data.schema import Dataset
from ..data.sparse import Bags, densified
from ..data.streams import Rows, first_rows
from ..linear_gaussian.groups import find_mixed
from ..linear_gaussian.marginalize import sum_out
from ..pair import Pair
from ..trace.handlers import engine_state
from ..trace.structure import Structure, read
from .inputs import in_memory, take_in
from .plain_errors import plainly

LOOK = 64  # rows of the run that looks for networks where the others are read when asked for
FULL = 300  # numbers of shared latents up to which their guide has a covariance of its own for every two
REASONS = {
    "em": "auto: whatever is latent in a row can be summed out, so EM is exact",
    "cavi": "auto: the latents that rows share have conjugate priors, so coordinate ascent follows from the model",
    "graph": "auto: the latents of nodes meet in pairs, and a mean field over nodes follows from the model",
    "svi": "auto: the model has no closed form, so its bound is climbed by gradient",
}


class Picked(NamedTuple):
    """The driver that suits a pair, why, and options of it that suit the pair where none are given."""

    driver: str
    reason: str
    options: dict[str, Any] = {}


@plainly
def pick(pair: Pair, data: Any = None, fits: Sequence[str] = ()) -> Picked:
    """The driver that suits a pair, and why.

    Shared latents with priors are given a posterior: by CAVI where it follows from the model, otherwise by SVI with a
    guide that knows how they depend on one another. EM, which would hold them at their joint mode, is for models whose
    params are all learned by maximum likelihood.

    Parameters
    ----------
    fits : sequence of str
        Of a registered model: the drivers that fit it, best first.
    """
    if pair.guide is not None:
        return Picked("svi", "auto: the pair brings a guide of its own")
    if fits:
        return Picked(fits[0], REASONS[fits[0]])
    if pair.graph is not None:
        return Picked("cavi", REASONS["graph"])
    if data is None:
        return Picked("em", REASONS["em"])
    bound, dataset, home = take_in(pair, data, None, sparse=True, rows=True)
    with engine_state(0, home):
        try:
            if isinstance(dataset.values, Rows):
                few = in_double(replace(dataset, values=first_rows(dataset.values, LOOK)))
                _look_for_networks(bound, few)
                dataset = in_memory(dataset, None, sparse=True)
            structure = read(bound.model, sample_of(dataset.values))
        except HasNetworks as error:
            name = error.network
            return Picked("svi", f"auto: the model has a network, '{name}', whose weights are climbed by gradient")
        try:
            if read_allocation(bound.model, dataset.values, structure, dataset.schema) is not None:
                return Picked("cavi", REASONS["cavi"])
        except ModelError:
            pass
        if isinstance(dataset.values, Bags):
            dataset = replace(dataset, values=densified(dataset.values))
            structure = read(bound.model, dataset.values)
        sizes = {name: param.value.numel() for name, param in structure.params.items() if param.prior is not None}
        if sizes and _all_summed_out(bound, dataset, structure, sizes):
            names = ", ".join(map(repr, sizes))
            return Picked("em", f"auto: {names} shared by rows are normal, the model linear in them: EM is exact")
        if sizes:
            return _of_shared(sizes, _why_not(mean_field, bound, dataset, structure))
        if structure.continuous:
            name = structure.continuous[0]
            if not _why_not(sum_out, bound, dataset, structure):
                reason = f"auto: latent '{name}' is normal, the model linear in it: summed out, EM is exact"
                return Picked("em", reason)
            return Picked("svi", f"auto: latent '{name}' of each row is continuous, and cannot be summed out")
        if not structure.latents:
            return Picked("em", "auto: no row has a latent, so log p(x) itself is climbed, of which EM is exact")
        names = ", ".join(map(repr, structure.latents))
        return Picked("em", f"auto: {names} of each row can be summed out, so EM is exact")


def _all_summed_out(pair: Pair, dataset: Dataset, structure: Structure, sizes: dict[str, int]) -> bool:
    """Whether the model is a mixed one, of which only params are learned."""
    try:
        mixed = find_mixed(pair.model, dataset.values, structure)
    except ModelError:
        return False
    return mixed is not None and set(sizes) <= set(mixed.shapes)


def _of_shared(sizes: dict[str, int], why_not: str) -> Picked:
    """A posterior of latents that rows share, of so many numbers each."""
    if not why_not:
        apart = "; its factors are independent, so latents that lean on one another seem surer than they are"
        return Picked("cavi", REASONS["cavi"] + (apart if sum(sizes.values()) > 1 else ""))
    names, total = ", ".join(map(repr, list(sizes)[:5])) + ", ..." * (len(sizes) > 5), sum(sizes.values())
    guide = "full_rank" if total <= FULL else "low_rank"
    shape = guide.replace("_", "-")
    return Picked(
        "svi",
        f"auto: {names} shared by the rows have priors, and coordinate ascent does not follow ({why_not}), so their "
        f"posterior is fitted by gradient, as a {shape} normal over their {total} numbers",
        {"guide": guide},
    )


def _look_for_networks(pair: Pair, few: Dataset) -> None:
    """Raise HasNetworks where the model runs one; whatever else is wrong will be said by who reads all of the data."""
    try:
        read(pair.model, few.values)
    except HasNetworks:
        raise
    except (DataError, ModelError):
        return


def _why_not(derivation: Any, pair: Pair, dataset: Dataset, structure: Structure) -> str:
    """Why a derivation from the model does not succeed; nothing where it does."""
    try:
        derivation(pair.model, dataset.values, structure)
    except ModelError as error:
        return str(error).partition(": use ")[0].removeprefix("cavi: ")
    return ""
