"""New rows from a model, in the form the data came in.

Which cells of the data a site observes is read from one run on the data themselves, marked as a `Symbol`; so a model
that observes column by column and one that observes whole rows are served alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..base.errors import DataError, ModelError
from ..base.options import check_counts, check_seed
from ..data.long_format import keep_padding
from ..data.sparse import Bags, densified
from ..data.structures import map_tensors, slice_rows, template
from ..pair import Pair
from ..program.sites import Params
from ..trace.handlers import Bind, engine_state, is_bookkeeping, sample_sites
from ..trace.provenance import known_cells, plain, symbol
from .base import Draws, Fitted, Posterior, Replicates

PREDICTIVE_DRAWS = 50  # of what all rows share, that generated rows are spread over


class Draw(Messenger):
    """Sample the observed sites anew; hold the sites of `given` at their values."""

    def __init__(self, given: dict[str, Tensor]) -> None:
        super().__init__()
        self.given = given

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self.given:
            msg["value"], msg["done"] = self.given[msg["name"]], True
        elif msg["is_observed"] and not is_bookkeeping(msg):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def predictive(posterior: Posterior, num: int, given: dict[str, Any], seed: int) -> Any:
    """`num` new rows from the posterior predictive: a share of them under each of many draws of what all rows share."""
    fit = posterior.fit
    check_counts(num=(num, 1))
    values = empty_rows(fit, num)
    with _shared(posterior, min(num, PREDICTIVE_DRAWS), seed) as sets:
        parts = []
        for one, rows in zip(sets, torch.arange(num).tensor_split(len(sets)), strict=True):
            own = {
                name: value[rows] if torch.as_tensor(value).dim() and len(value) == num else value
                for name, value in given.items()
            }
            parts.append(simulate(fit.pair, slice_rows(values, rows), one, own))
    if isinstance(parts[0], Tensor):
        return fit.schema.decode(torch.cat(parts))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@contextmanager
def _shared(posterior: Posterior, num: int, seed: int) -> Iterator[list[Params]]:
    """What rows are drawn under; a point needs no data."""
    fit = posterior.fit
    if not posterior.guided:
        with engine_state(check_seed(seed)), torch.no_grad():
            yield [fit.params]
        return
    with posterior.on(fit.adapted(None), seed) as it:
        drawn = it.shared(num)
        yield [{name: value[s] for name, value in drawn.items()} for s in range(num)]


def empty_rows(fit: Fitted, num: int) -> Any:
    """Something of the data's form with `num` rows, for the model to read its sizes from."""
    if fit.data is not None:
        return densified(template(fit.data.values, num))
    if fit.schema.container == "structure":
        raise DataError(
            "generate: this fit was loaded from a folder and its data are a structure: fit.adapted(data) first"
        )
    if fit.pair.by is not None:
        raise DataError(
            f"generate: this fit was loaded from a folder, which holds no data, and new groups of a long table (by "
            f"'{fit.pair.by}') are made like those of the data: fit it again"
        )
    return torch.zeros((num,) if fit.schema.width is None else (num, fit.schema.width), dtype=torch.float64)


def simulate(pair: Pair, values: Any, params: Params, given: dict[str, Any] | None = None) -> Any:
    """Data drawn from the model under `params`, shaped like `values`; a dict of sites where the model observes
    computed values.
    """
    fixed = {name: torch.as_tensor(value) for name, value in (given or {}).items()}
    marked = map_tensors(lambda t: symbol(t, "data"), values) if isinstance(values, Tensor) else values
    with Bind(params):
        known = sample_sites(poutine.trace(pair.model).get_trace(marked))
        check_given(fixed, known)
    with Bind(params), Draw(fixed):
        drawn = sample_sites(poutine.trace(pair.model).get_trace(values))
    observed = [name for name, site in known.items() if site["is_observed"]]
    if factors := [name for name in observed if isinstance(known[name]["fn"], dist.Unit)]:
        raise DataError(f"generate: site '{factors[0]}' is a pyro.factor, which weighs rows and has no draws")
    places = {name: known_cells(known[name]["value"]) for name in observed}
    if not isinstance(values, Tensor) or any(cells is None for cells in places.values()):
        return {name: plain(drawn[name]["value"]) for name in observed}
    out = values.to(torch.float64).clone().flatten()
    for name, cells in places.items():
        assert cells is not None
        out[cells.flatten()] = plain(drawn[name]["value"]).expand(cells.shape).to(out).flatten()
    out = out.reshape(values.shape)
    return as_given(out if pair.by is None else keep_padding(out, values), values)


def check_given(given: Any, known: Any, what: str = "sites") -> None:
    """Refuse names that a model has not."""
    if unknown := sorted(set(given) - set(known)):
        raise DataError(f"generate: given names {unknown}, which are no {what} of the model: it has {sorted(known)}")


def as_given(out: Tensor, values: Any) -> Tensor:
    """Whole numbers where the data are."""
    whole = not values.is_floating_point() and bool((out == out.floor()).all())
    return out.to(values.dtype) if whole else out


def places_of(name: str, value: Any) -> Tensor:
    """The cells of the data that a site observes, in a run on data marked as a `Symbol`."""
    place = known_cells(value)
    if place is None:
        raise ModelError(f"site '{name}' observes values computed from the data, so they cannot be put back in place")
    return place


def replicates(pair: Pair, values: Any, draws: Draws, observed: Params) -> Replicates:
    """New rows under each draw; `observed` are the values of the sites, where these are computed of the data."""
    values = values.dense() if isinstance(values, Bags) else values
    assert draws.log_prob is not None
    sets = range(len(draws.log_prob))
    each = [simulate(pair, values, {name: value[s] for name, value in draws.shared.items()}) for s in sets]
    if isinstance(each[0], Tensor):
        return Replicates({"x": values}, {"x": torch.stack(each)})
    return Replicates(observed, {name: torch.stack([one[name] for one in each]) for name in observed})
