"""What every driver does first: take the data in, and find where to start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..base.options import check_device
from ..data.adapt import adapt, loaded
from ..data.devices import device_of, in_double
from ..data.schema import Dataset
from ..data.sparse import densified
from ..data.structures import map_tensors
from ..pair import Pair, on_table


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
