"""What `cavi` is asked for, and the climb of a mean field of any kind from its starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..base.errors import OptionError
from ..base.options import check_counts, check_options, check_seed
from ..optimize.coordinate_ascent import Runner, Steps
from ..optimize.minibatches import BatchSteps, Schedule, stepwise
from ..optimize.modes import Cells, Outcome, Reached, map_modes, rank
from ..optimize.stopping import Settled, Stop
from ..program.program import Program
from ..program.sites import Params
from ..trace.handlers import Param


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

    def note(self, best: Outcome) -> str:
        """What is to be told of how a fit ended."""
        if self.tol <= 0 or best.converged:
            return ""
        unit = "sweeps" if self.batch_size is None else "passes"
        return f"stopped after {len(best.history) - 1} {unit} before the tolerance was met: raise max_iters or tol"


def climb(
    steps: Steps,
    states: Params,
    options: CAVIOptions,
    centred: Callable[[list[Outcome]], list[Outcome]],
    num_rows: int,
    hold: Callable[[Outcome, Params], str],
    declared: Mapping[str, Param],
    guide: str,
    parts: Callable[[Params], Params],
    *,
    cells: Cells | None = None,
    program: Program | None = None,
    share: Tensor | None = None,
) -> Reached:
    """Every start to its end, by sweeps over all rows or by minibatches.

    Parameters
    ----------
    states : dict
        Of every start, (R, ...).
    centred : callable
        Outcomes by states -> outcomes by the means of their factors, in the shapes that the model declares.
    hold : callable
        The best outcome and its state -> why they could not be held against Pyro's own account, or nothing.
    guide, parts :
        The name of such a mean field in a fit, and what of the best state tells its factors.
    """
    runner = Runner(steps, Stop(options.tol), options.max_iters, "cavi")
    if options.batch_size is not None:
        assert isinstance(steps, BatchSteps)
        passes = stepwise(steps, options.batch_size, num_rows, options.schedule, options.seed, "cavi")
        runner = Runner(passes, Settled(options.tol), options.max_iters, "cavi", settle=0)
    found, failed = runner.all(states, options.progress)
    outcomes = centred(found)
    best = rank(outcomes)[0]
    state = found[next(i for i, one in enumerate(outcomes) if one is best)].params
    return Reached(
        best,
        map_modes(outcomes, cells or {}, failed),
        {name: param.constraint for name, param in declared.items()},
        float(num_rows if share is None else share.sum()),
        program,
        share if program is not None else None,
        guide=guide,
        guide_parts=parts(state),
        note=options.note(best),
        unchecked=hold(best, state),
    )
