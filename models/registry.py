"""The registry: factories by name, each with its card."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..cards import Card, defaults_of, unknown
from ..inference.base.errors import RegistryError
from ..inference.pair import Origin, Pair

Factory = Callable[..., Pair]


@dataclass(frozen=True)
class Entry:
    """A registered factory with its card, and small data drawn for the tests of every entry."""

    factory: Factory
    card: Card
    examples: tuple[dict[str, Any], ...] = field(default=({},))


ENTRIES: dict[str, Entry] = {}


def register(
    *,
    family: str,
    summary: str,
    data: str,
    inference: tuple[str, ...] = Card.inference,
    references: tuple[str, ...] = Card.references,
    checks: tuple[str, ...] = Card.checks,
    example: str = Card.example,
    size: str = Card.size,
    examples: tuple[dict[str, Any], ...] = ({},),
) -> Callable[[Factory], Factory]:
    """Enter a factory in the zoo under its function's name.

    The pair that the factory returns is marked with its origin, so that a saved fit can be built again. `examples` are
    hyper-parameters that the contract test runs besides the defaults.

    Raises
    ------
    RegistryError
        The name is taken.
    """

    def enter(factory: Factory) -> Factory:
        name = factory.__name__
        if name in ENTRIES:
            taken = ENTRIES[name].factory
            raise RegistryError(
                f"register: '{name}' is taken by {taken.__module__}:{taken.__qualname__}; choose another name"
            )
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def create(*args: Any, **kwargs: Any) -> Pair:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = {key: tuple(value) if isinstance(value, list) else value for key, value in bound.arguments.items()}
            origin = Origin(name, f"{factory.__module__}:{factory.__qualname__}", given)
            return replace(factory(*args, **kwargs), origin=origin)

        story, defaults = factory.__doc__ or "", defaults_of(signature)
        card = Card(name, family, summary, story, data, defaults, inference, references, checks, example, size)
        ENTRIES[name] = Entry(create, card, examples)
        return create

    return enter


def entry(name: str) -> Entry:
    """The entry of a name, with near names in the error where there is none."""
    if name not in ENTRIES:
        raise unknown(name, ENTRIES)
    return ENTRIES[name]
