"""What `cavi` was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..base.errors import OptionError
from ..base.options import check_counts, check_options, check_seed
from ..optimize.schedule import Schedule


@dataclass(frozen=True)
class CAVIOptions:
    """The options of `cavi` that say how, by their names there."""

    max_iters: int = 10_000
    tol: float = 1e-7
    restarts: int = 1
    seed: int = 0
    start: dict[str, Tensor] | None = None
    m_steps: int = 20
    batch_size: int | None = None
    schedule: Schedule | None = None
    accelerate: bool | None = None
    fallback: str | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        check_counts(max_iters=(self.max_iters, 0), restarts=(self.restarts, 1), m_steps=(self.m_steps, 1))
        check_options(tol=(self.tol, 0))
        if self.fallback not in (None, "svi"):
            raise OptionError(f'fallback: met {self.fallback!r}, expected "svi", or to be left out')
        if self.batch_size is not None:
            check_counts(batch_size=(self.batch_size, 1))
        object.__setattr__(self, "seed", check_seed(self.seed))

    def note(self, history: list[float], converged: bool, unit: str = "sweeps") -> str:
        """What is to be told of how a fit ended."""
        if self.tol <= 0 or converged:
            return ""
        return f"stopped after {len(history) - 1} {unit} before the tolerance was met: raise max_iters or tol"
