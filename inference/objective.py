"""The evidence lower bound of a model and its guide, as a function of free numbers.

Discrete latents of a row are summed out exactly (the enumerated ELBO; no draw of them adds noise). Continuous latents
are drawn from the guide by reparameterization (Kingma and Welling 2014); its entropy, and the expected log density of
normal priors under a mean-field guide, are exact (analytic KL). With a batch of B rows of N the rows' share is scaled
by N / B (Hoffman et al. 2013), so the expectation stays that of all rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .climb import log_prior
from .data import slice_rows
from .free import Free, Parts, values_of
from .guide_of import Sampled, Sampler
from .program import Program
from .sites import Params, Site
from .structure import base_of


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
    """

    program: Program
    params: dict[str, Free]
    sampler: Sampler
    particles: int
    alpha: float
    weights: Tensor | None

    @property
    def noisy(self) -> bool:
        """Whether two estimates on all rows differ."""
        return self.sampler.noisy

    def values(self, free: Parts) -> Params:
        """The model's params from their free numbers."""
        return values_of(self.params, free, "param/")

    def __call__(self, free: Parts, rows: Tensor | None = None) -> Tensor:
        """An estimate of the bound over all rows, from those in `rows` (all, where it is None)."""
        program = self.program if rows is None else on_rows(self.program, rows)
        share = self.weights if rows is None or self.weights is None else self.weights[rows]
        scale = 1.0 if rows is None else self.program.num_rows / len(rows)
        drawn = self.sampler.draw(free, program, rows, self.particles)
        values = {name: value.expand(self.particles_of, *value.shape) for name, value in self.values(free).items()}
        values |= drawn.values
        log_rows, prior = self._log_joint(program, values, drawn)
        if self.alpha == 1.0:
            each = log_rows + drawn.entropy_rows
            rows_part = (each if share is None else each * share).sum(1).mean() * scale
            return rows_part + (prior + drawn.entropy).mean()
        return self._renyi(log_rows - drawn.log_q_rows, prior - drawn.log_q, share, scale)

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

    def _log_joint(self, program: Program, values: Params, drawn: Sampled) -> tuple[Tensor, Tensor]:
        """log p(x_n, u_n | theta) of each row, (m, B), and log p(theta), (m,)."""
        if not program.runs_model:
            return self._one(program, values, drawn)
        each = []
        for r in range(max((len(value) for value in values.values()), default=1)):
            exact = {name: (_pick(mean, r), _pick(sd, r)) for name, (mean, sd) in drawn.exact.items()}
            one = {name: value[r : r + 1] for name, value in values.items()}
            each.append(self._one(program, one, drawn._replace(exact=exact)))
        return torch.cat([rows for rows, _ in each]), torch.cat([prior for _, prior in each])

    def _one(self, program: Program, values: Params, drawn: Sampled) -> tuple[Tensor, Tensor]:
        ready = program.prepare(values)
        log_rows = program.prepared_log_prob(ready, values)
        exact = drawn.exact if self.alpha == 1.0 else {}
        means = {
            name: mean
            for name, (mean, _) in exact.items()
            if name in values and name not in program.structure.continuous
        }
        prior = log_prior(program, {**values, **means}, ready.trace)
        nodes = (ready.trace or program.structure.trace).nodes
        for name, (mean, sd) in exact.items():
            fn = nodes[name]["fn"]
            spread = 0.5 * (sd / base_of(fn).scale) ** 2
            if name in means:
                prior = prior - spread.reshape(len(spread), -1).sum(1)
            elif name not in program.scored:
                event = tuple(range(-fn.event_dim, 0))
                term = fn.log_prob(mean[0]) - (spread[0].sum(event) if event else spread[0])
                term = term.movedim(program.structure.data_dim, -1)
                log_rows = log_rows + term.reshape(-1, term.shape[-1]).sum(0)
        return log_rows, prior


def _pick(draws: Tensor, number: int) -> Tensor:
    """One of some draws, (1, ...); what is the same in all of them is held once."""
    return draws[number % len(draws)].unsqueeze(0)


def on_rows(program: Program, rows: Tensor) -> Program:
    """The program on some of its rows, without reading the model again."""
    return replace(
        program,
        data=slice_rows(program.data, rows),
        structure=replace(program.structure, num_rows=len(rows)),
        layout=replace(program.layout, num_rows=len(rows)),
        products={name: site_on(site, rows) for name, site in program.products.items()},
        patterns={name: found._replace(of_row=found.of_row[rows]) for name, found in program.patterns.items()},
        tables={},
        base=program.base[rows] if isinstance(program.base, Tensor) else program.base,
        kept={},
    )


def site_on(site: Site, rows: Tensor) -> Site:
    """An observed site on some of its rows."""
    gathered = None if site.gathered is None else site.gathered.on_rows(rows)
    return replace(site, value=site.value[rows], gathered=gathered)
