"""A Pyro program as it is read: one run under handlers (`handlers.run`) gives its params, latents, observed sites and
plates (`structure.read`); marked tensors tell which argument comes from which param or latent, and how (`provenance`,
`polynomials`), and one derivative what is linear in what (`linear`). What the engine cannot read is refused here, by
name.
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "handlers": "Bind Param engine_state run",
        "linear": "linear_in",
        "polynomials": "Form",
        "provenance": "plain symbol symbols_of",
        "structure": "Structure read read_guide",
    },
)
