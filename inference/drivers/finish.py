"""Making a fit of what a driver has reached."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..base.errors import FitError, warn
from ..base.unconstrained import free_dims
from ..data.devices import device_of
from ..data.schema import Dataset
from ..fit import Fit
from ..io.saving import versions
from ..linear_gaussian.loadings import rotations
from ..linear_gaussian.marginalize import varies_by_row
from ..optimize.modes import Reached
from ..pair import Pair
from ..posterior.base import Compiled
from ..program.compiler import compile_program
from ..program.estep import expectations
from ..program.posteriors import entropy


def finish(pair: Pair, dataset: Dataset, reached: Reached, *, inference: str, seed: int, weights: Any) -> Fit:
    """Make the `Fit` of what was reached, and say how it ended. Call inside `engine_state`.

    Raises
    ------
    FitError
        It could go no further; ``error.fit`` is what was reached.
    """
    best, program = reached.best, reached.program
    log_likelihood, uncertainty, redundant = best.bound, math.nan, 0
    if program is not None:
        redundant = rotations(program)
        if reached.log_prob is not None:
            log_likelihood, uncertainty = reached.log_prob, 0.0
        elif not program.structure.continuous:  # else summed out by nobody: what is known of log p(x) is its bound
            batch = {name: value.unsqueeze(0) for name, value in best.params.items()}
            with torch.no_grad():
                log_likelihood = expectations(program, batch, reached.share).log_prob[0].item()
            uncertainty = entropy(program, batch, reached.share)
    params = {name: value.detach().cpu() for name, value in best.params.items()}
    learned = {name: value for name, value in params.items() if name not in reached.summed_out}
    free = sum(free_dims(reached.constraints[name], value) for name, value in learned.items())
    point = not reached.guide and program is not None
    fit = Fit(
        pair,
        inference,
        params,
        torch.tensor(best.history, dtype=torch.float64, device="cpu"),
        best.converged,
        log_likelihood,
        free - redundant,
        reached.rows,
        uncertainty,
        reached.modes,
        {name: value.detach().cpu() for name, value in best.start.items()},
        seed,
        dataset.schema,
        guide=reached.guide,
        guide_parts={name: value.detach().cpu() for name, value in reached.guide_parts.items()},
        at_mode=tuple(
            n for n, p in program.structure.params.items() if p.prior is not None and n not in reached.summed_out
        )
        if point and program
        else (),
        unchecked=reached.unchecked,
        bound_error=best.error,
        versions=versions(),
        data=dataset,
        weights=weights,
        compiled=_compiled(reached, params, dataset),
    )
    if reached.failure:
        raise FitError(f"{inference}: {reached.failure}; error.fit is what was reached", fit.params, fit)
    if reached.note:
        warn(f"{inference}: {reached.note}")
    return fit


def _compiled(reached: Reached, params: dict[str, Tensor], dataset: Dataset) -> Compiled:
    """The program that verbs will use. They look at what was fitted on a GPU on the CPU, so they compile it there."""
    program, drawn = reached.program, bool(reached.guide)
    if program is None:
        return Compiled()
    centers = {name: center.detach().cpu() for name, center in program.centers.items() if isinstance(center, Tensor)}
    at_a_point = program.structure.continuous and not drawn
    if at_a_point or device_of(dataset.values).type != "cpu":
        return Compiled(centers=centers)
    if program.structure.continuous:  # some of which the fit had in closed form
        given = program.structure.continuous
        program = compile_program(program.model, program.data, program.structure, given=given)
    program = replace(program, reached=params)
    anywhere = {} if varies_by_row(program.model) else {drawn: program}
    here = program.data is dataset.values and not program.centred_by_group
    return Compiled(anywhere, {drawn: program} if here else {}, centers)
