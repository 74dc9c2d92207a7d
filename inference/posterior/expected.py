"""Expected cells of the data given their rows: by every configuration of the latents, or by draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..base.errors import DataError, ModelError
from ..data.long_format import keep_padding
from ..data.schema import Dataset, Schema
from ..data.sparse import DENSE_BYTES, Bags
from ..data.streams import Rows, in_full
from ..data.structures import is_missing
from ..linear_gaussian.distribution import FactorNormal
from ..linear_gaussian.posterior import explained
from ..program.missing_patterns import find_patterns
from ..program.posteriors import joint_posterior
from ..program.program import Program
from ..program.sites import Params
from ..trace.handlers import Bind, base_of, run
from ..trace.provenance import plain, symbol
from .base import Cells, Posterior
from .generate import as_given, places_of


def filled(posterior: Posterior, dataset: Dataset, everywhere: bool) -> Any:
    """Data with expected values `everywhere`, or in place of missing cells, in the form they came in."""
    values, schema = dataset.values, dataset.schema
    if not isinstance(values, Tensor | Rows | Bags):
        raise DataError("reconstruct and impute take data of one tensor or table; this model's data are a structure")
    missing = values.missing is not None if isinstance(values, Bags) else is_missing(values)
    if not everywhere and not missing:
        whole = as_given(in_full(values), values) if isinstance(values, Rows) else values
        return schema.decode(whole, dataset.names)
    if isinstance(values, Bags) and (size := len(values) * values.width * 8) > DENSE_BYTES:
        raise DataError(
            f"reconstruct: expected values of {len(values)} {posterior.noun} are a dense table of {size / 1e9:.1f} GB: "
            f"ask for fewer {posterior.noun}"
        )
    out = values.dense() if isinstance(values, Bags) else in_full(values)
    flat = out.view(-1)
    with posterior.on(dataset) as it:
        for place, mean, _ in it.expected(everywhere):
            chosen = slice(None) if everywhere else flat[place].isnan()
            flat[place[chosen]] = mean[chosen].to(flat)
    if isinstance(values, Tensor) and schema.by is not None:
        out = keep_padding(out, values)
    out = rounded(out, schema)
    return schema.decode(out if isinstance(values, Bags) else as_given(out, values), dataset.names)


def rounded(out: Tensor, schema: Schema) -> Tensor:
    """Expected rows in which a label is a label: of two, too, the more probable."""
    for number, column in enumerate(schema.columns or () if schema.container == "frame" else ()):
        if column in schema.labels:
            out.reshape(-1, out.shape[-1] if out.dim() > 1 else 1)[:, number].round_()
    return out


# --- by every configuration -------------------------------------------------------------------------------------------


def expected_cells(program: Program, params: Params, values: Any, everywhere: bool) -> Iterator[Cells]:
    """Of each observed site, its latents summed over."""
    bind = Bind({name: value[0] for name, value in params.items()})
    known = run(program.model, symbol(values, "data"), bind, program.layout.nesting).nodes
    table = posterior_tables(program, params)
    for name in program.structure.observed:
        fn, value = known[name]["fn"], known[name]["value"]
        inner = len(fn.event_shape)
        cells = program.layout.rows_first(places_of(name, value), inner)
        own = program.layout.rows_first(plain(value), inner)
        found = expected_value(fn, program, table, own, everywhere)
        yield Cells(cells.flatten(), found.expand(cells.shape).flatten())


Tables = Callable[[tuple[int, ...] | None], Tensor]


def posterior_tables(program: Program, params: Params) -> Tables:
    """`joint_posterior` of those latents that a site depends on, each computed once."""
    return cache(lambda sizes: joint_posterior(program, params, sizes))


def expected_value(fn: Any, program: Program, table: Tables, value: Tensor, everywhere: bool) -> Tensor:
    """Mixture over configurations of a site's expected value, (N, ...). Categories: the most probable."""
    inner = len(fn.event_shape)
    base, declared = fn, 0
    while isinstance(base, dist.Independent):
        declared += base.reinterpreted_batch_ndims
        base = base.base_dist
    if isinstance(base, FactorNormal) and everywhere:
        return explained(base, program.layout, table(None), value)
    vector = isinstance(
        base, dist.MultivariateNormal | dist.MultivariateStudentT | FactorNormal
    )  # whose regressions are the same
    if vector and not declared and not everywhere:
        return _conditional_mean(base, program, table, value)
    if isinstance(base, dist.Categorical):
        return _mix(program, table, base.probs, declared + 1).argmax(-1).to(torch.float64)
    return _mix(program, table, base.mean, inner)


def _mix(program: Program, table: Tables, mean: Tensor, inner: int) -> Tensor:
    return sum(
        weight.reshape(*weight.shape, *(1,) * (part.dim() - weight.dim())) * part
        for weight, (part,) in _parts(program, table, (mean, inner))
    )  # type: ignore[return-value]


def _parts(program: Program, table: Tables, *tensors: tuple[Tensor, int]) -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
    """For each configuration of the latents that a site depends on: its posterior (N, *cells of these latents), and the
    site's tensors under it, (N or 1, plates, inner) each; ``inner`` dims are a tensor's own.
    """
    found = [program.layout.canonical(tensor, inner, keep_rows=True) for tensor, inner in tensors]
    count = len(program.layout.latents)
    sizes = torch.broadcast_shapes(*(one.shape[:count] for one in found if one is not None))
    full = [one.expand(*sizes, *one.shape[count:]).reshape(-1, *one.shape[count:]) for one in found if one is not None]
    weights = table(tuple(sizes))
    yield from ((weights[..., e], [one[e] for one in full]) for e in range(weights.shape[-1]))


def _conditional_mean(fn: Any, program: Program, table: Tables, value: Tensor) -> Tensor:
    shape, value = value.shape, value.reshape(len(value), value.shape[-1]).to(torch.float64)
    patterns = find_patterns(value)
    out = torch.zeros_like(value)
    for weight, (loc, covariance) in _parts(program, table, (fn.loc, 1), (fn.covariance_matrix, 2)):
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
            out[rows] += weight.flatten()[rows].unsqueeze(-1) * filled
    return out.reshape(shape)


# --- by draws ---------------------------------------------------------------------------------------------------------


def averaged_cells(program: Program, values: Any, draws: Sequence[Params], log_weights: Tensor) -> Iterator[Cells]:
    """Where rows have continuous latents that nothing sums out: averages over draws of all that is continuous, by their
    log weights (S, N).
    """
    if program.layout.latents:
        raise ModelError("reconstruct and impute: the rows have discrete latents beside continuous ones")
    means: dict[str, Tensor] = {}
    for one, weight in zip(draws, log_weights.softmax(0), strict=True):
        nodes = program.run(one).nodes
        for name in program.structure.observed:
            mean = _mean(nodes[name])
            shape = [1] * mean.dim()
            shape[program.structure.data_dim - len(nodes[name]["fn"].event_shape)] = -1
            means[name] = means.get(name, torch.zeros(())) + mean * weight.reshape(shape)
    nodes = run(program.model, symbol(values, "data"), Bind(draws[0]), program.layout.nesting).nodes
    for name, mean in means.items():
        place = places_of(name, nodes[name]["value"])
        yield Cells(plain(place).flatten(), mean.expand(place.shape).flatten())


def _mean(msg: Any) -> Tensor:
    fn = getattr(msg["fn"], "fn", msg["fn"])  # behind the mask of missing cells
    if isinstance(base_of(fn), dist.Categorical | dist.OneHotCategorical):
        raise ModelError("reconstruct and impute: of categories under continuous latents no mean is known")
    mean: Tensor = fn.mean.expand(plain(msg["value"]).shape)
    return mean
