"""What there is to know of the models before one is made: their cards. The registry has them of every factory; while it
is not loaded (its models bring torch, which takes seconds) they are read from the models' source, so that a question or
a slip at the command line is answered at once.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .inference.base.errors import OptionError, RegistryError

INFERENCES = ("em", "cavi", "svi")
REGISTRY = f"{__package__}.models.registry"
MODELS = Path(__file__).parent / "models"
OF_DATA = "schema"  # an argument that `tabular` gives, and nobody else
KINDS = {"Any": Any, "Sequence": Sequence}  # in annotations, besides what is Python's own


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
    hyperparameters : dict
        Name -> default, as shown to people ("required" where there is none).
    inference : tuple of str
        Drivers that fit it, the first being what "auto" prefers.
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
    hyperparameters: dict[str, Any]
    inference: tuple[str, ...] = ("em", "svi")
    references: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    example: str = "iris"
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


def list_models(family: str | None = None, inference: str | None = None) -> list[str]:
    """Names of the models, sorted; of one family, or those that one inference fits."""
    found = cards().values()
    families = sorted({card.family for card in found})
    if family is not None and family not in families:
        raise OptionError(f"family: met {family!r}, expected one of {', '.join(families)}")
    if inference is not None:
        check_inference(inference, INFERENCES)
    return sorted(
        card.name
        for card in found
        if family in (None, card.family) and (inference is None or inference in card.inference)
    )


def card(name: str) -> Card:
    """What a model is: its story, data, inference, references and published checks. ``print`` it."""
    found = cards()
    if name not in found:
        raise unknown(name, found)
    return found[name]


def cards() -> dict[str, Card]:
    """Every card by the model's name."""
    registry = sys.modules.get(REGISTRY)
    if registry is not None:
        return {name: entry.card for name, entry in registry.ENTRIES.items()}
    return {name: card for name, (card, _) in _as_written().items()}


def kinds_of(name: str) -> dict[str, Any]:
    """The annotation of each hyper-parameter; where there is none, the type of its default. None where the source
    alone does not tell.
    """
    registry = sys.modules.get(REGISTRY)
    if registry is not None:
        signature = inspect.signature(registry.entry(name).factory, eval_str=True)
    else:
        signature = _as_written()[card(name).name][1]
    return {parameter.name: _kind(parameter) for parameter in signature.parameters.values()}


def defaults_of(signature: inspect.Signature) -> dict[str, Any]:
    """The default of each hyper-parameter, "required" where there is none."""
    parameters = signature.parameters.values()
    return {one.name: "required" if one.default is one.empty else one.default for one in parameters}


def check_inference(inference: str, known: Iterable[str]) -> None:
    """Refuse the name of an inference that there is not."""
    if inference not in known:
        raise OptionError(f"inference: met {inference!r}, expected one of {', '.join(known)}")


def unknown(name: str, known: Iterable[str]) -> RegistryError:
    """The error of a name that no model has, with near names."""
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the zoo has {', '.join(sorted(known))}"
    return RegistryError(f"no model named '{name}': {hint}")


def _kind(parameter: inspect.Parameter) -> Any:
    if parameter.annotation not in (parameter.empty, Any):
        return parameter.annotation
    return Any if parameter.default in (parameter.empty, None) else type(parameter.default)


# --- from the source --------------------------------------------------------------------------------------------------


@functools.cache
def _as_written() -> dict[str, tuple[Card, inspect.Signature]]:
    """Card and signature of every factory, as its file says."""
    return {made[0].name: made for path in sorted(MODELS.glob("*/*.py")) for made in _in_file(path)}


def _in_file(path: Path) -> Iterator[tuple[Card, inspect.Signature]]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register":
                facts = {str(word.arg): word.value for word in call.keywords if word.arg != "examples"}
                told = {name: ast.literal_eval(value) for name, value in facts.items()}
                signature, story = _signature(node.args), ast.get_docstring(node, clean=False) or ""
                yield Card(node.name, story=story, hyperparameters=defaults_of(signature), **told), signature


def _signature(args: ast.arguments) -> inspect.Signature:
    required: list[Any] = [inspect.Parameter.empty] * (len(args.args) - len(args.defaults))
    defaults = [*required, *map(ast.literal_eval, args.defaults)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature(
        [
            inspect.Parameter(one.arg, kind, default=default, annotation=_annotation(one))
            for one, default in zip(args.args, defaults, strict=True)
            if one.arg != OF_DATA
        ]
    )


def _annotation(argument: ast.arg) -> Any:
    """What it says; None where that has a name which only its file knows."""
    if argument.annotation is None:
        return inspect.Parameter.empty
    try:
        return eval(ast.unparse(argument.annotation), KINDS)
    except NameError:
        return None
