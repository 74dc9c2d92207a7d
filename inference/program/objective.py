"""The expected complete-data log density, and the log density of the priors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..trace.provenance import symbols_of
from .against_pyro import Witness
from .estep import Expectations
from .program import Program, latent_log_prob, site_log_prob
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
        total = total + site_log_prob(nodes[name]).sum()
    return total


# --- what the engine says of a few rows, to be held against Pyro's own account ----------------------------------------


def witness(inference: str, model: Any, program: Program, data: Any = None) -> Witness:
    """A program beside the model that it was read from, on the data as the model gets them (the program's own)."""

    def total(rows: Tensor | None, values: dict[str, Tensor]) -> float:
        return log_joint(program, rows, values)

    def sites(rows: Tensor | None, values: dict[str, Tensor]) -> dict[str, float]:
        return sums_by_site(program, rows, values)

    known = program.data if data is None else data
    return Witness(inference, model, known, total, program.num_rows, sites, program.structure.data_plate)


def log_joint(program: Program, rows: Tensor | None, values: Mapping[str, Tensor]) -> float:
    """log p of some rows (of all, where `rows` is None) and of the shared latents, at one value of each."""
    params = {name: value.unsqueeze(0) for name, value in values.items()}
    few = program if rows is None else program.on_rows(rows)
    return float(few.row_log_prob(params).sum() + log_prior(few, params).sum())


def sums_by_site(program: Program, rows: Tensor | None, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Log densities of each site summed over its plates, and averaged over the values of enumerated latents."""
    few = program if rows is None else program.on_rows(rows)
    params = {name: value.unsqueeze(0) for name, value in values.items()}
    ready, nodes, out = few.prepare(params), few.structure.trace.nodes, {}

    def noted(name: str, fn: Any, value: Tensor) -> Tensor:
        found = log_density(name, fn, value)
        out[name] = float(found.sum())
        return found

    log_prior(few, params, ready.trace, noted)
    for name, site in few.latents.items():
        factor = latent_log_prob(site, ready.args[name])
        plates = torch.Size(f.size for f in nodes[name]["cond_indep_stack"] if f.name != few.structure.data_plate)
        cells = torch.Size(site.cells).numel()
        events = nodes[name]["fn"].event_shape.numel() / torch.Size(site.value.shape[len(site.shape) :]).numel()
        out[name] = float(factor.mean() * cells * few.num_rows * max(1.0, plates.numel() * events / cells))
    for name in few.scored:
        factor = few.log_factor(ready.trace, name)
        factor = factor.expand(*factor.shape[:-1], few.num_rows)
        out[name] = float(factor.sum() / factor.shape[1 : 1 + len(few.layout.latents)].numel())
    for name, site in few.products.items():
        if site.gathered is None:
            alone = replace(few, latents={}, scored={}, products={name: site}, patterns={}, kept={})
            alone = replace(alone, patterns={n: p for n, p in few.patterns.items() if n == name})
            score = alone.factors(alone.prepare(params), slice(None))[0][0]
            base = 0.0 if name in alone.patterns else site.base_measure(slice(None), ready.args[name])
            out[name] = float(score.sum() / score.shape[1 : 1 + len(few.layout.latents)].numel())
            out[name] += float(base.sum()) if isinstance(base, Tensor) else base * few.num_rows
    return out
