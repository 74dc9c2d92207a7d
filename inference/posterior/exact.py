"""Point estimates: the posterior of the latents of rows is exact under them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..data.schema import Dataset
from ..linear_gaussian.posterior import normal_draws, normal_moments, normal_posterior, summed_out
from ..optimize.modes import Cells as LabelCells
from ..optimize.modes import label_cells
from ..program.deterministic import derived_draws, moments
from ..program.posteriors import joint_posterior, latent_draws, marginals, own_shape
from ..program.program import Program
from ..program.sites import Params
from ..trace.provenance import plain
from .base import Cells, Draws, Fitted, Latents, Posterior, Replicates
from .compiled import bound
from .expected import expected_cells
from .generate import predictive, replicates


def program_on(fit: Fitted, dataset: Dataset) -> tuple[Program, Params]:
    """A fit's program on (new) data, and its params. Call inside `engine_state`."""
    return bound(fit, dataset), {name: value.unsqueeze(0) for name, value in fit.params.items()}


@dataclass(frozen=True)
class Point(Posterior):
    """Params as points, by EM or by a delta guide."""

    guided = False
    score_kind = "exact"

    fit: Fitted
    dataset: Dataset | None = None

    @cached_property
    def at(self) -> tuple[Program, Params]:
        return program_on(self.fit, self.data)

    def log_evidence(self) -> Tensor:
        program, params = self.at
        return program.row_log_prob(params).squeeze(0)

    def marginals(self) -> Latents:
        program, params = self.at
        found: Latents = {**marginals(program, params)}
        if summed_out(program):
            found |= normal_moments(program, params, joint_posterior(program, params))
        return {**found, **moments(program, params)}

    def factor(self, site: str) -> Any:
        if site in self.fit.guide_parts:  # shared, and summed out: at its posterior mean
            mean, spread = self.fit.params[site], self.fit.guide_parts[site]
            return dist.Normal(mean, spread.norm(dim=-1) if spread.dim() > mean.dim() else spread)
        program, params = self.at
        if site not in summed_out(program):
            return None
        return normal_posterior(program, params, joint_posterior(program, params), site)

    def shared(self, num: int) -> Params:
        out = {name: value.expand(num, *value.shape) for name, value in self.fit.params.items()}
        noise: Tensor | None = None
        for name, spread in self.fit.guide_parts.items():
            if spread.dim() == out[name].dim():  # a root (*shape, q) of the covariance of all
                noise = torch.randn(num, spread.shape[-1], dtype=spread.dtype) if noise is None else noise
                out[name] = out[name] + torch.einsum("...q,sq->s...", spread, noise)
            else:
                out[name] = out[name] + spread * torch.randn_like(out[name])
        return out

    def draw(self, num: int, scored: bool = False) -> Draws:
        program, params = self.at
        rows = row_draws(program, params, num)
        return Draws(self.shared(num), rows, program.row_log_prob(params).expand(num, -1) if scored else None)

    def exported(self, shared: Params | None, num: int) -> Draws:
        if shared is None:
            return self.draw(1, scored=True)
        program, _ = self.at
        sets = [{name: value[s : s + 1] for name, value in shared.items()} for s in range(num)]
        rows = [row_draws(program, one, 1) for one in sets]
        scores = torch.cat([program.row_log_prob(one) for one in sets])
        return Draws(shared, {name: torch.cat([one[name] for one in rows]) for name in rows[0]}, scores)

    def expected(self, everywhere: bool) -> Iterator[Cells]:
        return expected_cells(*self.at, self.data.values, everywhere)

    def generate(self, num: Any, given: dict[str, Any], seed: int) -> Any:
        return predictive(self, num, given, seed)

    def replicate(self, draws: Draws) -> Replicates:
        return replicates(self.fit.pair, self.data.values, draws, observed_values(self.at[0]))

    def label_cells(self) -> LabelCells:
        return label_cells(self.at[0])


def row_draws(program: Program, params: Params, num: int) -> Params:
    """Joint draws (num, N, *cells) of the latents of each row under one set of params, and of what is computed of
    them.
    """
    drawn = latent_draws(program, params, num)
    out = {name: own_shape(program, name, value) for name, value in drawn.items()}
    if summed_out(program):
        configuration = torch.zeros(num, program.num_rows, dtype=torch.long)
        for value, size in zip(out.values(), program.layout.sizes, strict=True):
            configuration = configuration * size + value
        out |= normal_draws(program, params, configuration)
    return {**out, **derived_draws(program, params, drawn, num)}


def observed_values(program: Program) -> Params:
    """What each site of a program observes."""
    return {name: plain(program.structure.trace.nodes[name]["value"]) for name in program.structure.observed}
