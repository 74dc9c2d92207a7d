"""Stochastic variational inference (Hoffman et al. 2013; Ranganath et al. 2014) for any pair, that stops by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor

from .amortized import asked_for
from .annealing import FreeBits, Warmup
from .ascent import WINDOW, NotFinite
from .begin import first_starts, in_memory, take_in
from .blame import blame
from .certain import check_certain
from .checkpoints import Checkpoints, identity, restore
from .checks import (
    check_counts,
    check_device,
    check_options,
    check_rows,
    check_seed,
    check_spread,
    check_values,
    row_weights,
)
from .compiler import compile_program
from .data import Dataset, num_rows
from .deep import Asked, deep_svi, has_networks
from .errors import FitError, ModelError, OptionError, warn
from .estep import one_thread
from .finish import finish
from .fit import Fit
from .free import base_constraint, values_of
from .guided import ROWS, fingerprint
from .guides import SHAPES, GuideShape
from .labels import label_cells
from .loop import Progress
from .modes import Outcome, map_modes
from .own_guide import OwnGuide, check_batches
from .pair import Pair
from .program import Program
from .structure import Bind, engine_state, read, run
from .svi_run import Options, Run, begin, exact_of_rows

logging.getLogger("latentzoo").addHandler(logging.NullHandler())

FULL_BATCH = 5_000  # rows up to which every step sees all of them
BATCH = 1_000
PARTICLES, RATE = 2, 0.05  # of a step; of Adam
RACE = 200  # steps of each start before the best goes on
DRAWS = 100  # of the estimate of the bound that was reached
LARGE = 1_000_000  # numbers of a step from which torch's threads pay


def svi(
    pair: Pair,
    data: Any,
    *,
    guide: str | Callable[[Any], Any] | None = None,
    num_steps: int = 20_000,
    batch_size: int | None = None,
    num_particles: int | None = None,
    alpha: float = 1.0,
    learning_rate: float | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    tol: float = 1e-7,
    clip: float = 10.0,
    restarts: int = 1,
    seed: int = 0,
    weights: Any = None,
    start: dict[str, Tensor] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_steps: int = 1_000,
    checkpoint_seconds: float = 60.0,
    resume: bool = False,
    epochs: int | None = None,
    objective: str | None = None,
    warmup: Warmup | int | None = None,
    free_bits: FreeBits | float | None = None,
    validation: float = 0.0,
    patience: int = 10,
    device: str | torch.device | None = None,
    compile: bool | None = None,
    progress: bool | None = None,
) -> Fit:
    """Raise the evidence lower bound by stochastic gradient steps, until it has come to rest.

    Discrete latents of a row are summed out exactly. A pair whose latents are all discrete has a bound without noise,
    log p(x) itself; EM is the faster way there.

    Parameters
    ----------
    pair : Pair
    data : anything `data.adapt` takes
        NaN cells are missing, and integrated out exactly. With networks memory maps (.npy and IDX files too), sparse
        matrices and torch's `Dataset` and `DataLoader` are read a batch at a time, and never held as a whole: a few
        times before the first step, to check and to measure them; starting values are found on rows spread evenly. A
        loader's batch size is the default of `batch_size`, its rows are drawn anew for each pass, and read in this
        process, without its workers. Without networks memory maps and sparse matrices are loaded whole.
    guide : str, Amortized or callable, optional
        "mean_field", "full_rank", "low_rank" (normal distributions over the unconstrained continuous latents),
        "delta" (MAP); "amortized", "amortized_full", "amortized_mixture", "amortized_flow" (an encoder computes the
        factors of each row, `Amortized` says of what layers); or a guide function of the data. Default: the pair's
        own, otherwise "mean_field", or "amortized" where the model has networks.
    num_steps : int
        At most.
    batch_size : int, optional
        Rows of a step, 1 to N, drawn without replacement until all have been seen. Default: all rows up to 5,000,
        otherwise 1,000; with networks all rows up to 256, otherwise 128.
    num_particles : int, optional
        Draws from the guide at each step, 2 by default; those of a derived guide come in antithetic pairs. With
        networks 1, and 5 where the objective is not the ELBO.
    alpha : float
        Order of the Renyi bound (Li and Turner 2016): 1 is the ELBO; 0 is the importance-weighted bound (Burda et al.
        2016), which tightens as `num_particles` grows.
    learning_rate : float, optional
        Of Adam, 0.05 by default, in units of each number's own curvature at the start; with networks 0.001, in those
        of the weights. It falls by itself.
    optimizer : callable, optional
        With networks: a class of ``torch.optim``, such as ``torch.optim.AdamW``, or a function that makes one of
        ``(weights, lr=learning_rate)``. Default: fused Adam.
    tol : float
        Relative: a fit has converged when a lower learning rate gains less. 0 runs exactly `num_steps`.
    clip : float
        A gradient longer than this many times its running mean is shortened to that; 0 leaves all as they are.
    restarts : int
        Starts that run a short race; the best goes on.
    seed : int
    weights : (N,) numbers, optional
        Weight 2 is the row twice.
    start : dict, optional
        Values of some or all params (and shared latents) for the first start.
    checkpoint : path, optional
        A folder where the state is kept, written every `checkpoint_steps` steps or `checkpoint_seconds` seconds,
        whichever comes first, and at the end.
    resume : bool
        Go on from `checkpoint` where it holds one: the result is that of a run that was never interrupted, to the bit.
    epochs, objective, warmup, free_bits, validation, patience :
        With networks: passes over the data at most, in place of `num_steps`; "elbo", "iwae" (the importance-weighted
        bound) or "dreg" (the same, by its doubly reparameterized gradient, Tucker et al. 2019); `Warmup` of the KL
        divergence, or its steps; nats that each number of a latent has for nothing (`FreeBits`); the share of the rows
        held out, on whose bound the best weights are kept; and how many looks at the bound without a gain lower the
        learning rate.
    device : str or torch.device, optional
        "cpu", "cuda", "mps": where the steps are taken. Default: where the data are. With networks the data are moved
        there once where they take less than half of its free memory, otherwise each batch as it is taken.
    compile : bool, optional
        With networks: a step is recorded, and what it does replayed without the Python of the pair, to the bit as a
        run; a run now and then shows whether the pair still does the same. True: `torch.compile` translates the record,
        which takes half a minute or so, and a C++ compiler on the CPU. False: the pair runs at every step.
    progress : bool, optional
        Show a bar. Default: on a terminal.

    Returns
    -------
    Fit
        Of averaged iterates where the bound is noisy. Ctrl-C ends the fit early, with what was reached.

    Raises
    ------
    ModelError, DataError, OptionError
        Plain words on what cannot be fitted, and the way out.
    FitError
        The bound or its gradient is no number; ``error.fit`` is the last good state.

    Warns
    -----
    ConvergenceWarning
        `num_steps` came first, or Ctrl-C did.
    """
    check_counts(num_steps=(num_steps, 0), restarts=(restarts, 1))
    check_counts(num_particles=(2 if num_particles is None else num_particles, 1))
    check_counts(checkpoint_steps=(checkpoint_steps, 1))
    check_options(tol=(tol, 0), clip=(clip, 0), alpha=(alpha, 0))
    check_options(checkpoint_seconds=(checkpoint_seconds, 0))
    seed = check_seed(seed)
    if learning_rate is not None:
        check_options(learning_rate=(learning_rate, 0))
    if learning_rate == 0:
        raise OptionError(f"learning_rate: met {learning_rate!r}, expected a number above 0")
    if alpha != 1.0 and num_particles == 1:
        raise OptionError(f"alpha: met {alpha:g} with num_particles={num_particles}; other bounds than the ELBO need 2")
    if resume and checkpoint is None:
        raise OptionError("resume: met True without a folder to go on from; give checkpoint='run/' too")
    pair, dataset, home = take_in(pair, data, None, rows=True)
    home = home if device is None else check_device(device)
    pair = replace(pair, guide=guide) if callable(guide) else pair
    amortized = asked_for(guide)
    options_of_networks = {
        "epochs": epochs,
        "optimizer": optimizer,
        "objective": objective,
        "warmup": warmup,
        "free_bits": free_bits,
        "validation": validation or None,
        "compile": compile,
    }
    if amortized or has_networks(pair, dataset.values, seed):
        if alpha != 1.0:
            raise OptionError(f"alpha: met {alpha:g}; a pair with networks has objective='iwae' in its place")
        asked = Asked(
            amortized,
            epochs,
            num_steps,
            batch_size,
            num_particles,
            learning_rate,
            optimizer,
            objective,
            Warmup(warmup) if isinstance(warmup, int) else warmup,
            free_bits,
            validation,
            patience,
            tol,
            clip,
            restarts,
            seed,
            weights,
            start,
            checkpoint,
            checkpoint_steps,
            checkpoint_seconds,
            resume,
            compile,
            progress,
        )
        return deep_svi(pair, dataset, home, asked)
    dataset = in_memory(dataset, device)
    for name, value in options_of_networks.items():
        if value is not None:
            raise OptionError(f"{name}: met {value!r}, an option of pairs with networks, and the pair has none")
    num_particles, learning_rate = num_particles or PARTICLES, learning_rate or RATE
    shape = _shape_of(guide, pair)
    with engine_state(seed, home):
        structure = read(pair.model, dataset.values)
        rows = structure.num_rows
        batch = _batch_size(batch_size, rows)
        share = row_weights(weights, num_rows(dataset.values), home)
        check_values(structure, dataset.schema)
        exact = exact_of_rows(structure, shape, pair.guide, dataset.values) if alpha == 1.0 else set()
        given = [name for name in structure.continuous if name not in exact]
        program = compile_program(pair.model, dataset.values, structure, given=given)
        learned = {
            name: base_constraint(param.constraint) for name, param in structure.params.items() if not param.prior
        }
        check_rows(structure, label_cells(program), rows)
        check_spread(program, set(learned), dataset.schema)
        check_certain(program, [n for n, one in learned.items() if one is constraints.real], dataset.schema)
        starts = first_starts(pair, dataset.values, program, restarts, torch.Generator().manual_seed(seed), start)
        options = Options(shape, num_particles, alpha, batch, learning_rate, tol, clip, seed)
        _validate(program, {name: value[0] for name, value in starts.items()})
        lead = max((len(value) for value in starts.values()), default=1)
        runs = [begin(pair, program, {n: v[r] for n, v in starts.items()}, options, share) for r in range(lead)]
        sampler = runs[0].objective.sampler
        if batch and isinstance(sampler, OwnGuide):
            check_batches(sampler, runs[0].parts(), dataset.values, batch)
        race = min(RACE, num_steps) if lead > 1 else 0
        settings: dict[str, Any] = {"guide": shape.name if shape else "own", "restarts": lead}
        settings |= {name: value for name, value in options._asdict().items() if name != "shape"}
        saver = Checkpoints(checkpoint, checkpoint_steps, checkpoint_seconds, identity(runs[0], dataset, settings))
        bar = Progress(num_steps, "svi", progress)
        best, ends, stopped = runs[0], [], ""
        try:
            with one_thread(when=(batch or rows) * program.size // max(rows, 1) < LARGE):
                found = saver.read() if resume else None
                if found is None:
                    ends = _race(runs, race, bar)
                    number = max(range(lead), key=lambda r: ends[r]) if race else 0
                else:
                    number, ends = found[1]["place"]["number"], found[1]["place"]["ends"]
                    restore(runs[number], *found)
                best, place = runs[number], {"number": number, "ends": ends}
                saver.last_step = best.state.step
                best.ascent.run(best.state, num_steps, bar, lambda _: saver.maybe(best, place))
                saver.write(best, place)
        except KeyboardInterrupt:
            stopped = "interrupted"
        except NotFinite:
            stopped = "not finite"
        finally:
            bar.close()
        fit = _finished(pair, dataset, best, ends, options, share, weights)
        if stopped == "not finite":
            where = blame(best.objective, best.parts(best.state.x), None)
            raise FitError(
                f"svi: {where} after {best.state.step} steps: lower learning_rate (here {learning_rate:g}), or look "
                f"for a param that runs off (a prior or a bounded constraint holds it); error.fit is what was reached",
                fit.params,
                fit,
            )
    if stopped:
        warn(f"svi: interrupted after {best.state.step} steps; the fit is what had been reached")
    elif tol > 0 and not fit.converged:
        warn(f"svi: the bound had not come to rest after {num_steps} steps: raise num_steps, or tol")
    return fit


def _finished(
    pair: Pair, dataset: Dataset, run: Run, ends: list[float], options: Options, share: Tensor | None, weights: Any
) -> Fit:
    """The fit of what a run has reached."""
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
    return finish(
        pair,
        dataset,
        run.program,
        outcome,
        modes,
        share,
        inference="svi",
        seed=options.seed,
        weights=weights,
        guide=name,
        guide_parts=guided if name else {},
    )


def _level(run: Run) -> float:
    """The bound where a run stands: on all rows, and of many draws, where they are few enough for that."""
    objective, state = run.objective, run.state
    if run.ascent.noisy and run.program.num_rows > FULL_BATCH:
        recent = state.bounds[-WINDOW:]
        return sum(recent) / len(recent) if recent else float("nan")
    with torch.no_grad():
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


def _batch_size(given: Any, rows: int) -> int | None:
    """Rows of a step; None where it is all of them."""
    if given is None:
        return None if rows <= FULL_BATCH else BATCH
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= rows:
        raise OptionError(f"batch_size: met {given!r}, expected a whole number from 1 to {rows}, the number of rows")
    return None if given == rows else given


def _validate(program: Program, start: dict[str, Tensor]) -> None:
    """Run the model once with Pyro's validation on: later steps go without."""
    bind = Bind(start)
    with pyro.validation_enabled(True), torch.no_grad():
        try:
            run(program.model, program.data, bind, program.layout.nesting)
        except ValueError as error:
            raise ModelError(f"svi: the model's own check failed at the start: {str(error).splitlines()[0]}") from error
