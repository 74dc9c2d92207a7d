"""What `svi` was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.errors import OptionError
from ..base.options import check_counts, check_options, check_seed
from .annealing import FreeBits, Warmup

OF_NETWORKS = ("epochs", "optimizer", "objective", "warmup", "free_bits", "validation", "compile")


@dataclass(frozen=True)
class SVIOptions:
    """The options of `svi` that say how, by their names there."""

    guide: Any = None
    num_steps: int = 20_000
    batch_size: int | None = None
    num_particles: int | None = None
    alpha: float = 1.0
    learning_rate: float | None = None
    optimizer: Callable[..., Any] | None = None
    tol: float = 1e-7
    clip: float = 10.0
    restarts: int = 1
    seed: int = 0
    weights: Any = None
    start: dict[str, Tensor] | None = None
    checkpoint: str | Path | None = None
    checkpoint_steps: int = 1_000
    checkpoint_seconds: float = 60.0
    resume: bool = False
    epochs: int | None = None
    objective: str | None = None
    warmup: Warmup | int | None = None
    free_bits: FreeBits | float | None = None
    validation: float = 0.0
    patience: int = 10
    compile: bool | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        check_counts(num_steps=(self.num_steps, 0), restarts=(self.restarts, 1))
        check_counts(num_particles=(2 if self.num_particles is None else self.num_particles, 1))
        check_counts(checkpoint_steps=(self.checkpoint_steps, 1))
        check_options(tol=(self.tol, 0), clip=(self.clip, 0), alpha=(self.alpha, 0))
        check_options(checkpoint_seconds=(self.checkpoint_seconds, 0))
        if self.learning_rate is not None:
            check_options(learning_rate=(self.learning_rate, 0))
        if self.learning_rate == 0:
            raise OptionError(f"learning_rate: met {self.learning_rate!r}, expected a number above 0")
        if self.alpha != 1.0 and self.num_particles == 1:
            raise OptionError(f"alpha: met {self.alpha:g} with num_particles=1; other bounds than the ELBO need 2")
        if self.resume and self.checkpoint is None:
            raise OptionError("resume: met True without a folder to go on from; give checkpoint='run/' too")
        object.__setattr__(self, "seed", check_seed(self.seed))


def check_no_networks(options: SVIOptions) -> None:
    """Options of pairs with networks are errors where there is none."""
    for name in OF_NETWORKS:
        value = getattr(options, name)
        if value is not None and not (name == "validation" and value == 0):
            raise OptionError(f"{name}: met {value!r}, an option of pairs with networks, and the pair has none")
