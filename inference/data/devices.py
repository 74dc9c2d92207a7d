"""Where data are, and in which precision: on which device steps are taken, and that data move there once where they
fit, or by batch.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..base.errors import OptionError
from .schema import Dataset
from .streams import Rows, read_whole, rows_of_tensor
from .structures import map_tensors, tensors_of

SHARE = 0.5  # of the memory that is free on a device, for the data
DOUBLED_BYTES = 1 << 28  # float32 data up to this size are copied as float64; larger ones as they are read, by chunk


def in_double(dataset: Dataset) -> Dataset:
    """Numbers as float64, so that a model may multiply them with its params; tables larger than that allows stay."""

    def convert(tensor: Tensor) -> Tensor:
        small = tensor.nbytes <= DOUBLED_BYTES and tensor.device.type != "mps"  # which has no float64
        return tensor.double() if small and tensor.is_floating_point() else tensor

    if isinstance(dataset.values, Rows):
        return dataset
    return replace(dataset, values=map_tensors(convert, dataset.values))


def on_cpu(dataset: Dataset) -> Dataset:
    """The data where a fit's params are: what was fitted on a GPU is looked at on the CPU."""
    if isinstance(dataset.values, Rows):
        return dataset
    return replace(dataset, values=map_tensors(lambda t: t.cpu(), dataset.values))


def working_on(home: torch.device) -> AbstractContextManager[Any]:
    """New tensors are made on the device; on the CPU the default is left alone, for setting it slows every call."""
    return nullcontext() if home.type == "cpu" else home


def place(values: Any, home: torch.device) -> Any:
    """Data from where a device takes its batches: there, where they fit; otherwise each batch is moved as it is taken.

    Rows that are read are moved once too, some at a time, where they are the same each time.

    Raises
    ------
    OptionError
        Several tensors that do not fit.
    """
    fits = num_bytes(values) <= SHARE * free_bytes(home)
    if isinstance(values, Rows):
        return read_whole(values, values.dtype, home) if fits and values.fixed else replace(values, device=home)
    if fits or all(tensor.device.type == home.type for tensor in tensors_of(values).values()):
        return map_tensors(lambda tensor: tensor.to(home), values)
    if isinstance(values, Tensor):
        return replace(rows_of_tensor(values), device=home)
    raise OptionError(
        f"device: '{home}' has no room for the {num_bytes(values) / 2**30:.1f} GiB of the data, and data of several "
        f"tensors are moved at once: leave device out, or give fewer rows"
    )


def num_bytes(values: Any) -> int:
    """Memory that data need as tensors."""
    if isinstance(values, Rows):
        return math.prod(values.shape) * values.dtype.itemsize
    return sum(tensor.nbytes for tensor in tensors_of(values).values())


def free_bytes(home: torch.device) -> float:
    """Memory that is free on a device; without bound where it does not tell."""
    if home.type == "cuda":
        return float(torch.cuda.mem_get_info(home)[0])
    if home.type == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return math.inf


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
