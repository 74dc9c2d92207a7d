"""The state of an unfinished fit on disk: enough to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import OptionError, RunError
from ..base.run_files import has_run
from ..base.run_folder import read_run, write_run
from ..data.schema import Dataset
from ..data.streams import Rows, spread_rows
from ..data.structures import tensors_of
from .options import SVIOptions

Tree = dict[str, Any]  # as a `state_dict()`: names -> tensors, plain values, lists and trees
HELD = "$tensor"  # in the record, the sole key of what stands for a tensor
HASHED_BYTES = 1 << 26  # of each tensor of the data
ROWS = "rows"  # among the parts of a guide, the fingerprint of the rows that it has factors of
SAME = (
    "batch_size num_particles alpha learning_rate tol clip restarts seed objective warmup free_bits validation "
    "patience compile"
).split()  # options without which it would be another fit


class Checkpoints:
    """Writes a state to the folder that was asked for, now and then.

    Parameters
    ----------
    options : SVIOptions
        With a folder, or without: then nothing is ever written. Written when so many steps, or so many seconds, have
        passed since the last time.
    model : dict
        Of what is learned, the shapes. They, the data and some options must be the same for a checkpoint to be gone on
        from.
    """

    def __init__(self, options: SVIOptions, guide: str, model: Mapping[str, Tensor], dataset: Dataset) -> None:
        self.options, self.folder = options, None if options.checkpoint is None else Path(options.checkpoint)
        self.identity = {} if self.folder is None else _identity(options, guide, model, dataset)
        self.last_step, self.last_time = 0, time.monotonic()

    def maybe(self, step: int, state: Callable[[], Tree]) -> None:
        """Write where it is time."""
        if self.folder is None:
            return
        seconds = time.monotonic() - self.last_time
        if step - self.last_step >= self.options.checkpoint_steps or seconds >= self.options.checkpoint_seconds:
            self.write(step, state)

    def write(self, step: int, state: Callable[[], Tree]) -> None:
        """Write the state after so many steps."""
        if self.folder is None:
            return
        arrays: dict[str, Tensor] = {}
        plain = _taken_apart(state(), arrays, "state")
        write_run(self.folder, arrays, {"kind": "checkpoint", "identity": self.identity, "step": step, "state": plain})
        self.last_step, self.last_time = step, time.monotonic()

    def read(self) -> Tree | None:
        """What the folder holds, where it is to be gone on from; None where it holds nothing yet.

        Raises
        ------
        OptionError
            It is of another model, other data or other options.
        """
        if not self.options.resume or self.folder is None or not has_run(self.folder):
            return None
        arrays, record = read_run(self.folder)
        if record.get("kind") != "checkpoint":
            raise RunError(f"{self.folder}: the folder holds a finished fit, not a checkpoint: give another folder")
        if "state" not in record:
            raise RunError(
                f"{self.folder}: the checkpoint was written by an earlier latentzoo, whose steps this one does not "
                f"take: finish the fit with that, or give another folder"
            )
        for name, mine in self.identity.items():
            found = record["identity"].get(name)
            if found != mine:
                raise OptionError(
                    f"resume: the checkpoint in {str(self.folder)!r} is of another fit, its {name} is {_short(found)}, "
                    f"here {_short(mine)}: resume with what it was begun with, or give another folder"
                )
        self.last_step = record["step"]
        tree: Tree = _put_together(record["state"], arrays)
        return tree


def copied(tree: Any) -> Any:
    """A tree whose tensors nobody else changes."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {name: copied(value) for name, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _taken_apart(tree: Any, arrays: dict[str, Tensor], place: str) -> Any:
    """A tree as JSON; its tensors go to `arrays`, each under its place."""
    if isinstance(tree, Tensor):
        while place in arrays:  # names may hold the sign that divides them
            place += "'"
        arrays[place] = tree
        return {HELD: place}
    if isinstance(tree, Mapping):
        return {name: _taken_apart(value, arrays, f"{place}/{name}") for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_taken_apart(value, arrays, f"{place}/{n}") for n, value in enumerate(tree)]
    return tree


def _put_together(plain: Any, arrays: Mapping[str, Tensor]) -> Any:
    if isinstance(plain, dict):
        if plain.keys() == {HELD} and isinstance(plain[HELD], str):
            return arrays[plain[HELD]]
        return {name: _put_together(value, arrays) for name, value in plain.items()}
    return [_put_together(value, arrays) for value in plain] if isinstance(plain, list) else plain


def _identity(options: SVIOptions, guide: str, model: Mapping[str, Tensor], dataset: Dataset) -> dict[str, Any]:
    """What tells one fit from another."""
    given = dataset.values
    looked = {"rows": spread_rows(given)} if isinstance(given, Rows) else tensors_of(given)
    data = {name: [list(value.shape), str(value.dtype), hashed(value)] for name, value in looked.items()}
    if isinstance(given, Rows):
        data["rows"][0] = list(given.shape)
    asked = {name: getattr(options, name) for name in SAME}
    plain = {n: v if isinstance(v, int | float | str | None) else repr(v) for n, v in asked.items()}
    return {
        "model": {name: list(value.shape) for name, value in model.items()},
        "data": data,
        "guide": guide,
        "optimizer": getattr(options.optimizer, "__name__", repr(options.optimizer)),
        **plain,
    }


def hashed(value: Tensor) -> str:
    """Tells tensors apart: of large ones some of the cells are looked at."""
    flat = value.detach().cpu().contiguous().flatten()
    step = max(1, flat.nbytes // HASHED_BYTES)
    return hashlib.sha256(flat[::step].contiguous().numpy().tobytes()).hexdigest()[:16]


def fingerprint(dataset: Dataset) -> Tensor:
    """What tells the rows that a guide has factors of from others, (32,)."""
    found = hashlib.sha256("".join(hashed(v.double()) for v in tensors_of(dataset.values).values()).encode())
    return torch.tensor(list(found.digest()), dtype=torch.uint8)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
