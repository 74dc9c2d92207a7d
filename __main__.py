"""The command line, ``latentzoo`` or ``python -m latentzoo``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0, or 2 after bad usage or bad input (a line on stderr says what), or 130 after Ctrl-C."""
    try:
        from latentzoo.cli.answer import answer  # here, so that Ctrl-C is answered from the first instruction

        return answer(argv)
    except KeyboardInterrupt:
        print("latentzoo: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
