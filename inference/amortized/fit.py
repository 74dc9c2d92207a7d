"""Stochastic variational inference of pairs with networks, and of any pair whose guide is an encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..base.errors import HasNetworks, ModelError, OptionError
from ..base.options import check_counts, check_options, row_weights
from ..base.progress import Progress
from ..data.batches import Batches, batch_size_of
from ..data.devices import on_cpu, place, working_on
from ..data.schema import Dataset
from ..data.streams import Rows, first_rows, spread_rows
from ..data.structures import is_missing, num_rows, tensors_of
from ..optimize.modes import Mode, ModeMap, Outcome, Reached
from ..optimize.starts import each_start
from ..pair import Pair
from ..program.estep import one_thread
from ..svi.annealing import FreeBits, Warmup
from ..svi.ascent import NotFinite
from ..svi.options import SVIOptions
from ..trace.handlers import ROOM_FOR_PLATES, Bind, engine_state, run
from .bounds import hold, values_from
from .checkpoints import DeepCheckpoints
from .checks import check_batch, check_free_bits, check_rows_seen, check_sites
from .encoder import OWN, Amortized, amortize, asked_for
from .reader import Story, free_value, installed, read_story, to_dtype
from .training import Plan, Progressed, Training, optimizer_of

OBJECTIVES = ("elbo", "iwae", "dreg")
RATE, BATCH, FULL = 1e-3, 128, 256  # learning rate; rows of a step, all up to FULL of them
RACE = 100  # steps of each start before the best begins again
DRAWS, MANY = 200, 20_000  # of the bound that was reached, on up to so many draws of rows
LOOK = 64  # rows of the run that looks for networks
LARGE = 5_000_000  # products of a step from which torch's threads pay


def deep_svi(pair: Pair, dataset: Dataset, home: torch.device, asked: SVIOptions) -> Reached:
    """Train the networks; the driver has taken the data in, and documents the options.

    What is done once (reading the pair, checks, starts) is done on the CPU, the steps on the device `home`.
    """
    plan = _plan(asked)
    with engine_state(asked.seed, "cpu", torch.float32):
        values = to_dtype(on_cpu(dataset).values, torch.float32)
        shape = asked_for(asked.guide)
        story = read_story(pair if shape is None else replace(pair, guide=None), values)
        if story.dtype is not torch.float32:
            values = to_dtype(on_cpu(dataset).values, story.dtype)
            torch.set_default_dtype(story.dtype)
        fixed: dict[str, Tensor] = {}
        if shape is None and story.latents and pair.guide is None:
            shape = Amortized()
        if shape is not None:
            amortized, fixed = amortize(pair, story, values, dataset.schema, shape)
            story = read_story(amortized, values, story.dtype)
        missing = is_missing(values)
        check_sites(story, values, dataset.schema)
        if plan.free_bits is not None:
            check_free_bits(story, values)
        if missing:
            check_rows_seen(story, values)
        share = row_weights(asked.weights, num_rows(values), "cpu")
        share = None if share is None else share.to(story.dtype).to(home)
        starts = [{name: v.to(home) for name, v in start.items()} for start in _starts(story, values, asked)]
        train, held = _split(num_rows(values), asked.validation, asked.seed)
        rows = num_rows(values) if train is None else len(train)
        own = values.batch_size if isinstance(values, Rows) else None  # a loader's
        size = batch_size_of(asked.batch_size, rows, own or FULL, own or BATCH)
        check_batch(story, size or rows)
        steps = asked.num_steps if asked.epochs is None else asked.epochs * (1 if size is None else rows // size)
        weights = sum(leaf.value.numel() for leaf in story.leaves.values())
        bar = Progress(steps, "svi", asked.progress)

        placed = values if home.type == "cpu" else place(to_dtype(dataset.values, story.dtype), home)

        def begin(start: dict[str, Tensor], at: dict[str, Tensor], plan: Plan) -> Training:
            torch.manual_seed(asked.seed)
            free = {n: free_value(story.leaves[n], start[n]).detach().clone() for n in start}
            leaves = {n: at[n] if story.leaves[n].weight is not None else free[n].requires_grad_() for n in start}
            optimizer, decay = optimizer_of(leaves, plan.learning_rate, asked.optimizer)
            batches = Batches(rows, size, asked.seed + 1)
            state = Progressed(plan.learning_rate)
            return Training(story, placed, share, train, held, batches, leaves, plan, missing, state, optimizer, decay)

        with one_thread(when=(size or rows) * weights < LARGE), working_on(home):
            number, ends = 0, []
            for start in starts if len(starts) > 1 else []:
                with installed(story, start, training=True) as at:
                    # not compiled: a race is too short for that
                    one = begin(start, at, plan._replace(compile=None) if plan.compile else plan)
                    with contextlib.suppress(NotFinite):
                        one.advance(min(RACE, steps), Progress(0, "", False), lambda: None)
                    ends.append(sum(one.state.bounds[-20:]) / 20 if one.state.bounds else float("-inf"))
                    number = max(range(len(ends)), key=ends.__getitem__)
            with installed(story, starts[number], training=True) as at:
                training = begin(starts[number], at, plan)
                hold("start", story, training.leaves, placed)
                saver = DeepCheckpoints(training, dataset, asked, plan)
                stopped = _climb(training, steps, bar, saver, asked.resume)
                _put(training, training.state.best)  # where the held-out bound was best
                reached = _reached(training, shape, fixed, ends)
                if stopped != "not finite":
                    reached = replace(reached, unchecked=hold("end", story, training.leaves, placed))
    return _told(reached, training, stopped, steps)


def _climb(training: Training, steps: int, bar: Progress, saver: DeepCheckpoints, resume: bool) -> str:
    """Go as far as it goes; a word where it was stopped."""
    try:
        if resume:
            saver.restore()
        training.advance(steps, bar, saver.maybe)
        saver.write()
    except KeyboardInterrupt:
        return "interrupted"
    except NotFinite:
        _put(training, training.sound)
        return "not finite"
    finally:
        bar.close()
    return ""


def _put(training: Training, found: Mapping[str, Tensor]) -> None:
    """Weights in the place of those that there are."""
    with torch.no_grad():
        kept = training.kept()
        for name, value in found.items():
            kept[name].copy_(value)


def _reached(training: Training, shape: Amortized | None, fixed: dict[str, Tensor], ends: list[float]) -> Reached:
    """Plain values of the weights, and the bound where they are."""
    story, state = training.story, training.state
    reached = {name: v.detach().cpu().clone() for name, v in values_from(story, training.leaves).items()}
    params = {name: value for name, value in reached.items() if name in story.model.params}
    parts = {f"value/{name}": value for name, value in reached.items() if name not in story.model.params}
    parts |= {f"fixed/{name}": value.cpu() for name, value in fixed.items()}
    for name, network in story.networks.items():
        parts |= {f"buffer/{name}/{key}": value.cpu().clone() for key, value in network.named_buffers()}
    rows = training.batches.num_rows
    level = training.level(training.train, max(1, min(DRAWS, MANY // (rows * story.num_configurations))))
    mode = Mode(level, max(1, len(ends)), 0.0, state.converged, False, {})
    return Reached(
        Outcome(params, [*state.bounds, level], state.converged, False, {}),
        ModeMap((mode,), tuple(ends) or (level,)),
        {name: story.leaves[name].constraint for name in params},
        training.total,
        share=None if training.share is None else training.share.cpu(),
        guide=OWN if shape is None else shape.name,
        guide_parts=parts,
    )


def _told(reached: Reached, training: Training, stopped: str, steps: int) -> Reached:
    state = training.state
    if stopped == "not finite":
        failure = (
            f"the bound or its gradient is not finite after {state.step} steps: lower learning_rate (here "
            f"{training.plan.learning_rate:g}), or standardise the columns"
        )
        return replace(reached, failure=failure)
    if stopped:
        return replace(reached, note=f"interrupted after {state.step} steps; the fit is what had been reached")
    if training.plan.tol > 0 and not reached.best.converged:
        return replace(reached, note=f"the bound had not come to rest after {steps} steps: raise num_steps, or tol")
    return reached


def has_networks(pair: Pair, data: Any, seed: int) -> bool:
    """Whether the model or its guide runs a network."""
    few = first_rows(data, LOOK)
    for function in (pair.model, pair.guide):
        with engine_state(seed, next(iter(tensors_of(few).values())).device), torch.no_grad():
            try:
                if function is not None:
                    run(function, few, Bind({}), ROOM_FOR_PLATES)
            except HasNetworks:
                return True
            except Exception:  # whatever is wrong will be said by who reads the pair
                continue
    return False


def _plan(asked: SVIOptions) -> Plan:
    objective = "elbo" if asked.objective is None else asked.objective
    if objective not in OBJECTIVES:
        raise OptionError(f"objective: met {objective!r}, expected one of {', '.join(OBJECTIVES)}")
    check_counts(patience=(asked.patience, 1))
    if asked.epochs is not None:
        check_counts(epochs=(asked.epochs, 1))
    check_options(validation=(asked.validation, 0))
    if asked.validation >= 1:
        raise OptionError(f"validation: met {asked.validation!r}, expected a share of the rows, from 0 to below 1")
    particles = asked.num_particles if asked.num_particles is not None else 1 if objective == "elbo" else 5
    if objective != "elbo" and particles < 2:
        raise OptionError(f"num_particles: met {particles} with objective={objective!r}, which needs at least 2")
    if objective != "elbo" and (asked.warmup is not None or asked.free_bits):
        raise OptionError(f"warmup, free_bits: objective={objective!r} has no KL divergence of its own; use 'elbo'")
    bits = asked.free_bits if isinstance(asked.free_bits, FreeBits | None) else FreeBits(asked.free_bits)
    warmup = Warmup(asked.warmup) if isinstance(asked.warmup, int) else asked.warmup
    return Plan(
        objective=objective,
        num_particles=particles,
        learning_rate=RATE if asked.learning_rate is None else asked.learning_rate,
        clip=asked.clip,
        tol=asked.tol,
        patience=asked.patience,
        warmup=warmup,
        free_bits=bits,
        seed=asked.seed,
        compile=asked.compile,
    )


def _split(rows: int, share: float, seed: int) -> tuple[Tensor | None, Tensor | None]:
    """Positions of the rows to learn from, and of those held out."""
    count = round(rows * share)
    if count == 0:
        return None, None
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return order[count:].sort().values, order[:count].sort().values


def _starts(story: Story, data: Any, asked: SVIOptions) -> list[dict[str, Tensor]]:
    """Starting values: as the pair's `initialize` draws them, otherwise as it declares them; `start` overrules."""
    declared = {name: leaf.value for name, leaf in story.leaves.items()}
    drawn = each_start(story.pair.initialize, spread_rows(data), torch.Generator().manual_seed(asked.seed))
    starts = []
    for number in range(asked.restarts):
        found = next(drawn, None)
        if found is None and number:
            break  # nothing is random
        starts.append({**declared, **_checked(found or {}, declared, "initialize")})
    starts[0] |= _checked(asked.start or {}, declared, "start")
    return starts


def _checked(values: Mapping[str, Any], declared: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    out = {}
    for name, given in values.items():
        if name not in declared:
            raise OptionError(f"{where}: met a value of '{name}', which the pair does not declare")
        value = torch.as_tensor(given).detach().to(declared[name])
        if value.shape != declared[name].shape:
            met, expected = tuple(value.shape), tuple(declared[name].shape)
            raise ModelError(f"{where}: '{name}' met shape {met}, expected {expected}")
        out[name] = value.clone()
    return out
