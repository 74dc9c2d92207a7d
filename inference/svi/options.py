"""What `svi` was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.errors import OptionError
from ..base.options import check_counts, check_options, check_seed
from ..data.batches import batch_size_of

OBJECTIVES = ("elbo", "iwae", "dreg")
OF_NETWORKS = ("epochs", "optimizer", "objective", "warmup", "free_bits", "validation", "compile")


@dataclass(frozen=True)
class Warmup:
    """The weight of the KL divergence rises in a line from `start` to 1 over the first `steps` steps (Bowman et al.
    2016), `cycles` times where that is asked for (Fu et al. 2019).

    With cycles the steps of one are followed by as many at 1.
    """

    steps: int
    start: float = 0.0
    cycles: int = 1

    def __post_init__(self) -> None:
        check_counts(steps=(self.steps, 1), cycles=(self.cycles, 1))
        check_options(start=(self.start, 0))
        if self.start > 1:
            raise OptionError(f"start: met {self.start!r}, expected a number from 0 to 1")

    def weight(self, step: int) -> float:
        """Of step 0, 1, ..."""
        if self.cycles > 1 and step < 2 * self.steps * self.cycles:
            step %= 2 * self.steps
        return min(1.0, self.start + (1 - self.start) * step / self.steps)

    @property
    def ends(self) -> int:
        """The step from which the weight stays 1."""
        return self.steps if self.cycles == 1 else 2 * self.steps * self.cycles - self.steps


@dataclass(frozen=True)
class FreeBits:
    """Each number of a latent may carry so many nats, on average over the rows, at no cost (Kingma et al. 2016)."""

    nats: float

    def __post_init__(self) -> None:
        check_options(nats=(self.nats, 0))


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
        check_counts(num_steps=(self.num_steps, 0), restarts=(self.restarts, 1), patience=(self.patience, 1))
        check_counts(num_particles=(2 if self.num_particles is None else self.num_particles, 1))
        check_counts(checkpoint_steps=(self.checkpoint_steps, 1), epochs=(1 if self.epochs is None else self.epochs, 1))
        check_options(tol=(self.tol, 0), clip=(self.clip, 0), alpha=(self.alpha, 0), validation=(self.validation, 0))
        check_options(checkpoint_seconds=(self.checkpoint_seconds, 0))
        if self.learning_rate is not None:
            check_options(learning_rate=(self.learning_rate, 0))
        if self.learning_rate == 0:
            raise OptionError(f"learning_rate: met {self.learning_rate!r}, expected a number above 0")
        if self.alpha != 1.0 and self.num_particles == 1:
            raise OptionError(f"alpha: met {self.alpha:g} with num_particles=1; other bounds than the ELBO need 2")
        if self.resume and self.checkpoint is None:
            raise OptionError("resume: met True without a folder to go on from; give checkpoint='run/' too")
        if self.validation >= 1:
            raise OptionError(f"validation: met {self.validation!r}, expected a share of the rows, from 0 to below 1")
        if self.objective is not None and self.objective not in OBJECTIVES:
            raise OptionError(f"objective: met {self.objective!r}, expected one of {', '.join(OBJECTIVES)}")
        if self.weighted and self.num_particles == 1:
            raise OptionError(f"num_particles: met 1 with objective={self.objective!r}, which needs at least 2")
        if self.weighted and (self.warmup is not None or self.free_bits):
            raise OptionError(
                f"warmup, free_bits: objective={self.objective!r} has no KL divergence of its own; use 'elbo'"
            )
        as_warmup = Warmup(self.warmup) if isinstance(self.warmup, int) else self.warmup
        as_bits = self.free_bits if isinstance(self.free_bits, FreeBits | None) else FreeBits(self.free_bits)
        for name, value in {"seed": check_seed(self.seed), "warmup": as_warmup, "free_bits": as_bits}.items():
            object.__setattr__(self, name, value)

    @property
    def weighted(self) -> bool:
        """Whether draws are weighed, by the importance-weighted bound or its doubly reparameterized gradient."""
        return self.objective in ("iwae", "dreg")

    @property
    def nats(self) -> float:
        """What each number of a latent may carry at no cost."""
        return self.free_bits.nats if isinstance(self.free_bits, FreeBits) else 0.0

    def resolved(self, num_rows: int, particles: int, learning_rate: float, full: int, batch: int) -> SVIOptions:
        """With these in place of what was left open; rows are seen all at once up to `full` of them."""
        return replace(
            self,
            num_particles=self.num_particles or particles,
            learning_rate=self.learning_rate or learning_rate,
            batch_size=batch_size_of(self.batch_size, num_rows, full, batch),
        )


def check_no_networks(options: SVIOptions) -> None:
    """Options of pairs with networks are errors where there is none."""
    for name in OF_NETWORKS:
        value = getattr(options, name)
        if value is not None and not (name == "validation" and value == 0):
            raise OptionError(f"{name}: met {value!r}, an option of pairs with networks, and the pair has none")
