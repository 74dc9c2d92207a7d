"""Making a fit of what a driver has reached."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from . import saving, verbs
from .data import Dataset
from .estep import expectations
from .factor_plan import rotations
from .fit import Fit
from .free import base_constraint
from .modes import ModeMap, Outcome
from .pair import Pair
from .program import Program
from .structure import Structure


def finish(
    pair: Pair,
    dataset: Dataset,
    program: Program,
    best: Outcome,
    modes: ModeMap,
    share: Tensor | None,
    *,
    inference: str,
    seed: int,
    weights: Any,
    guide: str = "",
    guide_parts: dict[str, Tensor] | None = None,
) -> Fit:
    """Make the `Fit` of the best outcome."""
    batch = {name: value.unsqueeze(0) for name, value in best.params.items()}
    if program.structure.continuous:  # summed out by nobody: what is known of log p(x) is its bound
        log_likelihood, entropy = best.bound, float("nan")
    else:
        with torch.no_grad():
            log_likelihood = expectations(program, batch, share).log_prob[0].item()
        entropy = verbs.entropy(program, batch, share)
    return fit_of(
        pair,
        dataset,
        program.structure,
        best,
        modes,
        float(program.num_rows if share is None else share.sum()),
        inference=inference,
        seed=seed,
        weights=weights,
        guide=guide,
        guide_parts=guide_parts,
        log_likelihood=log_likelihood,
        entropy=entropy,
        redundant=rotations(program),
    )


def fit_of(
    pair: Pair,
    dataset: Dataset,
    structure: Structure,
    best: Outcome,
    modes: ModeMap,
    rows: float,
    *,
    inference: str,
    seed: int,
    weights: Any,
    guide: str = "",
    guide_parts: dict[str, Tensor] | None = None,
    log_likelihood: float | None = None,
    entropy: float = math.nan,
    redundant: int = 0,
) -> Fit:
    """An outcome as a `Fit`; where nobody knows the log-likelihood, its bound."""
    params = {name: value.detach().cpu() for name, value in best.params.items()}
    free = sum(free_dims(structure.params[name].constraint, value) for name, value in params.items())
    return Fit(
        pair,
        inference,
        params,
        torch.tensor(best.history, dtype=torch.float64),
        best.converged,
        best.bound if log_likelihood is None else log_likelihood,
        free - redundant,
        rows,
        entropy,
        modes,
        {name: value.detach().cpu() for name, value in best.start.items()},
        seed,
        dataset.schema,
        guide=guide,
        guide_parts={name: value.detach().cpu() for name, value in (guide_parts or {}).items()},
        versions=saving.versions(),
        data=dataset,
        weights=weights,
    )


def free_dims(constraint: object, value: Tensor) -> int:
    """Dimensions along which a param of this constraint can move."""
    constraint = base_constraint(constraint)
    size = value.shape[-1] if value.dim() else 1
    if constraint is constraints.simplex:
        return value.numel() // size * (size - 1)
    triangular = (constraints.positive_definite, constraints.lower_cholesky, constraints.softplus_lower_cholesky)
    if any(constraint is c for c in triangular):
        return value.numel() // size**2 * (size * (size + 1) // 2)
    if constraint is constraints.corr_cholesky:
        return value.numel() // size**2 * (size * (size - 1) // 2)
    return value.numel()
