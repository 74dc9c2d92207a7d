"""Draws of params around their estimate: Laplace's, and the parametric bootstrap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, transform_to

from ..base.errors import ModelError, OptionError
from ..base.options import check_counts, check_seed
from ..base.unconstrained import inside
from ..data.adapt import adapt
from ..data.devices import in_double
from ..em.fit import EMOptions, fit_em
from ..optimize.modes import label_cells, relabel
from ..pair import on_table
from ..program.objective import log_prior
from ..program.sites import Params
from ..trace.handlers import engine_state
from .base import Fitted
from .compiled import program_of
from .exact import program_on
from .generate import empty_rows, simulate

METHODS = ("laplace", "bootstrap")


def param_draws(fit: Fitted, num: int, method: str, seed: int) -> Params:
    """Draws (num, *shape) of the params around their estimate."""
    if method not in METHODS:
        raise OptionError(f"draws: met {method!r}, expected one of {', '.join(METHODS)}")
    if fit.guide_parts and not fit.guide:
        names = ", ".join(map(repr, fit.guide_parts))
        raise ModelError(
            f"draws: {names} are summed out of all rows together, and draws of params around such an estimate are not "
            f'made: give the params priors and use inference="svi"'
        )
    check_counts(num=(num, 1))
    seed = check_seed(seed)
    return laplace(fit, num, seed) if method == "laplace" else bootstrap(fit, num, seed)


def laplace(fit: Fitted, num: int, seed: int) -> Params:
    """Normal draws in unconstrained space, of precision minus the Hessian of log p(x) at the estimate.

    Directions along which log p(x) is flat (a probability estimated as 0) are held still.

    Raises
    ------
    ModelError
        The estimate is no local maximum along some direction: use ``"bootstrap"``.
    """
    with engine_state(seed):
        program, _ = program_on(fit, fit.adapted(None))
        weights = None if fit.weights is None else torch.as_tensor(fit.weights, dtype=torch.float64)
        constraints = {name: program.structure.params[name].constraint for name in fit.params}
        transforms = {name: _transform(constraint) for name, constraint in constraints.items()}
        free = {name: transforms[name].inv(inside(constraints[name], value)) for name, value in fit.params.items()}
        flat = torch.cat([value.flatten() for value in free.values()])

        def unpack(vector: Tensor) -> Params:
            parts = vector.split([value.numel() for value in free.values()])
            return {n: transforms[n](p.reshape(free[n].shape)).unsqueeze(0) for n, p in zip(free, parts, strict=True)}

        def bound(vector: Tensor) -> Tensor:
            params = unpack(vector)
            rows = program.row_log_prob(params).squeeze(0)
            return (rows if weights is None else rows * weights).sum() + log_prior(program, params).sum()

        hessian = torch.autograd.functional.hessian(bound, flat)
        values, vectors = torch.linalg.eigh(-0.5 * (hessian + hessian.mT))
        flatness = 1e-8 * values.abs().max()
        if (values < -1e-4 * values.abs().max()).any():
            raise ModelError(
                'laplace: the estimate is no maximum along every direction of the params; use draws="bootstrap"'
            )
        spread = torch.where(values > flatness, values.clamp_min(flatness).rsqrt(), 0.0)
        noise = torch.randn(num, len(flat)) * spread
        drawn = [unpack(flat + vectors @ one) for one in noise]
        return {name: torch.stack([d[name].squeeze(0) for d in drawn]).detach() for name in fit.params}


def _transform(constraint: Any) -> Any:
    try:
        return biject_to(constraint)
    except NotImplementedError:  # matrices: the unused cells of the unconstrained square are flat, and so held still
        return transform_to(constraint)


def bootstrap(fit: Fitted, num: int, seed: int) -> Params:
    """Params refitted to data simulated from the fit, from the fit's own params, labels aligned with it."""
    rows = round(fit.num_rows)
    options, drawn = EMOptions(start=fit.params, max_iters=500, tol=1e-8, progress=False), []
    with engine_state(seed):
        program, _ = program_on(fit, fit.adapted(None))
        cells = label_cells(program)
        sets = [simulate(fit.pair, empty_rows(fit, rows), fit.params) for _ in range(num)]
    for values in sets:
        dataset = adapt(values, by=fit.pair.by)
        with engine_state(seed):
            again = fit_em(on_table(fit.pair, dataset.schema), in_double(dataset), None, options, program_of(fit))
        drawn.append(relabel(again.best.params, fit.params, cells))
    return {name: torch.stack([d[name] for d in drawn]) for name in fit.params}
