"""A fit on disk: a run folder of plain tensors and JSON. Loading builds the pair from the registry, never from
the folder.
"""

from __future__ import annotations

import functools
import importlib.metadata
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pyro.distributions import constraints
from torch import Tensor

from ..amortized.reader import read_story
from ..base.errors import HasNetworks, RunError
from ..base.records import LARGEST, Count, Positive, Range, read_as
from ..base.run_folder import write_run
from ..base.unconstrained import Parts, base_constraint
from ..data.schema import Schema
from ..optimize.modes import Mode, ModeMap
from ..pair import Pair
from ..posterior.base import Compiled, Fitted
from ..trace.handlers import Param, engine_state
from ..trace.structure import read

FREE = 100_000  # a hyper-parameter up to this size is tried, whatever the run holds
MADE_UP = ((5, 2), (7, 2), (6, 3))  # rows that a model is read on, and how many whole numbers they take


def versions() -> dict[str, str]:
    """Versions of what a fit was computed with."""
    return {name: _version(name) for name in ("latentzoo", "torch", "pyro-ppl", "numpy")}


@functools.cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def save(fit: Fitted, folder: str | Path) -> Path:
    """Write a fit to a folder."""
    arrays = {f"params/{name}": value for name, value in fit.params.items()}
    arrays |= {f"start/{name}": value for name, value in fit.start.items()}
    arrays |= {f"guide/{name}": value for name, value in fit.guide_parts.items()}
    arrays |= {f"centers/{name}": value for name, value in fit.compiled.centers.items()}
    arrays["history"] = fit.history
    modes = []
    for number, mode in enumerate(fit.mode_map):
        arrays |= {f"modes/{number}/{name}": value for name, value in mode.params.items()}
        facts = ("bound", "count", "distance", "converged", "degenerate")
        modes.append({fact: getattr(mode, fact) for fact in facts})
    arrays["bounds"] = torch.tensor(fit.mode_map.bounds, dtype=torch.float64)
    origin = fit.pair.origin
    if origin is not None and any(_is_code(value) for value in origin.hyperparameters.values()):
        origin = None  # a network or a likelihood of one's own cannot be made from a name: loading takes the pair
    record = {
        "kind": "fit",
        "inference": fit.inference,
        "guide": fit.guide,
        "reason": fit.reason,
        "at_mode": list(fit.at_mode),
        "unchecked": fit.unchecked,
        "converged": fit.converged,
        "log_likelihood": fit.log_likelihood,
        "bound_error": fit.bound_error,
        "num_parameters": fit.num_parameters,
        "num_rows": fit.num_rows,
        "entropy": fit.entropy,
        "seed": fit.seed,
        "schema": fit.schema.to_json(),
        "modes": modes,
        "failed": fit.mode_map.failed,
        "versions": fit.versions,
        "origin": None
        if origin is None
        else {"name": origin.name, "factory": origin.factory, "hyperparameters": origin.hyperparameters},
    }
    return write_run(folder, arrays, record)


def _is_code(value: Any) -> bool:
    """Whether a hyper-parameter is something that runs: a network, or a tuple of functions, as a likelihood is."""
    return callable(value) or (isinstance(value, tuple) and any(map(callable, value)))


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SchemaRecord:
    """What a `Schema` is on disk."""

    columns: list[str] | None
    labels: dict[str, tuple[str | int | float | bool, ...]]
    container: Literal["tensor", "array", "frame", "structure", "sparse", "edges", "edge_array", "networkx"]
    width: Annotated[int, Range(1, 10_000_000)] | None
    integers: list[str]
    by: str | None = None
    graph: Literal["undirected", "directed"] | None = None
    call: Literal["", "arguments", "mapping", "columns"] = ""
    rows: str | None = None


@dataclass(frozen=True)
class ModeRecord:
    """What a `Mode` is on disk, beside its params."""

    bound: float
    count: Positive
    distance: float
    converged: bool
    degenerate: bool


@dataclass(frozen=True)
class OriginRecord:
    """Where a pair comes from."""

    name: str
    factory: str
    hyperparameters: dict[str, Any]


@dataclass(frozen=True)
class FitRecord:
    """What a fit is on disk, beside its arrays."""

    kind: Literal["fit"]
    inference: Literal["em", "cavi", "svi"]
    guide: str
    reason: str
    converged: bool
    log_likelihood: float
    num_parameters: Count
    num_rows: Annotated[float, Range(0, LARGEST)]
    entropy: float
    seed: Annotated[int, Range(0, 2**64 - 1)]
    schema: SchemaRecord
    modes: list[ModeRecord]
    failed: Count
    versions: dict[str, str]
    origin: OriginRecord | None
    at_mode: tuple[str, ...] = ()
    unchecked: str = ""
    bound_error: float = 0.0  # of a folder that is older, nobody knows


def told(folder: Path, arrays: Parts, record: dict[str, Any]) -> FitRecord:
    """The record of a fit, once it and the arrays agree.

    Raises
    ------
    RunError
        They do not, or a field is not as it should be: its name, what was met, and what was expected.
    """
    where = f"{folder}: record"
    found: FitRecord = read_as(FitRecord, record, where)
    schema = found.schema
    if schema.columns is not None and len(schema.columns) != (schema.width or 1):
        raise RunError(f"{where}.schema has {len(schema.columns)} columns, and a width of {schema.width}")
    if not found.modes:
        raise RunError(f"{where}.modes is empty, expected the optima that were found")
    params = under(arrays, "params/")
    for name, value in arrays.items():
        kind, _, rest = name.partition("/")
        if name in ("history", "bounds"):
            fits = value.dim() == 1 and value.dtype is torch.float64 and len(value) > 0
        elif kind == "modes":
            number, _, param = rest.partition("/")
            fits = number in map(str, range(len(found.modes))) and _like(params.get(param), value)
        else:
            fits = kind in ("params", "guide", "centers") or (kind == "start" and _like(params.get(rest), value))
        if not fits:
            raise RunError(f"{folder}: array {name!r} {tuple(value.shape)} of {value.dtype} is none that a fit has")
    for name in ("history", "bounds"):
        if name not in arrays:
            raise RunError(f"{folder}: has no array {name!r}")
    if sum(mode.count for mode in found.modes) > len(arrays["bounds"]):
        raise RunError(f"{where}.modes count more starts than the {len(arrays['bounds'])} bounds")
    _check_sizes(f"{where}.origin.hyperparameters", found, max(FREE, sum(one.numel() for one in arrays.values())))
    return found


def restored(arrays: Parts, record: FitRecord) -> dict[str, Any]:
    """The fields of a `Fit`, all but its pair."""
    facts = "converged log_likelihood bound_error num_parameters num_rows entropy"
    plain = f"inference guide reason at_mode unchecked {facts} seed versions".split()
    modes = tuple(Mode(**vars(one), params=under(arrays, f"modes/{k}/")) for k, one in enumerate(record.modes))
    return {
        **{name: getattr(record, name) for name in plain},
        "params": under(arrays, "params/"),
        "start": under(arrays, "start/"),
        "guide_parts": under(arrays, "guide/"),
        "compiled": Compiled(centers=under(arrays, "centers/")),
        "history": arrays["history"],
        "schema": Schema.from_json(vars(record.schema)),
        "mode_map": ModeMap(modes, tuple(arrays["bounds"].tolist()), record.failed),
    }


def under(arrays: Parts, prefix: str) -> Parts:
    """The arrays whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def check_params(folder: Path, pair: Pair, schema: Schema, arrays: Parts) -> None:
    """Refuse a run that lacks a param of the pair, or has one of another shape than it has there, or outside of its
    constraint.

    A folder holds no data, so the model is read on a few rows that are made up. What is not the same whatever they are
    (a size that follows from the data) is not looked at; nor is anything where the model cannot take such rows.
    """
    params = under(arrays, "guide/value/") | under(arrays, "params/")
    found = [_declared(pair, schema, *made_up) for made_up in MADE_UP]
    declared = [one for one in found if one is not None]
    for name, param in declared[0].items() if declared else ():
        value = params.get(name)
        if value is None:
            raise RunError(f"{folder}: the model has a param '{name}', which the run lacks: it has {', '.join(params)}")
        shapes = {one[name].value.shape for one in declared if name in one}
        if len(declared) == len(MADE_UP) and len(shapes) == 1 and value.shape not in shapes:
            expected = tuple(param.value.shape)
            raise RunError(f"{folder}: param '{name}' has shape {tuple(value.shape)}, the model gives it {expected}")
        if value.dtype not in (torch.float32, torch.float64, param.value.dtype):
            raise RunError(f"{folder}: param '{name}' is of {value.dtype}, expected {param.value.dtype}")
        if not _within(param.constraint, value):
            raise RunError(f"{folder}: param '{name}' is not within its constraint, {param.constraint}")


def _declared(pair: Pair, schema: Schema, num_rows: int, num_values: int) -> dict[str, Param] | None:
    """What the model declares on rows of a few whole numbers; None where it cannot take them."""
    if schema.graph is not None or (schema.width is None and schema.container == "structure"):
        return None
    width = schema.width or 1
    place = torch.arange(num_rows * (3 if schema.by else 1)).unsqueeze(1) + torch.arange(width)
    rows = (place % num_values).double()  # (rows, D), each column takes all of them
    if schema.by is not None:
        rows = rows.reshape(num_rows, 3, width)
    elif schema.width is None:
        rows = rows[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            try:
                with engine_state(0):
                    return read(pair.model, rows).params
            except HasNetworks:
                with engine_state(0, dtype=torch.float32):
                    return read_story(pair, rows.float()).leaves
        except Exception:  # a model of a person's own may raise anything at rows that it was not written for
            return None


def _within(constraint: Any, value: Tensor) -> bool:
    constraint = base_constraint(constraint)
    if constraint in (constraints.positive, constraints.softplus_positive):
        constraint = constraints.nonnegative  # a rate may come to be 0
    try:
        return bool(constraint.check(value).all())
    except (NotImplementedError, ValueError):  # one that no value can be held against
        return not bool(value.isnan().any())


def _like(param: Tensor | None, value: Tensor) -> bool:
    return param is None or param.shape == value.shape


def _check_sizes(where: str, record: FitRecord, largest: int) -> None:
    """Refuse whole numbers that no array of the run has the size of, before anything of that size is made."""
    for name, value in (record.origin.hyperparameters if record.origin else {}).items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int) and abs(one) > largest:
                raise RunError(f"{where}.{name} is {value!r:.60}, and the run holds no more than {largest} numbers")
