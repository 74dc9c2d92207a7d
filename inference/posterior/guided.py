"""What a fit with a guide says: draws of its continuous latents, and scores and posteriors averaged over them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import transforms

from ..base.errors import DataError
from ..base.options import check_counts, check_seed
from ..base.unconstrained import Parts
from ..cavi.fit import CONJUGATE
from ..data.schema import Dataset
from ..pair import Pair
from ..program.deterministic import Moments
from ..program.posteriors import marginals
from ..program.program import Program
from ..program.sites import Params
from ..svi.checkpoints import ROWS, fingerprint
from ..svi.fit import plain_svi
from ..svi.guide import NormalGuide, Sampler, derive
from ..svi.normal_guides import SHAPES
from ..svi.options import SVIOptions
from ..svi.user_guide import OwnGuide, own_guide
from ..trace.handlers import Bind, engine_state
from .compiled import bound
from .conjugate import FactorGuide, factor_guide
from .draws import latent_draws

SHARED_DRAWS = 100  # of shared latents, that scores and posteriors are averaged over
ROW_DRAWS = 200  # of latents of a row, of the importance-weighted bound and of moments
SHORT = 20  # of the importance-weighted bound under each of many draws of what is shared
LOCAL_STEPS = 3_000  # at most, to fit the guides of new rows


class Guided(NamedTuple):
    """A fit's model on some data, with its guide there."""

    program: Program
    sampler: Sampler
    free: Parts
    point: Params  # what is no draw: learned params, (1, *shape)

    @property
    def per_row(self) -> bool:
        return bool(self.program.structure.continuous)


def guided_on(fit: Any, dataset: Dataset) -> Guided:
    """A fit's program and guide on (new) data; rows that are new get a guide of their own, fitted now.

    Call inside `engine_state`.
    """
    program = bound(fit, dataset, drawn=True)
    structure = program.structure
    learned = {n: v for n, v in fit.params.items() if structure.params[n].prior is None}
    point = {name: value.unsqueeze(0) for name, value in learned.items()}
    if fit.guide == "own":
        values = {**learned, **{name.removeprefix("value/"): value for name, value in fit.guide_parts.items()}}
        own, _ = own_guide(fit.pair.guide, dataset.values, structure, lambda free: values, values)
        return Guided(program, replace(own, params={}), {}, point)
    if fit.guide == CONJUGATE:
        return Guided(program, factor_guide(fit, program), {}, point)
    sampler, _, _ = derive(structure, SHAPES[fit.guide], fit.params)
    free = dict(fit.guide_parts)
    rows = free.pop(ROWS, torch.empty(0, dtype=torch.uint8))
    if structure.continuous and not torch.equal(rows, fingerprint(dataset)):
        free |= _fitted_locals(fit, dataset)
    return Guided(program, sampler, free, point)


def _fitted_locals(fit: Any, dataset: Dataset) -> Parts:
    """Parts of the guides of rows that the fit has not seen, everything shared held at its centre."""

    def hidden(msg: Any) -> bool:
        return msg["name"] in fit.params

    def model(data: Any) -> None:
        with poutine.block(hide_fn=hidden), Bind(fit.params):
            fit.pair.model(data)

    options = SVIOptions(guide=fit.guide, num_steps=LOCAL_STEPS, tol=1e-5, seed=fit.seed, progress=False)
    found = plain_svi(Pair(model), dataset, options)
    if found.failure:
        raise DataError(f"new rows: {found.failure}")
    return {name: value.detach() for name, value in found.guide_parts.items()}


def draws_of(guided: Guided, num: int) -> Iterator[Params]:
    """Values of everything continuous, (1, *shape) each, drawn from the guide one by one."""
    with torch.no_grad():
        drawn = guided.sampler.draw(guided.free, guided.program, None, num)
        for s in range(num):
            yield {**guided.point, **{name: value[s % len(value)].unsqueeze(0) for name, value in drawn.values.items()}}


def shared_draws(fit: Any, dataset: Dataset, num: int, seed: int) -> Params:
    """Params (num, *shape): draws of shared latents, and learned params as they are."""
    check_counts(num=(num, 1))
    with engine_state(check_seed(seed)):
        guided = guided_on(fit, dataset)
        each = list(draws_of(guided, num))
    return {name: torch.cat([one[name] for one in each]) for name in fit.params}


def score(fit: Any, dataset: Dataset) -> Tensor:
    """log of the mean of p(x_n | theta) over draws, (N,); with latents of a row their importance-weighted bound."""
    with engine_state(fit.seed), torch.no_grad():
        guided = guided_on(fit, dataset)
        if guided.per_row:
            return importance(guided, ROW_DRAWS)
        rows = [guided.program.row_log_prob(one) for one in draws_of(guided, SHARED_DRAWS)]
        return torch.cat(rows).logsumexp(0) - math.log(len(rows))


def importance(guided: Guided, num: int, values: Params | None = None) -> Tensor:
    """log of the mean over draws of p(x_n, u_n | theta) / q(u_n), (N,) (Burda et al. 2016)."""
    drawn = guided.sampler.draw(guided.free, guided.program, None, num)
    log_weights = []
    for s in range(num):
        one = {name: value[s % len(value)].unsqueeze(0) for name, value in drawn.values.items()}
        rows = guided.program.row_log_prob({**guided.point, **one, **(values or {})})
        log_weights.append(rows - drawn.log_q_rows[s % len(drawn.log_q_rows)])
    return torch.cat(log_weights).logsumexp(0) - math.log(num)


def latents(fit: Any, dataset: Dataset) -> dict[str, Tensor | Moments]:
    """Probabilities of discrete latents of a row, averaged over draws (of a mean field: their factor); moments of
    continuous ones.
    """
    with engine_state(fit.seed), torch.no_grad():
        guided = guided_on(fit, dataset)
        if isinstance(guided.sampler, FactorGuide):
            program = guided.program
            found = guided.sampler.moments()
            rows = {n: Moments(*(rows_first(program, n, part) for part in both)) for n, both in found.items()}
            return {**guided.sampler.marginals(), **rows}
        probs: dict[str, Tensor] = {}
        total: dict[str, tuple[Tensor, Tensor]] = {}
        num = ROW_DRAWS if guided.per_row else SHARED_DRAWS
        for one in draws_of(guided, num):
            for name, share in marginals(guided.program, one).items():
                probs[name] = probs.get(name, 0.0) + share / num
            for name in guided.program.structure.continuous:
                value = rows_first(guided.program, name, one[name][0])
                first, second = total.get(name, (torch.zeros_like(value), torch.zeros_like(value)))
                total[name] = first + value / num, second + value**2 / num
        moments = {n: Moments(a, (b - a**2).clamp_min(0).sqrt()) for n, (a, b) in total.items()}
        return {**probs, **moments}


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


def sample_posterior(fit: Any, dataset: Dataset, num: int, seed: int) -> Params:
    """Joint draws: shared latents (num, *shape), latents of a row (num, N, ...), discrete ones recovered."""
    check_counts(num=(num, 1))
    with engine_state(check_seed(seed)), torch.no_grad():
        guided = guided_on(fit, dataset)
        found: dict[str, list[Tensor]] = {}
        for one in draws_of(guided, num):
            of_rows = guided.program.structure.continuous
            own = {n: rows_first(guided.program, n, one[n][0]).unsqueeze(0) for n in of_rows}
            recovered = latent_draws(guided.program, one, 1)
            for name, value in {**{n: one[n] for n in fit.params}, **own, **recovered}.items():
                found.setdefault(name, []).append(value)
    return {name: torch.cat(parts) for name, parts in found.items()}


def continuous_of(fit: Any, dataset: Dataset) -> set[str]:
    """Names of the latents that the guide has a factor of."""
    with engine_state(fit.seed):
        structure = bound(fit, dataset, drawn=True).structure
    return {n for n, param in structure.params.items() if param.prior is not None} | set(structure.continuous)


def factor(fit: Any, site: str, dataset: Dataset) -> Any:
    """The guide's factor of one continuous latent, as a distribution over its own values."""
    with engine_state(fit.seed):
        guided = guided_on(fit, dataset)
        sampler = guided.sampler
        if isinstance(sampler, OwnGuide):
            with torch.no_grad():
                return sampler.sites(guided.free, dataset.values)[site]["fn"]
        if isinstance(sampler, FactorGuide):
            return sampler.factor(site)
        assert isinstance(sampler, NormalGuide)
        for prefix, blocks in (("shared/", sampler.blocks), ("local/", sampler.row_blocks)):
            start = 0
            for block in blocks:
                if block.name == site:
                    return _factor_of(fit, sampler, guided.free, prefix, block, start)
                start += block.size
    raise DataError(f"posterior: no latent named '{site}' in the guide")


def _factor_of(fit: Any, sampler: NormalGuide, free: Parts, prefix: str, block: Any, start: int) -> Any:
    parts = sampler.parts(free, prefix)
    place = slice(start, start + block.size)
    loc = parts["loc"][..., place]
    if fit.guide == "mean_field":
        shape = (*loc.shape[:-1], *block.shape)
        scale = parts["log_scale"][..., place].exp()
        normal = dist.Normal(loc.reshape(shape), scale.reshape(shape)).to_event(len(block.shape))
    else:
        covariance = SHAPES[fit.guide].covariance(parts)[..., place, place]
        flat = dist.MultivariateNormal(loc, covariance)
        shaped = transforms.ReshapeTransform(torch.Size((block.size,)), torch.Size(block.shape))
        normal = dist.TransformedDistribution(flat, [shaped])
    return dist.TransformedDistribution(normal, [block.transform])
