"""Steps that are recorded once and replayed: the operations on tensors, forward and backward, without the Python that
asked for them.

The first steps run the pair. Then a run is recorded below autograd, as a `torch.fx` graph, and from there the graph is
replayed: what a run would give, to the bit, in the time of a loop written by hand. Now and then a run stands beside the
replay, so that a pair which does something else as it goes (a counter, Python's own random numbers) is found out.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..base.errors import OptionError, warn
from ..base.rng import forked
from ..nn.networks import is_watched

BEGIN = 20  # runs, the last of which is recorded
APART = 1_000  # steps, at most, between two checks
CLOSE, ROUNDING = 1e-4, 1e-6  # of a replay to a run, relative to its own length, to that of the longest

Found = Sequence[Tensor | None]  # a loss, and the gradients of it
Place = tuple[int, int, torch.Size, tuple[int, ...], torch.dtype]
Replay = Callable[..., Found]  # leaves, tensors of a batch -> what is found


class Steps:
    """Losses of batches; their gradients are left in the leaves, as `backward` does.

    Parameters
    ----------
    loss : callable
        A batch -> a number.
    leaves : sequence of tensors
        What is learned; changed in place from step to step.
    networks : sequence of modules
        Those that the loss runs. Where one counts what passes (as batch norm does), or has hooks, nothing is recorded.
    compile : bool, optional
        Whether `torch.compile` is to translate the record. False: nothing is recorded.
    """

    def __init__(
        self,
        loss: Callable[[Any], Tensor],
        leaves: Sequence[Tensor],
        networks: Sequence[nn.Module] = (),
        compile: bool | None = None,
    ) -> None:
        self.loss, self.leaves, self.compile = loss, list(leaves), bool(compile)
        self.records = compile is not False and all(leaf.device.type in ("cpu", "cuda") for leaf in leaves)
        self.graph: fx.GraphModule | None = None
        self.replay: Replay | None = None  # the graph, or what `torch.compile` made of it
        self.shapes: list[torch.Size] = []
        self.step, self.next_check = 0, BEGIN
        self.networks = list(networks)
        self.buffers = {buffer: buffer._version for network in networks for buffer in network.buffers()}

    def __call__(self, batch: Any, tensors: Sequence[Tensor]) -> Tensor:
        """The loss of a batch, whose tensors are those."""
        self.step += 1
        if not self.records or self.step < BEGIN:
            found = self._run(batch)
        elif self.replay is None:
            found = self._run(batch)
            self._record(batch, tensors)
        elif [tensor.shape for tensor in tensors] != self.shapes:
            found = self._run(batch)
        elif self.step >= self.next_check:
            found = self._checked(batch, tensors)
        else:
            found = played(self.replay, [*self.leaves, *tensors])
        loss, *gradients = found
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            leaf.grad = gradient
        assert loss is not None
        return loss

    def _run(self, batch: Any) -> Found:
        with torch.enable_grad():  # a caller may have turned it off
            loss = self.loss(batch)
            gradients = torch.autograd.grad(loss, self.leaves, allow_unused=True)
        return [loss.detach(), *as_backward_leaves(gradients, self.leaves)]

    def _record(self, batch: Any, tensors: Sequence[Tensor]) -> None:
        """Record a run beside the one that counts."""
        watched = any(map(is_watched, self.networks))
        if watched or any(buffer._version != version for buffer, version in self.buffers.items()):
            self._forgo("its networks have hooks, or count what passes (as batch norm does)")
            return
        inputs = [*self.leaves, *tensors]
        try:
            recorder = Recorder(inputs)
            with forked(), recorder:
                found = self._run(batch)
            graph = recorder.graph_of(found)
            with forked():
                same = agree(played(graph, inputs), found)
        except Varies as reason:
            self._forgo(str(reason))
        except Exception as error:  # the run before was sound: it is the record that cannot be had
            self._forgo(f"its record cannot be replayed ({error})")
        else:
            if not same:
                self._forgo("its record does not do the same")
                return
            self.graph, self.replay = graph, graph
            self.shapes, self.next_check = [tensor.shape for tensor in tensors], BEGIN + 1

    def _checked(self, batch: Any, tensors: Sequence[Tensor]) -> Found:
        """A run, with a replay beside it."""
        assert self.replay is not None
        assert self.graph is not None
        inputs = [*self.leaves, *tensors]
        with forked():
            replayed = played(self.replay, inputs)
        found = self._run(batch)
        if not agree(replayed, found):
            if self.step <= BEGIN + 2:
                self._forgo("it does not do the same at each step")
            else:  # steps were taken: they are not lost
                self.records = False
                warn(
                    f"svi: at step {self.step} the pair does not do what it did at step {BEGIN}, which was replayed "
                    f"until now: give compile=False where a model or guide changes as it goes"
                )
        elif self.compile and self.replay is self.graph:
            self.replay = translated(self.graph, inputs)
        self.next_check = self.step + min(self.step - BEGIN, APART)
        return found

    def _forgo(self, reason: str) -> None:
        """Go on without a record."""
        if self.compile:
            raise OptionError(f"compile: met True, and the pair cannot be recorded, for {reason}; leave compile out")
        self.records = False


def played(replay: Replay, inputs: Sequence[Tensor]) -> Found:
    """What a record gives: without autograd, and past torch's modes, such as that of a default device, which would look
    at every operation.
    """
    with torch.no_grad(), torch._C.DisableTorchFunction():
        return replay(*inputs)


def translated(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Replay:
    """A graph as `torch.compile` makes it, with the draws of the graph itself.

    Raises
    ------
    OptionError
        It cannot: there is no C++ compiler, say.
    """
    try:
        with warnings.catch_warnings(), forked():
            warnings.simplefilter("ignore")  # torch's, of its own parts
            compiled: Replay = torch.compile(graph, dynamic=False, options={"fallback_random": True})
            played(compiled, inputs)
    except Exception as error:
        raise OptionError(f"compile: met True, and torch.compile says: {error}; leave compile out") from error
    return compiled


def as_backward_leaves(gradients: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients as `backward` leaves them in leaves: each in memory of its own, and laid there as its leaf is."""
    found: list[Tensor | None] = []
    taken: set[int] = set()
    for gradient, leaf in zip(gradients, leaves, strict=True):
        if gradient is not None and gradient.layout is torch.strided:
            if gradient.stride() != leaf.stride() or memory_of(gradient) in taken:
                gradient = torch.empty_like(leaf).copy_(gradient).detach()
            taken.add(memory_of(gradient))
        found.append(gradient)
    return found


def agree(one: Found, other: Found) -> bool:
    """Whether loss and gradients are the same but for rounding."""
    if [value is None for value in one] != [value is None for value in other]:
        return False
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if not all(bool(b.isfinite().all()) for _, b in pairs):
        return True  # the step will not be taken
    lengths = [float(b.norm()) for _, b in pairs]
    rounding = ROUNDING * max(lengths)  # of a gradient that is 0 but for that
    return all(float((a - b).norm()) <= CLOSE * own + rounding for (a, b), own in zip(pairs, lengths, strict=True))


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
