"""Coordinate-ascent variational inference for conditionally conjugate models, derived from the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .allocate import fit_allocation
from .allocation import read_allocation, sample_of
from .bags import Bags, densified
from .begin import first_starts, take_in
from .checks import check_counts, check_options, check_rows, check_said, check_seed, check_values, row_weights
from .compiler import compile_program
from .conjugate import MeanField
from .data import num_rows
from .derivation import mean_field
from .errors import OptionError, warn
from .estep import one_thread
from .factor_guide import GUIDE
from .factors import Point
from .finish import finish
from .fit import Fit
from .labels import label_cells
from .loop import Stop
from .modes import Outcome, map_modes, rank
from .pair import Pair
from .relate import fit_relation
from .runner import Runner
from .schedule import Schedule
from .sites import Params
from .starts import jitter
from .stepwise import Settled, stepwise
from .structure import Structure, engine_state, read
from .sweeps import Sweeps
from .symbols import plain as plain_values

LARGE = 100_000  # entries of a bilinear site


def cavi(
    pair: Pair,
    data: Any,
    *,
    max_iters: int = 10_000,
    tol: float = 1e-7,
    restarts: int = 1,
    seed: int = 0,
    weights: Any = None,
    start: dict[str, Tensor] | None = None,
    m_steps: int = 20,
    batch_size: int | None = None,
    schedule: Schedule | None = None,
    accelerate: bool | None = None,
    fallback: str | None = None,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> Fit:
    """Raise the evidence lower bound of a mean field by coordinate ascent, each factor to its optimum in turn.

    One factor for each latent that rows share, of its prior's family; the enumerated latents of a row keep their exact
    joint posterior. `pyro.param`s, where there are any, are learned by an M-step after each sweep (variational EM).

    Parameters
    ----------
    pair : Pair
        Its model must be conditionally conjugate; ``initialize`` gives the starts where there is one.
    data : anything `data.adapt` takes
        NaN cells are missing, and integrated out exactly. Memory maps are taken as whole tables, sparse matrices too
        where the model is none of counts; loaders are refused: give a tensor.
    max_iters : int
        Sweeps at most.
    tol : float
        Relative tolerance of the bound (`loop.Stop`); 0 runs exactly `max_iters` sweeps.
    restarts : int
        Runs from different starts; the best is returned, all are in ``fit.mode_map``.
    seed : int
    weights : (N,) numbers, optional
        Weight 2 is the row twice.
    start : dict, optional
        Values of some or all shared latents and params for the first start.
    m_steps : int
        L-BFGS iterations of one M-step, for params.
    batch_size : int, optional
        Rows of a step: natural-gradient steps of decreasing size on minibatches, of which `max_iters` passes are made
        at most. `history` holds the bound after each pass (of counts that are allocated to a positive latent of each
        row, as in topic models: an estimate of it, and last the bound). Default: all rows in each sweep.
    schedule : Schedule, optional
        Sizes of these steps.
    accelerate : bool, optional
        Leap ahead where two sweeps were heading (SQUAREM), if the bound gains by it. Default: where latents multiply.
    fallback : {"svi"}, optional
        What is not conjugate is fitted by gradient, all else in closed form: a latent that no update is known of gets a
        factor that is normal in unconstrained numbers, and the bound is a mean over a fixed set of its draws. Default:
        an error says what is not conjugate.
    device : str, optional
        Where to compute. Default: where the data are.
    progress : bool, optional
        Show a bar. Default: on a terminal.

    Returns
    -------
    Fit
        `params` holds the mean of each factor; ``posterior(site)`` is the factor; `history` is the bound.

    Raises
    ------
    ModelError, DataError, OptionError
        Plain words on what is not conjugate, by site, and the way out.
    FitError
        The bound became NaN or infinite in every restart.

    Warns
    -----
    ConvergenceWarning
        `max_iters` came first.
    """
    check_counts(max_iters=(max_iters, 0), restarts=(restarts, 1), m_steps=(m_steps, 1))
    check_options(tol=(tol, 0))
    if fallback not in (None, "svi"):
        raise OptionError(f'fallback: met {fallback!r}, expected "svi", or to be left out')
    seed = check_seed(seed)
    if batch_size is not None:
        check_counts(batch_size=(batch_size, 1))
    pair, dataset, home = take_in(pair, data, device, sparse=True)
    with engine_state(seed, home):
        if pair.graph is not None:
            return fit_relation(
                pair,
                dataset,
                max_iters=max_iters,
                tol=tol,
                restarts=restarts,
                seed=seed,
                weights=weights,
                start=start,
                m_steps=m_steps,
                batch_size=batch_size,
                fallback=fallback,
                device=home,
                progress=progress,
            )
        share = row_weights(weights, num_rows(dataset.values), home)
        structure = read(pair.model, sample_of(dataset.values))
        allocation = read_allocation(pair.model, dataset.values, structure, dataset.schema)
        if allocation is not None:
            return fit_allocation(
                pair,
                dataset,
                allocation,
                structure,
                share=share,
                max_iters=max_iters,
                tol=tol,
                restarts=restarts,
                seed=seed,
                weights=weights,
                start=start,
                batch_size=batch_size,
                schedule=schedule or Schedule(),
                progress=progress,
            )
        if isinstance(dataset.values, Bags):
            dataset = replace(dataset, values=densified(dataset.values))
            structure = read(pair.model, dataset.values)
        check_values(structure, dataset.schema)
        check_said(structure)
        field = mean_field(pair.model, dataset.values, structure, fallback == "svi")
        if share is not None and (field.bilinear or structure.continuous):
            raise OptionError("weights: not taken by models whose latents multiply: repeat the rows, or leave it out")
        plain = compile_program(pair.model, dataset.values, structure)
        cells = {} if field.bilinear else label_cells(plain)
        check_rows(structure, cells, structure.num_rows)
        generator = torch.Generator().manual_seed(seed)
        starts = first_starts(pair, dataset.values, plain, restarts, generator, start)
        if field.bilinear and pair.initialize is None and start is None:  # at its prior mean a product stays there
            starts = jittered(starts, structure, generator)
        lead = max((len(value) for value in starts.values()), default=1)
        for name in structure.continuous:  # updated first, so that their own start is never used
            value = plain_values(structure.trace.nodes[name]["value"]).double()
            starts[name] = value.expand(lead, *value.shape)
        small = all(one.size < LARGE for one in field.bilinear.values())  # torch's own threads serve large products
        with one_thread(when=small) as workers:
            sweeps = Sweeps(field, share, m_steps, workers, bool(field.bilinear) if accelerate is None else accelerate)
            runner = Runner(sweeps, Stop(tol), max_iters, "cavi")
            if batch_size is not None:
                passes = stepwise(sweeps, batch_size, structure.num_rows, schedule or Schedule(), seed, "cavi")
                runner = Runner(passes, Settled(tol), max_iters, "cavi", settle=0)
            found, failed = runner.all(_begin(sweeps, starts), progress)
        outcomes = [_centred(field, one, starts) for one in found]
        best = rank(outcomes)[0]
        state = found[next(i for i, one in enumerate(outcomes) if one is best)].params
        fit = finish(
            pair,
            dataset,
            plain,
            best,
            map_modes(outcomes, cells, failed),
            share,
            inference="cavi",
            seed=seed,
            weights=weights,
            guide=GUIDE,
            guide_parts={n: eta for n, eta in state.items() if n in field.priors and n in structure.params},
        )
    if tol > 0 and not fit.converged:
        warn(f"cavi: stopped after {len(fit.history) - 1} sweeps before the tolerance was met: raise max_iters or tol")
    return fit


def jittered(starts: Params, structure: Structure, generator: torch.Generator) -> Params:
    """Every start moved a little at random."""
    lead = max(len(value) for value in starts.values())
    each = [jitter({name: value[r] for name, value in starts.items()}, structure, generator) for r in range(lead)]
    return {name: torch.stack([one[name] for one in each]) for name in starts}


def _begin(sweeps: Sweeps, starts: Params) -> Params:
    """States after the first sweep of every start."""
    lead = max(len(value) for value in starts.values())
    if sweeps.together:
        return sweeps.first(starts)
    each = [sweeps.first({name: value[r : r + 1] for name, value in starts.items()}) for r in range(lead)]
    return {name: torch.cat([one[name] for one in each]) for name in each[0]}


def _centred(field: MeanField, one: Outcome, starts: Params) -> Outcome:
    """An outcome by the means of its factors."""
    params = centers(field, one.params)
    return replace(one, params=params, start={name: starts[name][0] for name in params})


def centers(field: MeanField, state: Params) -> Params:
    """The mean of each factor, and params as they are."""
    out = {}
    structure = field.program.structure
    for name, value in state.items():
        if name not in structure.params:  # of a row: found again from the shared ones
            continue
        family = field.families[name]
        center = value if isinstance(family, Point) else family.center(value.unsqueeze(0)).squeeze(0)
        out[name] = center.reshape(structure.params[name].value.shape)
    return out
