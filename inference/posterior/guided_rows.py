"""Expected cells where rows have continuous latents that nothing sums out: averages over draws of the guide."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..base.errors import DataError, ModelError
from ..data.schema import Dataset
from ..trace.handlers import Bind, base_of, engine_state, run
from ..trace.provenance import known_cells, plain, symbol
from . import generate
from .guided import ROW_DRAWS, Guided, guided_on


def reconstruct(fit: Any, dataset: Dataset) -> Any:
    """Every observed cell at its expected value given its row."""
    try:
        return generate.reconstruct(fit, dataset)
    except ModelError:
        return _fill(fit, dataset, everywhere=True)


def impute(fit: Any, dataset: Dataset) -> Any:
    """Missing cells at their expected value given the rest of their row, by importance weights."""
    try:
        return generate.impute(fit, dataset)
    except ModelError:
        return _fill(fit, dataset, everywhere=False)


def _fill(fit: Any, dataset: Dataset, everywhere: bool) -> Any:
    values = dataset.values
    out = values.to(torch.float64).clone().flatten()
    with engine_state(fit.seed), torch.no_grad():
        guided = guided_on(fit, dataset)
        if guided.program.layout.latents:
            raise ModelError("reconstruct and impute: the rows have discrete latents beside continuous ones")
        expected = _expected(guided, everywhere)
        bind = Bind(fit.params)
        nodes = run(fit.pair.model, symbol(values, "data"), bind, guided.program.layout.nesting).nodes
        for name, cells in expected.items():
            place = known_cells(nodes[name]["value"])
            if place is None:
                raise DataError(f"site '{name}' observes values computed from the data, which have no place there")
            where = plain(place).flatten()
            chosen = torch.ones_like(where, dtype=torch.bool) if everywhere else out[where].isnan()
            out[where[chosen]] = cells.expand(place.shape).flatten()[chosen]
    return generate.filled_in(fit, dataset, out.reshape(values.shape))


def _expected(guided: Guided, everywhere: bool) -> dict[str, Tensor]:
    """The mean of each observed site, in the shape of its values; each row's draws weighted where cells are missing."""
    program = guided.program
    drawn = guided.sampler.draw(guided.free, program, None, ROW_DRAWS)
    log_weights, means = [], []
    for s in range(ROW_DRAWS):
        one = {name: value[s % len(value)] for name, value in drawn.values.items()}
        values = {**{name: value[0] for name, value in guided.point.items()}, **one}
        lead = {name: value.unsqueeze(0) for name, value in values.items()}
        log_weights.append(program.row_log_prob(lead)[0] - drawn.log_q_rows[s % len(drawn.log_q_rows)])
        nodes = program.run(values).nodes
        means.append({name: _mean(nodes[name]) for name in program.structure.observed})
    weights = torch.stack(log_weights)  # (S, N)
    weights = (torch.zeros_like(weights) if everywhere else weights).softmax(0)
    found = {}
    for name, first in means[0].items():
        rows = program.structure.data_dim - len(program.structure.trace.nodes[name]["fn"].event_shape)
        shape = [1] * first.dim()
        shape[rows] = -1
        found[name] = torch.stack([one[name] * weights[s].reshape(shape) for s, one in enumerate(means)]).sum(0)
    return found


def _mean(msg: Any) -> Tensor:
    fn = getattr(msg["fn"], "fn", msg["fn"])  # behind the mask of missing cells
    if isinstance(base_of(fn), dist.Categorical | dist.OneHotCategorical):
        raise ModelError("reconstruct and impute: of categories under continuous latents no mean is known")
    mean: Tensor = fn.mean.expand(plain(msg["value"]).shape)
    return mean
