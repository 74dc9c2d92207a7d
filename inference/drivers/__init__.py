"""What a person calls, as `latentzoo.em`, `cavi` and `svi`, and `pick`, which chooses among them. They check options,
take the data in (`inputs`), hand both to the machinery, and make the one `Fit` of what it reached (`finish`). Nothing
else makes fits.
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "auto": "pick",
        "inputs": "adapted take_in",
    },
)
