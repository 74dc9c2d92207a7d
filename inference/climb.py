"""Generalized EM: gradient steps on the expected complete log density, for params without a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from .errors import ModelError
from .estep import Expectations
from .program import Program
from .sites import Params
from .symbols import symbols_of

NEWTON_PARAMS = 16  # each Newton step costs a gradient per free number
NEWTON_STEPS = 3


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
    """Log density of the priors of shared latents, and of what is observed outside the data plate, (R,)."""
    priors = {name: param.prior for name, param in program.structure.params.items() if param.prior is not None}
    outside = program.structure.outside
    restarts = max((len(value) for value in params.values()), default=1)
    if trace is None and (outside or any(symbols_of(prior["fn"]) for prior in priors.values())):
        each = [{name: value[r : r + 1] for name, value in params.items()} for r in range(restarts)]
        return torch.cat([log_prior(program, one, program.trace(one)) for one in each])
    nodes = (trace or program.structure.trace).nodes
    total = torch.zeros(restarts, dtype=torch.float64)
    for name in priors:
        value = params[name]
        log_prob = nodes[name]["fn"].log_prob(value) * nodes[name]["scale"]
        total = total + log_prob.reshape(len(value), -1).sum(1).to(total)
    for name in outside:
        total = total + (nodes[name]["fn"].log_prob(nodes[name]["value"]) * nodes[name]["scale"]).sum()
    return total


def climb(program: Program, names: tuple[str, ...], params: Params, expected: Expectations, steps: int) -> Params:
    """Raise the expected complete log density in the params `names`: L-BFGS, then Newton steps where they are few."""
    transforms = {name: transform_to(program.structure.params[name].constraint) for name in names}
    free = {name: transforms[name].inv(params[name]).detach().clone().requires_grad_() for name in names}

    def at(values: Params) -> Params:
        return {**params, **{name: transforms[name](value) for name, value in values.items()}}

    def objective(values: Params) -> Tensor:
        return expected_complete(program, at(values), expected)

    with torch.enable_grad():
        _lbfgs(free, objective, steps)
        reached = {name: value.detach() for name, value in free.items()}
        if sum(value.numel() for value in reached.values()) <= NEWTON_PARAMS:
            reached = _newton(reached, objective)
    start = expected_complete(program, params, expected).detach()
    gain = objective(reached).detach() - start
    # what is lost to rounding is no loss
    return at(reached) if torch.isfinite(gain) and gain >= -1e-14 * start.abs() else params


def _lbfgs(free: Params, objective: Callable[[Params], Tensor], steps: int) -> None:
    optimizer = torch.optim.LBFGS(
        list(free.values()),
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -objective(free)
        if value.requires_grad:
            value.backward()
        unreached = [name for name, one in free.items() if one.grad is None]
        if unreached:
            raise ModelError(
                f"em: no gradient reaches param '{unreached[0]}': no site uses it, or only after an operation that has "
                f"no gradient (detach, rounding to integers); use it in a site, or make it a fixed number"
            )
        return value

    optimizer.step(loss)


def _newton(reached: Params, objective: Callable[[Params], Tensor]) -> Params:
    """Newton steps while they shrink the gradient: torch's L-BFGS learns no curvature from steps below about 1e-6."""
    sizes = [value.numel() for value in reached.values()]
    flat = torch.cat([value.flatten() for value in reached.values()])

    def unpack(vector: Tensor) -> Params:
        parts = vector.split(sizes)
        return {name: part.reshape(reached[name].shape) for name, part in zip(reached, parts, strict=True)}

    def gradient(vector: Tensor) -> Tensor:
        vector = vector.clone().requires_grad_()
        return torch.autograd.grad(objective(unpack(vector)), vector)[0]

    slope = gradient(flat)
    for _ in range(NEWTON_STEPS):
        hessian = torch.autograd.functional.hessian(lambda vector: objective(unpack(vector)), flat)
        step, failed = torch.linalg.solve_ex(hessian, slope)
        there = flat - step
        if failed or not torch.isfinite(there).all():
            break
        new = gradient(there)
        if not new.norm() < slope.norm():
            break
        flat, slope = there, new
    return unpack(flat.detach())
