"""Bad input met before the first iteration: one plain line each, naming the site, what was met and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import constraints

from ..base.errors import DataError, ModelError
from ..base.unconstrained import base_constraint
from ..data.schema import Schema
from ..trace.handlers import base_of
from ..trace.provenance import plain
from ..trace.structure import Structure
from .program import Program
from .sites import Site

ROWS = 65536  # checked together, so that no temporary is as large as the data


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
