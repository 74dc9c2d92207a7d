"""Errors that a model's own code raises, told in one line: where in the model, and what."""

from __future__ import annotations

import functools
import linecache
import site
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from ..base.errors import DataError, FitError, ModelError, OptionError, RegistryError, RunError

P = ParamSpec("P")
R = TypeVar("R")

NAMES = {"pick": "auto"}
ENGINE = Path(__file__).resolve().parents[1]
OWN = (DataError, FitError, ModelError, OptionError, RegistryError, RunError)
TOLD = (ValueError, RuntimeError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError, AssertionError)
LIBRARIES = (*site.getsitepackages(), sysconfig.get_path("stdlib"))


def plainly(driver: Callable[P, R]) -> Callable[P, R]:
    """A driver whose errors are one plain line each: those of the pair's functions name the line they arose at."""

    @functools.wraps(driver)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return driver(*args, **kwargs)
        except OWN:
            raise
        except TOLD as error:
            what = f"{type(error).__name__}: {(str(error).strip() or 'no words').splitlines()[0]}"
            where = _line_of(error.__traceback__)
            if where is None:
                words = f"the engine fails on this model ({what}): please report it, with the model"
            else:
                words = f"the model fails at {where} ({what})"
            raise ModelError(f"{NAMES.get(driver.__name__, driver.__name__)}: {words}") from error

    return told


def _line_of(traceback: TracebackType | None) -> str | None:
    """The innermost line that is neither the engine's nor a library's: file, number and text."""
    found = None
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith(LIBRARIES) and ENGINE not in Path(file).parents and not file.startswith("<frozen"):
            text = linecache.getline(file, traceback.tb_lineno).strip()
            found = f"{Path(file).name}:{traceback.tb_lineno}" + (f", `{text}`" if text else "")
        traceback = traceback.tb_next
    return found
