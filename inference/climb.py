"""Generalized EM: gradient steps on the expected complete log density, for params without a closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

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
    """Log density of the priors of shared latents, (R,)."""
    nodes = (trace or program.structure.trace).nodes
    some = next(iter(params.values()), None)
    total = torch.zeros(1 if some is None else len(some), dtype=torch.float64)
    for name, param in program.structure.params.items():
        if param.prior is None:
            continue
        if trace is None and symbols_of(param.prior["fn"]):
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
