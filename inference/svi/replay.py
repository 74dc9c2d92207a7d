"""Steps that are recorded once and replayed: the operations on tensors, forward and backward, without the Python that
asked for them.

The first steps run the pair. Then a run is recorded below autograd, as a `torch.fx` graph, and from there the graph is
replayed: what a run would give, to the bit, in the time of a loop written by hand. Now and then a run stands beside the
replay, so that a pair which does something else as it goes (a counter, Python's own random numbers) is found out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..base.errors import OptionError, warn
from ..base.rng import forked
from ..nn.networks import is_watched
from .record import Found, Recorder, Varies, memory_of

BEGIN = 20  # runs, the last of which is recorded
APART = 1_000  # steps, at most, between two checks
CLOSE, ROUNDING = 1e-4, 1e-6  # of a replay to a run, relative to its own length, to that of the longest

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
