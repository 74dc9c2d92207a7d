"""Bad input met before the first iteration: one plain line each, naming the site, what was met and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import constraints

from .data import DataError, Schema
from .errors import ModelError, OptionError
from .free import base_constraint
from .program import Program
from .sites import Site
from .structure import Structure, base_of
from .symbols import plain

ROWS = 65536  # checked together, so that no temporary is as large as the data


def check_options(**options: Any) -> None:
    """Numbers that a driver takes: counts at least their minimum, tolerances not negative."""
    for name, (value, least) in options.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not value >= least:
            raise OptionError(f"{name}: met {value!r}, expected a number of at least {least}")


def check_counts(**options: Any) -> None:
    """Whole numbers that a driver takes, at least their minimum."""
    for name, (value, least) in options.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise OptionError(f"{name}: met {value!r}, expected a whole number of at least {least}")


def check_seed(seed: Any) -> int:
    """A seed as torch's generators take it."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
        raise OptionError(f"seed: met {seed!r}, expected a whole number from 0 to {2**63 - 1}")
    return int(seed)


def check_device(device: Any, dtype: torch.dtype = torch.float32) -> torch.device:
    """A device that this machine has, and that has numbers of a type."""
    try:
        found = torch.device(device)
        torch.ones(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):
        raise OptionError(
            f"device: met {str(device)!r}, which torch cannot use here; give 'cpu' or leave it out"
        ) from None
    try:
        torch.ones(1, dtype=dtype, device=found)
    except (RuntimeError, TypeError):
        raise OptionError(
            f"device: met {str(device)!r}, which has no {str(dtype).removeprefix('torch.')}, and this inference needs "
            f"that: give 'cpu' or leave it out"
        ) from None
    return found


def row_weights(weights: Any, num_rows: int, device: Any) -> Tensor | None:
    """Weights as float64 (N,), or None."""
    if weights is None:
        return None
    try:
        given = weights if isinstance(weights, Tensor) else np.array(weights, dtype=np.float64)
        out = torch.as_tensor(given, dtype=torch.float64, device=device)
    except (TypeError, ValueError) as error:
        raise OptionError(f"weights: met a {type(weights).__name__}, expected one number per row") from error
    if out.shape != (num_rows,):
        raise OptionError(f"weights: met shape {tuple(out.shape)}, expected one weight per row, ({num_rows},)")
    if not torch.isfinite(out).all() or (out < 0).any() or out.sum() <= 0:
        raise OptionError("weights: expected finite numbers, none negative and not all 0")
    return out


def check_latents(structure: Structure) -> None:
    """Exact EM needs every latent of a row to be enumerable."""
    if structure.continuous:
        name = structure.continuous[0]
        raise ModelError(
            f"em: site '{name}' is a continuous latent of each row, which cannot be summed out: "
            f'discretise it on nodes (Categorical over fixed points), or use inference="svi"'
        )


def check_rows(structure: Structure, owning: Iterable[str], num_rows: int) -> None:
    """Rows enough: two at least, and as many as a latent has values, where these own params of their own."""
    if num_rows < 2 and structure.latents:
        raise DataError("the data have one row: a latent variable model needs at least two")
    for name in owning:
        latent = structure.latents[name]
        if latent.cardinality > num_rows:
            raise DataError(
                f"latent '{name}' has {latent.cardinality} values, the data only {num_rows} rows: ask for fewer values"
            )


NUMBERS = {"GreaterThan(lower_bound=0.0)": "a positive number", "Real()": "a finite number"}


def check_values(structure: Structure, schema: Schema) -> None:
    """Observed values lie in the support of their distribution; text stands only in categorical columns; the numbers
    given to priors make distributions of them.
    """
    for name, param in structure.params.items():
        if param.prior is not None:
            check_prior(name, base_of(param.prior["fn"]))
    for name in structure.continuous:
        check_prior(name, base_of(structure.trace.nodes[name]["fn"]))
    for name in structure.observed:
        site = structure.trace.nodes[name]
        fn, value = site["fn"], plain(site["value"])
        while hasattr(fn, "reinterpreted_batch_ndims") or isinstance(fn, ExpandedDistribution):
            fn = fn.base_dist
        _check_support(name, fn, value)
        _check_text(name, fn, value, schema)


def check_prior(name: str, fn: Any) -> None:
    """A prior's arguments lie where its family needs them."""
    for argument, constraint in getattr(fn, "arg_constraints", {}).items():
        if argument not in vars(fn) or constraints.is_dependent(constraint):
            continue
        constraint, value = base_constraint(constraint), plain(getattr(fn, argument))
        fits = constraint.check(value)
        if bool(fits.all()):
            continue
        wrong = value if constraint.event_dim else value[~fits][0]
        raise ModelError(
            f"the {type(fn).__name__} prior of latent '{name}' has {argument} {_show(wrong)}, "
            f"expected {NUMBERS.get(str(constraint), f'a value in {constraint}')}"
        )


def check_said(structure: Structure) -> None:
    """Every row says something of the continuous latents that are its own."""
    said: Tensor | None = None
    for name in structure.observed if structure.continuous else ():
        node = structure.trace.nodes[name]
        seen = ~plain(node["value"]).double().isnan()
        axis = structure.data_dim - len(node["fn"].event_shape)
        seen = seen.movedim(axis, 0).reshape(structure.num_rows, -1).any(1)
        said = seen if said is None else said | seen
    if said is not None and not bool(said.all()):
        row, latents = int((~said).nonzero()[0]), ", ".join(f"'{name}'" for name in structure.continuous)
        raise DataError(
            f"row {row} (the first is 0) has no value at all, so it says nothing of its {latents}: leave it out"
        )


def _check_support(name: str, fn: Any, value: Tensor) -> None:
    support = fn.support
    for start in range(0, len(value), ROWS):
        part = value[start : start + ROWS]
        seen = ~part.isnan() if part.is_floating_point() else torch.ones_like(part, dtype=torch.bool)
        fits = fits_support(fn, support, torch.where(seen, part, torch.zeros_like(part)))
        fits = fits | ~(seen.flatten(-support.event_dim).all(-1) if support.event_dim else seen)
        if bool(fits.all()):
            continue
        where = (~fits).nonzero()[0].tolist()
        raise DataError(
            f"site '{name}': row {where[0] + start} holds {_show(part[tuple(where)])}, "
            f"which {type(fn).__name__} cannot take: expected {expected_words(fn)}"
        )


def fits_support(fn: Any, support: Any, value: Tensor) -> Tensor:
    if hasattr(support, "lower_bound") and hasattr(support, "upper_bound"):
        # bounds that differ from cell to cell are met loosely here, and by the likelihood itself
        low, high = (torch.as_tensor(b) for b in (support.lower_bound, support.upper_bound))
        inside = (value >= low.min()) & (value <= high.max())
        return inside & (value == value.floor()) if support.is_discrete else inside
    if isinstance(fn, torch.distributions.Multinomial):
        return ((value >= 0) & (value == value.floor())).all(-1)
    return support.check(value)


def expected_words(fn: Any) -> str:
    kind = type(fn).__name__
    if kind == "Categorical":
        return (
            f"one of the codes 0 to {fn.param_shape[-1] - 1} (a category unseen in training can be given as "
            f"missing, NaN)"
        )
    words = {
        "Poisson": "counts: whole numbers, none negative",
        "NegativeBinomial": "counts: whole numbers, none negative",
        "Multinomial": "counts: whole numbers, none negative",
        "Binomial": "counts: whole numbers from 0 to its total_count",
        "Bernoulli": "0 or 1",
        "Geometric": "whole numbers, none negative",
        "Exponential": "numbers, none negative",
        "LogNormal": "positive numbers",
        "Gamma": "positive numbers",
    }
    known = [words[parent.__name__] for parent in type(fn).__mro__ if parent.__name__ in words]
    if not known and fn.support is constraints.nonnegative_integer:
        return words["Poisson"]
    return known[0] if known else f"values in {fn.support}"


def _check_text(name: str, fn: Any, value: Tensor, schema: Schema) -> None:
    """Codes of text are names, not numbers: only distributions over names may take them."""
    if not schema.labels or type(fn).__name__ in ("Categorical", "OneHotCategorical", "Bernoulli"):
        return
    for column in _columns_of(value, schema):
        if column not in schema.labels:
            continue
        raise DataError(
            f"column '{column}' holds text ({', '.join(map(repr, schema.labels[column][:3]))}, ...), and site "
            f"'{name}' is numeric "
            f"({type(fn).__name__}): drop the column, or use a model of categories such as latent_class"
        )


def _columns_of(value: Tensor, schema: Schema) -> tuple[str, ...]:
    """The columns of a table that an observed value holds, as far as it shows: all of them, or one of them as it
    lies in the table.
    """
    columns = schema.columns or ()
    if schema.container != "frame" or value.dim() == 0 or schema.by is not None:
        return ()
    if schema.width is None or (value.shape[-1] == len(columns) and value.dim() > 1):
        return columns
    in_table = value.dim() == 1 and value.stride(0) == len(columns) and value.storage_offset() < len(columns)
    return (columns[value.storage_offset()],) if in_table else ()


def check_spread(program: Program, params_learned: set[str], schema: Schema) -> None:
    """A learned variance needs a column that varies."""
    for table in (program.products, program.tables):
        for site in table.values():
            learned = any(site.args[a].depends & params_learned for a in site.family.spread if a in site.args)
            if site.variance is None or not learned or bool((site.variance > 0).all()):
                continue
            raise DataError(_constant(site, schema))


def _constant(site: Site, schema: Schema) -> str:
    assert site.variance is not None
    number = int((site.variance.flatten() <= 0).nonzero()[0])
    number = number if site.gathered is None else int(site.gathered.first[number])
    names = schema.columns
    label = f"column '{names[number]}'" if names and len(names) == site.variance.numel() else f"column {number}"
    return (
        f"{label} of site '{site.name}' is constant, so its variance would be 0: drop the column, or fix the "
        f"scale in the model"
    )


def _show(value: Tensor) -> str:
    return f"{value.item():g}" if value.numel() == 1 else str([round(v, 6) for v in value.flatten().tolist()[:6]])
