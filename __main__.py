"""The command line, ``latentzoo`` or ``python -m latentzoo``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from latentzoo.cli.arguments import parsed
from latentzoo.cli.terminal import plain_warnings, say
from latentzoo.inference.base.errors import DataError, FitError, ModelError, OptionError, RegistryError, RunError

PLAIN = (DataError, ModelError, OptionError, RegistryError, RunError, FitError, OSError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0, or 2 after bad usage or bad input (a line on stderr says what), or 130 after Ctrl-C."""
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
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except BrokenPipeError:  # the reader has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except PLAIN as error:
        file = getattr(error, "filename", None)
        say(f"error: {file}: {error.strerror}" if file and isinstance(error, OSError) else f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
