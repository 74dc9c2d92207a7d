"""Coordinate-ascent variational inference for conditionally conjugate models, derived from the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base.errors import OptionError
from ..base.options import row_weights
from ..cavi.climb import CAVIOptions
from ..cavi.fit import fit_cavi
from ..data.structures import num_rows
from ..fit import Fit
from ..optimize.minibatches import Schedule
from ..pair import Pair
from ..trace.handlers import engine_state
from .finish import finish
from .inputs import take_in
from .plain_errors import plainly


@plainly
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
        at most. `history` holds the bound after each pass, of all rows. Default: all rows in each sweep.
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
    options = CAVIOptions(
        max_iters=max_iters,
        tol=tol,
        restarts=restarts,
        seed=seed,
        start=start,
        m_steps=m_steps,
        batch_size=batch_size,
        schedule=schedule,
        accelerate=accelerate,
        fallback=fallback,
        progress=progress,
    )
    pair, dataset, home = take_in(pair, data, device, sparse=True)
    if pair.graph is not None and weights is not None:
        raise OptionError("weights: not taken by models of graphs, whose nodes meet in pairs: leave it out")
    with engine_state(options.seed, home):
        share = None if pair.graph is not None else row_weights(weights, num_rows(dataset.values), home)
        reached = fit_cavi(pair, dataset, share, options)
        return finish(pair, dataset, reached, inference="cavi", seed=options.seed, weights=weights)
