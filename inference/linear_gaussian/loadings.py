r"""Learning loadings: the M-step of sites whose normal latents were summed out (`distribution.FactorNormal`).

Given e, x is a regression on (e, 1). What EM needs of e, its first two moments and its products with x, are linear in
the sums of x and xx', so an iteration costs nothing by the row (Rubin and Thayer 1982), and the sums of one E-step
serve many of them: e is then no part of what the E-step completes (AECM; Meng and van Dyk 1997). Plain EM is slow
here; it runs with free covariance of e, which is put back into the loadings (PX-EM; Liu, Rubin and Wu 1998), and is
extrapolated (SQUAREM; Varadhan and Roland 2008), never to a lower value.

Which loadings are learned so, as cells of which params, is planned once, from the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor

from ..base.unconstrained import base_constraint
from ..families.base import Args, square
from ..optimize.squarem import squarem
from ..program.estep import Expectations, fixed_expectations, is_fixed, known_weights
from ..program.links import LINKS
from ..program.program import Program
from ..program.sites import Argument, Params, Site
from ..trace.provenance import symbols_of
from .distribution import FactorNormal

SHARE = 0.1  # of the first cycle's gain, that ends it where the E-step completes more than e and will change the sums


# --- the plan ---------------------------------------------------------------------------------------------------------


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


# --- one step ---------------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """Of x under each configuration of the enumerated latents."""

    weight: Tensor  # (R, Z)
    first: Tensor  # (R, Z, D)
    second: Tensor  # (R, Z, D, D)


def sums_of(site: Site, expected: Expectations) -> Sums:
    s1, s0 = expected.sums[site.name]
    lead, size = len(s1), site.value.shape[-1]
    s1 = s1.reshape(lead, torch.Size(site.configurations).numel(), -1)
    return Sums(s0.reshape(lead, -1), s1[..., :size], square(s1[..., size:], size))


def learn(program: Program, one: Factored, params: Params, expected: Expectations) -> Params:
    """Params (R, *shape) that raise the expected log density of x, e summed out."""
    site = program.products[one.site]
    sums = sums_of(site, expected)
    lead = len(sums.weight)
    names = one.params
    shapes = {name: params[name].shape[1:] for name in names}
    sizes = [shapes[name].numel() for name in names]

    def unpack(x: Tensor) -> Params:
        parts = dict(zip(names, x.split(sizes, 1), strict=True))
        values = {name: parts[name].reshape(lead, *shapes[name]) for name in one.names}
        if one.scale:
            values[one.scale] = parts[one.scale].exp().reshape(lead, *shapes[one.scale])
        return {**params, **values}

    def pack(values: Params) -> Tensor:
        parts = [values[n].log() if n == one.scale else values[n] for n in names]
        return torch.cat([part.expand(lead, *part.shape[1:]).reshape(lead, -1) for part in parts], 1)

    computed = program.computed(program.trace(params)) if program.runs_model else None
    alone, whole = is_fixed(program), one.site not in program.patterns

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        values = unpack(x)
        if not alone or whole:
            values, objective = em_step(site, one, values, sums, computed)
        else:  # missing cells are completed anew at every step
            again = again_expected(program, values)
            values, _ = em_step(site, one, values, sums_of(site, again), computed)
            objective = again.log_prob
        return pack(values), objective

    return unpack(squarem(step, pack(params), 0.0 if alone and whole else SHARE))


def again_expected(program: Program, params: Params) -> Expectations:
    """The E-step again, of a program whose sums are known."""
    return Expectations(*fixed_expectations(program, program.prepare(params), known_weights(program)), {})


def em_step(
    site: Site, one: Factored, params: Params, sums: Sums, computed: dict[str, Args] | None = None
) -> tuple[Params, Tensor]:
    """Params after one step of EM, and the expected log density of x before it, (R,), up to a constant."""
    loc, factor, scale = values_of(site, params, computed)
    weight, first, second = sums
    precision = scale**-2
    weighed = precision.unsqueeze(-1) * factor  # (R, Z, D, E)
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    tril = torch.linalg.cholesky(eye + factor.mT @ weighed)
    inverse = torch.cholesky_inverse(tril)
    slope = weighed @ inverse  # E[e | x] = slope' (x - loc)
    cross = first.unsqueeze(-1) * loc.unsqueeze(-2)
    scatter = second - cross - cross.mT + weight[..., None, None] * (loc.unsqueeze(-1) * loc.unsqueeze(-2))
    around = slope.mT @ scatter @ slope
    latent_first = (slope.mT @ (first - weight.unsqueeze(-1) * loc).unsqueeze(-1)).squeeze(-1)  # (R, Z, E)
    latent_second = weight[..., None, None] * inverse + around
    bottom = torch.cat([latent_first, weight.unsqueeze(-1)], -1)  # (R, Z, E + 1)
    gram = torch.cat([torch.cat([latent_second, latent_first.unsqueeze(-1)], -1), bottom.unsqueeze(-2)], -2)
    against = torch.cat([(second - cross) @ slope, first.unsqueeze(-1)], -1)  # (R, Z, D, E + 1)

    log_det = 2 * (tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) + scale.log().sum(-1))
    distance = (precision * scatter.diagonal(dim1=-2, dim2=-1)).sum(-1)
    explained = (weighed.mT @ scatter @ slope).diagonal(dim1=-2, dim2=-1).sum(-1)
    objective = -0.5 * (weight * log_det + distance - explained).sum(1)

    params = dict(params)
    coefficients = torch.cat([factor, loc.unsqueeze(-1)], -1)
    if one.names:
        coefficients = _regress(site, one, coefficients, gram, against, precision, weight)
    if one.scale:
        quadratic = ((coefficients @ gram) * coefficients).sum(-1)
        left = second.diagonal(dim1=-2, dim2=-1) - 2 * (coefficients * against).sum(-1) + quadratic
        params[one.scale] = _new_scale(site, site.args["scale"], params[one.scale], left, weight, one.floor)
    if one.expand:
        coefficients = _reduced(one, coefficients, latent_first, latent_second, weight)
    if one.names:
        params |= placed(site, one, params, coefficients)
    return params, objective


def _regress(
    site: Site, one: Factored, old: Tensor, gram: Tensor, against: Tensor, precision: Tensor, weight: Tensor
) -> Tensor:
    """Coefficients (R, Z, D, E + 1) of x on (e, 1); those that are not learned stay."""
    if one.pick is None:
        found = torch.linalg.solve(gram + _nothing(gram, weight), against.mT).mT
        return torch.where((weight > 1e-300)[..., None, None], found, old)
    lead, Z, D, C = old.shape
    groups = len(one.pick)
    fixed = torch.where(one.learned, torch.zeros_like(old), old)
    if "loc" in _keys(one):  # what is learned of a mean is not measured from the centre
        shift = torch.as_tensor(site.center, dtype=old.dtype).expand(D)
        fixed[..., -1] = torch.where(one.learned[..., -1], -shift, fixed[..., -1])
    right = precision.unsqueeze(-1) * (against - fixed @ gram)

    def grouped(value: Tensor) -> Tensor:  # (R, Z, D, ...) -> (R, G, M, ...)
        value = value.movedim(2, 1)
        return value.reshape(lead, groups, -1, *value.shape[3:])

    left = grouped(precision[..., None, None] * gram.unsqueeze(2))
    curved = torch.einsum("gmau,rgmab,gmbv->rguv", one.pick, left, one.pick)
    slope = torch.einsum("gmau,rgma->rgu", one.pick, grouped(right))
    idle = curved.diagonal(dim1=-2, dim2=-1) == 0
    found = torch.linalg.solve(curved + torch.diag_embed(idle.to(curved)), slope.unsqueeze(-1)).squeeze(-1)
    spread = torch.einsum("gmau,rgu->rgma", one.pick, found)
    spread = spread.reshape(lead, D, Z, C).movedim(1, 2)
    return torch.where(one.learned, spread + fixed, old)


def _keys(one: Factored) -> tuple[str, ...]:
    return ("loc",) if bool(one.learned[..., -1].any()) else ()


def _nothing(gram: Tensor, weight: Tensor) -> Tensor:
    """The identity where a configuration has no weight at all, so that there is something to solve."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.where((weight > 1e-300)[..., None, None], 0.0, eye)


def _reduced(one: Factored, coefficients: Tensor, first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Loadings with the covariance that e was found to have put into them."""
    share = weight.clamp_min(1e-300)
    mean = first / share.unsqueeze(-1)
    spread = second / share[..., None, None] - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    live = (weight > 1e-300)[..., None, None]
    spread = torch.where(live, spread, torch.eye(spread.shape[-1], dtype=spread.dtype, device=spread.device))
    factor, loc = coefficients[..., :-1], coefficients[..., -1:]
    if bool(one.learned[..., -1].all()):
        loc = loc + factor @ mean.unsqueeze(-1) * live
    else:
        spread = spread + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    return torch.cat([factor @ torch.linalg.cholesky(spread), loc], -1)


def _new_scale(site: Site, argument: Argument, old: Tensor, left: Tensor, weight: Tensor, floor: float) -> Tensor:
    lead, full = len(left), (len(left), *site.configurations, left.shape[-1])
    assert site.variance is not None
    den = weight.unsqueeze(-1).expand_as(left)
    low = floor * site.variance.reshape(-1) * den
    pools = []
    for part in (left.clamp_min(0.0), den, low):
        blank = torch.zeros(lead, old[0].numel(), dtype=old.dtype, device=old.device)
        pools.append(argument.pooled(part.reshape(full), blank).reshape(lead, *old.shape[1:]))
    return LINKS["scale"](old.expand(lead, *old.shape[1:]), *pools, constraints.positive)


# --- before and after -------------------------------------------------------------------------------------------------


def turned(program: Program, factored: tuple[Factored, ...], params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Params with loadings turned to the one rotation that stands for all: the factors independent given x, the
    strongest first, each with positive loadings in sum.

    Of equal likelihood, so that starts which end at one maximum end at the same params (Lawley and Maxwell 1971).
    """
    for one in factored:
        if not one.expand:
            continue
        site = program.products[one.site]
        batch = {name: value.unsqueeze(0) for name, value in params.items()}
        loc, factor, scale = values_of(site, batch)
        weighed = (factor / scale.clamp_min(1e-150).unsqueeze(-1)).nan_to_num()
        turn = torch.linalg.eigh(weighed.mT @ weighed)[1].flip(-1)
        factor = factor @ turn
        sign = torch.where(factor.sum(-2, keepdim=True) < 0, -1.0, 1.0)
        coefficients = torch.cat([factor * sign, loc.unsqueeze(-1)], -1)
        name = site.args["factor"].param  # the mean is left as it is, to the bit
        assert name is not None
        params = {**params, name: placed(site, one, batch, coefficients)[name].squeeze(0)}
    return params
