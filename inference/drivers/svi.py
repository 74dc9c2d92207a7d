"""Stochastic variational inference (Hoffman et al. 2013; Ranganath et al. 2014) for any pair, that stops by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ..amortized.encoder import asked_for
from ..amortized.fit import deep_svi, has_networks
from ..base.errors import OptionError
from ..base.options import check_device
from ..data.devices import device_of
from ..fit import Fit
from ..pair import Pair, as_pair
from ..svi.fit import plain_svi
from ..svi.options import FreeBits, SVIOptions, Warmup, check_no_networks
from ..svi.user_guide import family_of
from ..trace.handlers import engine_state
from .finish import finish
from .inputs import in_memory, take_in
from .plain_errors import plainly

logging.getLogger("latentzoo").addHandler(logging.NullHandler())


@plainly
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
        which takes ten seconds to half a minute, and on the CPU a C++ compiler. False: the pair runs at every step.
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
    options = SVIOptions(
        guide=guide,
        num_steps=num_steps,
        batch_size=batch_size,
        num_particles=num_particles,
        alpha=alpha,
        learning_rate=learning_rate,
        optimizer=optimizer,
        tol=tol,
        clip=clip,
        restarts=restarts,
        seed=seed,
        weights=weights,
        start=start,
        checkpoint=checkpoint,
        checkpoint_steps=checkpoint_steps,
        checkpoint_seconds=checkpoint_seconds,
        resume=resume,
        epochs=epochs,
        objective=objective,
        warmup=warmup,
        free_bits=free_bits,
        validation=validation,
        patience=patience,
        compile=compile,
        progress=progress,
    )
    pair = replace(as_pair(pair), guide=guide) if callable(guide) else as_pair(pair)
    written = pair.guide if guide is None or callable(guide) else None
    pair, dataset, home = take_in(pair, data, None, rows=True)
    auto = isinstance(written, AutoGuide)  # other guides, such as those of networks, leave the rows where they are
    if family := family_of(written, pair, in_memory(dataset, device).values) if auto else None:
        pair, guide = replace(pair, guide=None), family
        options = replace(options, guide=family)
    if asked_for(guide) or has_networks(pair, dataset.values, options.seed):
        if alpha != 1.0:
            raise OptionError(f"alpha: met {alpha:g}; a pair with networks has objective='iwae' in its place")
        reached = deep_svi(pair, dataset, home if device is None else check_device(device), options)
        weights = reached.share
    else:
        check_no_networks(options)
        dataset = in_memory(dataset, device)
        reached = plain_svi(pair, dataset, options)
    with engine_state(options.seed, device_of(dataset.values) if reached.program else "cpu"):
        return finish(pair, dataset, reached, inference="svi", seed=options.seed, weights=weights)
