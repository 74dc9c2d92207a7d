"""Hyper-parameters as a person types them: text, read as what the factory's annotation says."""

from __future__ import annotations

import argparse
import ast
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from ..cards import cards, kinds_of
from ..inference.base.errors import OptionError

LARGEST = 1_000_000  # more is a slip of the finger, and would fill the memory before anything could be said
LONGEST = 1000  # values that a range may stand for
DEST = "hyper "  # before the name of a hyper-parameter among the arguments of a command


def flag(name: str) -> str:
    """The option of a command line for a hyper-parameter: num_components -> --num-components."""
    return "--" + name.replace("_", "-")


def add_flags(group: Any, form: str) -> None:
    """An option for each hyper-parameter of every model: `given` refuses those that the named one does not have."""
    owners: dict[str, list[str]] = {}
    for name, card in sorted(cards().items()):
        for option, default in card.hyperparameters.items():
            owners.setdefault(option, []).append(f"{name} ({shown(default)})")
    for option, models in owners.items():
        # a % would be read as the form of something to fill in
        text = ", ".join(models).replace("%", "%%")
        group.add_argument(flag(option), dest=DEST + option, metavar=form, help=text)


def given(args: argparse.Namespace) -> list[tuple[str, str, Any]]:
    """Name, text and kind of each hyper-parameter that was given; those of other models are errors."""
    kinds = kinds_of(args.name)
    texts = {name.removeprefix(DEST): text for name, text in vars(args).items() if name.startswith(DEST)}
    met = {name: text for name, text in texts.items() if text is not None}
    for wrong in [*(flag(name) for name in met if name not in kinds), *args.unknown]:
        own = ", ".join(map(flag, kinds)) or "none"
        raise OptionError(f"{args.name} has no option {wrong}: its own are {own} (see latentzoo {args.command} --help)")
    return [(name, text, kinds[name]) for name, text in met.items()]


def shown(default: Any) -> str:
    """A default as a person would type it."""
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(map(str, default)) if isinstance(default, tuple | list) else str(default)


def value(name: str, text: str, kind: Any) -> Any:
    """One value of a kind, which is a type, a union of types, or a sequence of elements parted by commas."""
    try:
        found = _read(text.strip(), kind)
    except (ValueError, SyntaxError) as error:
        raise OptionError(f"{flag(name)}: met {text!r}, expected {_words(kind)}") from error
    if isinstance(found, int) and abs(found) >= LARGEST:
        raise OptionError(f"{flag(name)}: met {text}, expected a number below {LARGEST}")
    return found


def values(name: str, text: str, kind: Any) -> list[Any]:
    """A list such as 2,3,5 or full,tied; among whole numbers 1:6 stands for 1, 2, ..., 6.

    Sequences, whose elements are parted by commas, are parted by semicolons.
    """
    found: list[Any] = []
    for part in text.split(";" if any(_element(one) for one in _alternatives(kind)) else ","):
        first, colon, last = part.partition(":")
        if not colon or kind is not int:
            found.append(value(name, part, kind))
            continue
        low, high = value(name, first, kind), value(name, last, kind)
        if high - low >= LONGEST:
            raise OptionError(f"{flag(name)}: met {part!r}, which stands for more than {LONGEST} numbers")
        found += range(low, high + 1)
    if not found:
        raise OptionError(f"{flag(name)}: met {text!r}, which holds no number; give the smaller end first")
    return [one for number, one in enumerate(found) if one not in found[:number]]


def _read(text: str, kind: Any) -> Any:
    alternatives = _alternatives(kind)
    if len(alternatives) > 1:
        return _first(text, sorted(alternatives, key=_ease))
    element = _element(kind)
    if element is not None:
        return tuple(_read(part.strip(), element) for part in text.split(",")) if text not in ("", "none") else ()
    if typing.get_origin(kind) is typing.Literal:
        return {str(choice): choice for choice in typing.get_args(kind)}[text] if text in _choices(kind) else _refuse()
    if kind is type(None):
        return None if text == "none" else _refuse()
    if kind is bool:
        return text.lower() == "true" if text.lower() in ("true", "false") else _refuse()
    if kind is str:
        return text or _refuse()
    return kind(text) if kind in (int, float) else ast.literal_eval(text)


def _first(text: str, kinds: Iterable[Any]) -> Any:
    for kind in kinds:
        try:
            return _read(text, kind)
        except (ValueError, SyntaxError):
            continue
    return _refuse()


def _ease(kind: Any) -> int:
    """None is tried first, and text, which anything reads as, last."""
    return 0 if kind is type(None) else 2 if kind is str else 1


def _refuse() -> typing.NoReturn:
    raise ValueError


def _words(kind: Any) -> str:
    """A kind in words."""
    alternatives = _alternatives(kind)
    if len(alternatives) > 1:
        return " or ".join(map(_words, alternatives))
    element = _element(kind)
    if element is not None:
        return f"a list, parted by commas, each {_words(element)}"
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(_choices(kind))}"
    known = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    return known.get(kind, "a Python literal")


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _element(kind: Any) -> Any:
    """What a sequence holds; None for what is no sequence."""
    if kind in (tuple, list):
        return int | float | str
    return typing.get_args(kind)[0] if typing.get_origin(kind) in (tuple, list, Sequence) else None


def _choices(kind: Any) -> list[str]:
    return [str(choice) for choice in typing.get_args(kind)]
