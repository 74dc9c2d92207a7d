"""Reading a model once: run it under enumeration on its data, and keep what an engine must know.

No log probability is computed here and every broadcast stays lazy, so reading costs next to nothing at any number of
rows.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Size, Tensor, nn

from ..base.errors import ModelError
from ..base.rng import forked
from .handlers import DATA_PLATE, ROOM_FOR_PLATES, Bind, Param, Run, double, in_data_plate, run, sample_sites
from .idioms import check_masks, check_missing, check_rows, is_one, row_scale
from .provenance import plain


class Latent(NamedTuple):
    """A discrete latent of each row, summed out by enumeration."""

    cardinality: int
    dim: int  # the negative dim that enumeration gave it
    plates: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """What one run of a program, a model or a guide, says about it."""

    params: dict[str, Param]
    latents: dict[str, Latent]
    continuous: tuple[str, ...]  # continuous latents of each row: exact EM cannot sum them
    observed: tuple[str, ...]
    outside: tuple[str, ...]  # observed outside the data plate: they count once, as a prior does
    plates: dict[str, tuple[int, int]]  # name -> (dim, size)
    data_plate: str
    num_rows: int
    trace: Any
    networks: dict[str, nn.Module] = field(default_factory=dict)
    scale: Tensor | float = 1.0  # of the log probability of a row, (N,) where it differs

    @property
    def data_dim(self) -> int:
        return self.plates[self.data_plate][0]

    @property
    def nesting(self) -> int:
        return max((-dim for dim, _ in self.plates.values()), default=0)


def read(model: Any, data: Any, values: Mapping[str, Tensor] | None = None) -> Structure:
    """Read the structure of a model on its data, for inference that sums its discrete latents out.

    Parameters
    ----------
    model : callable
    data : what the model takes
    values : dict, optional
        Params to use instead of what the model declares, as float64 tensors.

    Raises
    ------
    ModelError
        No data plate; a site that does not fit its plates; a latent that needs the data plate outside it; a discrete
        latent without its ``enumerate`` mark; nothing observed.
    """
    values = values or {}
    first = Bind(values)
    try:
        sites = sample_sites(run(model, data, first, ROOM_FOR_PLATES))
    except ValueError as error:
        if (plain_words := plate_mismatch(error)) is not None:
            raise plain_words from None
        raise
    check_shapes(sites, ROOM_FOR_PLATES, DATA_PLATE)
    nesting = max((-frame.dim for site in sites.values() for frame in site["cond_indep_stack"]), default=0)
    if nesting > ROOM_FOR_PLATES:
        raise ModelError(f"the model has {nesting} plates inside one another, and the engine reads {ROOM_FOR_PLATES}")
    bind = Bind({**{name: double(param.value) for name, param in first.declared.items()}, **values}, symbols=True)
    return _checked(model, data, bind, structure_of(run(model, data, bind, nesting), bind))


def _checked(model: Any, data: Any, bind: Bind, structure: Structure) -> Structure:
    """A structure whose idioms are known, with the scale of its rows."""
    sites, plate, nesting = sample_sites(structure.trace), structure.plates[DATA_PLATE], structure.nesting
    check_masks({name: param.prior for name, param in structure.params.items() if param.prior is not None})
    check_rows(model, data, bind, plate, nesting)
    check_missing(data, bind, sites, plate[0])
    scale = row_scale(sites, nesting, plate[0], structure.num_rows)
    if not is_one(scale):  # of the rows, then, and no longer of their sites
        for site in (site for site in sites.values() if in_data_plate(site)):
            site["scale"] = 1.0
    return replace(structure, scale=scale)


def read_again(model: Any, data: Any, structure: Structure, values: Mapping[str, Tensor] | None = None) -> Structure:
    """The structure of a model that has been read, on other data: one run, in the same plates, under the same params
    where `values` gives no others.
    """
    known = {name: param.value for name, param in structure.params.items()}
    bind = Bind({**known, **(values or {})}, symbols=True)
    try:
        trace = run(model, data, bind, structure.nesting)
    except ValueError as error:
        if (plain_words := plate_mismatch(error)) is not None:
            raise plain_words from None
        raise
    check_shapes(sample_sites(trace), structure.nesting, DATA_PLATE)
    return _checked(model, data, bind, structure_of(trace, bind))


def read_guide(guide: Any, data: Any, values: Mapping[str, Tensor]) -> Structure:
    """Read the structure of a guide: its params and draws are marked, so that each site tells where it comes from."""
    with forked():  # so that draws are the same whether a guide was read before or not
        if isinstance(inspect.unwrap(guide), AutoGuide):  # its first run declares its params, and has to be plain
            with poutine.block():
                guide(data)
        bind = Bind(values, symbols=True, centred=False)
        return structure_of(run(guide, data, bind, 0, enumerated=False), bind, of_guide=True)


def structure_of(trace: Run, bind: Bind, of_guide: bool = False) -> Structure:
    """Sort what a run met: which sites are latents, and which are observed, in which plates."""
    sites = sample_sites(trace)
    plates = {f.name: (f.dim, int(f.size)) for site in sites.values() for f in site["cond_indep_stack"]}
    if DATA_PLATE not in plates and not of_guide:
        known = f"its plates are {sorted(plates)}" if plates else "it has no plate"
        raise ModelError(
            f'the model has no plate named "{DATA_PLATE}" ({known}): put the rows in pyro.plate("{DATA_PLATE}", '
            f"len(data))"
        )
    latents: dict[str, Latent] = {}
    continuous: list[str] = []
    observed: list[str] = []
    outside: list[str] = []
    for name, site in sites.items():
        frames, fn = tuple(f.name for f in site["cond_indep_stack"]), site["fn"]
        if site["is_observed"]:
            (observed if DATA_PLATE in frames else outside).append(name)
        elif name in bind.declared:
            continue
        elif not fn.support.is_discrete:
            continuous.append(name)
        elif of_guide or site["infer"].get("enumerate") == "parallel":
            if not of_guide:
                _require_plate(name, frames)
            size = len(fn.enumerate_support(expand=False)) if fn.has_enumerate_support else 0
            latents[name] = Latent(size, site["infer"].get("_enumerate_dim", 0), frames)
        elif fn.has_enumerate_support and name.endswith("_unobserved"):
            raise ModelError(
                f"site '{name}' is a discrete latent that is not marked for enumeration, and pyro.sample(..., "
                f"obs_mask=) hands no infer= on: decorate the model with pyro.infer.config_enumerate"
            )
        elif fn.has_enumerate_support:
            raise ModelError(
                f"site '{name}' is a discrete latent that is not marked for enumeration: "
                f'write pyro.sample("{name}", ..., infer={{"enumerate": "parallel"}})'
            )
        else:
            raise ModelError(
                f"site '{name}' is a discrete latent of {type(fn).__name__}, whose values have no "
                f"finite list to sum over: "
                f"use a distribution with finite support, such as Categorical"
            )
    if not observed and not of_guide:
        raise ModelError(f'the model observes nothing inside the plate "{DATA_PLATE}": give at least one site obs=data')
    return Structure(
        bind.declared,
        latents,
        tuple(continuous),
        tuple(observed),
        tuple(outside),
        plates,
        DATA_PLATE,
        plates[DATA_PLATE][1] if DATA_PLATE in plates else 0,
        trace,
        bind.networks or {},
    )


def _require_plate(name: str, frames: tuple[str, ...]) -> None:
    if DATA_PLATE not in frames:
        raise ModelError(
            f"site '{name}' is a discrete latent sampled outside the plate \"{DATA_PLATE}\", so all rows would "
            f"share one value: "
            f'sample it inside pyro.plate("{DATA_PLATE}", len(data))'
        )


MISMATCH = re.compile(r"Shape mismatch inside plate\('(.+?)'\) at site (\S+) dim (-\d+), (\d+) vs (\d+)")


CLOSE = "close what belongs to one row with .to_event(1), or put it in a plate of its own"


def plate_mismatch(error: Exception) -> ModelError | None:
    """Pyro's complaint about a distribution that does not fit a plate, in plain words; None for any other."""
    found = MISMATCH.search(str(error))
    if found is None:
        return None
    plate, site, dim, size, met = found.groups()
    return ModelError(
        f"site '{site}': its distribution has size {met} at batch dim {dim}, where the plate \"{plate}\" has {size}: "
        f"{CLOSE}"
    )


def check_shapes(sites: Mapping[str, Any], room: int, data_plate: str) -> None:
    """Sites inside the data plate vary along the dims of their plates, and along no others.

    Parameters
    ----------
    sites : dict
        Of a run whose enumerated dims lie to the left of the last `room`.
    """
    for name, site in sites.items():
        frames = {frame.dim: frame for frame in site["cond_indep_stack"] if frame.dim is not None}
        if not any(frame.name == data_plate for frame in frames.values()):
            continue
        fn, value = site["fn"], plain(site["value"])
        _check_batch(f"site '{name}': its distribution has", fn.batch_shape, frames, room, CLOSE)
        if not site["is_observed"]:
            continue
        event = len(fn.event_shape)
        met = value.shape[max(value.dim() - event, 0) :]
        if len(met) < event or any(own not in (1, size) for own, size in zip(fn.event_shape, met, strict=True)):
            raise ModelError(
                f"site '{name}' observes data of shape {tuple(value.shape)}, and its distribution takes "
                f"{tuple(fn.event_shape)} in each row: give the data that shape, or change .to_event in the model"
            )
        way_out = f"give x[:, 0] of a table of one column; or {CLOSE}"
        _check_batch(f"site '{name}': its data have", value.shape[: value.dim() - event], frames, room, way_out)


def _check_batch(what: str, shape: Size, frames: Mapping[int, Any], room: int, way_out: str) -> None:
    for dim in range(-min(len(shape), room), 0):
        if shape[dim] == 1 or (dim in frames and shape[dim] == frames[dim].size):
            continue
        expected = f'the plate "{frames[dim].name}" has {frames[dim].size}' if dim in frames else "it has no plate"
        plates = ", ".join(f'"{frame.name}" of {frame.size} at {d}' for d, frame in sorted(frames.items()))
        raise ModelError(
            f"{what} batch shape {tuple(shape[-room:])}, with {shape[dim]} at dim {dim}, where {expected}; its plates "
            f"are {plates}: {way_out}"
        )
