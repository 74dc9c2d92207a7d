r"""Regressions: params in which the natural parameter of a site is affine, such as the slopes of ``x @ beta``.

The design is read from the model once (`trace.linear`), so that no run of the model is needed after. The
expected complete log density is then concave in the params, and Newton's method (iteratively reweighted least squares;
McCullagh and Nelder 1989, 2.5) finds its maximum: in one step where the site is normal, in a few elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from ..base.unconstrained import base_constraint
from ..distributions.missing import PartlyObserved
from ..families.base import Args, Family
from ..families.continuous import NormalFamily
from ..families.discrete import BernoulliFamily, CategoricalFamily, PoissonFamily
from ..program.estep import Expectations
from ..program.program import Program
from ..program.sites import Params, read_arguments
from ..trace.idioms import is_one
from ..trace.linear import linear_in
from ..trace.provenance import symbols_of

LARGEST = 256  # numbers
CELLS = 1 << 24  # of a design
NEWTON_STEPS = 20
HALVINGS = 12
ROUNDING = 1e-14  # of the objective
FLAT = 1e-12  # directions of less curvature than this, relative to the largest, are left alone

Moments = tuple[Tensor, Tensor, Tensor]  # A (B,), its gradient (B, C) and its Hessian (B, C, C)


@dataclass(frozen=True)
class Affine:
    """A site whose natural parameter is ``base + design @ coefficients``."""

    site: str
    names: tuple[str, ...]  # the params whose cells, laid end to end, are the coefficients
    batch: tuple[int, ...]  # canonical, rows first among the cells: dims of size 1 where the parameter is the same
    base: Tensor  # (B, C)
    design: Tensor  # (B, C, P)


def _normal(eta: Tensor) -> Moments:
    return 0.5 * (eta * eta).sum(-1), eta, torch.ones_like(eta).unsqueeze(-1)


def _bernoulli(eta: Tensor) -> Moments:
    mean = eta.sigmoid()
    return torch.nn.functional.softplus(eta).sum(-1), mean, (mean * (1 - mean)).unsqueeze(-1)


def _poisson(eta: Tensor) -> Moments:
    mean = eta.exp()
    return mean.sum(-1), mean, mean.unsqueeze(-1)


def _categorical(eta: Tensor) -> Moments:
    """The first category stands at 0."""
    whole = torch.cat([torch.zeros_like(eta[..., :1]), eta], -1).logsumexp(-1)
    mean = (eta - whole.unsqueeze(-1)).exp()
    return whole, mean, torch.diag_embed(mean) - mean.unsqueeze(-1) * mean.unsqueeze(-2)


MOMENTS: dict[type[Family], Callable[[Tensor], Moments]] = {
    NormalFamily: _normal,
    BernoulliFamily: _bernoulli,
    PoissonFamily: _poisson,
    CategoricalFamily: _categorical,
}


def find_affine(program: Program, climbed: Mapping[str, str]) -> tuple[Affine, ...]:
    """The sites scored by running the model whose natural parameter is affine in climbed params of their own."""
    found = []
    for name in program.scored:
        node = program.structure.trace.nodes[name]
        if not is_one(node["scale"]) or node["mask"] is not None:  # which its sums would have to see
            continue
        kind, args, _ = read_arguments(node["fn"], program.layout, keep_rows=True)
        if kind is None or args is None or type(kind) not in MOMENTS:
            continue
        own = {"loc": args["loc"]} if type(kind) is NormalFamily else args
        names = frozenset().union(*(a.depends for a in own.values() if a.computed))
        others = frozenset().union(*(a.depends for key, a in args.items() if key not in own))
        if not names or names & others or not all(_is_free(program, name, one, climbed) for one in names):
            continue
        one = _read_design(program, name, tuple(sorted(names)))
        found += [] if one is None else [one]
    return tuple(found)


def _is_free(program: Program, site: str, name: str, climbed: Mapping[str, str]) -> bool:
    """Whether a param is an unconstrained one of this site alone."""
    param, nodes = program.structure.params[name], program.structure.trace.nodes
    constraint = base_constraint(param.constraint)
    if name not in climbed or param.prior is not None or constraint is not constraints.real:
        return False
    elsewhere = [nodes[s]["fn"] for s in (*program.latents, *program.products, *program.scored) if s != site]
    elsewhere += [nodes[s]["fn"] for s in program.structure.outside]
    elsewhere += [p.prior["fn"] for p in program.structure.params.values() if p.prior is not None]
    return not any(name in symbols_of(fn) for fn in elsewhere)


def _read_design(program: Program, site: str, names: tuple[str, ...]) -> Affine | None:
    values = {name: param.value.detach() for name, param in program.structure.params.items()}
    cells = sum(values[name].numel() for name in names)
    with torch.no_grad():
        size = _natural_parameter(program, site, values).numel()
        if cells > LARGEST or size * cells > CELLS:
            return None
        found = linear_in(lambda given: _natural_parameter(program, site, given), values, names)
    if not found.exact:
        return None
    flat = (-1, found.base.shape[-1])
    batch = tuple(found.base.shape[:-1])
    return Affine(site, names, batch, found.base.reshape(flat), found.jacobian.reshape(*flat, cells))


def _natural_parameter(program: Program, site: str, values: dict[str, Tensor]) -> Tensor:
    """(*batch, C), of a normal its location (the precision weighs the rows instead)."""
    kind, args = _arguments(program.run(values), program, site)
    return args["loc"].unsqueeze(-1) if type(kind) is NormalFamily else kind.natural(args)[0]


def _arguments(trace: Any, program: Program, site: str) -> tuple[Family, Args]:
    fn = trace.nodes[site]["fn"]
    fn = fn.fn if isinstance(fn, PartlyObserved) else fn
    kind, args, _ = read_arguments(fn, program.layout, keep_rows=True)
    assert kind is not None
    assert args is not None
    return kind, {name: a.value for name, a in args.items()}


def regress(program: Program, one: Affine, params: Params, expected: Expectations, trace: Any) -> Params:
    """New values (1, *shape) of the coefficients, at which the expected complete log density is largest."""
    kind, s1, s0 = _sums(program, one, expected, trace)
    moments = MOMENTS[type(kind)]
    old = torch.cat([params[name].flatten() for name in one.names])
    coefficients = old
    eta = one.base + one.design @ coefficients

    def objective(eta: Tensor) -> Tensor:
        return (s1 * eta).sum() - (s0 * moments(eta)[0]).sum()

    value = objective(eta)
    for _ in range(NEWTON_STEPS):
        _, mean, variance = moments(eta)
        slope = torch.einsum("bc,bcp->p", s1 - s0.unsqueeze(-1) * mean, one.design)
        bent = (s0[:, None, None] * variance) @ one.design  # (B, C, P)
        step = _solve(one.design.flatten(0, 1).mT @ bent.flatten(0, 1), slope)
        if not (step @ slope > ROUNDING * (1 + value.abs())):
            break
        for _ in range(HALVINGS):
            there = eta + one.design @ step
            found = objective(there)
            if found >= value:
                break
            step = step / 2
        else:
            break
        coefficients, eta, value = coefficients + step, there, found
    parts = coefficients.split([params[name].numel() for name in one.names])
    return {name: part.reshape(params[name].shape) for name, part in zip(one.names, parts, strict=True)}


def _sums(program: Program, one: Affine, expected: Expectations, trace: Any) -> tuple[Family, Tensor, Tensor]:
    """Expected statistics S1 (B, C) and weights S0 (B,) of the cells that share a natural parameter."""
    node, layout = program.structure.trace.nodes[one.site], program.layout
    kind, args = _arguments(trace, program, one.site)
    value = layout.canonical(node["value"], len(node["fn"].event_shape), keep_rows=True)
    assert value is not None
    counts = expected.weights[one.site].squeeze(0).movedim(-1, len(layout.latents))  # (e..., N, plates)
    counts = counts.reshape(*counts.shape, *(1,) * (len(one.batch) - counts.dim()))
    value = value.to(torch.float64)
    counts, value = counts * ~value.isnan(), value.nan_to_num(nan=0.0)
    if type(kind) is NormalFamily:
        counts = counts * args["scale"] ** -2
        stats = value.unsqueeze(-1)
    else:
        stats = kind.statistics_last(value, args)
    shape = torch.broadcast_shapes(counts.shape, value.shape, one.batch)
    counts = counts.expand(shape)
    s1 = (counts.unsqueeze(-1) * stats).sum_to_size(*one.batch, stats.shape[-1])
    return kind, s1.reshape(len(one.base), -1), counts.sum_to_size(one.batch).reshape(-1)


def _solve(curvature: Tensor, slope: Tensor) -> Tensor:
    """The Newton step; directions that the data do not tell apart (columns that repeat each other) are left alone."""
    unit = curvature.diagonal().clamp_min(0).sqrt()
    unit = torch.where(unit > 0, unit, 1.0)
    values, vectors = torch.linalg.eigh(curvature / (unit.unsqueeze(-1) * unit))
    inverse = torch.where(values > FLAT * values[-1].clamp_min(FLAT), 1 / values, 0.0)
    return vectors @ (inverse * (vectors.mT @ (slope / unit))) / unit
