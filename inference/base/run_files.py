"""Where a run lies in its folder. Asked at the command line before torch is imported."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import RunError

RUN_FILE = "run.safetensors"
OLD_FILE = "run.json"  # of format 1
NO_RUN = "expected the folder of a saved run: check the path"


def has_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a run, whole or not."""
    return any(Path(folder, name).is_file() for name in (RUN_FILE, OLD_FILE))


def require_run(folder: str | os.PathLike[str]) -> None:
    """Refuse what is no folder, or holds no run."""
    path = Path(folder)
    if not path.is_dir():
        raise RunError(f"{path}: {'is a file' if path.exists() else 'does not exist'}; {NO_RUN}")
    if not has_run(path):
        raise RunError(f"{path}: has no {RUN_FILE}; {NO_RUN}")
