"""Stochastic variational inference of pairs without networks: discrete latents summed out, guides derived."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
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
from ..data.devices import device_of
from ..data.schema import Dataset
from ..data.structures import num_rows
from ..em.separation import check_certain
from ..linear_gaussian.marginalize import check_handed_on
from ..optimize.modes import Outcome, Reached, label_cells, map_modes
from ..optimize.starts import first_starts
from ..pair import Pair
from ..program.against_pyro import Unchecked, Witness, quietly, without_gradient
from ..program.checks import check_rows, check_spread, check_values
from ..program.compiler import compile_program
from ..program.estep import one_thread
from ..program.objective import sums_by_site
from ..program.program import Program
from ..trace.handlers import Bind, engine_state, run
from ..trace.structure import read
from .ascent import NotFinite
from .checkpoints import ROWS, Checkpoints, fingerprint
from .normal_guides import SHAPES, GuideShape
from .options import SVIOptions
from .run import PARTICLES, RATE, Run, begin, exact_of_rows
from .training import Level, affordable, blame, level_of, told, trained
from .user_guide import OwnGuide, check_batches

FULL_BATCH = 5_000  # rows up to which every step sees all of them
BATCH = 1_000
SMOOTH = 5_000  # rows up to which latents without a gradient are looked for
LARGE = 1_000_000  # numbers of a step from which torch's threads pay


def plain_svi(pair: Pair, dataset: Dataset, asked: SVIOptions, measured: bool = True) -> Reached:
    """Climb by gradient; the driver has taken the data in, to where the steps are taken, and documents the options.

    Where the bound that was reached is not to be measured, it is that of the last step.
    """
    shape, home = _shape_of(asked.guide, pair), device_of(dataset.values)
    with engine_state(asked.seed, home):
        share = row_weights(asked.weights, num_rows(dataset.values), home)
        runs, options = _runs(pair, dataset, share, shape, asked)

        @contextmanager
        def start(number: int, racing: bool) -> Iterator[Run]:
            torch.manual_seed(options.seed)
            yield runs[number]

        program, name = runs[0].program, shape.name if shape else "own"
        saver = Checkpoints(options, name, runs[0].vector.origin, dataset)
        bar = Progress(options.num_steps, "svi", options.progress)
        size = (options.batch_size or program.num_rows) * program.size // program.num_rows
        climb = trained(start, len(runs), saver, options.num_steps, bar)
        with one_thread(when=size < LARGE), climb as (best, ends, stopped):
            level = _level(best) if measured else Level(best.ascent.state.bounds[-1], math.nan)
            reached = _reached(dataset, best, level, ends, shape, share)
            if isinstance(stopped, NotFinite):
                cause = blame(best.objective, best.parts(stopped.at["x"]), None)
            else:
                cause, reached = "", replace(reached, unchecked=hold("end", pair, best))
        way_out = "look for a param that runs off (a prior or a bounded constraint holds it)"
    return told(reached, best.ascent, stopped, options, cause, way_out)


def _runs(
    pair: Pair, dataset: Dataset, share: Tensor | None, shape: GuideShape | None, asked: SVIOptions
) -> tuple[list[Run], SVIOptions]:
    """A run from each start, after every check, and the options with nothing left open."""
    structure = read(pair.model, dataset.values)
    check_handed_on(pair.model, dataset.values, structure, "svi")
    options = asked.resolved(structure.num_rows, PARTICLES, RATE, FULL_BATCH, BATCH)
    check_values(structure, dataset.schema)
    exact = exact_of_rows(structure, shape, pair.guide, dataset.values) if options.alpha == 1.0 else set()
    given = [name for name in structure.continuous if name not in exact]
    program = compile_program(pair.model, dataset.values, structure, given=given)
    learned = {name: base_constraint(param.constraint) for name, param in structure.params.items() if not param.prior}
    check_rows(structure, label_cells(program), structure.num_rows)
    check_spread(program, set(learned), dataset.schema)
    check_certain(program, [n for n, one in learned.items() if one is constraints.real], dataset.schema)
    random = torch.Generator().manual_seed(options.seed)
    starts = first_starts(pair, dataset.values, program, options.restarts, random, options.start)
    _validate(program, {name: value[0] for name, value in starts.items()})
    lead = max((len(value) for value in starts.values()), default=1)
    each = ({name: value[r] for name, value in starts.items()} for r in range(lead))
    runs = [begin(pair, program, start, shape, options, share) for start in each]
    sampler = runs[0].objective.sampler
    hold("start", pair, runs[0])
    if options.batch_size and isinstance(sampler, OwnGuide):
        check_batches(sampler, runs[0].parts(), dataset.values, options.batch_size)
    return runs, options


def _reached(
    dataset: Dataset, run: Run, level: Level, ends: list[float], shape: GuideShape | None, share: Tensor | None
) -> Reached:
    """Plain values of what a run has reached."""
    state = run.ascent.state
    params, parts = run.params(), run.parts()
    outcome = Outcome(params, [*state.bounds, level.bound], state.converged, False, run.start, level.error)
    modes = map_modes([outcome], label_cells(run.program), 0)
    if len(ends) > 1:  # where the others stood when the race was over
        modes = replace(modes, bounds=tuple(ends))
    guided = {name: value for name, value in parts.items() if not name.startswith("param/")}
    sampler = run.objective.sampler
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
    values = {**objective.values(free), **latents}
    why = model.compare(when, values)
    if when == "start" and not why and program.num_rows <= SMOOTH:
        check_smooth(pair, program, values)
    if isinstance(objective.sampler, OwnGuide) and not why:

        def log_q(rows: Tensor | None, values: Any) -> float:
            of_rows = drawn.log_q_rows[0]
            return float(drawn.log_q[0] + (of_rows if rows is None or len(of_rows) == 1 else of_rows[rows]).sum())

        guide = Witness("svi", pair.guide, program.data, log_q, program.num_rows, along=along)
        guide.compare(when, {**objective.sampler.values(free), **latents})
    return why


def check_smooth(pair: Pair, program: Program, values: dict[str, Tensor]) -> None:
    """Every shared latent that matters has a gradient."""
    shared = [name for name, param in program.structure.params.items() if param.prior is not None and name in values]
    with quietly():
        try:
            name = without_gradient(pair.model, program.data, values, shared)
        except (Unchecked, ValueError, RuntimeError, IndexError):  # seen by nobody
            return
    if name is not None:
        raise ModelError(
            f"svi: what is observed depends on latent '{name}' by steps alone, as in torch.where(t < {name}, ...), so "
            f"no gradient leads to its value: write a smooth step, torch.sigmoid((t - {name}) / width), or give it "
            f"a few values on a grid and compare the fits"
        )


def _level(run: Run) -> Level:
    """Where its bound stands: a share of the steps' draws may be spent on that."""
    most = affordable(run.ascent, run.objective.particles)
    return level_of(run.objective, run.parts(), FULL_BATCH, most)


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
