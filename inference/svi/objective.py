"""The evidence lower bound of a model and its guide, as a function of free numbers.

Discrete latents of a row are summed out exactly (the enumerated ELBO; no draw of them adds noise). Continuous latents
are drawn from the guide by reparameterization (Kingma and Welling 2014); its entropy, and the expected log density of
normal priors under a mean-field guide, are exact (analytic KL), given draws of the latents that a prior hangs on. With
a batch of B rows of N the rows' share is scaled by N / B (Hoffman et al. 2013), so the expectation stays that of all
rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..base.unconstrained import Free, Parts, total, values_of
from ..families.base import LOG_2PI
from ..program.objective import log_density, log_prior
from ..program.program import Program, site_log_prob
from ..program.sites import Params
from ..trace.handlers import base_of
from .guide import Sampled, Sampler


@dataclass(frozen=True)
class Objective:
    """What SVI raises.

    Attributes
    ----------
    program : Program
        The model on all rows; continuous latents of a row are among its scored sites.
    params : dict
        Name -> how it follows from its free numbers.
    sampler : Sampler
        Draws the continuous latents; knows nothing of the model's density.
    particles : int
        Draws of each estimate.
    alpha : float
        Order of the Renyi bound (Li and Turner 2016): 1 is the ELBO, 0 the importance-weighted bound (Burda et al.
        2016).
    weights : Tensor (N,), optional
        Of the rows.
    closed : bool
        Whether closed forms stand in place of draws, where alpha is 1. Without them the estimate has the less noise the
        nearer the guide is to the posterior, and none where it is the posterior.
    """

    program: Program
    params: dict[str, Free]
    sampler: Sampler
    particles: int
    alpha: float
    weights: Tensor | None
    closed: bool = True

    @property
    def noisy(self) -> bool:
        """Whether two estimates on all rows differ."""
        return self.sampler.noisy

    def values(self, free: Parts) -> Params:
        """The model's params from their free numbers."""
        return values_of(self.params, free, "param/")

    def __call__(self, free: Parts, rows: Tensor | None = None) -> Tensor:
        """An estimate of the bound over all rows, from those in `rows` (all, where it is None)."""
        program = self.program if rows is None else self.program.on_rows(rows)
        share = self.weights if rows is None or self.weights is None else self.weights[rows]
        scale = 1.0 if rows is None else self.program.num_rows / len(rows)
        closed = self.closed and self.alpha == 1.0
        drawn = self.sampler.draw(free, program, rows, self.particles, density=not closed)
        drawn = drawn if closed else drawn._replace(exact={})
        log_rows, prior = self._log_joint(program, self.values(free), drawn)
        if closed:
            log_rows, prior = log_rows + drawn.entropy_rows, prior + drawn.entropy
        else:
            log_rows, prior = log_rows - drawn.log_q_rows, prior - drawn.log_q
        if self.alpha != 1.0:
            return self._renyi(log_rows, prior, share, scale)
        rows_part = (log_rows if share is None else log_rows * share).sum(1).mean()
        return (rows_part if rows is None else rows_part * scale) + prior.mean()

    @property
    def particles_of(self) -> int:
        """Draws side by side: one where nothing is drawn."""
        return self.particles if self.sampler.noisy else 1

    def _renyi(self, rows: Tensor, shared: Tensor, share: Tensor | None, scale: float) -> Tensor:
        """(1 / (1 - alpha)) log mean w^(1 - alpha): row by row where nothing is shared, of the whole otherwise."""
        power, count = 1 - self.alpha, math.log(len(rows))
        if self.sampler.shared:
            total = (rows if share is None else rows * share).sum(1) * scale + shared
            return ((power * total).logsumexp(0) - count) / power
        each = ((power * rows).logsumexp(0) - count) / power
        return (each if share is None else each * share).sum() * scale + shared.mean()

    def log_joint(self, rows: Tensor | None, values: Params) -> float:
        """log p of some rows (of all, where `rows` is None) and of the latents, at one value of each."""
        program = self.program if rows is None else self.program.on_rows(rows)
        latents = {name: value for name, value in values.items() if name not in self.params}
        exact = {name: (latents[name], torch.zeros_like(latents[name])) for name in self._exact(program)}
        nothing = torch.zeros(1, dtype=torch.float64)
        lead = {name: value.unsqueeze(0) for name, value in latents.items()}
        drawn = Sampled(lead, nothing, nothing, nothing, nothing, exact)
        one = replace(self, particles=1, alpha=1.0)
        log_rows, prior = one._log_joint(program, {n: values[n] for n in self.params}, drawn)
        return float(log_rows.sum() + prior.sum())

    def _exact(self, program: Program) -> list[str]:
        """Latents of the rows whose log priors are no scored sites, since they are known in expectation."""
        return [name for name in program.structure.continuous if name not in program.scored]

    def _log_joint(self, program: Program, params: Params, drawn: Sampled) -> tuple[Tensor, Tensor]:
        """log p(x_n, u_n | theta) of each row, (m, B), and log p(theta), (m,)."""
        if not program.runs_model:
            spread = {name: value.expand(self.particles_of, *value.shape) for name, value in params.items()}
            return self._one(program, {**spread, **drawn.values}, drawn)
        each = []
        for r in range(max((len(value) for value in drawn.values.values()), default=1)):
            one = {**params, **{name: _pick(value, r) for name, value in drawn.values.items()}}
            if program.layout.latents or program.products:
                lead = {name: value.unsqueeze(0) for name, value in one.items()}
                rows, prior = self._one(program, lead, drawn)
                each.append((rows.squeeze(0), prior.squeeze(0)))
            else:
                each.append(self._scored(program, one, drawn))
        return torch.stack([rows for rows, _ in each]), torch.stack([prior for _, prior in each])

    def _scored(self, program: Program, values: Params, drawn: Sampled) -> tuple[Tensor, Tensor]:
        """The log joint density of one draw, (B,) and (), of a model whose every site is scored in a run of it."""
        nodes = program.run(values).nodes
        exact = drawn.exact
        terms = {name: site_log_prob(nodes[name]) for name in (*program.scored, *_unscored(program, drawn))}
        for name, (mean, sd) in exact.items():
            if name in program.structure.continuous:
                terms[name] = normal_expectation(nodes[name]["fn"], mean, sd)
        rows = total([rows_of(term, program) for term in terms.values()])
        prior = torch.zeros((), dtype=torch.float64)
        for name, param in program.structure.params.items():
            if name in exact:
                prior = prior + (normal_expectation(nodes[name]["fn"], *exact[name]) * nodes[name]["scale"]).sum()
            elif param.prior is not None:
                prior = prior + (nodes[name]["fn"].log_prob(values[name]) * nodes[name]["scale"]).sum()
        for name in program.structure.outside:
            prior = prior + site_log_prob(nodes[name]).sum()
        return rows, prior

    def _one(self, program: Program, values: Params, drawn: Sampled) -> tuple[Tensor, Tensor]:
        ready = program.prepare(values)
        log_rows = program.prepared_log_prob(ready, values)
        exact = drawn.exact
        of_rows = program.structure.continuous

        def density(name: str, fn: Any, value: Tensor) -> Tensor:  # the prior at draws of its parents
            if name not in exact:
                return log_density(name, fn, value)
            term = normal_expectation(fn, *exact[name])
            return term.expand(len(value), *term.shape)

        prior = log_prior(program, values, ready.trace, density)
        nodes = (ready.trace or program.structure.trace).nodes
        for name, (mean, sd) in exact.items():
            if name in of_rows and name not in program.scored:
                log_rows = log_rows + rows_of(normal_expectation(nodes[name]["fn"], mean, sd), program)
        for name in _unscored(program, drawn):
            each = [rows_of(nodes[name]["fn"].log_prob(value), program) for value in values[name]]
            log_rows = log_rows + torch.stack(each)
        return log_rows, prior


def _unscored(program: Program, drawn: Sampled) -> list[str]:
    """Latents of a row whose prior the program leaves to its closed form, where there are draws alone."""
    return [n for n in program.structure.continuous if n not in program.scored and n not in drawn.exact]


def rows_of(term: Tensor, program: Program) -> Tensor:
    """A term of the rows' plates, (batch), summed over all but the rows, (B,)."""
    return term if term.dim() == 1 else term.movedim(program.structure.data_dim, -1).flatten(0, -2).sum(0)


def normal_expectation(fn: Any, mean: Tensor, sd: Tensor) -> Tensor:
    """E log density of a normal prior at a normal draw with this mean and sd, (batch)."""
    prior = base_of(fn)
    square = (mean - prior.loc) ** 2 + sd**2
    term = -0.5 / prior.scale**2 * square - (prior.scale.log() + 0.5 * LOG_2PI)
    return term.flatten(-fn.event_dim).sum(-1) if fn.event_dim else term


def _pick(draws: Tensor, number: int) -> Tensor:
    """One of some draws; what is the same in all of them is held once."""
    return draws[number % len(draws)]
