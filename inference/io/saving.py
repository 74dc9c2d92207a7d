"""A fit on disk: a run folder of plain tensors and JSON. Loading builds the pair from the registry, never from
the folder.
"""

from __future__ import annotations

import functools
import importlib.metadata
from pathlib import Path
from typing import Any

import torch

from ..base.run_folder import write_run
from ..data.schema import Schema
from ..optimize.modes import Mode, ModeMap
from ..posterior.compiled import Compiled


def versions() -> dict[str, str]:
    """Versions of what a fit was computed with."""
    return {name: _version(name) for name in ("latentzoo", "torch", "pyro-ppl", "numpy")}


@functools.cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def save(fit: Any, folder: str | Path) -> Path:
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
        "converged": fit.converged,
        "log_likelihood": fit.log_likelihood,
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


def restored(arrays: dict[str, torch.Tensor], record: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `Fit` (all but its pair) from what `read_run` gave."""

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

    modes = tuple(Mode(**facts, params=under(f"modes/{number}/")) for number, facts in enumerate(record["modes"]))
    bounds = tuple(arrays["bounds"].tolist())
    plain = (
        "inference",
        "guide",
        "reason",
        "converged",
        "log_likelihood",
        "num_parameters",
        "num_rows",
        "entropy",
        "seed",
        "versions",
    )
    return {
        **{name: record[name] for name in plain},
        "params": under("params/"),
        "start": under("start/"),
        "guide_parts": under("guide/"),
        "compiled": Compiled(centers=under("centers/")),
        "history": arrays["history"],
        "schema": Schema.from_json(record["schema"]),
        "mode_map": ModeMap(modes, bounds, record["failed"]),
    }
