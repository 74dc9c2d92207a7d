"""One command from its words to its answer, or to the line that says what is wrong."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from ..inference.base.errors import DataError, FitError, ModelError, OptionError, RegistryError, RunError
from .arguments import parsed
from .terminal import plain_warnings, say

PLAIN = (DataError, ModelError, OptionError, RegistryError, RunError, FitError, OSError)


def answer(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0, or 2 after bad usage or bad input (a line on stderr says what)."""
    try:
        with plain_warnings():
            try:
                args = parsed(argv)
                home = importlib.import_module(f"latentzoo.cli.{args.home}")  # it may bring torch: seconds
                getattr(home, f"run_{args.command}")(args)
            finally:
                sys.stdout.flush()  # a pipe that was closed early is met here, not at the end of Python
    except SystemExit:  # --help and --version, already printed
        pass
    except BrokenPipeError:  # the reader has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except PLAIN as error:
        file = getattr(error, "filename", None)
        say(f"error: {file}: {error.strerror}" if file and isinstance(error, OSError) else f"error: {error}")
        return 2
    return 0
