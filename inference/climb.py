"""Generalized EM: steps up the expected complete log density, for params without a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from .estep import Expectations
from .newton import ROUNDING, Free, Reached, gradients, newton
from .program import Program
from .sites import Params
from .symbols import symbols_of


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


def climb(
    program: Program, names: tuple[str, ...], params: Params, expected: Expectations, steps: int, blocks: Tensor | None
) -> Params:
    """Raise the expected complete log density in the params `names`: by Newton steps where the Hessian falls into
    small `blocks` (`blocks.find_blocks`), by L-BFGS where it does not, or where Newton finds no way up.
    """
    transforms = {name: transform_to(program.structure.params[name].constraint) for name in names}
    free = {name: transforms[name].inv(params[name]).detach().clone() for name in names}

    def at(values: Free) -> Params:
        return {**params, **{name: transforms[name](value) for name, value in values.items()}}

    def objective(values: Free) -> Tensor:
        return expected_complete(program, at(values), expected)

    start = expected_complete(program, params, expected).detach()
    with torch.enable_grad():
        reached = newton(free, objective, blocks, steps) if blocks is not None else None
        if reached is None or not reached.sound:
            reached = lbfgs(free if reached is None else reached.free, objective, steps)
    gain = reached.value - start
    # what is lost to rounding is no loss
    return at(reached.free) if torch.isfinite(gain) and gain >= -ROUNDING * start.abs() else params


def lbfgs(free: Free, objective: Callable[[Free], Tensor], steps: int) -> Reached:
    """Rise by at most `steps` L-BFGS steps with a line search."""
    free = {name: value.clone().requires_grad_() for name, value in free.items()}
    optimizer = torch.optim.LBFGS(
        list(free.values()),
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        value = -objective(free)
        parts = gradients(value, free).split([one.numel() for one in free.values()])
        for one, part in zip(free.values(), parts, strict=True):
            one.grad = part.reshape(one.shape)
        return value

    optimizer.step(loss)
    reached = {name: value.detach() for name, value in free.items()}
    return Reached(reached, objective(reached).detach(), True)
