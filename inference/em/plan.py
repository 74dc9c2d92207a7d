"""Deciding how each param is learned: by a ratio of sums, or by climbing the expected log density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor

from ..base.unconstrained import base_constraint
from ..families.base import Ratio
from ..families.registry import prior_ratio
from ..linear_gaussian.loadings import Factored, find_factored
from ..program.program import Program
from ..program.sites import Argument, Site
from ..trace.handlers import Param, base_of
from ..trace.idioms import is_one
from ..trace.provenance import symbols_of
from .gradient import find_blocks
from .regression import Affine, find_affine


class Use(NamedTuple):
    site: str
    argument: str


@dataclass(frozen=True)
class Plan:
    """How each param is learned."""

    closed: dict[str, tuple[Use, ...]]  # by a ratio of sums pooled over these uses, in the order of the updates
    climbed: dict[str, str]  # by gradient: param -> why there is no closed form
    floor: float  # variances stay above this share of their column's variance
    batches: tuple[tuple[str, ...], ...]  # the closed ones in the order of their updates; those alike go together
    regressed: tuple[Affine, ...]  # by regression
    factored: tuple[Factored, ...]  # loadings, and what stands beside them
    blocks: Tensor | None  # of the free numbers of the climbed ones, where these fall into small blocks


def make_plan(program: Program, floor: float) -> Plan:
    """Decide for each param of a program between a closed form and the gradient."""
    closed, climbed = {}, {}
    for name, param in program.structure.params.items():
        uses, reason = _uses(program, name)
        reason = reason or _why_climbed(program, param, name, uses)
        if reason is None:
            closed[name] = tuple(uses)
        else:
            climbed[name] = reason
    order = sorted(closed, key=lambda name: max(_rank(program, use) for use in closed[name]))
    closed = {name: closed[name] for name in order}
    regressed = find_affine(program, climbed)
    climbed = {name: why for name, why in climbed.items() if not any(name in one.names for one in regressed)}
    factored = find_factored(program, climbed, floor)
    climbed = {name: why for name, why in climbed.items() if not any(name in one.params for one in factored)}
    blocks = find_blocks(program, tuple(climbed))
    return Plan(closed, climbed, floor, _batches(program, closed), regressed, factored, blocks)


def _batches(program: Program, closed: dict[str, tuple[Use, ...]]) -> tuple[tuple[str, ...], ...]:
    """Params that differ in nothing but their site: of codes or counts, each with one use, all its cells in order."""
    found: dict[Any, list[str]] = {}
    for name, uses in closed.items():
        site, param = site_of(program, uses[0].site), program.structure.params[name]
        index = site.args[uses[0].argument].index
        assert index is not None
        alone = (
            len(uses) == 1
            and uses[0].site in program.products
            and param.prior is None
            and not site.family.spread
            and site.family.location is None
            and len(site.args) == 1
            and site.args[uses[0].argument].in_order
            and index.numel() == param.value.numel()
            and index.shape[: len(site.shape)] == site.shape
        )
        alike = (type(site.family), uses[0].argument, site.shape, index.shape, site.has_missing, str(param.constraint))
        found.setdefault((*alike, param.value.shape) if alone else name, []).append(name)
    return tuple(tuple(names) for names in found.values())


# What a ratio's values are by nature: any of these constraints holds for them, or holds after `_clip`.
FITTING: dict[str, tuple[Any, ...]] = {
    "mean": (),
    "rate": (),
    "proportion": (),
    "scale": (constraints.softplus_positive,),
    "simplex": (constraints.simplex, constraints.nonnegative, constraints.positive),
    "logits": (),
    "log_odds": (),
    "covariance_matrix": (constraints.positive_definite,),
    "scale_tril": (constraints.lower_cholesky, constraints.softplus_lower_cholesky),
    "precision_matrix": (constraints.positive_definite,),
}
ELEMENTWISE = ("mean", "rate", "proportion", "scale")


def _fits(kind: str, constraint: Any) -> bool:
    constraint = base_constraint(constraint)
    if constraint in FITTING[kind] or constraint is constraints.real:
        return True
    bounded = constraints.interval | constraints.greater_than | constraints.greater_than_eq | constraints.less_than
    return kind in ELEMENTWISE and isinstance(constraint, bounded)


def _uses(program: Program, name: str) -> tuple[list[Use], str | None]:
    """Every place where a param is an argument; or why one of them has no closed form."""
    uses: list[Use] = []
    param = program.structure.params[name]
    for table in (program.latents, program.products, program.tables):
        for site in table.values():
            for key, argument in site.args.items():
                if name not in argument.depends:
                    continue
                if argument.index is None:
                    return [], f"site '{site.name}' computes its {key} from it ({argument.operation})"
                if key not in site.family.order:
                    return [], f"site '{site.name}' has no closed form for {key}"
                whole = _is_whole(argument, param.value)
                vector = key == "loc" and argument.event_dim == 1
                if not (whole or vector):
                    return [], f"site '{site.name}' takes parts of it as its {key}"
                if vector and not _loc_is_free(site, argument, whole):
                    return [], f"site '{site.name}' ties loc over different covariances"
                if vector and param.prior is not None:
                    return [], f"site '{site.name}' weighs it by a covariance, and its prior does not"
                uses.append(Use(site.name, key))
    if not _are_alike(program, uses):
        return [], "the sites that take it weigh it by different covariances"
    known = {use.site for use in uses}
    for site_name, why in program.scored.items():
        if site_name not in program.tables and name in _dependencies(program, site_name):
            return [], f"site '{site_name}' uses it where {why}"
    for site_name in program.structure.outside:
        if name in _dependencies(program, site_name):
            return [], f"site '{site_name}', outside the data plate, depends on it"
    for other, one in program.structure.params.items():
        if one.prior is not None and name in symbols_of(one.prior["fn"]):
            return [], f"the prior of '{other}' depends on it"
    return uses, None if known else "no site takes it as an argument"


def _why_climbed(program: Program, param: Param, name: str, uses: list[Use]) -> str | None:
    kinds = {_kind(program, use) for use in uses}
    if len(kinds) > 1:
        return f"its uses pull in different ways ({', '.join(sorted(kinds))})"
    (kind,) = kinds
    if not _fits(kind, param.constraint):
        return f"its constraint {param.constraint} is not what a closed form keeps"
    if param.prior is not None:
        share = prior_share(param)
        if share is None or share.kind != kind or symbols_of(param.prior["fn"]):
            return f"its prior {type(param.prior['fn']).__name__} is not conjugate"
    return None


def prior_share(param: Param) -> Ratio | None:
    """What the prior of a shared latent adds to its ratio; None where it is not conjugate."""
    found, scale = prior_ratio(base_of(param.prior["fn"]), param.value), param.prior["scale"]
    if found is None or is_one(scale):
        return found
    if isinstance(scale, Tensor) and scale.dim():  # cell by cell: left to gradients
        return None
    return found._replace(num=found.num * scale, den=found.den * scale)


def _kind(program: Program, use: Use) -> str:
    site = site_of(program, use.site)
    args = {name: a.value.unsqueeze(0) for name, a in site.args.items()}
    eta, log_normalizer = site.family.natural(args)
    one = eta.new_ones(*log_normalizer.shape, eta.shape[-1])
    return site.family.ratio(use.argument, args, one, torch.ones_like(log_normalizer)).kind


def _rank(program: Program, use: Use) -> int:
    return site_of(program, use.site).family.order.index(use.argument)


def site_of(program: Program, name: str) -> Site:
    for table in (program.latents, program.products, program.tables):
        if name in table:
            return table[name]
    raise KeyError(name)


def _is_whole(argument: Argument, value: Tensor) -> bool:
    """Whether the gather moves whole vectors or matrices of the param, cells in their places (so for any scalar)."""
    count = argument.event_dim
    if count == 0:
        return True
    assert argument.index is not None
    shape = value.shape[value.dim() - count :]
    if shape != argument.index.shape[argument.index.dim() - count :]:
        return False
    cells = torch.arange(shape.numel(), device=value.device)
    return bool((argument.index.flatten(-count) % shape.numel() == cells).all())


def _loc_is_free(site: Site, loc: Argument, whole: bool) -> bool:
    """Whether each mean belongs to one covariance, so that the covariance cancels from its maximiser."""
    assert loc.index is not None
    batch = loc.index.shape[:-1]
    distinct = loc.index.unique().numel() == loc.index.numel()
    if not (distinct or whole):
        return False
    others = [a.value.shape[: a.value.dim() - a.event_dim] for name, a in site.args.items() if name != "loc"]
    return all(size == 1 or (distinct and own > 1) for other in others for size, own in zip(other, batch, strict=True))


def _are_alike(program: Program, uses: list[Use]) -> bool:
    """Whether the sites that share a mean vector share its covariance too, cell by cell."""
    sites = [site_of(program, use.site) for use in uses]
    if len(sites) < 2 or all(use.argument != "loc" or s.event_dim == 0 for use, s in zip(uses, sites, strict=True)):
        return True
    first, *others = [_gathers(site) for site in sites]
    return all(
        first.keys() == other.keys()
        and all(one == first[name][0] and torch.equal(cells, first[name][1]) for name, (one, cells) in other.items())
        for other in others
    )


def _gathers(site: Site) -> dict[str, tuple[frozenset[str] | str, Tensor]]:
    """Param and cells of each argument, whatever latents pick them; values where there are no cells."""
    found: dict[str, tuple[frozenset[str] | str, Tensor]] = {}
    for name, a in site.args.items():
        cells = a.value if a.index is None else a.index
        label = f"computed by {site.name}" if a.computed else a.depends
        found[name] = (label, cells.reshape(-1, *cells.shape[cells.dim() - a.event_dim :]))
    return found


def _dependencies(program: Program, site: str) -> frozenset[str]:
    return symbols_of(program.structure.trace.nodes[site]["fn"])
