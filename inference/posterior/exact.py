"""Scores, posteriors and words: what a fit says of data, by running its compiled program on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data.schema import Dataset
from ..linear_gaussian.posterior import normal_moments, normal_posterior, summed_out
from ..program.deterministic import Moments, moments
from ..program.posteriors import joint_posterior, marginals
from ..program.program import Program
from ..program.sites import Params
from ..trace.handlers import engine_state
from .compiled import bound


def program_on(fit: Any, dataset: Dataset) -> tuple[Program, Params]:
    """A fit's program on (new) data, and its params. Call inside `engine_state`."""
    return bound(fit, dataset), {name: value.unsqueeze(0) for name, value in fit.params.items()}


def score(fit: Any, dataset: Dataset) -> Tensor:
    """log p(x_n) of each row, (N,)."""
    with engine_state(fit.seed), torch.no_grad():
        program, params = program_on(fit, dataset)
        return program.row_log_prob(params).squeeze(0)


def latents(fit: Any, dataset: Dataset) -> dict[str, Tensor | Moments]:
    """Posterior probabilities of each latent of a row, (N, K) or (N, plates, K); moments of what comes of them."""
    with engine_state(fit.seed):
        program, params = program_on(fit, dataset)
        found: dict[str, Tensor | Moments] = {**marginals(program, params)}
        if summed_out(program):
            found |= normal_moments(program, params, joint_posterior(program, params))
        return {**found, **moments(program, params)}


def normal_factor(fit: Any, site: str, dataset: Dataset) -> Any:
    """The posterior of a normal latent of the rows, as a distribution; None of what is no such latent."""
    with engine_state(fit.seed):
        program, params = program_on(fit, dataset)
        if site not in summed_out(program):
            return None
        return normal_posterior(program, params, joint_posterior(program, params), site)
