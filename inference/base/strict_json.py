"""JSON as the standard has it, of plain values; a number that is not finite is written as ``{"$float": "nan"}``, "inf"
or "-inf", and comes back a float. Tuples come back as lists.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from .errors import RunError

MAX_DEPTH = 64


def encoded(value: Any, where: str, depth: int = 0) -> Any:
    """A value as `json.dumps` takes it; `where` is said in the error of what it cannot hold."""
    if depth > MAX_DEPTH:
        raise RunError(f"{where[:200]}... is nested deeper than {MAX_DEPTH} levels: flatten it")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)  # an IntEnum too: the number is what is kept
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, list | tuple):
        return [encoded(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == "$float":
                raise RunError(f"{where} has the key {key!r}; expected a string, not '$float': rename it")
        return {key: encoded(item, f"{where}[{key!r}]", depth + 1) for key, item in value.items()}
    raise RunError(
        f"{where} is a {type(value).__name__}; JSON holds None, bool, int, float, str, lists and mappings: "
        "put tensors into arrays, and write the rest as one of these"
    )


def decoded(text: bytes | str) -> Any:
    """What a text holds; ValueError where it is not strict JSON, names a field twice, or a number is too large."""
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _object(pairs: list[tuple[str, Any]]) -> Any:
    if len(pairs) == 1 and pairs[0][0] == "$float" and pairs[0][1] in ("nan", "inf", "-inf"):
        return float(pairs[0][1])
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r} stands twice")
    return found


def _refuse(token: str) -> NoReturn:
    raise ValueError(f"{token} is not JSON")


def _finite(token: str) -> float:
    if math.isinf(value := float(token)):
        raise ValueError(f"{token} is too large for a number")
    return value
