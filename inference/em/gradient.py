"""Generalized EM: steps up the expected complete log density, for params without a closed form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import transform_to

from ..optimize.newton import ROUNDING, Free, lbfgs, newton
from ..program.estep import Expectations
from ..program.objective import expected_complete
from ..program.program import Program
from ..program.sites import Params


def climb(
    program: Program, names: tuple[str, ...], params: Params, expected: Expectations, steps: int, blocks: Tensor | None
) -> Params:
    """Raise the expected complete log density in the params `names`: by Newton steps where the Hessian falls into
    small `blocks` (`blocks.find_blocks`), by L-BFGS where it does not, or where Newton finds no way up.
    """
    transforms = {name: transform_to(program.structure.params[name].constraint) for name in names}
    free = {name: transforms[name].inv(params[name]).detach().clone() for name in names}

    def at(values: Free) -> Params:
        return {**params, **{name: transforms[name](value) for name, value in values.items()}}

    def objective(values: Free) -> Tensor:
        return expected_complete(program, at(values), expected)

    start = expected_complete(program, params, expected).detach()
    with torch.enable_grad():
        reached = newton(free, objective, blocks, steps) if blocks is not None else None
        if reached is None or not reached.sound:
            reached = lbfgs(free if reached is None else reached.free, objective, steps)
    gain = reached.value - start
    # what is lost to rounding is no loss
    return at(reached.free) if torch.isfinite(gain) and gain >= -ROUNDING * start.abs() else params
