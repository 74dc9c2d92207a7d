"""Exact EM by enumeration (Dempster, Laird and Rubin 1977), for any model whose latents of a row can be summed out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base.errors import warn
from ..base.options import row_weights
from ..data.structures import num_rows
from ..em.fit import EMOptions, fit_em
from ..fit import Fit
from ..optimize.minibatches import Schedule
from ..pair import Pair
from ..trace.handlers import engine_state
from .finish import finish
from .inputs import take_in
from .plain_errors import plainly


@plainly
def em(
    pair: Pair,
    data: Any,
    *,
    max_iters: int = 10_000,
    tol: float = 1e-11,
    restarts: int = 1,
    seed: int = 0,
    weights: Any = None,
    start: dict[str, Tensor] | None = None,
    m_steps: int = 20,
    variance_floor: float = 1e-6,
    collapse: bool | None = None,
    natural: bool = True,
    batch_size: int | None = None,
    schedule: Schedule | None = None,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> Fit:
    """Maximise log p(x), or log p(x, shared latents) where the model has priors (MAP), by exact EM in float64.

    Parameters
    ----------
    pair : Pair
        Its model is all that EM needs; ``initialize`` gives the starts where there is one.
    data : anything `data.adapt` takes
        NaN cells are missing, and integrated out exactly. Memory maps and sparse matrices are taken as whole tables;
        loaders are refused: give a tensor.
    max_iters : int
        M-steps at most.
    tol : float
        Relative tolerance of the bound (`loop.Stop`); 0 runs exactly `max_iters` iterations.
    restarts : int
        Runs from different starts, as one batch where the model need not be run again; the best is returned, all are in
        ``fit.mode_map``.
    weights : (N,) numbers, optional
        Weight 2 is the row twice.
    start : dict, optional
        Values of some or all params for the first start.
    m_steps : int
        L-BFGS iterations of one M-step, for params that have no closed form.
    variance_floor : float
        Learned variances stay above this share of their column's variance, so no component collapses onto a point.
    collapse : bool, optional
        Fit repeated rows once, with their count as weight: the same answer, faster. Default: where all sites are
        discrete.
    natural : bool
        False scores every observed site by running the model, instead of by matrix products. Slower, the same numbers.
    batch_size : int, optional
        Rows of a step of stepwise EM (`stepwise`): one iteration is then a pass over the data in batches, for data of
        many rows. The bound may fall a little from pass to pass. Default: all rows in each iteration.
    schedule : Schedule, optional
        Sizes of these steps.
    device : str, optional
        Where to compute, such as "cuda" (in float64, which "mps" has not). Default: where the data are.
    progress : bool, optional
        Show a bar. Default: on a terminal.

    Returns
    -------
    Fit

    Raises
    ------
    ModelError, DataError, OptionError
        Plain words on what cannot be fitted, and the way out.
    FitError
        The bound became NaN or infinite in every restart; ``error.params`` holds the last good values.

    Warns
    -----
    ConvergenceWarning
        `max_iters` came first, or every restart ended on the variance floor.
    """
    options = EMOptions(
        max_iters=max_iters,
        tol=tol,
        restarts=restarts,
        seed=seed,
        start=start,
        m_steps=m_steps,
        variance_floor=variance_floor,
        collapse=collapse,
        natural=natural,
        batch_size=batch_size,
        schedule=schedule,
        progress=progress,
    )
    pair, dataset, home = take_in(pair, data, device)
    with engine_state(options.seed, home):
        reached = fit_em(pair, dataset, row_weights(weights, num_rows(dataset.values), home), options)
        fit = finish(pair, dataset, reached, inference="em", seed=options.seed, weights=weights)
    if fit.mode_map[0].degenerate:
        warn(
            "em: a component collapsed onto its variance floor in every restart, so the likelihood has no meaning: "
            "ask for fewer components, a simpler covariance, or more restarts"
        )
    return fit
