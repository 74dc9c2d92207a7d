"""Names that a package offers, each imported when it is first asked for (PEP 562): a package that is used in part is
loaded in part.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, offered: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    Parameters
    ----------
    package : str
        Its ``__name__``.
    offered : mapping of str to str
        Module below the package -> the names in it that are offered, parted by spaces; under "" modules themselves. A
        name that a module of the package has too is not to be offered: it would stand for the one or the other.
    """
    homes = {name: module for module, names in offered.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{homes[name] or name}")
        value = getattr(module, name) if homes[name] else module
        setattr(sys.modules[package], name, value)
        return value

    def names_of() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names_of, sorted(homes)
