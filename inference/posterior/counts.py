"""Allocated counts: the factors of rows are found again from what they share, whenever asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..base.errors import DataError, ModelError
from ..cavi.counts.ascent import Allocated, allocated_on, matrix_of
from ..cavi.counts.model import read_allocation, sample_of
from ..cavi.counts.passes import SINGLE, Rows, Shared, mean_of
from ..data.schema import Dataset
from ..families.factors import GammaFactor
from ..optimize.modes import Cells as LabelCells
from ..program.deterministic import Moments
from ..program.sites import Params
from ..trace.handlers import engine_state
from ..trace.structure import read
from .base import Cells, Draws, Fitted, Latents, Posterior, Replicates
from .generate import predictive, replicates

ROW_DRAWS = 201  # of a row's latent, of the importance-weighted bound; of few data five times as many
WIDER = (1.0, 0.5, 0.25)  # shares of the data that the factors drawn from have seen
SHORT = 21  # of the same under each of many draws of what is shared


def mixes_profiles(fit: Fitted) -> bool:
    """Whether the rows of a fit mix shared profiles of counts; of a fit by SVI its data tell."""
    if isinstance(fit.kind, Counts) or not fit.kind.guided:
        return fit.kind.guided
    if fit.data is None or len(fit.params) != 1:
        return False
    with engine_state(fit.seed), torch.no_grad():
        structure = read(fit.pair.model, sample_of(fit.data.values), fit.params)
        try:
            return read_allocation(fit.pair.model, fit.data.values, structure, fit.data.schema) is not None
        except (ModelError, DataError):
            return False


@dataclass(frozen=True)
class Counts(Posterior):
    """Factors of what rows share, by CAVI; the latent of each row has one given these."""

    sparse = True

    fit: Fitted
    dataset: Dataset | None = None

    @cached_property
    def at(self) -> Allocated:
        return allocated_on(self.fit.pair.model, self.fit.params, self.fit.guide_parts, self.data)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The latents of all rows, in the model's own shape."""
        return (len(self.at.allocation.counts), *self.at.allocation.shapes[self.at.allocation.rows.name])

    def log_evidence(self) -> Tensor:
        """An importance-weighted bound on log p(x_n | beta) with beta at its posterior mean, (N,): theta_n is summed
        over by draws from its factor and two wider ones (Burda, Grosse and Salakhutdinov 2016; Owen and Zhou 2000,
        section 3, for their mixture; Wallach et al. 2009, section 4, for topics at a point).
        """
        allocation = self.at.allocation
        small = len(allocation.counts.index) * allocation.size <= SINGLE
        return row_scores(self.at, mean_of(allocation.shared, self.at.state), ROW_DRAWS * (5 if small else 1))

    def marginals(self) -> Latents:
        rows = self.at.allocation.rows
        factor = rows.family.distribution(self.at.eta)
        parts = (factor.mean, factor.variance.sqrt())
        return {rows.name: Moments(*(part.reshape(self.row_shape) for part in parts))}

    def factor(self, site: str) -> Any:
        allocation, state = self.at.allocation, self.at.state
        if site == allocation.rows.name:
            return allocation.rows.family.distribution(self.at.eta)
        if site != allocation.shared.name or site not in self.fit.guide_parts:
            return None
        family = allocation.shared.family
        turned = allocation.transposed and isinstance(family, GammaFactor)
        return family.distribution(state.transpose(0, 1) if turned else state)

    def shared(self, num: int) -> Params:
        return {name: self._shared(name, num) for name in self.fit.params}

    def _shared(self, name: str, num: int) -> Tensor:
        value = self.fit.params[name]
        if name not in self.fit.guide_parts:
            return value.expand(num, *value.shape)
        state = self.fit.guide_parts[name]
        if state.dim() == 2:
            return dist.Dirichlet(state + 1).sample((num,)).reshape(num, *value.shape)
        drawn = dist.Gamma(state[..., 0] + 1, -state[..., 1]).sample((num,))
        squeezed = [size for size in value.shape if size > 1] if value.dim() > 2 else list(value.shape)
        own = drawn if list(drawn.shape[1:]) == squeezed else drawn.mT
        return own.reshape(num, *value.shape)

    def draw(self, num: int, scored: bool = False) -> Draws:
        allocation, shared = self.at.allocation, self.shared(num)
        theta = allocation.rows.family.distribution(self.at.eta).sample((num,)).reshape(num, *self.row_shape)
        scores = None
        if scored:
            betas = (matrix_of(allocation, one) for one in shared[allocation.shared.name])
            scores = torch.stack([row_scores(self.at, beta, SHORT) for beta in betas])
        return Draws(shared, {allocation.rows.name: theta}, scores)

    def expected(self, everywhere: bool) -> Iterator[Cells]:
        allocation = self.at.allocation
        counts = allocation.counts
        beta = mean_of(allocation.shared, self.at.state)
        for block, eta in zip(self.at.blocks, self.at.etas, strict=True):
            table = mean_of(allocation.rows, eta) @ beta
            if allocation.poisson:
                c = allocation.row_factor
                table = table * (c if len(c) == 1 else c[block.place]).unsqueeze(1) * allocation.column_factor
            else:
                usual = counts.totals[~counts.blank].mean().round()
                totals = torch.where(counts.blank[block.place], usual, block.bags.totals)
                table = table * totals.unsqueeze(1)
            place = block.place.unsqueeze(1) * counts.width + torch.arange(counts.width)
            yield Cells(place.flatten(), table.flatten())

    def generate(self, num: Any, given: dict[str, Any], seed: int) -> Any:
        return predictive(self, num, given, seed)

    def replicate(self, draws: Draws) -> Replicates:
        site = self.at.allocation.site
        found = replicates(self.fit.pair, self.data.values, draws, {site: self.at.allocation.counts.dense()})
        return found if "x" in found.predicted else Replicates(*({"x": part[site]} for part in found))

    def label_cells(self) -> LabelCells:
        allocation = self.at.allocation
        cells = torch.arange(allocation.size * allocation.counts.width)
        own = cells.reshape(-1, allocation.size).mT if allocation.transposed else cells.reshape(allocation.size, -1)
        return {allocation.rows.name: {allocation.shared.name: own}}

    def axes(self, draws: Draws) -> dict[str, list[str]]:
        name = self.at.allocation.rows.name
        return {name: ["data", f"{name}_label"]} if draws.rows[name].dim() == 3 else {}


# --- how probable rows are --------------------------------------------------------------------------------------------


def row_scores(found: Allocated, beta: Tensor, num: int) -> Tensor:
    """log of the mean over draws of p(x_n, theta | beta) / q(theta), (N,); beta (K, V)."""
    return torch.cat([_scores(found, place, beta, num) for place in range(len(found.blocks))])


def _scores(found: Allocated, place: int, beta: Tensor, num: int) -> Tensor:
    allocation, block, eta = found.allocation, found.blocks[place], found.etas[place]
    beta = beta.mT.contiguous()
    rate = beta * allocation.column_factor.unsqueeze(1)
    rows = Rows(allocation, block, Shared(beta, beta.float(), torch.zeros(len(beta)), rate, rate.sum(0)))
    exposure = rows.exposure
    prior, family, bags = allocation.rows.prior, allocation.rows.family, block.bags
    assert prior is not None
    p = family.distribution(prior)
    # a mean field is narrower than the posterior: two draws of three come from factors that are told less by the data
    proposals = [family.distribution(prior + share * (eta - prior)) for share in WIDER]
    out = []
    for number in range(num):
        theta = proposals[number % len(WIDER)].sample()
        _, s = rows.ratios(theta)
        log_prob = block.base.index_add(0, bags.rows, bags.count * s.log())
        if allocation.poisson:
            log_prob = log_prob - (theta * exposure).sum(1)
        theta = theta.clamp_min(1e-300)
        log_q = torch.stack([_by_row(q.log_prob(theta)) for q in proposals]).logsumexp(0) - math.log(len(WIDER))
        out.append(log_prob + _by_row(p.log_prob(theta)) - log_q)
    return torch.stack(out).logsumexp(0) - math.log(num)


def _by_row(log_prob: Tensor) -> Tensor:
    return log_prob.sum(1) if log_prob.dim() > 1 else log_prob
