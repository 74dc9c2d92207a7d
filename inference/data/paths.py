"""What a path, or the name of a bundled data set, points to. Asked at the command line before torch is imported."""

from __future__ import annotations

from pathlib import Path

from ..base.errors import DataError
from .bundled.tables import BUNDLED


def located(source: str | Path) -> tuple[Path, str | None] | None:
    """The file, and the array in it that ``file.npz:name`` asks for; None for a bundled data set.

    Raises
    ------
    DataError
        There is no such file or name.
    """
    path, member = Path(source).expanduser(), None
    if not path.exists() and ".npz:" in str(path):
        file, _, member = str(path).rpartition(":")
        path = Path(file)
    if path.is_file():
        return path, member
    if isinstance(source, Path):
        raise DataError(f"data: no file {str(source)!r}")
    if source not in BUNDLED:
        raise DataError(
            f"data: no file {source!r}, nor a bundled data set of that name; there are {', '.join(BUNDLED)}"
        )
    return None
