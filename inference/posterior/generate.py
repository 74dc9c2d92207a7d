"""New rows, reconstructions and imputations, in the form the data came in.

Which cells of the data a site observes is read from one run on the data themselves, marked as a `Symbol`; so a model
that observes column by column and one that observes whole rows are served alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..base.errors import DataError, ModelError
from ..base.options import check_counts, check_seed
from ..data.long_format import keep_padding
from ..data.schema import Dataset
from ..data.sparse import densified
from ..data.structures import map_tensors, slice_rows, template
from ..linear_gaussian.distribution import FactorNormal
from ..linear_gaussian.posterior import explained
from ..program.missing_patterns import find_patterns
from ..program.posteriors import joint_posterior
from ..program.sites import Layout
from ..trace.handlers import Bind, engine_state, is_bookkeeping, sample_sites
from ..trace.provenance import known_cells, plain, symbol
from .exact import program_on

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


def generate(fit: Any, num: int, given: dict[str, Any], seed: int) -> Any:
    """`num` new rows from the fitted model."""
    check_counts(num=(num, 1))
    values = empty_rows(fit, num)
    with engine_state(check_seed(seed)), torch.no_grad():
        out = simulate(fit, values, fit.params, given) if not fit.guide else _predict(fit, values, num, given)
    return fit.schema.decode(out) if isinstance(out, Tensor) else out


def _predict(fit: Any, values: Any, num: int, given: dict[str, Any]) -> Any:
    """Rows from the posterior predictive: a share of them under each of many draws of what all rows share."""
    shares = min(num, PREDICTIVE_DRAWS)
    params = fit.shared_draws(shares)
    parts = []
    for s, rows in enumerate(torch.arange(num).tensor_split(shares)):
        own = {
            name: value[rows] if torch.as_tensor(value).dim() and len(value) == num else value
            for name, value in given.items()
        }
        one = {name: value[s] for name, value in params.items()}
        parts.append(simulate(fit, slice_rows(values, rows), one, own))
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def empty_rows(fit: Any, num: int) -> Any:
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


def simulate(fit: Any, values: Any, params: dict[str, Tensor], given: dict[str, Any] | None = None) -> Any:
    """Data drawn from the model under `params`, shaped like `values`; a dict of sites where the model observes
    computed values.
    """
    fixed = {name: torch.as_tensor(value) for name, value in (given or {}).items()}
    marked = map_tensors(lambda t: symbol(t, "data"), values) if isinstance(values, Tensor) else values
    with Bind(params):
        known = sample_sites(poutine.trace(fit.pair.model).get_trace(marked))
        unknown = sorted(set(fixed) - set(known))
        if unknown:
            raise DataError(f"generate: given names {unknown}, which are no sites of the model: it has {sorted(known)}")
    with Bind(params), Draw(fixed):
        drawn = sample_sites(poutine.trace(fit.pair.model).get_trace(values))
    observed = [name for name, site in known.items() if site["is_observed"]]
    places = {name: known_cells(known[name]["value"]) for name in observed}
    if not isinstance(values, Tensor) or any(cells is None for cells in places.values()):
        return {name: plain(drawn[name]["value"]) for name in observed}
    out = values.to(torch.float64).clone().flatten()
    for name, cells in places.items():
        assert cells is not None
        out[cells.flatten()] = plain(drawn[name]["value"]).expand(cells.shape).to(out).flatten()
    out = out.reshape(values.shape)
    return as_given(out if fit.pair.by is None else keep_padding(out, values), values)


def as_given(out: Tensor, values: Any) -> Tensor:
    whole = not values.is_floating_point() and bool((out == out.floor()).all())
    return out.to(values.dtype) if whole else out


# --- expected values --------------------------------------------------------------------------------------------------


def reconstruct(fit: Any, dataset: Dataset) -> Any:
    """Every observed cell at its expected value given its row."""
    return _fill(fit, dataset, everywhere=True)


def impute(fit: Any, dataset: Dataset) -> Any:
    """Missing cells at their expected value given the rest of their row."""
    return _fill(fit, dataset, everywhere=False)


def _fill(fit: Any, dataset: Dataset, everywhere: bool) -> Any:
    values = dataset.values
    if not isinstance(values, Tensor):
        raise DataError("reconstruct and impute take data of one tensor or table; this model's data are a structure")
    with engine_state(fit.seed), torch.no_grad():
        program, params = program_on(fit, dataset)
        with Bind(fit.params):
            known = sample_sites(
                poutine.trace(poutine.enum(program.model, first_available_dim=-1 - program.layout.nesting)).get_trace(
                    symbol(values, "data")
                )
            )
        out = values.to(torch.float64).clone().flatten()
        table = joint_posterior(program, params)
        for name in program.structure.observed:
            known_value = known[name]["value"]
            place = known_cells(known_value)
            if place is None:
                raise ModelError(
                    f"site '{name}' observes values computed from the data, so they cannot be put back in place"
                )
            site = known[name]
            inner = len(site["fn"].event_shape)
            cells = program.layout.rows_first(place, inner)
            expected = expected_value(
                site["fn"], program.layout, table, program.layout.rows_first(plain(known_value), inner), everywhere
            )
            missing = out[cells.flatten()].isnan()
            chosen = slice(None) if everywhere else missing
            out[cells.flatten()[chosen]] = expected.expand(cells.shape).flatten()[chosen]
    return filled_in(fit, dataset, out.reshape(values.shape))


def filled_in(fit: Any, dataset: Dataset, out: Tensor) -> Any:
    """Expected values in place of the data's, in the form these came in."""
    values = dataset.values
    if dataset.schema.container == "frame":
        for number, column in enumerate(dataset.schema.columns or ()):
            if column in dataset.schema.labels:  # of two labels, too, the more probable
                out.reshape(-1, values.shape[-1] if values.dim() > 1 else 1)[:, number].round_()
    out = out if fit.pair.by is None else keep_padding(out, values)
    return dataset.schema.decode(as_given(out, values), dataset.names)


def expected_value(fn: Any, layout: Layout, table: Tensor, value: Tensor, everywhere: bool) -> Tensor:
    """Mixture over configurations of a site's expected value, (N, ...). Categories: the most probable."""
    inner = len(fn.event_shape)
    base, declared = fn, 0
    while isinstance(base, dist.Independent):
        declared += base.reinterpreted_batch_ndims
        base = base.base_dist
    if isinstance(base, FactorNormal) and everywhere:
        return explained(base, layout, table, value)
    vector = isinstance(
        base, dist.MultivariateNormal | dist.MultivariateStudentT | FactorNormal
    )  # whose regressions are the same
    if vector and not declared and not everywhere:
        return _conditional_mean(base, layout, table, value)
    if isinstance(base, dist.Categorical):
        return _mix(layout, table, base.probs, declared + 1).argmax(-1).to(torch.float64)
    return _mix(layout, table, base.mean, inner)


def _mix(layout: Layout, table: Tensor, mean: Tensor, inner: int) -> Tensor:
    return sum(
        weight.reshape(*weight.shape, *(1,) * (part.dim() - weight.dim())) * part
        for weight, part in _parts(layout, table, mean, inner)
    )  # type: ignore[return-value]


def _parts(layout: Layout, table: Tensor, tensor: Tensor, inner: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each configuration: its posterior by row (N,), or by cell (N, *cells), and a site's tensor under it, (N or 1,
    plates, inner).
    """
    canonical = layout.canonical(tensor, inner, keep_rows=True)
    assert canonical is not None
    count = len(layout.latents)
    sizes = layout.sizes
    full = canonical.expand(*sizes, *canonical.shape[count:]).reshape(-1, *canonical.shape[count:])
    yield from ((table[..., e], full[e]) for e in range(len(full)))


def _conditional_mean(fn: Any, layout: Layout, table: Tensor, value: Tensor) -> Tensor:
    shape, value = value.shape, value.reshape(len(value), value.shape[-1]).to(torch.float64)
    patterns = find_patterns(value)
    out = torch.zeros_like(value)
    covariances = (part for _, part in _parts(layout, table, fn.covariance_matrix, 2))
    for (weight, loc), covariance in zip(_parts(layout, table, fn.loc, 1), covariances, strict=True):
        loc = loc.reshape(-1, loc.shape[-1])
        covariance = covariance.reshape(-1, *covariance.shape[-2:])
        for number, (seen, unseen) in enumerate(patterns.distinct):
            rows = (patterns.of_row == number).nonzero().flatten()
            own_loc = loc[rows] if len(loc) > 1 else loc
            own = covariance[rows] if len(covariance) > 1 else covariance
            away = (value[rows][:, seen] - own_loc[:, seen]).unsqueeze(-1)
            moved = own[:, unseen][:, :, seen] @ torch.linalg.solve(own[:, seen][:, :, seen], away)
            filled = value[rows].clone()
            filled[:, unseen] = own_loc[:, unseen] + moved.squeeze(-1)
            out[rows] += weight[rows].unsqueeze(-1) * filled
    return out.reshape(shape)
