"""Which site made the bound, or its gradient, something that is no number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base.unconstrained import Parts
from ..trace.handlers import Bind, run, sample_sites
from ..trace.provenance import symbols_of
from .objective import Objective


def blame(objective: Objective, free: Parts, rows: Tensor | None) -> str:
    """A phrase that names the first param or site, in the order of the model, whose number is not finite."""
    with torch.no_grad():
        for name, value in objective.values(free).items():
            if not torch.isfinite(value).all():
                return f"param '{name}' is not finite"
    free = {name: value.detach().requires_grad_() for name, value in free.items()}
    program = objective.program if rows is None else objective.program.on_rows(rows)
    drawn = objective.sampler.draw(free, program, rows, 1)
    values = {**objective.values(free), **{name: value[0] for name, value in drawn.values.items()}}
    bind = Bind(values, symbols=True)
    try:
        nodes = sample_sites(run(program.model, program.data, bind, program.layout.nesting))
    except torch.linalg.LinAlgError as error:
        return f"the model cannot be computed ({error})"
    for name, site in nodes.items():
        with torch.no_grad():
            if not torch.isfinite(_log_prob(site)).all():
                return f"log p at site '{name}' is not finite"
    for name, site in nodes.items():
        log_prob = _log_prob(site).sum()
        own = {n: v for n, v in values.items() if n in symbols_of(site["fn"]) and v.requires_grad}
        if not own:
            continue
        leaves = list(own.values())
        gradients = torch.autograd.grad(log_prob, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        for param, gradient in zip(own, gradients, strict=True):
            if not torch.isfinite(gradient).all():
                return f"the gradient of site '{name}' with respect to '{param}' is not finite"
    return "the bound or its gradient is not finite"


def _log_prob(site: Any) -> Tensor:
    value = site["value"]
    if site["is_observed"] and value.is_floating_point():
        value = torch.where(value.isnan(), torch.zeros_like(value), value)
    log_prob: Tensor = site["fn"].log_prob(value)
    return log_prob
