"""The M-step: a weighted maximum likelihood by ratios of sums where there is one, gradient steps elsewhere.

Each argument of an exponential family that is gathered from a param has a maximiser num / den; the sums go back through the
transpose of the gather, so cells that are tied, over components, columns, rows or sites, pool their sums. A conjugate prior adds
its own share. Arguments of one site are updated in turn (ECM; Meng and Rubin 1993). Params used in any other way climb the
expected complete log density (generalized EM). Neither ever lowers log p(x).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import transform_to

from .estep import Expectations
from .families import Args, Ratio, prior_ratio
from .program import Program
from .sites import Argument, Params, Site
from .structure import Param
from .symbols import provenance

SMALL = 1e-300  # a cell with no weight at all keeps its value: any value is a maximiser


class Use(NamedTuple):
    site: str
    argument: str


@dataclass(frozen=True)
class Plan:
    """How each param is learned."""

    closed: dict[str, tuple[Use, ...]]  # by a ratio of sums pooled over these uses, in the order of the updates
    climbed: dict[str, str]  # by gradient: param -> why there is no closed form
    floor: float  # variances stay above this share of their column's variance


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
    return Plan({name: closed[name] for name in order}, climbed, floor)


def m_step(program: Program, plan: Plan, params: Params, expected: Expectations, steps: int) -> Params:
    """New params (R, *shape) that raise the expected complete log density of each restart."""
    params = dict(params)
    computed = program.computed(program.trace(params)) if program.runs_model else {}
    for name, uses in plan.closed.items():
        params[name] = update(program, plan, params, expected, name, uses, computed)
    if plan.climbed:
        params = climb(program, tuple(plan.climbed), params, expected, steps)
    return params


def update(program, plan, params: Params, expected: Expectations, name: str, uses, computed) -> Tensor:
    """One param by its ratio of sums."""
    old = params[name]
    restarts = len(old)
    num, den, low = (torch.zeros_like(old).reshape(restarts, -1) for _ in range(3))
    kind = ""
    for use in uses:
        site = _site(program, use.site)
        s1, s0 = expected.sums[use.site]
        kind, top, bottom = site.family.ratio(use.argument, site.arguments(params, computed), s1, s0)
        argument = site.args[use.argument]
        if use.argument == site.family.location:
            top = top + site.center * bottom
        least = plan.floor * floor_of(site, kind) * bottom if kind in FLOORED else torch.zeros_like(bottom)
        event = top.shape[top.dim() - argument.event_dim :]
        full = (restarts, *site.shape, *event)
        assert argument.index is not None
        for total, part in ((num, top), (den, bottom), (low, least)):
            pooled = _sum_to(part.expand(full), (restarts, *argument.index.shape))
            total.index_add_(1, argument.index.flatten(), pooled.reshape(restarts, -1))
    param = program.structure.params[name]
    num, den, low = (t.reshape(old.shape) for t in (num, den, low))
    if param.prior is not None:
        share = prior_ratio(param.prior["fn"], param.value)
        assert share is not None
        num, den = num + share.num, den + share.den
        if share.kind == "simplex":
            num = num.clamp_min(0.0)  # a prior below one count puts the mode on the boundary
    return LINKS[kind](old, num, den, low, param.constraint)


# --- from pooled sums to values: link(old value, num, den, floor, constraint) -------------------------------------------


def _divide(old: Tensor, num: Tensor, den: Tensor) -> Tensor:
    return torch.where(den > SMALL, num / den.clamp_min(SMALL), old)


def _mean(old, num, den, low, constraint):
    return _clip(_divide(old, num, den), constraint)


def _scale(old, num, den, low, constraint):
    floor = _divide(torch.zeros_like(old), low, den)
    return _clip(_divide(old**2, num, den).maximum(floor).sqrt(), constraint)


def _simplex(old, num, den, low, constraint):
    total = num.sum(-1, keepdim=True)
    return torch.where(total > SMALL, num / total.clamp_min(SMALL), old)


def _logits(old, num, den, low, constraint):
    tiny = torch.finfo(old.dtype).tiny
    return _simplex(old.softmax(-1), num, den, low, constraint).clamp_min(tiny).log()


def _log_odds(old, num, den, low, constraint):
    return _divide(old.sigmoid(), num, den).logit(eps=1e-15)


def _covariance(old, num, den, low, constraint):
    """The maximiser under a floor: eigenvalues are clipped, in units where the floor is the identity."""
    matrix = torch.where(den > SMALL, num / den.clamp_min(SMALL), old)
    matrix = 0.5 * (matrix + matrix.mT)
    floor = _divide(torch.zeros_like(old), low, den).diagonal(dim1=-2, dim2=-1)
    floor = torch.where(floor > 0, floor, matrix.diagonal(dim1=-2, dim2=-1).clamp_min(SMALL))
    unit = floor.sqrt()
    scaled = matrix / unit.unsqueeze(-1) / unit.unsqueeze(-2)
    low_enough = torch.linalg.eigvalsh(scaled)[..., 0] >= 1.0
    if low_enough.all():
        return matrix
    values, vectors = torch.linalg.eigh(scaled)
    clipped = (vectors * values.clamp_min(1.0).unsqueeze(-2)) @ vectors.mT
    clipped = clipped * unit.unsqueeze(-1) * unit.unsqueeze(-2)
    clipped = 0.5 * (clipped + clipped.mT)
    return torch.where(low_enough[..., None, None], matrix, clipped)


def _scale_tril(old, num, den, low, constraint):
    return torch.linalg.cholesky(_covariance(old @ old.mT, num, den, low, constraint))


def _precision(old, num, den, low, constraint):
    return torch.linalg.inv(_covariance(torch.linalg.inv(old), num, den, low, constraint))


LINKS: dict[str, Callable[..., Tensor]] = {
    "mean": _mean,
    "rate": _mean,
    "proportion": _mean,
    "scale": _scale,
    "simplex": _simplex,
    "logits": _logits,
    "log_odds": _log_odds,
    "covariance_matrix": _covariance,
    "scale_tril": _scale_tril,
    "precision_matrix": _precision,
}
FLOORED = ("scale", "covariance_matrix", "scale_tril", "precision_matrix")
MATRICES = FLOORED[1:]


def floor_of(site: Site, kind: str) -> Tensor:
    """Variances of a site's values, shaped to its ratio: the yardstick of a collapse."""
    assert site.variance is not None
    if kind not in MATRICES:
        return site.variance
    return torch.diag_embed(site.variance)


def _clip(value: Tensor, constraint: Any) -> Tensor:
    """Into an interval: exact, since each objective here has one peak in each cell."""
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    return value if low is None and high is None else value.clamp(low, high)


# --- deciding ---------------------------------------------------------------------------------------------------------

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
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint in FITTING[kind] or constraint is constraints.real:
        return True
    bounded = constraints.interval | constraints.greater_than | constraints.greater_than_eq | constraints.less_than
    return kind in ELEMENTWISE and isinstance(constraint, bounded)


def _uses(program: Program, name: str) -> tuple[list[Use], str | None]:
    """Every place where a param is an argument; or why one of them has no closed form."""
    uses = []
    for table in (program.latents, program.products, program.tables):
        for site in table.values():
            for key, argument in site.args.items():
                if name not in argument.depends:
                    continue
                if argument.index is None:
                    return [], f"site '{site.name}' computes its {key} from it ({argument.operation})"
                if key not in site.family.order:
                    return [], f"site '{site.name}' has no closed form for {key}"
                if not _whole_matrices(argument, program.structure.params[name].value):
                    return [], f"site '{site.name}' takes parts of its matrix {key}"
                if key == "loc" and argument.event_dim and not _loc_is_free(site, argument):
                    return [], f"site '{site.name}' ties loc over different covariances"
                uses.append(Use(site.name, key))
    known = {use.site for use in uses}
    for site_name, why in program.scored.items():
        if site_name not in program.tables and name in _dependencies(program, site_name):
            return [], f"site '{site_name}' uses it where {why}"
    for other, param in program.structure.params.items():
        if param.prior is not None and name in _symbols_of(param.prior["fn"]):
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
        fn = param.prior["fn"]
        while hasattr(fn, "base_dist") and hasattr(fn, "reinterpreted_batch_ndims"):
            fn = fn.base_dist
        share = prior_ratio(fn, param.value)
        if share is None or share.kind != kind or _symbols_of(fn):
            return f"its prior {type(fn).__name__} is not conjugate"
    return None


def _kind(program: Program, use: Use) -> str:
    site = _site(program, use.site)
    args = {name: a.value.unsqueeze(0) for name, a in site.args.items()}
    eta, log_normalizer = site.family.natural(args)
    one = eta.new_ones(*log_normalizer.shape, eta.shape[-1])
    return site.family.ratio(use.argument, args, one, torch.ones_like(log_normalizer)).kind


def _rank(program: Program, use: Use) -> int:
    return _site(program, use.site).family.order.index(use.argument)


def _site(program: Program, name: str) -> Site:
    for table in (program.latents, program.products, program.tables):
        if name in table:
            return table[name]
    raise KeyError(name)


def _whole_matrices(argument: Argument, value: Tensor) -> bool:
    """Whether the gather moves whole matrices (always so for scalars and vectors)."""
    if argument.event_dim < 2:
        return True
    assert argument.index is not None
    size = value.shape[-2:].numel()
    return bool((argument.index.flatten(-2) % size == torch.arange(size, device=value.device)).all())


def _loc_is_free(site: Site, loc: Argument) -> bool:
    """Whether each mean belongs to one covariance, so that the covariance cancels from its maximiser."""
    assert loc.index is not None
    batch = loc.index.shape[:-1]
    distinct = loc.index.unique().numel() == loc.index.numel()
    others = [a.value.shape[: a.value.dim() - a.event_dim] for name, a in site.args.items() if name != "loc"]
    return all(size == 1 or (distinct and own > 1) for other in others for size, own in zip(other, batch, strict=True))


def _dependencies(program: Program, site: str) -> frozenset[str]:
    return _symbols_of(program.structure.trace.nodes[site]["fn"])


def _symbols_of(fn: Any) -> frozenset[str]:
    """Every param that a distribution's arguments depend on."""
    found: frozenset[str] = frozenset()
    for value in list(vars(fn).values()):
        known = provenance(value)
        if known is not None:
            found |= known.names
        elif isinstance(value, torch.distributions.Distribution):
            found |= _symbols_of(value)
    return found


def _sum_to(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum over the dims where `shape` has size 1: the transpose of a broadcast."""
    dims = [d for d, (have, want) in enumerate(zip(tensor.shape, shape, strict=True)) if want == 1 and have > 1]
    return tensor.sum(dims, keepdim=True) if dims else tensor


# --- gradient ---------------------------------------------------------------------------------------------------------


def expected_complete(program: Program, params: Params, expected: Expectations) -> Tensor:
    """E_q[log p(x, z)] plus log priors, up to a constant, of one restart. Gradients flow to the params."""
    trace = program.trace(params) if program.runs_model else None
    computed = program.computed(trace) if trace is not None else {}
    total = torch.zeros((), dtype=torch.float64)
    for name, site in {**program.latents, **program.products}.items():
        s1, s0 = expected.sums[name]
        eta, log_normalizer = site.natural(site.arguments(params, computed))
        total = total + (s1 * eta).sum() - (s0 * log_normalizer).sum()
    for name in program.scored:
        weights, factor = expected.weights[name], program.log_factor(trace, name)
        total = total + torch.where(weights > 0, weights * factor, 0.0).sum()
    return total + log_prior(program, params, trace).squeeze(0)


def log_prior(program: Program, params: Params, trace: Any = None) -> Tensor:
    """Log density of the priors of shared latents, (R,)."""
    nodes = (trace or program.structure.trace).nodes
    some = next(iter(params.values()), None)
    total = torch.zeros(1 if some is None else len(some), dtype=torch.float64)
    for name, param in program.structure.params.items():
        if param.prior is None:
            continue
        if trace is None and _symbols_of(param.prior["fn"]):
            raise AssertionError("a prior whose arguments are learned needs a run of the model")
        value = params[name]
        total = total + nodes[name]["fn"].log_prob(value).reshape(len(value), -1).sum(1).to(total)
    return total


def climb(program: Program, names: tuple[str, ...], params: Params, expected: Expectations, steps: int) -> Params:
    """Raise the expected complete log density in the params `names` by at most `steps` L-BFGS iterations."""
    transforms = {name: transform_to(program.structure.params[name].constraint) for name in names}
    start = expected_complete(program, params, expected).detach()
    free = {name: transforms[name].inv(params[name]).detach().clone().requires_grad_() for name in names}
    scale = expected.log_prob.abs().max().clamp_min(1.0)
    optimizer = torch.optim.LBFGS(
        list(free.values()),
        max_iter=steps,
        tolerance_grad=1e-13,
        tolerance_change=1e-15,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def current() -> Params:
        return {**params, **{name: transforms[name](value) for name, value in free.items()}}

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -expected_complete(program, current(), expected) / scale
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    reached = {name: value.detach() for name, value in current().items()}
    gain = expected_complete(program, reached, expected).detach() - start
    return reached if torch.isfinite(gain) and gain >= 0 else params


__all__ = ["Args", "Plan", "Ratio", "climb", "expected_complete", "log_prior", "m_step", "make_plan"]
