"""Stochastic variational inference of pairs without networks: discrete latents summed out, guides derived."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..base.errors import ModelError, OptionError
from ..base.options import row_weights
from ..base.progress import Progress
from ..base.unconstrained import base_constraint, values_of
from ..data.batches import batch_size_of
from ..data.devices import device_of
from ..data.schema import Dataset
from ..data.structures import num_rows
from ..em.separation import check_certain
from ..linear_gaussian.marginalize import check_handed_on
from ..optimize.label_switching import label_cells
from ..optimize.modes import Outcome, Reached, map_modes
from ..optimize.starts import first_starts
from ..pair import Pair
from ..program.against_pyro import Witness, quietly
from ..program.checks import check_rows, check_spread, check_values
from ..program.compiler import compile_program
from ..program.estep import one_thread
from ..program.objective import sums_by_site
from ..program.program import Program
from ..trace.handlers import Bind, engine_state, run
from ..trace.structure import read
from .ascent import WINDOW, NotFinite
from .checkpoints import ROWS, Checkpoints, fingerprint, identity, restore
from .guide import NormalGuide
from .nonfinite import blame
from .normal_guides import SHAPES, GuideShape
from .options import SVIOptions
from .run import Options, Run, begin, exact_of_rows
from .user_guide import OwnGuide, check_batches

FULL_BATCH = 5_000  # rows up to which every step sees all of them
BATCH = 1_000
PARTICLES, RATE = 2, 0.05  # of a step; of Adam
RACE = 200  # steps of each start before the best goes on
DRAWS = 100  # of the estimate of the bound that was reached
EVEN = 1024  # of small data, spread evenly
LARGE = 1_000_000  # numbers of a step from which torch's threads pay


def plain_svi(pair: Pair, dataset: Dataset, asked: SVIOptions) -> Reached:
    """Climb by gradient; the driver has taken the data in, to where the steps are taken, and documents the options."""
    shape, home = _shape_of(asked.guide, pair), device_of(dataset.values)
    with engine_state(asked.seed, home):
        share = row_weights(asked.weights, num_rows(dataset.values), home)
        runs, options = _runs(pair, dataset, share, shape, asked)
        best, ends, stopped = _climb(runs, dataset, options, asked)
        reached = _reached(dataset, best, ends, options, share)
        if not isinstance(stopped, NotFinite):
            reached = replace(reached, unchecked=hold("end", pair, best))
        if isinstance(stopped, NotFinite):
            where = blame(best.objective, best.parts(stopped.at), None)
            failure = (
                f"{where} after {best.state.step} steps: lower learning_rate (here {options.learning_rate:g}), or "
                f"look for a param that runs off (a prior or a bounded constraint holds it)"
            )
            return replace(reached, failure=failure)
    if stopped is not None:
        return replace(reached, note=f"interrupted after {best.state.step} steps; the fit is what had been reached")
    if asked.tol > 0 and not reached.best.converged:
        note = f"the bound had not come to rest after {asked.num_steps} steps: raise num_steps, or tol"
        return replace(reached, note=note)
    return reached


def _runs(
    pair: Pair, dataset: Dataset, share: Tensor | None, shape: GuideShape | None, asked: SVIOptions
) -> tuple[list[Run], Options]:
    """A run from each start, after every check."""
    structure = read(pair.model, dataset.values)
    check_handed_on(pair.model, dataset.values, structure, "svi")
    batch = batch_size_of(asked.batch_size, structure.num_rows, FULL_BATCH, BATCH)
    check_values(structure, dataset.schema)
    exact = exact_of_rows(structure, shape, pair.guide, dataset.values) if asked.alpha == 1.0 else set()
    given = [name for name in structure.continuous if name not in exact]
    program = compile_program(pair.model, dataset.values, structure, given=given)
    learned = {name: base_constraint(param.constraint) for name, param in structure.params.items() if not param.prior}
    check_rows(structure, label_cells(program), structure.num_rows)
    check_spread(program, set(learned), dataset.schema)
    check_certain(program, [n for n, one in learned.items() if one is constraints.real], dataset.schema)
    random = torch.Generator().manual_seed(asked.seed)
    starts = first_starts(pair, dataset.values, program, asked.restarts, random, asked.start)
    particles, rate = asked.num_particles or PARTICLES, asked.learning_rate or RATE
    options = Options(shape, particles, asked.alpha, batch, rate, asked.tol, asked.clip, asked.seed)
    _validate(program, {name: value[0] for name, value in starts.items()})
    lead = max((len(value) for value in starts.values()), default=1)
    runs = [begin(pair, program, {n: v[r] for n, v in starts.items()}, options, share) for r in range(lead)]
    sampler = runs[0].objective.sampler
    hold("start", pair, runs[0])
    if batch and isinstance(sampler, OwnGuide):
        check_batches(sampler, runs[0].parts(), dataset.values, batch)
    return runs, options


def _climb(
    runs: list[Run], dataset: Dataset, options: Options, asked: SVIOptions
) -> tuple[Run, list[float], BaseException | None]:
    """The run that went on, where all stood after the race, and what stopped it, if anything did."""
    shape, lead, program = options.shape, len(runs), runs[0].program
    settings: dict[str, Any] = {"guide": shape.name if shape else "own", "restarts": lead}
    settings |= {name: value for name, value in options._asdict().items() if name != "shape"}
    kept = identity(runs[0], dataset, settings)
    saver = Checkpoints(asked.checkpoint, asked.checkpoint_steps, asked.checkpoint_seconds, kept)
    bar = Progress(asked.num_steps, "svi", asked.progress)
    best, stopped = runs[0], None
    ends: list[float] = []
    try:
        with one_thread(when=(options.batch_size or program.num_rows) * program.size // program.num_rows < LARGE):
            found = saver.read() if asked.resume else None
            if found is None:
                race = min(RACE, asked.num_steps) if lead > 1 else 0
                ends = _race(runs, race, bar)
                number = max(range(lead), key=lambda r: ends[r]) if race else 0
            else:
                number, ends = found[1]["place"]["number"], found[1]["place"]["ends"]
                restore(runs[number], *found)
            best, place = runs[number], {"number": number, "ends": ends}
            saver.last_step = best.state.step
            best.ascent.run(best.state, asked.num_steps, bar, lambda _: saver.maybe(best, place))
            saver.write(best, place)
    except (KeyboardInterrupt, NotFinite) as what:
        stopped = what
    finally:
        bar.close()
    return best, ends, stopped


def _reached(dataset: Dataset, run: Run, ends: list[float], options: Options, share: Tensor | None) -> Reached:
    """Plain values of what a run has reached."""
    state = run.state
    params, parts = run.params(), run.parts()
    history = [*state.bounds, _level(run)]
    outcome = Outcome(params, history, state.converged, False, run.start)
    modes = map_modes([outcome], label_cells(run.program), 0)
    if len(ends) > 1:  # where the others stood when the race was over
        modes = replace(modes, bounds=tuple(ends))
    guided = {name: value for name, value in parts.items() if not name.startswith("param/")}
    shape, sampler = options.shape, run.objective.sampler
    if shape is not None and run.program.structure.continuous:
        guided[ROWS] = fingerprint(dataset)
    if isinstance(sampler, OwnGuide):  # its own starting values may be drawn at random: keep what it reached
        guided = {f"value/{name}": value for name, value in values_of(sampler.params, parts, "guide/").items()}
    name = "" if shape is not None and not (guided and shape.noisy) else shape.name if shape else "own"
    constraints = {name: param.constraint for name, param in run.program.structure.params.items()}
    total = float(run.program.num_rows if share is None else share.sum())
    parts = guided if name else {}
    return Reached(outcome, modes, constraints, total, run.program, share, guide=name, guide_parts=parts)


def hold(when: str, pair: Pair, run: Run) -> str:
    """The log joint density at a draw of the guide, and of a guide of the user's the log density of the draw, against
    what Pyro gives for them; why that could not be, or nothing.
    """
    objective, program, free = run.objective, run.program, run.parts()
    structure = program.structure
    with quietly():
        drawn = objective.sampler.draw(free, program, None, 1)
    latents = {name: value[0] for name, value in drawn.values.items()}
    nodes = structure.trace.nodes
    along = {n: structure.data_dim - nodes[n]["fn"].event_dim for n in structure.continuous}
    sites = partial(sums_by_site, program)
    model = Witness("svi", pair.model, program.data, objective.log_joint, program.num_rows, sites, along=along)
    why = model.compare(when, {**objective.values(free), **latents})
    if isinstance(objective.sampler, OwnGuide) and not why:

        def log_q(rows: Tensor | None, values: Any) -> float:
            of_rows = drawn.log_q_rows[0]
            return float(drawn.log_q[0] + (of_rows if rows is None or len(of_rows) == 1 else of_rows[rows]).sum())

        guide = Witness("svi", pair.guide, program.data, log_q, program.num_rows, along=along)
        guide.compare(when, {**objective.sampler.values(free), **latents})
    return why


def _level(run: Run) -> float:
    """The bound where a run stands: on all rows, and of many draws, where they are few enough for that."""
    objective, state = run.objective, run.state
    if run.ascent.noisy and run.program.num_rows > FULL_BATCH:
        recent = state.bounds[-WINDOW:]
        return sum(recent) / len(recent) if recent else float("nan")
    with torch.no_grad():
        if objective.noisy and isinstance(objective.sampler, NormalGuide) and run.program.size * EVEN <= LARGE:
            return float(replace(objective, particles=EVEN)(run.parts()))
        found = [float(objective(run.parts())) for _ in range(DRAWS if objective.noisy else 1)]
    return sum(found) / len(found)


def _race(runs: list[Run], steps: int, bar: Progress) -> list[float]:
    """A few steps from every start; where each then stood."""
    ends = []
    for one in runs if steps else []:
        try:
            one.ascent.run(one.state, steps, bar, lambda _: None)
        except NotFinite:
            ends.append(float("-inf"))
            continue
        recent = one.state.bounds[-max(1, steps // 4) :]
        ends.append(sum(recent) / len(recent))
    return ends


def _shape_of(guide: Any, pair: Pair) -> GuideShape | None:
    if callable(guide) or (guide is None and pair.guide is not None):
        return None
    name = "mean_field" if guide is None else guide
    if name not in SHAPES:
        raise OptionError(f"guide: met {guide!r}, expected one of {', '.join(SHAPES)}, or a function of the data")
    return SHAPES[name]


def _validate(program: Program, start: dict[str, Tensor]) -> None:
    """Run the model once with Pyro's validation on: later steps go without."""
    bind = Bind(start)
    with pyro.validation_enabled(True), torch.no_grad():
        try:
            run(program.model, program.data, bind, program.layout.nesting)
        except ValueError as error:
            raise ModelError(f"svi: the model's own check failed at the start: {str(error).splitlines()[0]}") from error
