"""log p(x) = ELBO + KL(q || p(z | x)), as numbers around each half-step of EM (Neal and Hinton 1998)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..base.errors import DataError
from ..base.options import row_weights
from ..data.schema import Dataset
from ..em.mstep import m_step
from ..em.plan import make_plan
from ..posterior.base import Fitted
from ..posterior.compiled import bound
from ..program.estep import Expectations, expectations
from ..program.objective import expected_complete, log_prior
from ..program.program import Program
from ..program.sites import Params
from ..trace.handlers import engine_state


class HalfStep(NamedTuple):
    """The three numbers at one moment of EM. log_evidence = elbo + kl; priors of shared latents are part of the
    first two.
    """

    iteration: int
    moment: str  # "before E", "after E", "before M", "after M"
    log_evidence: float
    elbo: float
    kl: float


def half_steps(
    fit: Fitted, dataset: Dataset, num_iters: int, weights: Any = None, floor: float = 1e-6, steps: int = 20
) -> list[HalfStep]:
    """Run EM again from a fit's start and note the decomposition at every half-step.

    q is the posterior of the last E-step; before the first it is the posterior under the start, so the first bar has
    no gap.
    """
    if fit.guide_parts and not fit.guide:
        names = ", ".join(map(repr, fit.guide_parts))
        raise DataError(f"half_steps: {names} were summed out of all rows together, and log p(x) climbed: no E-step")
    with engine_state(fit.seed):
        known = bound(fit, dataset)
        program = known.on(dataset.values, known.structure, anew=True)
        plan = make_plan(program, floor)
        share = row_weights(weights, program.num_rows, "cpu")
        params = {name: value.unsqueeze(0) for name, value in fit.start.items()}
        out = []
        q = expectations(program, params, share)
        old = params
        for iteration in range(num_iters):
            out.append(HalfStep(iteration, "before E", *decomposition(program, q, old, params, share)))
            q, old = expectations(program, params, share), params
            now = decomposition(program, q, old, params, share)
            out += [HalfStep(iteration, "after E", *now), HalfStep(iteration, "before M", *now)]
            with torch.no_grad():
                params = m_step(program, plan, params, q, steps)
            out.append(HalfStep(iteration, "after M", *decomposition(program, q, old, params, share)))
        return out


def decomposition(
    program: Program, q: Expectations, q_params: Params, params: Params, weights: torch.Tensor | None = None
) -> tuple[float, float, float]:
    """log p(x), ELBO and KL with q the posterior under `q_params` and the model under `params`.

    ``ELBO(q, params) = E_q[log p(x, z | params)] + H(q)``, and H(q) is what makes the bound tight at ``q_params``.
    """
    with torch.no_grad():
        evidence = (expectations(program, params, weights).log_prob + log_prior(program, params)).item()
        tight = (q.log_prob + log_prior(program, q_params)).item()
        gain = expected_complete(program, params, q) - expected_complete(program, q_params, q)
        elbo = tight + gain.item()
    return evidence, elbo, evidence - elbo
