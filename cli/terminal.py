"""What a person at a terminal meets: errors and warnings of one line, help, tables of text."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ..inference.base.errors import ConvergenceWarning, OptionError


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


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]], decimals: int = 3) -> str:
    """Columns of text under their header: words to the left, numbers to the right."""
    cells = [list(header), *([_text(value, decimals) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    kinds = rows[0] if rows else header
    form = "  ".join(f"{{:{'<' if isinstance(v, str | bool) else '>'}{w}}}" for v, w in zip(kinds, widths, strict=True))
    return "\n".join(form.format(*line).rstrip() for line in cells)


def _text(value: Any, decimals: int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)
