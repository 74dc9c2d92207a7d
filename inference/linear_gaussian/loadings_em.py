r"""Learning loadings: the M-step of sites whose normal latents were summed out (`factor_normal`).

Given e, x is a regression on (e, 1). What EM needs of e, its first two moments and its products with x, are linear in
the sums of x and xx', so an iteration costs nothing by the row (Rubin and Thayer 1982), and the sums of one E-step
serve many of them: e is then no part of what the E-step completes (AECM; Meng and van Dyk 1997). Plain EM is slow
here; it runs with free covariance of e, which is put back into the loadings (PX-EM; Liu, Rubin and Wu 1998), and is
extrapolated (SQUAREM; Varadhan and Roland 2008), never to a lower value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor

from ..families.base import Args, square
from ..optimize.squarem import squarem
from ..program.estep import Expectations, fixed_expectations, is_fixed, known_weights
from ..program.links import LINKS
from ..program.program import Program
from ..program.sites import Argument, Params, Site
from .loadings_plan import Factored, placed, values_of

SHARE = 0.1  # of the first cycle's gain, that ends it where the E-step completes more than e and will change the sums


class Sums(NamedTuple):
    """Of x under each configuration of the enumerated latents."""

    weight: Tensor  # (R, Z)
    first: Tensor  # (R, Z, D)
    second: Tensor  # (R, Z, D, D)


# --- one step ---------------------------------------------------------------------------------------------------------


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
