"""The expected complete-data log density, and the log density of the priors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..trace.provenance import symbols_of
from .estep import Expectations
from .program import Program
from .sites import Params


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


def log_density(name: str, fn: Any, value: Tensor) -> Tensor:
    """Log density of a prior at the values (R, *shape) of its latent."""
    found: Tensor = fn.log_prob(value)
    return found


def log_prior(
    program: Program, params: Params, trace: Any = None, density: Callable[[str, Any, Tensor], Tensor] = log_density
) -> Tensor:
    """Log density of the priors of shared latents, and of what is observed outside the data plate, (R,).

    `density` may have another term for a latent, from its name, its prior and its values.
    """
    priors = {name: param.prior for name, param in program.structure.params.items() if param.prior is not None}
    outside = program.structure.outside
    restarts = max((len(value) for value in params.values()), default=1)
    if trace is None and (outside or any(symbols_of(prior["fn"]) for prior in priors.values())):
        each = [{name: value[r : r + 1] for name, value in params.items()} for r in range(restarts)]
        return torch.cat([log_prior(program, one, program.trace(one), density) for one in each])
    nodes = (trace or program.structure.trace).nodes
    total = torch.zeros(restarts, dtype=torch.float64)
    for name in priors:
        value = params[name]
        log_prob = density(name, nodes[name]["fn"], value) * nodes[name]["scale"]
        total = total + log_prob.reshape(len(value), -1).sum(1).to(total)
    for name in outside:
        total = total + (nodes[name]["fn"].log_prob(nodes[name]["value"]) * nodes[name]["scale"]).sum()
    return total
