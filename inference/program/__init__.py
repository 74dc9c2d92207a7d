"""A model compiled for exact inference, once (`compiler`): which sites are matrix products, which are scored by a run,
in which order latents are summed out. `Program.on` binds it to other data, `Program.on_rows` to some of its own rows.
The E-step is `estep.expectations`, the posterior of a row's discrete latents `posteriors`, what an M-step raises
`objective`; data are checked against the model in `checks`.
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "compiler": "compile_program",
        "deterministic": "Moments",
        "estep": "Expectations expectations",
        "objective": "expected_complete log_prior",
        "posteriors": "entropy joint_posterior",
        "program": "Program",
        "sites": "Site",
    },
)
