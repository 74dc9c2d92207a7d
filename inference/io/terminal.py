"""What a person at a terminal meets: errors and warnings of one line, options, the columns of a file."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..base.errors import ConvergenceWarning, DataError, OptionError
from ..data.idx import is_idx
from ..data.tables import read


def say(message: str) -> None:
    """One line on stderr."""
    print("latentzoo:", " ".join(message.split()), file=sys.stderr)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """A warning is one line, without a place in code that a person at a terminal never wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", ConvergenceWarning)
        warnings.showwarning = lambda message, *place, **where: say(f"warning: {message}")
        yield


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose options are never guessed from their beginnings."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (see {self.prog} --help)")


def examples(*lines: str) -> str:
    """The end of a help page."""
    return "\n".join(["examples:", *(f"  latentzoo {line}" for line in lines)])


def check_folder(folder: str | None) -> None:
    """Say before a long fit, not after it, that its folder cannot be written."""
    if folder == "":
        raise OptionError("--out: met '', expected the name of a folder")
    if folder:
        path = Path(folder).absolute()
        nearest = next(place for place in (path, *path.parents) if place.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise OptionError(f"--out: cannot write to {str(nearest)!r}, expected a folder open to you")


def read_parts(source: str, drop: Sequence[str], weights: str | None) -> tuple[Any, np.ndarray | None]:
    """The data of a file without the columns `drop` and `weights`; and the latter, (N,)."""
    data, left_out = read(source), [*drop, *([weights] if weights else [])]
    if not left_out:
        return source if is_idx(source) else data, None  # its rows are then read as they are needed
    if not hasattr(data, "columns"):
        raise DataError(f"--drop and --weights name columns of a table; {source} is an array, without names")
    data = data.rename(columns=str)
    for name in left_out:
        if name not in data.columns:
            raise DataError(f"{source} has no column {name!r}: it has {', '.join(data.columns)}")
    rest = data.drop(columns=left_out)
    if not len(rest.columns):
        raise DataError(f"{source} has no columns left: --drop and --weights take all that it has")
    if not weights:
        return rest, None
    try:
        return rest, data[weights].to_numpy(dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"--weights: column {weights!r} holds text, expected numbers") from error


def read_given(words: Sequence[str]) -> dict[str, float | str]:
    """NAME=VALUE as a dict; what reads as a number is one."""
    found: dict[str, float | str] = {}
    for word in words:
        name, equals, text = word.rpartition("=")
        if not equals or not name or not text:
            raise OptionError(f"--given: met {word!r}, expected a name and a value, such as species=setosa")
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = text
    return found
