"""Shapes of sites against the plates they stand in: what would broadcast silently is met with one plain line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Size

from ..base.errors import ModelError
from .provenance import plain

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
