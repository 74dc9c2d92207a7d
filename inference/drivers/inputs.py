"""What every driver does first: take the data in, as the pair takes them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..base.errors import ModelError
from ..base.options import check_device
from ..data.adapt import adapt, loaded
from ..data.devices import device_of, in_double
from ..data.schema import Dataset
from ..data.sparse import densified
from ..data.streams import Rows
from ..data.structures import is_instance, listed, map_tensors, num_rows, template
from ..pair import Pair, arguments_of, as_pair, on_table
from ..trace.handlers import DATA_PLATE, Bind, Plates, engine_state

LOOK = 8  # rows of the runs that look how a model takes its data


def take_in(
    pair: Any, data: Any, device: Any, sparse: bool = False, rows: bool = False
) -> tuple[Pair, Dataset, torch.device]:
    """The pair as functions of the data as adapted, the data in float64, and the device where both live.

    With `sparse` a sparse matrix stays one; with `rows` data stay where they are, on disk or a device (`data.adapt`).
    """
    pair = as_pair(pair)
    dataset = adapted(pair, data, rows)
    dataset = in_double(dataset) if rows else in_memory(dataset, device, sparse)
    return on_table(pair, dataset.schema), dataset, device_of(dataset.values)


def adapted(pair: Pair, data: Any, rows: bool) -> Dataset:
    """Data as the pair takes them: several arguments, a dict, columns by name, rows in a plate of any name."""
    if isinstance(data, Dataset) or pair.origin is not None:
        if isinstance(data, Mapping):
            import pandas as pd

            data = pd.DataFrame(data)
        return adapt(data, by=pair.by, graph=pair.graph, rows=rows)
    dataset = adapt(data, by=pair.by, graph=pair.graph, rows=rows, arguments=arguments_of(pair))
    if isinstance(dataset.values, Rows) or pair.by is not None or pair.graph is not None:
        return dataset
    if is_instance(data, "pandas", "DataFrame") and pair.arrange is None and _run(pair, dataset, None) is None:
        named = adapt(data, by_name=True)
        dataset = dataset if _run(pair, named, None) is None else named
    plate = _plate_of_rows(pair, dataset) if pair.rows is None else pair.rows
    return replace(dataset, schema=replace(dataset.schema, rows=plate))


def _run(pair: Pair, dataset: Dataset, size: int | None) -> Plates | None:
    """The plates of a run of the model, on a few rows or all of them; None where it fails."""
    few = densified(dataset.values if size is None else template(dataset.values, size))
    for dtype in (torch.float64, torch.float32):  # that of networks
        found, values = Plates(), map_tensors(partial(_floats_as, dtype), few)
        try:
            with (
                warnings.catch_warnings(),
                engine_state(0, device_of(values), dtype),
                torch.no_grad(),
                Bind({}, networks={}),
                found,
            ):
                warnings.simplefilter("ignore")  # those of the model come when it is read
                on_table(pair, dataset.schema).model(values)
            return found
        except Exception:  # whatever is wrong will be said by who reads the model
            continue
    return None


def _floats_as(dtype: torch.dtype, value: torch.Tensor) -> torch.Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _plate_of_rows(pair: Pair, dataset: Dataset) -> str | None:
    """The one outermost plate that is as large as the data, where none is called "data"."""
    size = min(LOOK, num_rows(dataset.values))
    for rows in (size, None):  # a model whose sizes are fixed has to see all of the rows
        found = _run(pair, dataset, rows)
        if found is None:
            continue
        if any(frame.name == DATA_PLATE for frames in found.found for frame in frames):
            return None
        large = size if rows else num_rows(dataset.values)
        plates = list(dict.fromkeys(f[0].name for f in found.found if f and f[0].size == large))
        if len(plates) > 1:
            raise ModelError(
                f"the plates {listed(plates)} are all as large as the data: say which holds the rows, "
                f"Pair(model, rows={plates[0]!r})"
            )
        if plates:
            return plates[0]
    return None


def in_memory(dataset: Dataset, device: Any, sparse: bool = False) -> Dataset:
    """Data as tensors of float64 on a device; with `sparse` a sparse matrix stays one."""
    dataset = in_double(loaded(dataset))
    if not sparse:
        dataset = replace(dataset, values=densified(dataset.values))
    home = check_device(device_of(dataset.values) if device is None else device, torch.float64)
    return replace(dataset, values=map_tensors(lambda t: t.to(home), dataset.values))
