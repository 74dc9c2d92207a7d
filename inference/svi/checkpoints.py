"""The state of an unfinished fit on disk: enough to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import OptionError, RunError
from ..base.run_files import has_run
from ..base.run_folder import read_run, write_run
from ..data.schema import Dataset
from ..data.structures import tensors_of
from .run import Run
from .stationarity import Block, Iterates

NUMBERS = ("rate", "step", "since", "level", "length", "converged", "best")  # of a state, beside its arrays
HASHED_BYTES = 1 << 26  # of each tensor of the data


class Checkpoints:
    """Writes a run's state to a folder, now and then.

    Parameters
    ----------
    folder : path, optional
        None: nothing is ever written.
    steps, seconds :
        Written when so many steps, or so many seconds, have passed since the last time.
    identity : dict
        What must be the same for a checkpoint to be gone on from, as JSON: options, and shapes and hash of the data.
    """

    def __init__(self, folder: str | Path | None, steps: int, seconds: float, identity: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        self.steps, self.seconds, self.identity = steps, seconds, identity
        self.last_step, self.last_time = 0, time.monotonic()

    def maybe(self, run: Run, place: dict[str, Any]) -> None:
        """Write where it is time."""
        if self.folder is None:
            return
        late = run.state.step - self.last_step >= self.steps or time.monotonic() - self.last_time >= self.seconds
        if late:
            self.write(run, place)

    def write(self, run: Run, place: dict[str, Any]) -> None:
        """Write the state of a run; `place` says which start it is."""
        if self.folder is None:
            return
        state, batches = run.state, run.batches
        arrays = {"x": state.x, "momentum": state.momentum, "square": state.square}
        arrays |= {"bounds": torch.tensor(state.bounds, dtype=torch.float64), "order": batches.order}
        arrays |= {"random": torch.get_rng_state(), "random_batches": batches.generator.get_state()}
        arrays["best_x"] = state.best_x
        blocks = state.iterates.blocks
        if blocks:
            arrays |= {
                "means": torch.stack([b.mean for b in blocks]),
                "squares": torch.stack([b.square for b in blocks]),
            }
        if state.iterates.count:
            arrays |= {"open/first": state.iterates.first, "open/sums": state.iterates.sums}
            arrays |= {"open/squares": state.iterates.squares}
        record = {
            "kind": "checkpoint",
            "identity": self.identity,
            "place": place,
            "position": batches.position,
            "counts": [b.size for b in blocks],
            "open": state.iterates.count,
            "every": state.iterates.every,
            **{name: getattr(state, name) for name in NUMBERS},
        }
        write_run(self.folder, arrays, record)
        self.last_step, self.last_time = state.step, time.monotonic()

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What the folder holds, or None where it holds nothing yet.

        Raises
        ------
        OptionError
            It is of another model, other data or other options.
        """
        if self.folder is None or not has_run(self.folder):
            return None
        arrays, record = read_run(self.folder)
        if record.get("kind") != "checkpoint":
            raise RunError(f"{self.folder}: the folder holds a finished fit, not a checkpoint: give another folder")
        for name, mine in self.identity.items():
            found = record["identity"].get(name)
            if found != mine:
                raise OptionError(
                    f"resume: the checkpoint in {str(self.folder)!r} is of another fit, its {name} is {_short(found)}, "
                    f"here {_short(mine)}: resume with what it was begun with, or give another folder"
                )
        return arrays, record


def restore(run: Run, arrays: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Put a run, and the random state, where the checkpoint was written."""
    state, batches = run.state, run.batches
    for name in NUMBERS:
        setattr(state, name, record[name])
    state.x, state.momentum, state.square = arrays["x"], arrays["momentum"], arrays["square"]
    state.bounds, state.best_x = arrays["bounds"].tolist(), arrays["best_x"]
    counts = record["counts"]
    blocks = [Block(n, arrays["means"][i], arrays["squares"][i]) for i, n in enumerate(counts)]
    state.iterates = Iterates(record["every"], blocks, record["open"])
    if record["open"]:
        state.iterates.first, state.iterates.sums = arrays["open/first"], arrays["open/sums"]
        state.iterates.squares = arrays["open/squares"]
    batches.order, batches.position = arrays["order"], record["position"]
    batches.generator.set_state(arrays["random_batches"])
    torch.set_rng_state(arrays["random"])


def identity(run: Run, dataset: Dataset, options: dict[str, Any]) -> dict[str, Any]:
    """What tells one fit from another."""
    model = {name: list(value.shape) for name, value in run.vector.origin.items()}
    data = {
        name: [list(value.shape), str(value.dtype), hashed(value)] for name, value in tensors_of(dataset.values).items()
    }
    return {"model": model, "data": data, **options}


def hashed(value: Tensor) -> str:
    """Tells tensors apart: of large ones some of the cells are looked at."""
    flat = value.detach().cpu().contiguous().flatten()
    step = max(1, flat.nbytes // HASHED_BYTES)
    return hashlib.sha256(flat[::step].contiguous().numpy().tobytes()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


ROWS = "rows"  # among the parts of a guide, the fingerprint of the rows that it has factors of


def fingerprint(dataset: Dataset) -> Tensor:
    """What tells the rows that a guide has factors of from others, (32,)."""
    found = hashlib.sha256("".join(hashed(v.double()) for v in tensors_of(dataset.values).values()).encode())
    return torch.tensor(list(found.digest()), dtype=torch.uint8)
