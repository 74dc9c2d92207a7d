"""Counts whose expected values are a matrix product of positive latents: ``theta @ topics``, theta a latent of rows.

A count x_nv is a sum of parts, one for each k, that theta_nk * beta_kv alone is answerable for. Given an allocation
phi_nvk of the counts to k, Gamma and Dirichlet latents are conjugate to Poisson and Multinomial counts; the optimal
allocation, phi ~ exp(E log theta_nk + E log beta_kv), is summed out in closed form and never stored (Blei, Ng and
Jordan 2003, section 5; Cemgil 2009, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ...base.errors import DataError, ModelError
from ...data.schema import Schema
from ...data.sparse import Bags, bags_of, check_counts, check_rows_count
from ...data.structures import map_tensors, slice_rows
from ...families.factors import DirichletFactor, FactorFamily, GammaFactor, Point, factor_family
from ...program.sites import Params
from ...trace.handlers import Bind, base_of, run
from ...trace.provenance import plain, symbol, symbols_of
from ...trace.structure import Structure
from ..derivation import prior_of
from ..moments import WAY_OUT


class Side(NamedTuple):
    """One of the two latents that are multiplied."""

    name: str
    family: FactorFamily  # Gamma, Dirichlet over the last dim, or Point
    prior: Tensor | None  # natural parameters (rows or 1, size[, 2]); None of a Point
    simplex: bool  # a Point's constraint


@dataclass(frozen=True)
class Allocation:
    """A model of one site of counts x (N, V) whose rates or probabilities are ``c_n d_v (theta @ beta)_nv``.

    Attributes
    ----------
    rows, shared : Side
        theta (N, K) and beta (K, V).
    transposed : bool
        Whether the model's own shape of beta is (V, K).
    poisson : bool
        Poisson counts; otherwise multinomial.
    row_factor : Tensor (N,) or (1,)
        c, constants of the model such as an exposure.
    column_factor : Tensor (V,) or (1,)
        d
    """

    site: str
    rows: Side
    shared: Side
    transposed: bool
    poisson: bool
    row_factor: Tensor
    column_factor: Tensor
    counts: Bags
    size: int  # K
    shapes: dict[str, torch.Size]  # latent -> the model's own shape, of a row or of all

    def own_shape(self, value: Tensor) -> Tensor:
        """beta (*, K, V) as the model has it."""
        value = value.mT if self.transposed else value
        return value.reshape(*value.shape[:-2], *self.shapes[self.shared.name])


def log_joint(allocation: Allocation, rows: Tensor, theta: Tensor, beta: Tensor) -> float:
    """log p of the counts of some rows, of their latents theta (n, K), and of beta (K, V)."""
    counts = slice_rows(allocation.counts, rows).dense()
    seen = ~counts.isnan()
    counts = counts.nan_to_num()
    factor = allocation.row_factor if len(allocation.row_factor) == 1 else allocation.row_factor[rows]
    rate = factor.unsqueeze(1) * allocation.column_factor * (theta @ beta)
    each = torch.xlogy(counts, rate) - torch.lgamma(counts + 1)
    total = (torch.where(seen, each - rate if allocation.poisson else each, 0.0)).sum()
    if not allocation.poisson:
        whole = counts.sum(1)
        total = total + (torch.lgamma(whole + 1) - whole * rate.sum(1).log()).sum()
    for side, value in ((allocation.rows, theta), (allocation.shared, beta)):
        if side.prior is not None:
            log_prob = side.family.distribution(side.prior).log_prob(value)
            total = total + log_prob.expand(value.shape[: log_prob.dim()]).sum()
    return float(total)


def check_margins(allocation: Allocation, columns: tuple[str, ...] | None) -> None:
    """A row or a column that counts nothing: in training an error, for nothing is to be learned of it."""
    counts = allocation.counts
    known = torch.bincount(counts.index, minlength=counts.width) > 0
    filled = counts.lengths > 0
    if counts.missing is not None:
        known[counts.missing[:, 1]] = True
        filled[counts.missing[:, 0]] = True
    for seen, names, kind, other in ((known, columns, "column", "row"), (filled, None, "row", "column")):
        if bool(seen.all()):
            continue
        place = int((~seen).nonzero()[0])
        label = f"{place} (the first is 0)" if names is None or len(names) != len(seen) else repr(names[place])
        raise DataError(
            f"data: {kind} {label} is 0 in every {other}, so the data say nothing of it: leave it out (there are "
            f"{int((~seen).sum())} such {kind}s)"
        )


COUNTS = "allocation"  # the name of such a guide in a fit


SAMPLED = 64  # rows of a sparse matrix that the model is run on
CHUNK = 1 << 24  # cells of a dense piece of it, where every row must be seen
SAME = 1e-8


def sample_of(values: Any) -> Any:
    """Data that a model is read on: a few rows, spread evenly, where the table would be large."""
    if not isinstance(values, Bags):
        return values
    return values.pick(torch.linspace(0, len(values) - 1, min(SAMPLED, len(values))).long()).dense()


def read_allocation(model: Any, values: Any, structure: Structure, schema: Schema) -> Allocation | None:
    """What a model says of its counts, where rows have a positive latent; None where they have none.

    Parameters
    ----------
    structure : Structure
        Of the model on ``sample_of(values)``.

    Raises
    ------
    ModelError
        Its rows have a positive latent, but its counts are no such product.
    DataError
        Counts that are no counts; a row without any, where they are multinomial.
    """
    nodes = structure.trace.nodes
    positive = [
        n
        for n in structure.continuous
        if isinstance(factor_family(base_of(nodes[n]["fn"])), GammaFactor | DirichletFactor)
    ]
    if not positive:
        return None
    row = _only(structure, positive)
    (site,) = structure.observed
    sample = sample_of(values)
    marked = map_tensors(lambda tensor: symbol(tensor, "data"), sample)
    start = {name: plain(param.value).double() for name, param in structure.params.items()}
    node = run(model, marked, Bind(start, symbols=True), structure.nesting).nodes
    fn = base_of(node[site]["fn"])
    if not isinstance(fn, dist.Poisson | dist.Multinomial):
        raise _no(
            site,
            f"a positive latent of each row, '{row}', and {type(fn).__name__} data, which no closed form joins",
            row,
        )
    poisson = isinstance(fn, dist.Poisson)
    names = symbols_of(node[site]["fn"]) - {"data"}
    if len(names) != 2 or row not in names:
        others = ", ".join(map(repr, sorted(names - {row}))) or "nothing"
        raise _no(site, f"'{row}' meets {others} in it, where one latent or param that rows share is expected", row)
    (shared,) = names - {row}
    by_row = "data" in symbols_of(node[row]["fn"])
    if by_row or symbols_of(node[row]["fn"]) - {"data"}:
        raise ModelError(
            f"cavi: the prior of latent '{row}' depends on {'the row' if by_row else 'other latents or params'}, and "
            f"no closed form is derived for that: give it numbers, or {WAY_OUT}"
        )
    if not (isinstance(node[site]["scale"], float) and node[site]["scale"] == 1.0) or node[site]["mask"] is not None:
        raise ModelError(f"cavi: site '{site}' is scaled or masked, which has no conjugate form: {WAY_OUT}")
    names_of = structure, site, row, shared
    transposed, factors = _factors(model, sample, *names_of)
    if "data" in symbols_of(node[site]["fn"]) and poisson and isinstance(values, Bags):
        step = max(1, CHUNK // values.width)
        pieces = [values.pick(slice(i, i + step)).dense() for i in range(0, len(values), step)]
        factors = torch.cat([_factors(model, piece, *names_of)[1] for piece in pieces])
    row_factor, column_factor = _rank_one(factors, site, row)
    rows = _side(row, node[row], None, len(sample))
    if rows.prior is not None and bool((rows.prior != rows.prior[:1]).any()):
        raise ModelError(f"cavi: the prior of latent '{row}' differs from row to row: {WAY_OUT}")
    param = structure.params[shared]
    beta = _side(shared, param.prior, param, 0, transposed)
    _check_pair(site, rows, beta, poisson, column_factor)
    counts = _counts(values, node[site]["value"], sample, site)
    named = schema.columns if schema.columns and len(schema.columns) == counts.width else range(counts.width)
    check_counts(counts, site, lambda place: f"column {named[place]!r}")
    if not poisson:
        check_rows_count(counts, site)
    shapes = {row: plain(node[row]["value"]).shape[1:], shared: start[shared].shape}
    return Allocation(
        site,
        rows._replace(prior=None if rows.prior is None else rows.prior[:1]),
        beta,
        transposed,
        poisson,
        row_factor,
        column_factor,
        counts,
        _matrix(start[shared], shared, site, row).shape[1 if transposed else 0],
        shapes,
    )


# --- the argument as a product ----------------------------------------------------------------------------------------


def _factors(model: Any, data: Any, structure: Structure, site: str, row: str, shared: str) -> tuple[bool, Tensor]:
    """Whether beta stands transposed, and the argument over the product (n, V), which must not depend on latents."""
    values = {name: plain(param.value).double() for name, param in structure.params.items()}

    def at(values: Params) -> Any:
        return run(model, data, Bind(values), structure.nesting).nodes

    def argument(theta: Tensor, beta: Tensor) -> Tensor:
        fn = base_of(at({**values, row: theta, shared: beta})[site]["fn"])
        return plain(fn.rate if isinstance(fn, dist.Poisson) else fn._categorical.probs)

    trace = structure.trace.nodes
    n = len(plain(at({})[row]["value"]))
    drawn = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        theta = _random((n, *plain(trace[row]["value"]).shape[1:]), trace[row]["fn"].support, generator)
        param = structure.params[shared]
        drawn.append((theta, _random(tuple(param.value.shape), param.constraint, generator)))
    matrices = [(one.reshape(n, -1), _matrix(two, shared, site, row)) for one, two in drawn]
    met = [argument(*one) for one in drawn]
    for transposed in (False, True):
        size, width = (matrices[0][1].mT if transposed else matrices[0][1]).shape
        if matrices[0][0].shape[1] != size or met[0].shape != (n, width):
            continue
        each = [
            value / (theta @ (beta.mT if transposed else beta))
            for value, (theta, beta) in zip(met, matrices, strict=True)
        ]
        if torch.allclose(each[0], each[1], rtol=SAME, atol=0):
            return transposed, each[0]
    raise _no(site, f"its argument is not the matrix product '{row} @ {shared}' times a constant", row)


def _random(shape: tuple[int, ...], support: Any, generator: torch.Generator) -> Tensor:
    value = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
    return value / value.sum(-1, keepdim=True) if _is_simplex(support) else value


def _is_simplex(constraint: Any) -> bool:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint is torch.distributions.constraints.simplex


def _matrix(value: Tensor, shared: str, site: str, row: str) -> Tensor:
    if value.dim() > 2:
        value = value.squeeze()
    if value.dim() != 2:
        raise _no(site, f"'{shared}' has shape {tuple(value.shape)}, where a matrix is expected", row)
    return value


def _rank_one(factors: Tensor, site: str, row: str) -> tuple[Tensor, Tensor]:
    """c (N,) or (1,) and d (V,) or (1,) of constants c_n d_v."""
    by_row, by_column = factors[:, 0], factors[0] / factors[0, 0]
    if not torch.allclose(by_row.unsqueeze(1) * by_column, factors, rtol=SAME, atol=0):
        raise _no(site, "its constant factor is not one of the row times one of the column", row)
    if torch.allclose(by_row, by_row[:1].expand_as(by_row), rtol=SAME, atol=0):
        by_row = by_row[:1]
    if torch.allclose(by_column, torch.ones_like(by_column), rtol=SAME, atol=0):
        by_column = by_column[:1]
    return by_row, by_column


# --- priors -----------------------------------------------------------------------------------------------------------


def _side(name: str, node: Any, param: Any, rows: int, transposed: bool = False) -> Side:
    """The prior of a latent, natural parameters as a matrix."""
    if node is None:
        return Side(name, Point(), None, _is_simplex(param.constraint))
    base = base_of(node["fn"])
    family = factor_family(base)
    if not isinstance(family, GammaFactor | DirichletFactor):
        raise ModelError(
            f"cavi: latent '{name}' has a {type(base).__name__} prior, which is not conjugate to counts: use Gamma or "
            f"Dirichlet, or {WAY_OUT}"
        )
    if others := symbols_of(base) - {"data"}:
        raise ModelError(
            f"cavi: the prior of latent '{name}' depends on {', '.join(map(repr, sorted(others)))}: give numbers, or "
            f"{WAY_OUT}"
        )
    prior = prior_of(name, node, {}, {})
    for key, argument in prior.args.items():
        if not key.endswith("|log") and not bool((argument.value > 0).all()):
            raise ModelError(
                f"cavi: latent '{name}' has a {key.partition('|')[0]} of {argument.value.min().item():g}, expected "
                f"positive numbers"
            )
    eta = prior.natural({})[0][0]
    shape = (*base.batch_shape, *base.event_shape)
    if isinstance(family, DirichletFactor):
        eta = eta.expand(shape)
        eta = eta.reshape(rows, -1) if rows else eta.reshape(-1, shape[-1])
    else:
        eta = eta.expand(*shape, 2)
        eta = eta.reshape(rows, -1, 2) if rows else eta.reshape(*[s for s in shape if s > 1 or len(shape) == 2], 2)
        eta = eta.transpose(0, 1) if transposed else eta
    return Side(name, family, eta.contiguous(), isinstance(family, DirichletFactor))


# --- checks -----------------------------------------------------------------------------------------------------------


def _only(structure: Structure, positive: list[str]) -> str:
    """The one latent of a row, beside the one observed site."""
    others = [name for name in (*structure.continuous, *structure.latents) if name != positive[0]]
    if others:
        raise ModelError(
            f"cavi: latent '{positive[0]}' of each row is positive, and the model has '{others[0]}' of each row beside "
            f"it: no closed form is derived for both; {WAY_OUT}"
        )
    if len(structure.observed) != 1 or structure.outside:
        names = ", ".join(map(repr, (*structure.observed, *structure.outside)))
        raise ModelError(
            f"cavi: with the positive latent '{positive[0]}' of each row a model may observe one site of counts, met "
            f"{names}; {WAY_OUT}"
        )
    return positive[0]


def _no(site: str, why: str, row: str) -> ModelError:
    return ModelError(
        f"cavi: site '{site}' has no conjugate form: {why}; expected Poisson or Multinomial counts of '{row} @ shared' "
        f"(rows in front), or {WAY_OUT}"
    )


def _check_pair(site: str, rows: Side, shared: Side, poisson: bool, column_factor: Tensor) -> None:
    if not poisson and not (rows.simplex and shared.simplex):
        name = shared.name if rows.simplex else rows.name
        raise _no(
            site, f"'{name}' must lie on the simplex for multinomial counts, as a Dirichlet latent does", rows.name
        )
    if poisson and shared.simplex and len(column_factor) > 1:
        raise _no(site, f"'{shared.name}' lies on the simplex, and its columns have factors of their own", rows.name)


def _counts(values: Any, observed: Any, sample: Any, site: str) -> Bags:
    """The observed counts of all rows."""
    if not isinstance(values, Bags):
        value = plain(observed)
        return bags_of(value.double().reshape(len(value), -1))
    if not torch.equal(plain(observed).nan_to_num(nan=-1.0), sample.nan_to_num(nan=-1.0)):
        raise ModelError(f"cavi: site '{site}' observes something computed from the sparse matrix: give a dense table")
    return values
