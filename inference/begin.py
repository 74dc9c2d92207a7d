"""What every driver does first: take the data in, and find where to start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .allocation import read_allocation, sample_of
from .bags import Bags, densified
from .checks import check_device
from .data import DataError, Dataset, adapt, loaded, map_tensors
from .derivation import mean_field
from .devices import in_double
from .errors import HasNetworks, ModelError
from .pair import Pair, on_table
from .program import Program
from .rows import Rows, first_rows
from .sites import Params
from .starts import jitter, starting_values
from .structure import Structure, engine_state, read
from .sum_out import sum_out

COST_OF_SVI = "SVI took 10 times as long to the same maximum on iris"  # measured in tutorial 4
LOOK = 64  # rows of the run that looks for networks where the others are read when asked for
REASONS = {
    "em": f"auto: every latent of a row can be summed out, so EM is exact; {COST_OF_SVI}",
    "cavi": "auto: the latents that rows share have conjugate priors, so coordinate ascent follows from the model",
    "graph": "auto: the latents of nodes meet in pairs, and a mean field over nodes follows from the model",
    "svi": "auto: the model has no closed form, so its bound is climbed by gradient",
}


def take_in(
    pair: Pair, data: Any, device: Any, sparse: bool = False, rows: bool = False
) -> tuple[Pair, Dataset, torch.device]:
    """The pair as functions of the data as adapted, the data in float64, and the device where both live.

    With `sparse` a sparse matrix stays one; with `rows` data stay where they are, on disk or a device (`data.adapt`).
    """
    dataset = adapt(data, by=pair.by, graph=pair.graph, rows=rows)
    dataset = in_double(dataset) if rows else in_memory(dataset, device, sparse)
    return on_table(pair, dataset.schema), dataset, device_of(dataset.values)


def in_memory(dataset: Dataset, device: Any, sparse: bool = False) -> Dataset:
    """Data as tensors of float64 on a device; with `sparse` a sparse matrix stays one."""
    dataset = in_double(loaded(dataset))
    if not sparse:
        dataset = replace(dataset, values=densified(dataset.values))
    home = check_device(device_of(dataset.values) if device is None else device, torch.float64)
    return replace(dataset, values=map_tensors(lambda t: t.to(home), dataset.values))


def pick(pair: Pair, data: Any = None, fits: Sequence[str] = ()) -> tuple[str, str]:
    """The driver that suits a pair, and why: EM wherever it is exact, CAVI where the posterior of shared latents is
    wanted and conjugate.

    Parameters
    ----------
    fits : sequence of str
        Of a registered model: the drivers that fit it, best first.
    """
    if pair.guide is not None:
        return "svi", "auto: the pair brings a guide of its own"
    if fits:
        return fits[0], REASONS[fits[0]]
    if pair.graph is not None:
        return "cavi", REASONS["graph"]
    if data is not None:
        bound, dataset, home = take_in(pair, data, None, sparse=True, rows=True)
        with engine_state(0, home):
            try:
                if isinstance(dataset.values, Rows):
                    few = in_double(replace(dataset, values=first_rows(dataset.values, LOOK)))
                    _look_for_networks(bound, few)
                    dataset = in_memory(dataset, None, sparse=True)
                structure = read(bound.model, sample_of(dataset.values))
            except HasNetworks as error:
                return "svi", f"auto: the model has a network, '{error.network}', whose weights are climbed by gradient"
            try:
                if read_allocation(bound.model, dataset.values, structure, dataset.schema) is not None:
                    return "cavi", REASONS["cavi"]
            except ModelError:
                pass
            if isinstance(dataset.values, Bags):
                dataset = replace(dataset, values=densified(dataset.values))
                structure = read(bound.model, dataset.values)
            priors = any(param.prior is not None for param in structure.params.values())
            if priors and _derives(mean_field, bound, dataset, structure):
                return "cavi", REASONS["cavi"]
            if structure.continuous:
                name = structure.continuous[0]
                if _derives(sum_out, bound, dataset, structure):
                    return "em", f"auto: latent '{name}' is normal, the model linear in it: summed out, EM is exact"
                return "svi", f"auto: latent '{name}' of each row is continuous, and cannot be summed out"
    return "em", REASONS["em"]


def _look_for_networks(pair: Pair, few: Dataset) -> None:
    """Raise HasNetworks where the model runs one; whatever else is wrong will be said by who reads all of the data."""
    try:
        read(pair.model, few.values)
    except HasNetworks:
        raise
    except (DataError, ModelError):
        return


def _derives(derivation: Any, pair: Pair, dataset: Dataset, structure: Structure) -> bool:
    """Whether a derivation from the model succeeds."""
    try:
        derivation(pair.model, dataset.values, structure)
    except ModelError:
        return False
    return True


def first_starts(
    pair: Pair, data: Any, program: Program, restarts: int, generator: torch.Generator, start: Params | None
) -> Params:
    """Starting values (R, *shape); a start at which no latent's values could ever be told apart is jittered."""
    structure = program.structure
    starts = starting_values(pair, data, structure, restarts, generator, start)
    if pair.initialize is None and start is None and _is_symmetric(program, starts):
        first = {name: value[0] for name, value in starts.items()}
        moved = jitter(first, structure, generator)
        starts = {name: torch.cat([moved[name].unsqueeze(0), value[1:]]) for name, value in starts.items()}
    return starts


def _is_symmetric(program: Program, starts: Params) -> bool:
    """Whether the first start gives every row the same posterior: EM could never tell its labels apart."""
    if not program.latents or program.num_rows < 2:
        return False
    first = {name: value[:1] for name, value in starts.items()}
    for _, posteriors in program.posteriors(first):
        for table in posteriors.values():
            if len(table) > 1 and bool(((table - table[:1]).abs() > 1e-9).any()):
                return False
    return True


def device_of(values: Any) -> torch.device:
    """The device of the data."""
    if isinstance(values, Rows):
        return values.device
    found: list[torch.device] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor.device)
        return tensor

    map_tensors(note, values)
    return found[0]
