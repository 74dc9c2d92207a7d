"""Reading a record from a file by what it should be: types, ranges, no unknown names. A dataclass is the schema, so
that what is read is written down once; one plain error names the field that is not as it should be.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

from .errors import RunError


class Range(NamedTuple):
    """Bounds of a number, both within it."""

    low: float
    high: float = float("inf")

    def __str__(self) -> str:
        return f"from {self.low:g}" if self.high == float("inf") else f"from {self.low:g} to {self.high:g}"


LARGEST = 2**53  # a count beyond is none
Count = Annotated[int, Range(0, LARGEST)]
Positive = Annotated[int, Range(1, LARGEST)]
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def read_as(kind: Any, value: Any, where: str) -> Any:
    """A value that JSON gave, as a kind: a dataclass, a Literal, a union, ``list[T]``, ``tuple[T, ...]``,
    ``dict[str, T]``, ``Annotated[T, Range]``, int, float, str, bool, None or Any.

    Parameters
    ----------
    where : str
        File and field, for the error.

    Raises
    ------
    RunError
        It is something else: the field, what was met, and what was expected.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, where)
    if origin is Annotated:
        found = read_as(args[0], value, where)
        return found if args[1].low <= found <= args[1].high else _refuse(where, value, f"a number {args[1]}")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        kinds = [one for one in args if one is not type(None)]
        return _first(kinds, value, where) if len(kinds) > 1 else read_as(kinds[0], value, where)
    if origin is Literal:
        return value if value in args else _refuse(where, value, f"one of {', '.join(map(repr, args))}")
    if origin in (list, tuple):
        if not isinstance(value, list):
            _refuse(where, value, "a list")
        return origin(read_as(args[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            _refuse(where, value, "an object")
        return {name: read_as(args[1], item, f"{where}.{name}") for name, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    return value if type(value) is (type(None) if kind is None else kind) else _refuse(where, value, _WORDS[kind])


def _read_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        _refuse(where, value, "an object")
    hints, fields = (
        typing.get_type_hints(kind, include_extras=True),
        {one.name: one for one in dataclasses.fields(kind)},
    )
    for name in value:
        if name not in fields:
            raise RunError(f"{where} has the field {name!r:.60}, which is none of {', '.join(fields)}")
    for name, field in fields.items():
        if name not in value and field.default is field.default_factory is dataclasses.MISSING:
            raise RunError(f"{where} lacks the field {name!r}")
    return kind(**{name: read_as(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _first(kinds: list[Any], value: Any, where: str) -> Any:
    for kind in kinds:
        try:
            return read_as(kind, value, where)
        except RunError:
            continue
    _refuse(where, value, " or ".join(_WORDS.get(kind, "what the format says") for kind in kinds))


def _refuse(where: str, value: Any, expected: str) -> NoReturn:
    raise RunError(f"{where} is {value!r:.60}, expected {expected}")
