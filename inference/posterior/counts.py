"""What a fit of allocated counts says: its rows' factors are found again from what they share, whenever asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..base.errors import DataError, ModelError
from ..base.options import check_counts, check_seed
from ..cavi.counts.ascent import Allocated, allocated_on, matrix_of, read_on, settled
from ..cavi.counts.model import COUNTS, Allocation, read_allocation, sample_of
from ..cavi.counts.passes import SINGLE, Block, Rows, Shared, mean_of
from ..data.schema import Dataset
from ..data.sparse import DENSE_BYTES, Bags
from ..families.factors import GammaFactor
from ..program.deterministic import Moments
from ..program.sites import Params
from ..trace.handlers import engine_state
from ..trace.structure import read
from .generate import simulate

ROW_DRAWS = 201  # of a row's latent, of the importance-weighted bound; of few data five times as many
WIDER = (1.0, 0.5, 0.25)  # shares of the data that the factors drawn from have seen
SHORT = 21  # of the same under each of many draws of what is shared


def mixes_profiles(fit: Any) -> bool:
    """Whether the rows of a fit mix shared profiles of counts; of a fit by SVI its data tell."""
    if fit.guide == COUNTS or not fit.guide:
        return bool(fit.guide)
    if fit.data is None or len(fit.params) != 1:
        return False
    with engine_state(fit.seed), torch.no_grad():
        structure = read(fit.pair.model, sample_of(fit.data.values), fit.params)
        try:
            return read_allocation(fit.pair.model, fit.data.values, structure, fit.data.schema) is not None
        except (ModelError, DataError):
            return False


# --- what is known of rows --------------------------------------------------------------------------------------------


def latents(fit: Any, dataset: Dataset) -> dict[str, Moments]:
    """Mean and sd (N, K) of the latent of each row under its factor."""
    with engine_state(fit.seed), torch.no_grad():
        found = allocated_on(fit, dataset)
        rows = found.allocation.rows
        factor = rows.family.distribution(found.eta)
        shape = (len(found.allocation.counts), *found.allocation.shapes[rows.name])
        return {rows.name: Moments(factor.mean.reshape(shape), factor.variance.sqrt().reshape(shape))}


def factor(fit: Any, site: str, dataset: Dataset) -> Any:
    """The factor of a latent as a Pyro distribution; Delta of what was learned as a point."""
    with engine_state(fit.seed), torch.no_grad():
        if site in fit.params and site not in fit.guide_parts:
            return dist.Delta(fit.params[site])
        allocation, state = read_on(fit, dataset)
        if site == allocation.rows.name:
            return allocation.rows.family.distribution(settled(allocation, state).eta)
        if site == allocation.shared.name:
            return allocation.shared.family.distribution(_own_eta(allocation, state))
    raise DataError(f"posterior: no latent named '{site}'; the model has {sorted((allocation.rows.name, *fit.params))}")


def _own_eta(allocation: Allocation, state: Tensor) -> Tensor:
    if not allocation.transposed or not isinstance(allocation.shared.family, GammaFactor):
        return state
    return state.transpose(0, 1)


def shared_draws(fit: Any, dataset: Dataset, num: int, seed: int) -> Params:
    """Draws (num, *shape) of what rows share; a param as it is."""
    check_counts(num=(num, 1))
    with engine_state(check_seed(seed)), torch.no_grad():
        return {name: _draws(fit, name, num) for name in fit.params}


def _draws(fit: Any, name: str, num: int) -> Tensor:
    value = fit.params[name]
    if name not in fit.guide_parts:
        return value.expand(num, *value.shape)
    state = fit.guide_parts[name]
    gamma = state.dim() > 2
    if not gamma:
        return dist.Dirichlet(state + 1).sample((num,)).reshape(num, *value.shape)
    drawn = dist.Gamma(state[..., 0] + 1, -state[..., 1]).sample((num,))
    squeezed = [size for size in value.shape if size > 1] if value.dim() > 2 else list(value.shape)
    own = drawn if list(drawn.shape[1:]) == squeezed else drawn.mT
    return own.reshape(num, *value.shape)


def sample_posterior(fit: Any, dataset: Dataset, num: int, seed: int) -> Params:
    """Draws of what rows share (num, *shape), and of the latent of each row (num, N, K)."""
    check_counts(num=(num, 1))
    with engine_state(check_seed(seed)), torch.no_grad():
        found = allocated_on(fit, dataset)
        rows = found.allocation.rows
        shared = {name: _draws(fit, name, num) for name in fit.params}
        drawn = rows.family.distribution(found.eta).sample((num,))
        shape = (num, len(found.allocation.counts), *found.allocation.shapes[rows.name])
        return {**shared, rows.name: drawn.reshape(shape)}


# --- how probable rows are --------------------------------------------------------------------------------------------


def score(fit: Any, dataset: Dataset) -> Tensor:
    """An importance-weighted bound on log p(x_n | beta) with beta at its posterior mean, (N,): theta_n is summed over
    by draws from its factor and two wider ones (Burda, Grosse and Salakhutdinov 2016; Owen and Zhou 2000, section 3,
    for their mixture; Wallach et al. 2009, section 4, for topics at a point).
    """
    with engine_state(fit.seed), torch.no_grad():
        found = allocated_on(fit, dataset)
        small = len(found.allocation.counts.index) * found.allocation.size <= SINGLE
        num = ROW_DRAWS * (5 if small else 1)
        return row_scores(found, mean_of(found.allocation.shared, found.state), num)


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


# --- what they are expected to count ----------------------------------------------------------------------------------


def _expected(found: Allocated) -> Iterator[tuple[Block, Tensor]]:
    """Expected counts (n, V) by block, given each row."""
    allocation = found.allocation
    size = len(allocation.counts) * allocation.counts.width * 8
    if size > DENSE_BYTES:
        raise DataError(
            f"reconstruct: expected counts of {len(allocation.counts)} rows are a dense table of {size / 1e9:.1f} GB: "
            f"ask for fewer rows"
        )
    beta = mean_of(allocation.shared, found.state)
    for block, eta in zip(found.blocks, found.etas, strict=True):
        table = mean_of(allocation.rows, eta) @ beta
        if allocation.poisson:
            c = allocation.row_factor
            table = table * (c if len(c) == 1 else c[block.place]).unsqueeze(1) * allocation.column_factor
        else:
            usual = allocation.counts.totals[~allocation.counts.blank].mean().round()
            totals = torch.where(allocation.counts.blank[block.place], usual, block.bags.totals)
            table = table * totals.unsqueeze(1)
        yield block, table


def reconstruct(fit: Any, dataset: Dataset) -> Any:
    """Expected counts of each row, given the row."""
    with engine_state(fit.seed), torch.no_grad():
        table = torch.cat([table for _, table in _expected(allocated_on(fit, dataset))])
    return dataset.schema.decode(_like(table, dataset))


def impute(fit: Any, dataset: Dataset) -> Any:
    """The counts with missing cells at their expected values."""
    with engine_state(fit.seed), torch.no_grad():
        found = allocated_on(fit, dataset)
        bags = found.allocation.counts
        if bags.missing is None:
            return dataset.schema.decode(dataset.values)
        table = torch.cat([table for _, table in _expected(found)])
        values = bags.dense()
        out = torch.where(values.isnan(), table, values)
    return dataset.schema.decode(_like(out, dataset))


def _like(table: Tensor, dataset: Dataset) -> Tensor:
    if not isinstance(dataset.values, Tensor | Bags):
        raise DataError("reconstruct and impute take data of one table; this model's data are a structure")
    return table


# --- ArviZ ------------------------------------------------------------------------------------------------------------


def arviz_groups(fit: Any, dataset: Dataset, num: int, seed: int) -> dict[str, Any]:
    """Arguments of `export.to_arviz`."""
    with engine_state(check_seed(seed)), torch.no_grad():
        found = allocated_on(fit, dataset)
        allocation = found.allocation
        rows, shared = allocation.rows, allocation.shared
        drawn = {name: _draws(fit, name, num) for name in fit.params}
        theta = rows.family.distribution(found.eta).sample((num,))
        scores = torch.stack([row_scores(found, matrix_of(allocation, one), SHORT) for one in drawn[shared.name]])
        values = dataset.values.dense() if isinstance(dataset.values, Bags) else dataset.values
        predicted = [simulate(fit, values, {shared.name: one}) for one in drawn[shared.name]]
    observed = allocation.counts.dense()
    predicted = [one if isinstance(one, Tensor) else one[allocation.site] for one in predicted]
    columns, names = dataset.schema.columns, ["data", "column"]
    width = allocation.counts.width
    known = columns is not None and len(columns) == width
    order = [f"{rows.name}_label", "column"]
    dims = {"x": names, "rows": ["data"], rows.name: ["data", order[0]]}
    if drawn[shared.name].dim() == 3:
        dims[shared.name] = order[::-1] if allocation.transposed else order

    def chain(value: Tensor) -> Any:
        return value.detach().cpu().numpy()[None]

    return {
        "groups": {
            "posterior": {**{n: chain(v) for n, v in drawn.items()}, rows.name: chain(theta)},
            "posterior_predictive": {"x": chain(torch.stack(predicted))},
            "log_likelihood": {"x": chain(scores)},
            "sample_stats": {"lp": chain(scores.sum(1))},
            "observed_data": {"x": observed.numpy()},
        },
        "coords": {
            "data": list(range(len(observed))),
            "column": list(columns) if known and columns else list(range(width)),
            order[0]: list(range(allocation.size)),
        },
        "dims": dims,
        "attrs": {"inference": fit.inference, "seed": fit.seed, "draws": "factors"},
    }
