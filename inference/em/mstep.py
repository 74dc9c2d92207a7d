"""The M-step: a weighted maximum likelihood by ratios of sums where there is one, gradient steps elsewhere.

Each argument of an exponential family that is gathered from a param has a maximiser num / den; the sums go back
through the transpose of the gather, so cells that are tied, over components, columns, rows or sites, pool their sums.
A conjugate prior adds its own share. Arguments of one site are updated in turn (ECM; Meng and Rubin 1993). Params
used in any other way climb the expected complete log density (generalized EM). Neither ever lowers log p(x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..families.base import Args
from ..linear_gaussian.loadings import learn
from ..optimize.minibatches import batch_expectations
from ..program.estep import Expectations, expectations
from ..program.links import FLOORED, LINKS, UNDIVIDED, floor_of
from ..program.objective import log_prior
from ..program.program import Program
from ..program.sites import Params
from .gradient import climb
from .plan import Plan, Use, prior_share, site_of
from .regression import regress


def m_step(program: Program, plan: Plan, params: Params, expected: Expectations, steps: int) -> Params:
    """New params (R, *shape) that raise the expected complete log density of each restart."""
    params = dict(params)
    for one in plan.regressed:
        params |= regress(program, one, params, expected, program.trace(params))
    for learned in plan.factored:
        params |= learn(program, learned, params, expected)
    computed = program.computed(program.trace(params)) if plan.closed and program.runs_model else {}
    for names in plan.batches:
        if len(names) > 1:
            params |= update_alike(program, plan, params, expected, names)
        else:
            params[names[0]] = update(program, plan, params, expected, names[0], plan.closed[names[0]], computed)
    if plan.climbed:
        params = climb(program, tuple(plan.climbed), params, expected, steps, plan.blocks)
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
    pools = [torch.zeros_like(old).reshape(len(old), -1) for _ in range(3)]
    kind = ""
    for use in uses:
        site = site_of(program, use.site)
        s1, s0 = expected.sums[use.site]
        kind, top, bottom = site.family.ratio(use.argument, site.arguments(params, computed), s1, s0)
        argument = site.args[use.argument]
        if use.argument == site.family.location:
            top = top + site.center * bottom
        parts = [top]
        if kind not in UNDIVIDED:
            parts.append(bottom)
        if kind in FLOORED:
            parts.append(plan.floor * floor_of(site, kind) * bottom)
        event = top.shape[top.dim() - argument.event_dim :]
        full = (len(old), *site.shape, *event)
        for number, part in enumerate(parts):
            pools[number] = argument.pooled(part.expand(full), pools[number])
    param = program.structure.params[name]
    num, den, low = (pool.reshape(old.shape) for pool in pools)
    if param.prior is not None:
        share = prior_share(param)
        assert share is not None
        num, den = num + share.num, den + share.den
        if share.kind == "simplex":
            num = num.clamp_min(0.0)  # a prior below one count puts the mode on the boundary
    return LINKS[kind](old, num, den, low, param.constraint)


def update_alike(program: Program, plan: Plan, params: Params, expected: Expectations, names: Sequence[str]) -> Params:
    """Params of sites that are alike (`plan.batches`), stacked into one ratio: a table has many such columns."""
    uses = [plan.closed[name][0] for name in names]
    sites = [site_of(program, use.site) for use in uses]
    first, at = sites[0], 1 + sites[0].num_latents  # the stack stands before the cells
    each = [site.arguments(params) for site in sites]
    args = {key: torch.stack([one[key] for one in each], at) for key in each[0]}
    s1, s0 = (torch.stack(sums, at) for sums in zip(*(expected.sums[use.site] for use in uses), strict=True))
    kind, top, bottom = first.family.ratio(uses[0].argument, args, s1, s0)
    old = torch.stack([params[name] for name in names], 1)
    full = (*top.shape[:at], len(names), *first.cells, *top.shape[top.dim() - first.args[uses[0].argument].event_dim :])
    num, den = (part.expand(full).movedim(at, 1).reshape(old.shape) for part in (top, bottom))
    new = LINKS[kind](old, num, den, torch.zeros_like(num), program.structure.params[names[0]].constraint)
    return dict(zip(names, new.unbind(1), strict=True))


@dataclass(frozen=True)
class EMSteps:
    """An E-step and an M-step: the bound is log p(x), or log p(x, shared latents)."""

    program: Program
    plan: Plan
    weights: Tensor | None
    m_steps: int
    workers: int

    @property
    def together(self) -> bool:
        return not self.program.runs_model and not self.plan.climbed

    def bounds(self, state: Params) -> tuple[list[float], Any]:
        try:
            expected = expectations(self.program, state, self.weights, self.workers)
        except torch.linalg.LinAlgError:
            if len(next(iter(state.values()))) > 1:
                raise
            return [float("nan")], None
        with torch.no_grad():
            return (expected.log_prob + log_prior(self.program, state)).tolist(), expected

    def improve(self, state: Params, expected: Any) -> Params:
        try:
            return m_step(self.program, self.plan, state, expected, self.m_steps)
        except torch.linalg.LinAlgError:
            if len(next(iter(state.values()))) > 1:
                raise
            return {name: torch.full_like(value, float("nan")) for name, value in state.items()}

    @property
    def no_batches(self) -> str:
        unfit = bool(self.program.scored) or bool(self.plan.factored)
        return "its sites have no sufficient statistics of a row" if unfit else ""

    def batch_step(self, state: Params, expected: Any, rows: Tensor, rate: float) -> tuple[Params, Any]:
        found = batch_expectations(self.program, state, self.weights, rows)
        expected = _mixed(expected, found, rate)
        return m_step(self.program, self.plan, state, expected, self.m_steps), expected

    def degenerate(self, state: Params) -> bool:
        return is_degenerate(self.program, self.plan, state)


def _mixed(old: Expectations, new: Expectations, rate: float) -> Expectations:
    def between(a: Tensor, b: Tensor) -> Tensor:
        return torch.lerp(a.expand_as(b), b, rate)

    sums = {n: (between(old.sums[n][0], s1), between(old.sums[n][1], s0)) for n, (s1, s0) in new.sums.items()}
    return old._replace(sums=sums)


def is_degenerate(program: Program, plan: Plan, params: dict[str, Tensor]) -> bool:
    """Whether a learned variance stands on its floor."""
    if plan.floor == 0:
        return False
    batch = {name: value.unsqueeze(0) for name, value in params.items()}
    for name, uses in plan.closed.items():
        for use in uses:
            site = site_of(program, use.site)
            if use.argument not in FLOORED or site.variance is None:
                continue
            value = site.args[use.argument].of(batch)
            floor = plan.floor * floor_of(site, use.argument)
            if use.argument == "scale":
                if bool((value**2 <= floor * (1 + 1e-6)).any()) and name:
                    return True
                continue
            covariance = {"scale_tril": lambda v: v @ v.mT, "precision_matrix": torch.linalg.inv}.get(
                use.argument, lambda v: v
            )(value)
            unit = floor.diagonal(dim1=-2, dim2=-1).sqrt()
            scaled = covariance / unit.unsqueeze(-1) / unit.unsqueeze(-2)
            if bool((torch.linalg.eigvalsh(scaled)[..., 0] <= 1 + 1e-6).any()):
                return True
    return False
