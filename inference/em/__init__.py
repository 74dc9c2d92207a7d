"""Exact EM (`fit.fit_em`), and MAP where the model has priors. Before the first step it is settled how each param is
maximised (`plan`): by a closed form of its family, a regression on what is observed (`regression`), or gradient
(`gradient`); `mstep` does so, from the expectations that the program gives.
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "fit": "EMOptions fit_em",
        "mstep": "m_step",
        "plan": "make_plan",
    },
)
