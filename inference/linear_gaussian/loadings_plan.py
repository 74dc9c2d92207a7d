"""Which loadings are learned by regression, as cells of which params: planned once, from the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor

from ..base.unconstrained import base_constraint
from ..families.base import Args
from ..program.program import Program
from ..program.sites import Params, Site
from ..trace.provenance import symbols_of
from .distribution import FactorNormal


@dataclass(frozen=True)
class Factored:
    """A site, and what of it is learned by regression of x on (e, 1)."""

    site: str
    names: tuple[str, ...]  # params whose cells, laid end to end, are the coefficients
    pick: Tensor | None  # (G, M, 1 + E, U) 0 or 1: coefficient u of group g stands at a place; None: each at its own
    cells: Tensor  # (G, U) numbers of the coefficients, -1 where a group has fewer
    learned: Tensor  # (Z, D, 1 + E) bool
    scale: str | None
    expand: bool  # whether the covariance of e may be free for a step
    floor: float

    @property
    def params(self) -> tuple[str, ...]:
        """All params that are learned here."""
        return (*self.names, *([self.scale] if self.scale else []))


class Values(NamedTuple):
    """Of the arguments of a site."""

    loc: Tensor  # (R, Z, D)
    factor: Tensor  # (R, Z, D, E)
    scale: Tensor  # (R, Z, D)


def find_factored(program: Program, climbed: Mapping[str, str], floor: float) -> tuple[Factored, ...]:
    """The sites with summed out latents whose loadings or means are cells of params of their own."""
    found = []
    for site in program.products.values():
        fn = program.structure.trace.nodes[site.name]["fn"]
        if not isinstance(fn, FactorNormal) or "scale" not in site.args:
            continue
        if torch.Size(site.cells).numel() > 1 or site.gathered is not None:
            continue
        own = _own(program, site, climbed)
        scale = own.get("scale")
        if scale and base_constraint(program.structure.params[scale].constraint) not in (
            constraints.positive,
            constraints.nonnegative,
            constraints.softplus_positive,
        ):
            scale = None
        real = program.structure.params
        linear = [
            k for k in ("factor", "loc") if k in own and base_constraint(real[own[k]].constraint) is constraints.real
        ]
        # a scale alone goes with what is climbed beside it: taken in turns, the two would follow each other slowly
        beside = frozenset().union(*(argument.depends for argument in site.args.values())) & set(climbed) - {scale}
        if linear or (scale and not beside):
            found.append(_factored(program, site, {k: own[k] for k in linear}, scale, floor))
    return tuple(found)


def _own(program: Program, site: Site, climbed: Mapping[str, str]) -> dict[str, str]:
    """Arguments that are cells of one climbed param which stands nowhere else."""
    nodes, structure = program.structure.trace.nodes, program.structure
    out: dict[str, str] = {}
    for key, argument in site.args.items():
        name = argument.param
        if argument.index is None or name is None or name not in climbed or structure.params[name].prior is not None:
            continue
        elsewhere = [a for k, a in site.args.items() if k != key and name in a.depends]
        others = [
            nodes[s]["fn"] for s in (*structure.latents, *structure.observed, *structure.outside) if s != site.name
        ]
        others += [p.prior["fn"] for p in structure.params.values() if p.prior is not None]
        if not elsewhere and not any(name in symbols_of(fn) for fn in others):
            out[key] = name
    return out


def _factored(program: Program, site: Site, own: dict[str, str], scale: str | None, floor: float) -> Factored:
    values = values_of(site, {n: p.value.detach().double().unsqueeze(0) for n, p in program.structure.params.items()})
    _, Z, D, E = values.factor.shape
    places = torch.full((Z, D, E + 1), -1)
    names = tuple(dict.fromkeys(own.values()))
    starts, start = {}, 0
    for name in names:
        starts[name] = start
        start += program.structure.params[name].value.numel()
    for key, part in (("factor", slice(0, E)), ("loc", slice(E, E + 1))):
        if key in own:
            index = site.args[key].index
            assert index is not None
            index = index if key == "factor" else index.unsqueeze(-1)
            index = index.expand(*site.configurations, D, index.shape[-1]).reshape(Z, D, -1)
            places[..., part] = starts[own[key]] + index
    learned = places >= 0
    distinct = places[learned].unique().numel() == int(learned.sum())
    whole = bool(learned.all()) and distinct
    used = distinct and "factor" in own and bool(learned[..., :E].all())
    pick, cells = (None, places.reshape(1, -1)) if whole else _groups(places)
    return Factored(site.name, names, pick, cells, learned, scale, used, floor)


def _groups(places: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients column by column, or, where columns share some, all in one group."""
    Z, D, C = places.shape
    by_column = places.movedim(1, 0).reshape(D, Z, C)
    owned = [column[column >= 0].unique() for column in by_column]
    if sum(len(one) for one in owned) > places[places >= 0].unique().numel():
        by_column = by_column.reshape(1, D * Z, C)
        owned = [by_column[by_column >= 0].unique()]
    most = max((len(one) for one in owned), default=0)
    cells = torch.full((len(owned), most), -1)
    for group, one in enumerate(owned):
        cells[group, : len(one)] = one
    pick = (by_column.unsqueeze(-1) == cells[:, None, None, :]) & (by_column >= 0).unsqueeze(-1)
    return pick.double(), cells


def values_of(site: Site, params: Params, computed: dict[str, Args] | None = None) -> Values:
    """The arguments of a site, means measured from its centre, configurations as one dim; what a run of the model
    computes is not learned here, so it may be read once.
    """
    args = site.arguments(params, computed)
    lead = max(len(a) for a in args.values())

    def flat(value: Tensor, inner: int) -> Tensor:
        event = value.shape[value.dim() - inner :]
        value = value.reshape(*value.shape[: 1 + site.num_latents], *event)
        return value.expand(lead, *site.configurations, *event).reshape(lead, -1, *event)

    return Values(flat(args["loc"], 1), flat(args["factor"], 2), flat(args["scale"], 1))


def placed(site: Site, one: Factored, params: Params, coefficients: Tensor) -> Params:
    """The params of the coefficients."""
    lead, D = len(coefficients), coefficients.shape[2]
    values = coefficients.clone()
    values[..., -1] = values[..., -1] + torch.as_tensor(site.center, dtype=values.dtype).expand(D)
    old = torch.cat([params[n].expand(lead, *params[n].shape[1:]).reshape(lead, -1) for n in one.names], 1).clone()
    if one.pick is None:
        old[:, one.cells[0]] = values.reshape(lead, -1)
    else:
        groups = len(one.pick)
        by = values.movedim(2, 1).reshape(lead, groups, -1, values.shape[-1])
        count = one.pick.sum((1, 2)).clamp_min(1)
        mean = torch.einsum("gmau,rgma->rgu", one.pick, by) / count  # all that share a coefficient are equal
        there = one.cells >= 0
        old[:, one.cells[there]] = mean[:, there]
    parts = old.split([params[n][0].numel() for n in one.names], 1)
    return {n: part.reshape(lead, *params[n].shape[1:]) for n, part in zip(one.names, parts, strict=True)}


def rotations(program: Program) -> int:
    """Dimensions of the params along which loadings only turn, which change nothing."""
    total = 0
    for one in find_factored(program, dict.fromkeys(program.structure.params, ""), 0.0):
        if one.expand:
            Z, _, width = one.learned.shape
            total += Z * (width - 1) * (width - 2) // 2
    return total


def spread_by_column(program: Program, factored: tuple[Factored, ...]) -> set[str]:
    """The scales of which every column has its own: a constant column would make it 0."""
    out = set()
    for one in factored:
        site = program.products[one.site]
        index = site.args["scale"].index
        if (
            one.scale
            and index is not None
            and index.shape[-1] == index.reshape(-1, index.shape[-1])[0].unique().numel()
        ):
            out.add(one.scale)
    return out
