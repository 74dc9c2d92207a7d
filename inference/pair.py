"""The contract: a latent variable model is a pair of plain Pyro functions of the data."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.nn import PyroModule, PyroParam
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import _PYRO_STACK

from .base.errors import ModelError, OptionError
from .data.graph import KINDS, Graph
from .data.graph import view as all_pairs
from .data.schema import Schema
from .data.structures import fields_of
from .trace.handlers import DATA_PLATE, RowsPlate

Model = Callable[[Any], Any]
Arrange = Callable[[torch.Tensor, Schema], Any]
Start = Mapping[str, torch.Tensor]
Initialize = Callable[[Any, torch.Generator], Start | Iterator[Start]]


@dataclass(frozen=True)
class Origin:
    """Where a pair comes from: what a run folder needs to build it again."""

    name: str
    factory: str  # "package.module:function"
    hyperparameters: dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A Pyro model with, where it has them, its guide and its starting values.

    Parameters
    ----------
    model : callable
        ``model(data)``, a Pyro program. Rows live in ``pyro.plate("data", len(data))``; what is unknown per row is
        sampled inside that plate, discrete latents with ``infer={"enumerate": "parallel"}``; what is learned by
        maximum likelihood is a ``pyro.param``; what has a prior is a ``pyro.sample`` outside the plate.
    guide : callable, optional
        ``guide(data)``, of the same signature. ``None`` means: derive one (exact EM needs none).
    initialize : callable, optional
        ``initialize(data, generator)`` returns starting values by name, drawn with the ``torch.Generator`` given. It
        may be a generator function that yields them: for the first start, then for each restart; where it ends,
        further restarts are jittered around the last.
        Without it the first start is what the model declares, and further restarts are jittered around it.
    arrange : callable, optional
        ``arrange(table, schema)`` makes of a table (N, D) the structure that the functions above take, by picking
        columns, so that every row stays a row: for models whose columns play different parts. Data that come as that
        structure pass by it.
    by : str, optional
        For data that come as a long table, such as a rating a row: the column whose values say which rows belong
        together. These groups are the rows of the model, and `data` is a tensor (N, M, D) padded with NaN: N values of
        that column, at most M rows of each, D other columns.
    graph : {"undirected", "directed"}, optional
        For data that are a graph: its nodes are the rows, and the functions above take a `graphs.Graph`, the pairs of
        nodes with their edges.
    rows : str, optional
        The plate that the rows lie in. Default: "data", or the one outermost plate that is as large as the data.
    """

    model: Model
    guide: Model | None = None
    initialize: Initialize | None = None
    arrange: Arrange | None = None
    by: str | None = None
    graph: str | None = None
    rows: str | None = None
    origin: Origin | None = field(default=None, kw_only=True, compare=False)
    for_schema: Callable[[Schema], Pair] | None = field(default=None, kw_only=True, compare=False)  # see `tabular`

    def __post_init__(self) -> None:
        for name, optional in (("model", False), ("guide", True), ("initialize", True), ("arrange", True)):
            value = getattr(self, name)
            if not callable(value) and not (optional and value is None):
                raise TypeError(f"Pair: {name} must be a function, met {type(value).__name__}")
        if self.by is not None and not isinstance(self.by, str):
            raise TypeError(f"Pair: by must be the name of a column, met {type(self.by).__name__}")
        if self.graph is not None and self.graph not in KINDS:
            raise TypeError(f"Pair: graph must be one of {', '.join(map(repr, KINDS))}, met {self.graph!r}")


def on_table(pair: Pair, schema: Schema) -> Pair:
    """The pair as functions of the table itself: each arranges the columns first.

    So whatever looks at the data (missing cells, generated rows, imputation, pictures) sees one table.
    """
    if pair.for_schema is not None:
        pair = replace(pair.for_schema(schema), origin=pair.origin)
    pair = _as_called(replace(pair, model=with_params(pair.model)), schema)
    kind = pair.graph
    arrange = pair.arrange if kind is None else lambda table, _: _graph_of(table, kind)
    if arrange is None:
        return pair

    def view(data: Any) -> Any:
        return arrange(data, schema) if isinstance(data, torch.Tensor) else data

    def of_table(fn: Any) -> Any:
        return fn and functools.wraps(fn)(lambda data, *rest: fn(view(data), *rest))

    return replace(
        pair,
        model=of_table(pair.model),
        guide=of_table(pair.guide),
        initialize=of_table(pair.initialize),
        arrange=None,
    )


def as_pair(model: Any) -> Pair:
    """A pair, or the pair of a bare model."""
    if isinstance(model, Pair):
        return model
    if isinstance(model, str) or not callable(model):
        raise OptionError(f"fit: met a {type(model).__name__}, expected a model, a Pair(model, guide), or a name")
    return Pair(model)


def arguments_of(pair: Pair) -> tuple[str, ...]:
    """Names of the arguments that a model takes, where there may be several."""
    try:
        parameters = inspect.signature(pair.model).parameters.values()
    except (TypeError, ValueError):
        return ()
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(one.name for one in parameters if one.kind in places)
    spread = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters)
    return names if len(names) > 1 else ("data",) if spread else ()


def _as_called(pair: Pair, schema: Schema) -> Pair:
    """The pair as functions of one argument, whose rows lie in the plate of the engine."""
    call, plate = schema.call, pair.rows or schema.rows
    if not call and plate in (None, DATA_PLATE):
        return pair

    def given(fn: Any, data: Any, *rest: Any) -> Any:
        if call == "arguments":
            return fn(*fields_of(data).values(), *rest)
        if call != "mapping":
            return fn(data, *rest)
        fields = fields_of(data)
        names = arguments_of(replace(pair, model=fn)) if not rest else ()
        return fn(**fields) if names and set(fields) <= set(names) else fn(fields, *rest)

    def of(fn: Any, programs: bool = True) -> Any:
        if fn is None:
            return None

        def as_called(data: Any, *rest: Any) -> Any:
            with nullcontext() if plate is None or not programs else RowsPlate(plate):
                return given(fn, data, *rest)

        as_called.__name__ = getattr(fn, "__name__", type(fn).__name__)
        as_called.__wrapped__ = fn  # type: ignore[attr-defined]
        return as_called

    changed = replace(pair, model=of(pair.model), guide=of(pair.guide), initialize=of(pair.initialize, False))
    return replace(changed, rows=None)


def with_params(model: Model) -> Model:
    """A `PyroModule` whose bare parameters (those of a ``PyroModule[nn.Linear]``, say) are params like any other.

    Pyro announces them by a statement, but goes on with the module's own tensors, which no handler reaches. So a copy
    declares each as a `PyroParam`. A module that holds networks of plain torch is left as it is: these are learned as
    networks are.
    """
    if not isinstance(model, PyroModule):
        return model
    plain = [m for m in model.modules() if not isinstance(m, PyroModule)]
    if any(True for module in plain for _ in module.parameters(recurse=False)) or not _bare(model):
        return model
    again = copy.deepcopy(model)
    for module, name in _bare(again):
        setattr(module, name, PyroParam(getattr(module, name).detach().clone()))
    return again


def _bare(model: PyroModule) -> list[tuple[Any, str]]:
    return [
        (module, name)
        for module in model.modules()
        for name, _ in module.named_parameters(recurse=False)
        if not name.endswith("_unconstrained")
    ]


def _graph_of(table: torch.Tensor, kind: str) -> Graph:
    """The pairs of a graph, unless latents are being enumerated row by row."""
    if any(isinstance(handler, EnumMessenger) for handler in _PYRO_STACK):
        raise ModelError(
            "the nodes of a graph meet in pairs, so their latents cannot be enumerated row by row, which is for rows "
            'that are independent: fit it with inference="cavi", and look at latents, score, summary or plot("blocks")'
        )
    return all_pairs(table, kind)
