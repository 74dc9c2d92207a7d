"""Writing down what is done to tensors, below autograd, as a `torch.fx` graph that can be played again."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Found = Sequence[Tensor | None]  # a loss, and the gradients of it
Place = tuple[int, int, torch.Size, tuple[int, ...], torch.dtype]


class Varies(Exception):
    """What is done depends on what is met: no record of one run is true of others."""


class Recorder(TorchDispatchMode):
    """Writes down the operations on tensors while it is active.

    A tensor is known by its place in memory: a view that was met before is not made again. What comes from elsewhere,
    or from such alone, is a constant.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.held: dict[fx.Node, Tensor] = {}  # none may die: another would take its place
        self.nodes: dict[Place, fx.Node] = {}
        self.varying = {memory_of(tensor) for tensor in inputs}
        self.changed: set[int] = set()
        for number, tensor in enumerate(inputs):
            self._write(tensor, self.graph.placeholder(f"input_{number}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        met = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        varies = _draws(func) or any(memory_of(one) in self.varying for one in met)
        if varies and (torch.Tag.data_dependent_output in func.tags or _of_unknown_size(func, args)):
            raise Varies(f"it looks at a value ({func})")
        out = func(*args, **kwargs)
        made = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        written = _written(func, args, kwargs)
        self.changed.update(map(memory_of, written))
        if varies:
            self.varying.update(map(memory_of, [*made, *written]))
        if made and not written and all(_place(one) in self.nodes for one in made):
            return out  # a view that was met
        node = self.graph.call_function(func, tree_map(self._read, args), tree_map(self._read, kwargs))
        if isinstance(out, Tensor):
            self._write(out, node)
        else:
            for position, one in enumerate(out) if isinstance(out, tuple | list) else ():
                if isinstance(one, Tensor):
                    self._write(one, self.graph.call_function(operator.getitem, (node, position)))
        return out

    def graph_of(self, outputs: Found) -> fx.GraphModule:
        """Inputs -> outputs, by the operations that these need."""
        self.graph.output(tuple(None if value is None else self._read(value) for value in outputs))
        constants: dict[str, Tensor] = {}
        unsteady = self.varying | self.changed
        for node, tensor in self.held.items():
            if node.op == "get_attr" and memory_of(tensor) in unsteady:
                raise Varies("it changes a tensor that it has from elsewhere")
            if node.op != "placeholder" and memory_of(tensor) not in unsteady:
                name = f"constant_{len(constants)}"
                constants[name] = tensor.detach()
                with self.graph.inserting_before(node):
                    node.replace_all_uses_with(self.graph.get_attr(name))
        self.graph.eliminate_dead_code(_matters)
        return fx.GraphModule(constants, self.graph)

    def _write(self, tensor: Tensor, node: fx.Node) -> None:
        self.nodes[_place(tensor)] = node
        self.held[node] = tensor

    def _read(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        place = _place(value)
        if place not in self.nodes:
            self._write(value, self.graph.get_attr("elsewhere"))
        return self.nodes[place]


def memory_of(tensor: Tensor) -> int:
    if tensor.layout is not torch.strided:
        raise Varies("it has sparse tensors")
    return tensor.untyped_storage().data_ptr()


def _place(tensor: Tensor) -> Place:
    """Which numbers of the memory, in which order."""
    return memory_of(tensor), int(tensor.storage_offset()), tensor.shape, tensor.stride(), tensor.dtype


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that an operation changes in place."""
    declared = func._schema.arguments
    given = [*zip(declared, args, strict=False), *((one, kwargs.get(one.name)) for one in declared if one.kwarg_only)]
    changed = [value for one, value in given if one.alias_info is not None and one.alias_info.is_write]
    return [one for one in tree_leaves(changed) if isinstance(one, Tensor)]


def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _of_unknown_size(func: Any, args: Any) -> bool:
    """Whether the size of what an operation gives depends on values."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    if func is not torch.ops.aten.index.Tensor:
        return True
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _matters(node: fx.Node) -> bool:
    """Whether an operation stays though nothing takes its result: it changes a tensor, or the random state, or has none
    and is there to complain.
    """
    if node.op != "call_function" or node.target is operator.getitem:
        return node.op in ("placeholder", "output")
    func: Any = node.target
    return _draws(func) or func._schema.is_mutable or not func._schema.returns
