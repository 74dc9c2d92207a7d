"""Pictures of fits: `kinds.plot` picks one by name or by what the model is. One file for each family of pictures; each
reads the fit by `reader` and draws in the one style (`style`).
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "kinds": "KINDS plot",
    },
)
