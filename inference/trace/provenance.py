"""Tensors that remember which cells they were gathered from.

A model says ``loc[z]``. To invert that gather (an M-step pools over it) the engine runs the model once with each param
replaced by a `Symbol`: an ordinary tensor that carries, beside its values, the numbers of the cells they came from.
Indexing, reshaping and broadcasting act on both alike; any other operation keeps the values and drops the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .polynomials import Form, combined, root

# Functions whose output cells are cells of their first argument, moved or repeated.
SELECTIONS = frozenset(
    "__getitem__ expand expand_as broadcast_to broadcast_tensors view view_as reshape unsqueeze squeeze flatten "
    "unflatten "
    "permute transpose t swapaxes swapdims movedim moveaxis select index_select narrow gather take repeat tile "
    "repeat_interleave unbind split chunk roll flip".split()
)
JOINS = frozenset("cat concat concatenate stack hstack vstack".split())
SAME_CELLS = frozenset("contiguous clone to type_as double float long int detach alias".split())
# Functions that look at the dtype or the shape of their further arguments, not at their values.
TEMPLATES = frozenset("type_as expand_as view_as reshape_as to".split())
CONSTANTS = frozenset("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty".split())
TRANSPOSES = (torch.Tensor.T.__get__, torch.Tensor.mT.__get__)  # type: ignore[attr-defined]


class Provenance(NamedTuple):
    """Where the values of a tensor come from."""

    names: frozenset[str]  # every root the values depend on
    cells: Tensor | None  # like the values: cell numbers in the one root, None when they were computed
    operation: str | None = None  # the operation that computed them
    normalized: bool = False  # the cells were divided by their own sum over the last dim


class Symbol(torch.Tensor):
    """A tensor with a `Provenance`; behaves as the plain tensor everywhere else."""

    provenance: Provenance
    form: Form | None = None  # how computed values are sums of products of roots, where they are
    total_of: Tensor | None = None  # set on x.sum(-1, keepdim=True): x, so that x / x.sum() is seen as a normalisation

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
            name = getattr(func, "__name__", str(func))
            if _overwrites(name):
                _overwritten(args[0], args[1:], name)
                return out if out is None else args[0]
            if not any(isinstance(leaf, Tensor) for leaf in _leaves(out)):
                return out
            if name == "broadcast_tensors":
                operands = args[0] if len(args) == 1 and isinstance(args[0], list | tuple) else args
                return type(out)(_expanded(a, o) for a, o in zip(operands, out, strict=True))
            symbols = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Symbol)]
            if name in TEMPLATES:
                symbols = symbols[: isinstance(args[0], Symbol)]
            if not symbols or name in CONSTANTS:
                return plain(out)
            source = args[0] if args else None
            if len(symbols) == 1 and source is symbols[0] and source.provenance.cells is not None:
                known = source.provenance
                if name in SAME_CELLS:
                    return _mark(out, known)
                if name in SELECTIONS or func in TRANSPOSES:
                    return _mark_all(out, func(known.cells, *args[1:], **kwargs), known)
            if name in JOINS and (joined := _one_root(args)) is not None:
                cells = func([part.provenance.cells for part in args[0]], *args[1:], **kwargs)
                return _mark(out, joined._replace(cells=cells))
            form = _form(func, name, args, kwargs, out, symbols)
            if (normalised := _normalisation(name, args)) is not None:
                return _mark(out, normalised)
            names = frozenset().union(*(s.provenance.names for s in symbols))
            operation = None  # of values that were computed, then moved
            if isinstance(source, Symbol) and len(symbols) == 1 and name in SELECTIONS | SAME_CELLS:
                operation = source.provenance.operation
            result = _computed(out, names, operation or name)
            if isinstance(result, Symbol):
                result.form = form
            if name in ("sum", "logsumexp") and isinstance(result, Symbol) and _over_last_dim(args, kwargs):
                result.total_of = source
            return result


def form_of(value: Any) -> Form | None:
    """How a value is made of roots, where it is a sum of products of their cells."""
    if not isinstance(value, Symbol) or value.form is not None or value.provenance.cells is None:
        return value.form if isinstance(value, Symbol) else None
    known = value.provenance
    assert known.cells is not None
    return None if known.normalized else root(next(iter(known.names)), known.cells)


def symbol(value: Tensor, name: str) -> Symbol:
    """Mark a tensor as the root `name`, its cells numbered in reading order; autograd is kept."""
    index = torch.arange(value.numel(), device=value.device).reshape(value.shape)
    return _mark(value, Provenance(frozenset({name}), index))


def drawn(value: Tensor, name: str) -> Symbol:
    """Mark a tensor as a draw of a latent: values that depend on it are never the same twice."""
    out = _mark(value, Provenance(frozenset({name}), None, "a draw"))
    out.form = root(name, torch.arange(value.numel(), device=value.device).reshape(value.shape))
    return out


def computed_like(value: Tensor, source: Any, operation: str) -> Tensor:
    """Mark values as computed from whatever `source` comes from."""
    known = provenance(source)
    return value if known is None else _mark(value, Provenance(known.names, None, operation))


def provenance(value: Any) -> Provenance | None:
    """Where a value comes from; None for a plain tensor or number, which depends on no root."""
    return value.provenance if isinstance(value, Symbol) else None


def symbols_of(fn: Any) -> frozenset[str]:
    """Every param that a distribution's arguments depend on."""
    found: set[str] = set()
    seen, todo = set(), [fn]
    while todo:
        owner = todo.pop()
        seen.add(id(owner))  # a transform and its inverse hold each other
        for value in _leaves(dict(vars(owner))):
            if isinstance(value, Symbol):
                found |= value.provenance.names
            elif isinstance(value, torch.distributions.Distribution | torch.distributions.Transform):
                todo += [value] if id(value) not in seen else []
    return frozenset(found)


def plain(value: Tensor) -> Tensor:
    """The same values as an ordinary tensor."""
    return value.as_subclass(torch.Tensor) if isinstance(value, Symbol) else value


def _mark(value: Tensor, known: Provenance) -> Symbol:
    if isinstance(value, Symbol):  # an operation that returned its own input: never relabel the caller's tensor
        value = value.as_subclass(torch.Tensor)
    out = value.as_subclass(Symbol)
    out.provenance = known
    return out


def _mark_all(out: Any, index: Any, known: Provenance) -> Any:
    if isinstance(out, Tensor):
        return _mark(out, known._replace(cells=index))
    return type(out)(_mark_all(o, i, known) for o, i in zip(out, index, strict=True))


def _expanded(source: Any, out: Tensor) -> Tensor:
    if not isinstance(source, Symbol):
        return out
    known = source.provenance
    result = _mark(out, known if known.cells is None else known._replace(cells=known.cells.expand(out.shape)))
    result.form = None if source.form is None else source.form.map(lambda tensor: tensor.expand(out.shape))
    return result


def _form(func: Any, name: str, args: tuple, kwargs: dict, out: Any, symbols: list[Symbol]) -> Form | None:
    """The form of the outcome of an operation."""
    if not isinstance(out, Tensor) or not args:
        return None
    source = form_of(args[0])
    if source is not None and len(symbols) == 1 and (name in SELECTIONS or name in SAME_CELLS or func in TRANSPOSES):
        if name in ("to", "type_as", "double", "float", "long", "int"):
            return source
        return source.map(lambda tensor: func(tensor, *args[1:], **kwargs))
    if name == "sum" and set(kwargs) == {"dim"}:
        args, kwargs = (args[0], kwargs["dim"]), {}
    return combined(name, args, form_of, out.shape) if not kwargs else None


def _computed(out: Any, names: frozenset[str], operation: str) -> Any:
    if isinstance(out, Tensor):
        return _mark(out, Provenance(names, None, operation))
    if isinstance(out, list | tuple):  # torch's own named tuples too
        return type(out)([_computed(o, names, operation) for o in out])
    return out


def _overwrites(name: str) -> bool:
    in_place = name.endswith("_") and not name.endswith("__") and name not in ("requires_grad_", "detach_")
    return in_place or name in ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__")


def _overwritten(target: Tensor, others: tuple, operation: str) -> None:
    """A tensor changed in place is no longer the cells it was, and depends on whatever was written into it."""
    sources = [leaf for leaf in _leaves((target, others)) if isinstance(leaf, Symbol)]
    if sources:
        target.__class__ = Symbol
        assert isinstance(target, Symbol)
        target.provenance = Provenance(frozenset().union(*(s.provenance.names for s in sources)), None, operation)
        target.total_of = target.form = None


def _one_root(args: tuple) -> Provenance | None:
    """Of tensors that are laid beside each other: where they come from, if all are cells of one root."""
    parts = args[0] if args and isinstance(args[0], list | tuple) else ()
    known = [part.provenance if isinstance(part, Symbol) else None for part in parts]
    alike = {None if one is None or one.cells is None or one.normalized else one.names for one in known}
    return known[0] if len(alike) == 1 and None not in alike else None


def _normalisation(name: str, args: tuple) -> Provenance | None:
    """Provenance of ``x / x.sum(-1, keepdim=True)`` and of ``x - x.logsumexp(-1, keepdim=True)``: x, normalised."""
    if name not in ("div", "true_divide", "__truediv__", "sub", "__sub__", "subtract") or len(args) != 2:
        return None
    whole, total = args
    if isinstance(total, Symbol) and isinstance(whole, Symbol) and total.total_of is whole:
        return whole.provenance._replace(normalized=True)
    return None


def _over_last_dim(args: tuple, kwargs: dict) -> bool:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    keepdim = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
    return keepdim and dim in (-1, (-1,), [-1])


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, list | tuple):
        for item in tree:
            yield from _leaves(item)
    elif isinstance(tree, dict):
        yield from _leaves(list(tree.values()))
    else:
        yield tree


def known_cells(value: Any) -> Tensor | None:
    """Which cells of the data an observed value holds, or None where it was computed from them."""
    known = provenance(value)
    return None if known is None else known.cells
