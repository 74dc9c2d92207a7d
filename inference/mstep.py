"""The M-step: a weighted maximum likelihood by ratios of sums where there is one, gradient steps elsewhere.

Each argument of an exponential family that is gathered from a param has a maximiser num / den; the sums go back
through the transpose of the gather, so cells that are tied, over components, columns, rows or sites, pool their sums.
A conjugate prior adds its own share. Arguments of one site are updated in turn (ECM; Meng and Rubin 1993). Params
used in any other way climb the expected complete log density (generalized EM). Neither ever lowers log p(x).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .climb import climb
from .estep import Expectations
from .families import Args
from .links import FLOORED, LINKS, floor_of
from .plan import Plan, Use, prior_share, site_of
from .program import Program
from .sites import Params


def m_step(program: Program, plan: Plan, params: Params, expected: Expectations, steps: int) -> Params:
    """New params (R, *shape) that raise the expected complete log density of each restart."""
    params = dict(params)
    computed = program.computed(program.trace(params)) if program.runs_model else {}
    for name, uses in plan.closed.items():
        params[name] = update(program, plan, params, expected, name, uses, computed)
    if plan.climbed:
        params = climb(program, tuple(plan.climbed), params, expected, steps)
    return params


def update(
    program: Program,
    plan: Plan,
    params: Params,
    expected: Expectations,
    name: str,
    uses: Sequence[Use],
    computed: dict[str, Args],
) -> Tensor:
    """One param by its ratio of sums."""
    old = params[name]
    restarts = len(old)
    num, den, low = (torch.zeros_like(old).reshape(restarts, -1) for _ in range(3))
    kind = ""
    for use in uses:
        site = site_of(program, use.site)
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
        share = prior_share(param)
        assert share is not None
        num, den = num + share.num, den + share.den
        if share.kind == "simplex":
            num = num.clamp_min(0.0)  # a prior below one count puts the mode on the boundary
    return LINKS[kind](old, num, den, low, param.constraint)


def _sum_to(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum over the dims where `shape` has size 1: the transpose of a broadcast."""
    dims = [d for d, (have, want) in enumerate(zip(tensor.shape, shape, strict=True)) if want == 1 and have > 1]
    return tensor.sum(dims, keepdim=True) if dims else tensor
