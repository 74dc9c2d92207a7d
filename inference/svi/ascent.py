"""The ascent of stochastic variational inference: steps up a bound, at learning rates that fall."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..base.errors import OptionError
from ..base.progress import Progress
from ..base.rng import random_state, set_random_state
from ..data.batches import Batches
from .checkpoints import Tree
from .plateau import WINDOW, Plateau, State
from .replay import Steps

log = logging.getLogger("latentzoo.svi")

FALL = 0.25  # the learning rate falls to this share of itself
SMOOTH = 0.02  # share of a step in the running mean of the gradient's length


class NotFinite(ArithmeticError):
    """The bound or its gradient is no number, or cannot be computed.

    Attributes
    ----------
    at : dict
        What is learned, where that is so.
    """

    def __init__(self, at: dict[str, Tensor]) -> None:
        super().__init__("the bound or its gradient is no number")
        self.at = at


@dataclass
class Ascent:
    """What is raised, and how, from one start.

    Attributes
    ----------
    leaves : dict
        What is learned; changed in place.
    steps : Steps
        A batch -> minus the bound, over `scale`; its gradients are left in the leaves.
    batch : callable
        Rows (None for all) and the number of the step -> what `steps` takes, and its tensors.
    noisy : bool
        Whether two estimates at one point differ.
    every : int
        Steps from one look at the plateau to the next.
    close : bool
        Whether what is learned is kept at every step, to go back to, or at every look alone.
    counted : callable
        What else a step changes, such as what networks count of the rows that pass (batch norm).
    """

    leaves: dict[str, Tensor]
    steps: Steps
    batch: Callable[[Tensor | None, int], tuple[Any, list[Tensor]]]
    batches: Batches
    optimizer: torch.optim.Optimizer
    plateau: Plateau
    state: State
    noisy: bool = True
    clip: float = 10.0
    scale: float = 1.0
    every: int = WINDOW
    close: bool = True
    counted: Callable[[], dict[str, Tensor]] = dict
    first_rate: float = field(init=False)
    sound: dict[str, Tensor] = field(default_factory=dict, init=False)  # where bound and gradient were numbers, lately

    def __post_init__(self) -> None:
        self.first_rate = self.state.rate

    @property
    def device(self) -> torch.device:
        return next((leaf.device for leaf in self.leaves.values()), torch.device("cpu"))

    def kept(self) -> dict[str, Tensor]:
        """Copies of all that a step changes."""
        return {name: value.detach().clone() for name, value in {**self.leaves, **self.counted()}.items()}

    def put(self, found: dict[str, Tensor]) -> None:
        """Values in the place of those that there are."""
        here = {**self.leaves, **self.counted()}
        with torch.no_grad():
            for name, value in found.items():
                here[name].copy_(value)

    def settle(self) -> None:
        """At the end: to the best point, where that is known."""
        self.put(self.state.best)

    def run(self, num_steps: int, bar: Progress, after: Callable[[], None]) -> None:
        """Step until the bound has come to rest, or `num_steps` are done. `after` is called between steps.

        Raises
        ------
        NotFinite
            There is no step from here; what is learned is back where there was one.
        """
        state = self.state
        while state.step < num_steps and not state.converged:
            self.step()
            bar.update(state.bounds[-1], rate=state.rate)
            if state.since % self.every == 0:
                self.look()
            after()

    def step(self) -> None:
        """One step of the optimizer, on the next batch; a gradient far longer than its like is shortened."""
        state = self.state
        batch, tensors = self.batch(self.batches.next(), state.step)
        try:
            loss = self.steps(batch, tensors)
        except torch.linalg.LinAlgError:
            raise self._back() from None
        gradients = [leaf.grad for leaf in self.leaves.values() if leaf.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        value, length = torch.stack([loss, norm]).tolist()  # a device is waited for once
        if not (math.isfinite(value) and math.isfinite(length)):
            raise self._back()
        bound = -value * self.scale
        if self.close or state.since % self.every == 0:
            self.sound = self.kept()
        if not self.noisy and bound > state.best_bound:
            state.best_bound, state.best = bound, self.sound
        if self.clip and state.step >= WINDOW and length > self.clip * state.length:
            torch._foreach_mul_(gradients, self.clip * state.length / length)
            length = self.clip * state.length
        self.optimizer.step()
        state.step += 1
        state.since += 1
        state.bounds.append(bound)
        state.length += max(SMOOTH, 1 / state.step) * (length - state.length)
        if self.noisy and self.close:
            (leaf,) = self.leaves.values()
            state.iterates.add(leaf.detach())

    def _back(self) -> NotFinite:
        at = self.kept()
        self.put(self.sound)
        return NotFinite(at)

    def look(self) -> None:
        """Is the ascent at rest at this learning rate? Then lower it, or end."""
        state, plateau = self.state, self.plateau
        rest = plateau.look(state)
        if rest is None:
            return
        log.info("step %d: at rest at learning rate %.3g, bound %.6g", state.step, state.rate, rest.level)
        self.put(rest.point)
        for held in self.optimizer.state.values() if rest.point else ():
            if "exp_avg" in held:
                held["exp_avg"].zero_()  # the momentum was that of another point
        least = state.rate <= plateau.lowest * self.first_rate
        done = least or rest.level - state.rested <= rest.room
        state.rested, state.waited = rest.level, 0
        state.converged = done and plateau.tol > 0
        if not done:
            self.lower(FALL * state.rate)

    def lower(self, rate: float) -> None:
        """Go on at another learning rate."""
        state = self.state
        state.rate, state.since, state.iterates = rate, 0, type(state.iterates)()
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def state_dict(self) -> Tree:
        """All that is needed to go on as if nothing had been: with the random state."""
        return {
            "state": self.state.state_dict(),
            "leaves": self.leaves,
            "counted": self.counted(),
            "optimizer": {name: dict(self.optimizer.state.get(leaf, {})) for name, leaf in self.leaves.items()},
            "batches": self.batches.state_dict(),
            "random": random_state(self.device),
        }

    def load_state_dict(self, tree: Tree) -> None:
        """Go on from there."""
        self.put({**tree["leaves"], **tree["counted"]})
        for name, leaf in self.leaves.items():
            own = {k: v.to(leaf.device) if isinstance(v, Tensor) else v for k, v in tree["optimizer"][name].items()}
            if own:
                self.optimizer.state[leaf] = own
        self.batches.load_state_dict(tree["batches"])
        found = State.from_state(tree["state"], self.device)
        self.lower(found.rate)
        self.state = found
        set_random_state(tree["random"], self.device)


def optimizer_of(
    leaves: dict[str, Tensor], rate: float, kind: Callable[..., Any] | None = None, **settings: Any
) -> torch.optim.Optimizer:
    """An optimizer of all leaves, fused Adam (Kingma and Ba 2015) with some settings unless another is asked for.

    Raises
    ------
    OptionError
        What was asked for makes no optimizer of torch's.
    """
    weights = list(leaves.values())
    made: Any = torch.optim.Adam(weights, lr=rate, fused=True, **settings) if kind is None else kind(weights, lr=rate)
    if not isinstance(made, torch.optim.Optimizer) or isinstance(made, torch.optim.LBFGS):
        raise OptionError(
            f"optimizer: met one that makes a {type(made).__name__}, expected a torch.optim class that steps without "
            f"looking again, such as torch.optim.AdamW"
        )
    return made
