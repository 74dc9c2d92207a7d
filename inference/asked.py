"""What `svi` was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .annealing import FreeBits, Warmup
from .checks import check_counts, check_options, check_seed
from .errors import OptionError

OF_NETWORKS = ("epochs", "optimizer", "objective", "warmup", "free_bits", "validation", "compile")


class Asked(NamedTuple):
    """The options of `svi` but where it computes, by their names there."""

    guide: Any
    num_steps: int
    batch_size: int | None
    num_particles: int | None
    alpha: float
    learning_rate: float | None
    optimizer: Callable[..., Any] | None
    tol: float
    clip: float
    restarts: int
    seed: int
    weights: Any
    start: dict[str, Tensor] | None
    checkpoint: str | Path | None
    checkpoint_steps: int
    checkpoint_seconds: float
    resume: bool
    epochs: int | None
    objective: str | None
    warmup: Warmup | int | None
    free_bits: FreeBits | float | None
    validation: float
    patience: int
    compile: bool | None
    progress: bool | None


def checked(asked: Asked) -> Asked:
    """Options that make sense whatever the pair is.

    Raises
    ------
    OptionError
        One does not.
    """
    check_counts(num_steps=(asked.num_steps, 0), restarts=(asked.restarts, 1))
    check_counts(num_particles=(2 if asked.num_particles is None else asked.num_particles, 1))
    check_counts(checkpoint_steps=(asked.checkpoint_steps, 1))
    check_options(tol=(asked.tol, 0), clip=(asked.clip, 0), alpha=(asked.alpha, 0))
    check_options(checkpoint_seconds=(asked.checkpoint_seconds, 0))
    seed, rate, alpha = check_seed(asked.seed), asked.learning_rate, asked.alpha
    if rate is not None:
        check_options(learning_rate=(rate, 0))
    if rate == 0:
        raise OptionError(f"learning_rate: met {rate!r}, expected a number above 0")
    if alpha != 1.0 and asked.num_particles == 1:
        raise OptionError(f"alpha: met {alpha:g} with num_particles=1; other bounds than the ELBO need 2")
    if asked.resume and asked.checkpoint is None:
        raise OptionError("resume: met True without a folder to go on from; give checkpoint='run/' too")
    return asked._replace(seed=seed)


def check_no_networks(asked: Asked) -> None:
    """Options of pairs with networks are errors where there is none."""
    for name in OF_NETWORKS:
        value = getattr(asked, name)
        if value is not None and not (name == "validation" and value == 0):
            raise OptionError(f"{name}: met {value!r}, an option of pairs with networks, and the pair has none")
