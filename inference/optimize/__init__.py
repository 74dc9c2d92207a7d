"""How a bound is climbed, whatever it is: starting values (`starts`), coordinate ascent from many starts at once
(`coordinate_ascent`), minibatches and their step sizes, Newton, L-BFGS, SQUAREM, when to stop (`stopping`), and which
optima the restarts found once labels are matched (`modes`).
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "coordinate_ascent": "Runner Steps",
        "minibatches": "Schedule stepwise",
        "modes": "Mode ModeMap Outcome Reached map_modes",
        "newton": "lbfgs",
        "starts": "first_starts jitter starting_values",
        "stopping": "Settled Stop",
    },
)
