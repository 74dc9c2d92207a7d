"""Hyper-parameters as a person types them: text, read as what the default is."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from ..inference.errors import OptionError


def flag(name: str) -> str:
    """The option of a command line for a hyper-parameter: num_components -> --num-components."""
    return "--" + name.replace("_", "-")


def value(name: str, text: str, default: Any) -> Any:
    """One value, of the type of the default."""
    kinds: dict[type, tuple[str, Callable[[str], Any]]] = {
        bool: ("true or false", {"true": True, "false": False}.__getitem__),
        int: ("a whole number", int),
        float: ("a number", float),
        str: ("text", str),
    }
    required = default == "required"  # of any type
    literal: tuple[str, Callable[[str], Any]] = ("a Python literal", ast.literal_eval)
    expected, read = literal if required else kinds.get(type(default), kinds[str])
    try:
        return read(text)
    except (ValueError, KeyError, SyntaxError) as error:
        raise OptionError(f"{flag(name)}: met {text!r}, expected {expected}") from error


def values(name: str, text: str, default: Any) -> list[Any]:
    """A list such as 2,3,5 or full,tied; among whole numbers 1:6 stands for 1, 2, ..., 6."""
    found: list[Any] = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        if colon and type(default) is int:
            found += range(value(name, first, default), value(name, last, default) + 1)
        else:
            found.append(value(name, part, default))
    if not found:
        raise OptionError(f"{flag(name)}: met {text!r}, which holds no number; give the smaller end first")
    return list(dict.fromkeys(found))
