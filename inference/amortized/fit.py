"""Stochastic variational inference of pairs with networks, and of any pair whose guide is an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.errors import HasNetworks, ModelError, OptionError
from ..base.options import row_weights
from ..base.progress import Progress
from ..data.batches import Batches
from ..data.devices import on_cpu, place, working_on
from ..data.schema import Dataset
from ..data.streams import Rows, first_rows, spread_rows
from ..data.structures import is_missing, num_rows, tensors_of
from ..optimize.modes import Mode, ModeMap, Outcome, Reached
from ..optimize.starts import each_start
from ..pair import Pair
from ..program.estep import one_thread
from ..svi.ascent import Ascent, NotFinite, optimizer_of
from ..svi.checkpoints import Checkpoints
from ..svi.options import SVIOptions, Warmup
from ..svi.plateau import WINDOW, PatienceEnded, State
from ..svi.replay import Steps
from ..svi.training import affordable, told, trained
from ..trace.handlers import ROOM_FOR_PLATES, Bind, engine_state, run
from .bounds import hold, values_from
from .checks import check_batch, check_free_bits, check_rows_seen, check_sites
from .encoder import OWN, Amortized, amortize, asked_for
from .objective import Objective
from .reader import Story, free_value, installed, read_story, to_dtype

WEIGHTED = 5  # draws of each row at a step, where they are weighed
RATE, BATCH, FULL = 1e-3, 128, 256  # learning rate; rows of a step, all up to FULL of them
BUFFER = "buffer/"  # before the names of what networks count of the rows that pass (batch norm)
LOWEST = 0.06  # of the learning rate at first: at rest below that, it is the end
LOOK = 64  # rows of the run that looks for networks
LARGE = 5_000_000  # products of a step from which torch's threads pay


class Training(NamedTuple):
    """One start at work."""

    objective: Objective
    ascent: Ascent


def deep_svi(pair: Pair, dataset: Dataset, home: torch.device, asked: SVIOptions) -> Reached:
    """Train the networks; the driver has taken the data in, and documents the options.

    What is done once (reading the pair, checks, starts) is done on the CPU, the steps on the device `home`.
    """
    with engine_state(asked.seed, "cpu", torch.float32):
        story, values, shape, fixed = _read(pair, dataset, asked.guide)
        missing = is_missing(values)
        check_sites(story, values, dataset.schema)
        if asked.free_bits is not None:
            check_free_bits(story, values)
        if missing:
            check_rows_seen(story, values)
        share = row_weights(asked.weights, num_rows(values), "cpu")
        starts = [{name: v.to(home) for name, v in start.items()} for start in _starts(story, values, asked)]
        train, held = _split(num_rows(values), asked.validation, asked.seed)
        rows = num_rows(values) if train is None else len(train)
        total = float(rows if share is None else (share if train is None else share[train]).sum())
        share = None if share is None else share.to(story.dtype).to(home)
        own = values.batch_size if isinstance(values, Rows) else None  # a loader's
        options = asked.resolved(rows, WEIGHTED if asked.weighted else 1, RATE, own or FULL, own or BATCH)
        size = options.batch_size or rows
        check_batch(story, size)
        steps = asked.num_steps if asked.epochs is None else asked.epochs * (rows // size)
        placed = values if home.type == "cpu" else place(to_dtype(dataset.values, story.dtype), home)

        @contextmanager
        def begin(number: int, racing: bool) -> Iterator[Training]:
            torch.manual_seed(asked.seed)
            start = starts[number]
            with installed(story, start, training=True) as at:
                free = {n: free_value(story.leaves[n], start[n]).detach().clone() for n in start}
                leaves = {n: at[n] if story.leaves[n].weight is not None else free[n].requires_grad_() for n in start}
                objective = Objective(story, placed, leaves, options, missing, share, train, held)
                if not racing:
                    hold("start", story, leaves, placed)
                how = replace(options, compile=None) if racing else options  # a race is too short to be compiled for
                yield Training(objective, _ascent(objective, how, total))

        saver = Checkpoints(options, OWN if shape is None else shape.name, starts[0], dataset)
        weights = sum(leaf.value.numel() for leaf in story.leaves.values())
        climb = trained(begin, len(starts), saver, steps, Progress(steps, "svi", asked.progress))
        with one_thread(when=size * weights < LARGE), working_on(home), climb as (best, ends, stopped):
            reached = _reached(best, shape, fixed, ends)
            if not isinstance(stopped, NotFinite):
                reached = replace(reached, unchecked=hold("end", story, best.objective.leaves, placed))
    cause, way_out = "the bound or its gradient is not finite", "standardise the columns"
    return told(reached, best.ascent, stopped, options, cause, way_out)


def _read(pair: Pair, dataset: Dataset, guide: Any) -> tuple[Story, Any, Amortized | None, dict[str, Tensor]]:
    """The pair as it is read, with an encoder where one is asked for; the data as its networks take them; and that
    encoder, with what it measures columns by.
    """
    values = to_dtype(on_cpu(dataset).values, torch.float32)
    shape = asked_for(guide)
    story = read_story(pair if shape is None else replace(pair, guide=None), values)
    if story.dtype is not torch.float32:
        values = to_dtype(on_cpu(dataset).values, story.dtype)
        torch.set_default_dtype(story.dtype)
    if shape is None and story.latents and pair.guide is None:
        shape = Amortized()
    if shape is None:
        return story, values, None, {}
    amortized, fixed = amortize(pair, story, values, dataset.schema, shape)
    return read_story(amortized, values, story.dtype), values, shape, fixed


def _ascent(objective: Objective, options: SVIOptions, total: float) -> Ascent:
    """Up that bound, all weights at once."""
    story, rows, rate = objective.story, objective.num_rows, options.learning_rate or RATE

    def counted() -> dict[str, Tensor]:
        networks = story.networks.items()
        return {f"{BUFFER}{name}/{key}": value for name, net in networks for key, value in net.named_buffers()}

    every = max(WINDOW, rows // (options.batch_size or rows))
    after = options.warmup.ends if isinstance(options.warmup, Warmup) else 0

    def level(state: State) -> float:
        return sum(state.bounds[-every:]) / every if objective.held is None else objective.held_level()

    ascent = Ascent(
        objective.leaves,
        Steps(objective.loss, list(objective.leaves.values()), list(story.networks.values()), options.compile),
        objective.step,
        Batches(rows, options.batch_size, options.seed + 1),
        optimizer_of(objective.leaves, rate, options.optimizer),
        PatienceEnded(
            options.tol,
            options.patience,
            level,
            after,
            keep=None if objective.held is None else lambda: ascent.kept(),
            lowest=LOWEST,
        ),
        State(rate),
        clip=options.clip,
        scale=total,
        every=every,
        close=False,
        counted=counted,
    )
    return ascent


def _reached(best: Training, shape: Amortized | None, fixed: dict[str, Tensor], ends: list[float]) -> Reached:
    """Plain values of the weights, and the bound where they are."""
    objective, state, story = best.objective, best.ascent.state, best.objective.story
    reached = {name: v.detach().cpu().clone() for name, v in values_from(story, objective.leaves).items()}
    params = {name: value for name, value in reached.items() if name in story.model.params}
    parts = {f"value/{name}": value for name, value in reached.items() if name not in story.model.params}
    parts |= {f"fixed/{name}": value.cpu() for name, value in fixed.items()}
    parts |= {name: value.cpu().clone() for name, value in best.ascent.counted().items()}
    level = objective.reached_level(affordable(best.ascent, objective.options.num_particles or 1))
    mode = Mode(level.bound, max(1, len(ends)), 0.0, state.converged, False, {})
    return Reached(
        Outcome(params, [*state.bounds, level.bound], state.converged, False, {}, level.error),
        ModeMap((mode,), tuple(ends) or (level.bound,)),
        {name: story.leaves[name].constraint for name in params},
        best.ascent.scale,
        share=None if objective.share is None else objective.share.cpu(),
        guide=OWN if shape is None else shape.name,
        guide_parts=parts,
    )


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
