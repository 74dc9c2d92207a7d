"""Stochastic variational inference of pairs with networks, and of any pair whose guide is an encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .amortized import Amortized, amortize, asked_for
from .annealing import FreeBits, Warmup
from .arrays import is_missing, num_rows, tensors_of
from .ascent import NotFinite
from .asked import Asked
from .batches import Batches, batch_size_of
from .checks import check_counts, check_options, row_weights
from .data import Dataset
from .deep_checkpoints import DeepCheckpoints
from .deep_checks import check_batch, check_free_bits, check_rows_seen, check_sites
from .deep_fit import deep_fit
from .deep_story import Story, free_value, installed, read_story, to_dtype
from .deep_train import Plan, Progressed, Training, optimizer_of
from .devices import on_cpu, place, working_on
from .errors import FitError, HasNetworks, ModelError, OptionError, warn
from .estep import one_thread
from .fit import Fit
from .loop import Progress
from .pair import Pair
from .rows import Rows, first_rows, spread_rows
from .starts import each_start
from .structure import ROOM_FOR_PLATES, Bind, engine_state, run

OBJECTIVES = ("elbo", "iwae", "dreg")
RATE, BATCH, FULL = 1e-3, 128, 256  # learning rate; rows of a step, all up to FULL of them
RACE = 100  # steps of each start before the best begins again
LOOK = 64  # rows of the run that looks for networks
LARGE = 5_000_000  # products of a step from which torch's threads pay


def deep_svi(pair: Pair, dataset: Dataset, home: torch.device, asked: Asked) -> Fit:
    """Fit the networks; `svi` has taken the data in, and documents the options.

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
        weights = sum(leaf.declared.numel() for leaf in story.leaves.values())
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
                saver = DeepCheckpoints(training, dataset, asked, plan)
                stopped = _climb(training, steps, bar, saver, asked.resume)
                _put(training, training.state.best)  # where the held-out bound was best
                fit = deep_fit(pair, dataset, training, shape, fixed, starts[number], ends)
    return _told(fit, training, stopped, steps)


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


def _told(fit: Fit, training: Training, stopped: str, steps: int) -> Fit:
    state = training.state
    if stopped == "not finite":
        raise FitError(
            f"svi: the bound or its gradient is not finite after {state.step} steps: lower learning_rate (here "
            f"{training.plan.learning_rate:g}), or standardise the columns; error.fit is what was reached",
            fit.params,
            fit,
        )
    if stopped:
        warn(f"svi: interrupted after {state.step} steps; the fit is what had been reached")
    elif training.plan.tol > 0 and not fit.converged:
        warn(f"svi: the bound had not come to rest after {steps} steps: raise num_steps, or tol")
    return fit


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


def _plan(asked: Asked) -> Plan:
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


def _starts(story: Story, data: Any, asked: Asked) -> list[dict[str, Tensor]]:
    """Starting values: as the pair's `initialize` draws them, otherwise as it declares them; `start` overrules."""
    declared = {name: leaf.declared for name, leaf in story.leaves.items()}
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
