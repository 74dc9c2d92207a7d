"""Generalized EM: gradient steps on the expected complete log density, for params without a closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from .errors import ModelError
from .estep import Expectations
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
        if value.requires_grad:
            value.backward()
        unreached = [name for name, one in free.items() if one.grad is None]
        if unreached:
            raise ModelError(
                f"em: no gradient reaches param '{unreached[0]}': no site uses it, or only after an operation "
                f"that has no "
                f"gradient (detach, rounding to integers); use it in a site, or make it a fixed number"
            )
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    reached = {name: value.detach() for name, value in current().items()}
    gain = expected_complete(program, reached, expected).detach() - start
    return reached if torch.isfinite(gain) and gain >= 0 else params
