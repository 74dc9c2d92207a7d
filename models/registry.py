"""The registry: factories by name, each with its card."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..inference.pair import Origin, Pair

Factory = Callable[..., Pair]


class RegistryError(ValueError):
    """A name that is taken, unknown, or a hyper-parameter that the factory does not have."""


@dataclass(frozen=True)
class Card:
    """What a person should know of a model before using it.

    Attributes
    ----------
    name, family : str
    summary : str
        One line.
    story : str
        The factory's docstring: the generative process, shapes, reference.
    data : str
        What the model takes.
    inference : tuple of str
        Drivers that fit it, the first being what "auto" prefers.
    hyperparameters : dict
        Name -> default, as shown to people ("required" where there is none).
    references : tuple of str
    checks : tuple of str
        Published numbers that the tests reproduce with it.
    example : str
        A bundled data set to try it on.
    size : str
        The hyper-parameter that counts labels, which ``compare`` varies.
    """

    name: str
    family: str
    summary: str
    story: str
    data: str
    inference: tuple[str, ...]
    hyperparameters: dict[str, Any]
    references: tuple[str, ...]
    checks: tuple[str, ...]
    example: str
    size: str = ""

    def __str__(self) -> str:
        options = "\n".join(f"  {name} = {value!r}" for name, value in self.hyperparameters.items())
        parts = [
            f"{self.name} ({self.family}): {self.summary}",
            inspect.cleandoc(self.story),
            f"Data: {self.data}\nTry it: latentzoo fit {self.name} {self.example}",
            f"Hyper-parameters:\n{options}",
            f"Inference: {', '.join(self.inference)}",
        ]
        for title, lines in (("References", self.references), ("Published numbers it meets", self.checks)):
            if lines:
                parts.append(f"{title}:\n" + "\n".join(f"  {line}" for line in lines))
        return "\n\n".join(parts)


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
    inference: tuple[str, ...] = ("em", "svi"),
    references: tuple[str, ...] = (),
    checks: tuple[str, ...] = (),
    example: str = "iris",
    size: str = "",
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
        defaults = {p.name: "required" if p.default is p.empty else p.default for p in signature.parameters.values()}

        @functools.wraps(factory)
        def create(*args: Any, **kwargs: Any) -> Pair:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = {key: tuple(value) if isinstance(value, list) else value for key, value in bound.arguments.items()}
            origin = Origin(name, f"{factory.__module__}:{factory.__qualname__}", given)
            return replace(factory(*args, **kwargs), origin=origin)

        story = factory.__doc__ or ""
        card = Card(name, family, summary, story, data, inference, defaults, references, checks, example, size)
        ENTRIES[name] = Entry(create, card, examples)
        return create

    return enter


def entry(name: str) -> Entry:
    """The entry of a name, with near names in the error where there is none."""
    if name not in ENTRIES:
        import difflib

        near = difflib.get_close_matches(name, ENTRIES, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the zoo has {', '.join(sorted(ENTRIES))}"
        raise RegistryError(f"no model named '{name}': {hint}")
    return ENTRIES[name]
