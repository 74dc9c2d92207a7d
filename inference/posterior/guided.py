"""Guides: draws of continuous latents, and scores and posteriors averaged over them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import transforms

from ..base.errors import DataError, ModelError
from ..base.unconstrained import Parts
from ..data.schema import Dataset
from ..optimize.modes import Cells as LabelCells
from ..optimize.modes import label_cells
from ..pair import Pair
from ..program.deterministic import Moments
from ..program.posteriors import marginals
from ..program.program import Program
from ..program.sites import Params
from ..svi.checkpoints import ROWS, fingerprint
from ..svi.fit import plain_svi
from ..svi.guide import NormalGuide, Sampled, derive
from ..svi.normal_guides import SHAPES
from ..svi.options import SVIOptions
from ..svi.user_guide import OwnGuide, own_guide
from ..trace.handlers import Bind
from .base import Cells, Draws, Fitted, Latents, Posterior, Replicates
from .compiled import bound
from .exact import observed_values, program_on, row_draws
from .expected import averaged_cells, expected_cells
from .generate import predictive, replicates

SHARED_DRAWS = 100  # of shared latents, that scores and posteriors are averaged over
ROW_DRAWS = 200  # of latents of a row, of the importance-weighted bound and of moments
SHORT = 20  # of the importance-weighted bound under each of many draws of what is shared
LOCAL_STEPS = 3_000  # at most, to fit the guides of new rows


class Drawing(Protocol):
    """What is asked of a guide here; `svi.guide.Sampler` is one."""

    def draw(self, free: Parts, program: Program, rows: Tensor | None, num: int, density: bool = True) -> Sampled: ...


class Opened(NamedTuple):
    """A fit's model on some data, with its guide there."""

    program: Program
    sampler: Drawing
    free: Parts
    point: Params  # what is no draw: learned params, (1, *shape)

    @property
    def per_row(self) -> bool:
        return bool(self.program.structure.continuous)

    @property
    def latents(self) -> set[str]:
        """The latents that the guide has factors of."""
        structure = self.program.structure
        return {n for n, param in structure.params.items() if param.prior is not None} | set(structure.continuous)

    def values(self, drawn: Sampled, place: int) -> Params:
        """One of the draws of everything continuous, (1, *shape) each."""
        one = {name: value[place % len(value)].unsqueeze(0) for name, value in drawn.values.items()}
        return {**self.point, **one}


def guided_on(fit: Fitted, dataset: Dataset) -> Opened:
    """A fit's program and guide on (new) data; rows that are new get a guide of their own, fitted now.

    Call inside `engine_state`.
    """
    program = bound(fit, dataset, drawn=True)
    structure = program.structure
    learned = {n: v for n, v in fit.params.items() if structure.params[n].prior is None}
    point = {name: value.unsqueeze(0) for name, value in learned.items()}
    if fit.guide == "own":
        values = {**learned, **{name.removeprefix("value/"): value for name, value in fit.guide_parts.items()}}
        assert fit.pair.guide is not None
        own, _ = own_guide(fit.pair.guide, dataset.values, structure, lambda free: values, values)
        return Opened(program, replace(own, params={}), {}, point)
    sampler, _, _ = derive(structure, SHAPES[fit.guide], fit.params)
    free = dict(fit.guide_parts)
    rows = free.pop(ROWS, torch.empty(0, dtype=torch.uint8))
    if structure.continuous and not torch.equal(rows, fingerprint(dataset)):
        free |= _fitted_locals(fit, dataset)
    return Opened(program, sampler, free, point)


def _fitted_locals(fit: Fitted, dataset: Dataset) -> Parts:
    """Parts of the guides of rows that the fit has not seen, everything shared held at its centre."""

    def hidden(msg: Any) -> bool:
        return msg["name"] in fit.params

    def model(data: Any) -> None:
        with poutine.block(hide_fn=hidden), Bind(fit.params):
            fit.pair.model(data)

    options = SVIOptions(guide=fit.guide, num_steps=LOCAL_STEPS, tol=1e-5, seed=fit.seed, progress=False)
    found = plain_svi(Pair(model), dataset, options, measured=False)
    if found.failure:
        raise DataError(f"new rows: {found.failure}")
    return {name: value.detach() for name, value in found.guide_parts.items()}


@dataclass(frozen=True)
class Guided(Posterior):
    """Normal guides, and the user's own."""

    fit: Fitted
    dataset: Dataset | None = None

    @cached_property
    def at(self) -> Opened:
        return guided_on(self.fit, self.data)

    def log_evidence(self) -> Tensor:
        return log_evidence(self.at)

    def marginals(self) -> Latents:
        probs: dict[str, Tensor] = {}
        total: dict[str, tuple[Tensor, Tensor]] = {}
        program = self.at.program
        num = ROW_DRAWS if self.at.per_row else SHARED_DRAWS
        for one in draws_of(self.at, num):
            for name, share in marginals(program, one).items():
                probs[name] = probs.get(name, 0.0) + share / num
            for name in program.structure.continuous:
                value = rows_first(program, name, one[name][0])
                first, second = total.get(name, (torch.zeros_like(value), torch.zeros_like(value)))
                total[name] = first + value / num, second + value**2 / num
        moments = {n: Moments(a, (b - a**2).clamp_min(0).sqrt()) for n, (a, b) in total.items()}
        return {**probs, **moments}

    def factor(self, site: str) -> Any:
        if site not in self.at.latents:
            return None
        sampler = self.at.sampler
        if isinstance(sampler, OwnGuide):
            return sampler.sites(self.at.free, self.data.values)[site]["fn"]
        assert isinstance(sampler, NormalGuide)
        for prefix, blocks in (("shared/", sampler.blocks), ("local/", sampler.row_blocks)):
            start = 0
            for block in blocks:
                if block.name == site:
                    return _factor_of(sampler, self.at.free, prefix, block, start)
                start += block.size
        return None

    def shared(self, num: int) -> Params:
        return shared_of(self.fit, draws_of(self.at, num))

    def draw(self, num: int, scored: bool = False) -> Draws:
        return draws(self.fit, self.at, num, scored)

    def expected(self, everywhere: bool) -> Iterator[Cells]:
        return expected(self.fit, self.data, self.at, everywhere)

    def generate(self, num: Any, given: dict[str, Any], seed: int) -> Any:
        return predictive(self, num, given, seed)

    def replicate(self, draws: Draws) -> Replicates:
        return replicates(self.fit.pair, self.data.values, draws, observed_values(self.at.program))

    def label_cells(self) -> LabelCells:
        return label_cells(self.at.program)


# --- of any guide -----------------------------------------------------------------------------------------------------


def draws_of(at: Opened, num: int) -> Iterator[Params]:
    """Values of everything continuous, (1, *shape) each, drawn from the guide one by one."""
    drawn = at.sampler.draw(at.free, at.program, None, num)
    for s in range(num):
        yield at.values(drawn, s)


def log_evidence(at: Opened) -> Tensor:
    """log of the mean of p(x_n | theta) over draws, (N,); with latents of a row their importance-weighted bound."""
    if at.per_row:
        return importance(at, ROW_DRAWS)
    rows = [at.program.row_log_prob(one) for one in draws_of(at, SHARED_DRAWS)]
    return torch.cat(rows).logsumexp(0) - math.log(len(rows))


def log_weights(at: Opened, num: int, held: Params | None = None) -> tuple[list[Params], Tensor]:
    """Draws, and log p(x_n, u_n | theta) - log q(u_n) of each, (num, N); what is `held` is no draw."""
    drawn = at.sampler.draw(at.free, at.program, None, num)
    each = [{**at.values(drawn, s), **(held or {})} for s in range(num)]
    rows = [at.program.row_log_prob(one) - drawn.log_q_rows[s % len(drawn.log_q_rows)] for s, one in enumerate(each)]
    return each, torch.cat(rows)


def importance(at: Opened, num: int, held: Params | None = None) -> Tensor:
    """log of the mean over draws of p(x_n, u_n | theta) / q(u_n), (N,) (Burda et al. 2016)."""
    return log_weights(at, num, held)[1].logsumexp(0) - math.log(num)


def shared_of(fit: Fitted, each: Iterable[Params]) -> Params:
    """Params (num, *shape): draws of shared latents, and learned params as they are."""
    found = list(each)
    return {name: torch.cat([one[name] for one in found]) for name in fit.params}


def draws(fit: Fitted, at: Opened, num: int, scored: bool) -> Draws:
    """Joint draws, discrete latents of a row recovered under each draw of all that is continuous."""
    each = list(draws_of(at, num))
    shared = shared_of(fit, each)
    rows: dict[str, list[Tensor]] = {}
    scores = []
    for s, one in enumerate(each):
        own = {n: rows_first(at.program, n, one[n][0]).unsqueeze(0) for n in at.program.structure.continuous}
        for name, value in {**own, **row_draws(at.program, one, 1)}.items():
            rows.setdefault(name, []).append(value)
        if scored and at.per_row:
            scores.append(importance(at, SHORT, {name: value[s : s + 1] for name, value in shared.items()}))
        elif scored:
            scores.append(at.program.row_log_prob(one).squeeze(0))
    found = {name: torch.cat(parts) for name, parts in rows.items()}
    return Draws(shared, found, torch.stack(scores) if scored else None)


def expected(fit: Fitted, dataset: Dataset, at: Opened, everywhere: bool) -> Iterator[Cells]:
    """Expected cells under what is shared at its centre where the latents of rows can be summed out there, otherwise
    over draws, by importance weights for missing cells.
    """
    try:
        yield from list(expected_cells(*program_on(fit, dataset), dataset.values, everywhere))
    except ModelError:
        each, weights = log_weights(at, ROW_DRAWS)
        weights = torch.zeros_like(weights) if everywhere else weights
        under = [{name: value[0] for name, value in one.items()} for one in each]
        yield from averaged_cells(at.program, dataset.values, under, weights)


def rows_first(program: Program, name: str, value: Tensor) -> Tensor:
    """A latent of a row as (N, *plates it lies in, *event)."""
    site = program.structure.trace.nodes[name]
    event = len(site["fn"].event_shape)
    batch = value.shape[: value.dim() - event]
    value = value.movedim(len(batch) + program.structure.data_dim, 0)
    inner = {f.dim for f in site["cond_indep_stack"]} - {program.structure.data_dim}
    others = [d for d in range(-len(batch), 0) if d != program.structure.data_dim]
    kept = [batch[d] for d in others if d in inner]
    return value.reshape(len(value), *kept, *value.shape[value.dim() - event :])


def _factor_of(sampler: NormalGuide, free: Parts, prefix: str, block: Any, start: int) -> Any:
    parts = sampler.parts(free, prefix)
    place = slice(start, start + block.size)
    loc = parts["loc"][..., place]
    if sampler.shape.name == "mean_field":
        shape = (*loc.shape[:-1], *block.shape)
        scale = parts["log_scale"][..., place].exp()
        normal = dist.Normal(loc.reshape(shape), scale.reshape(shape)).to_event(len(block.shape))
    else:
        covariance = sampler.shape.covariance(parts)[..., place, place]
        flat = dist.MultivariateNormal(loc, covariance)
        shaped = transforms.ReshapeTransform(torch.Size((block.size,)), torch.Size(block.shape))
        normal = dist.TransformedDistribution(flat, [shaped])
    return dist.TransformedDistribution(normal, [block.transform])
