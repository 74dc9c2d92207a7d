"""Fits on disk and in other hands: saved and loaded, every field and param checked (`saving`); groups of draws for
ArviZ (`groups`, `arviz`); figures and tables that a person opens (`report`).
"""

from ..base.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "arviz": "to_arviz",
        "groups": "arviz_groups",
        "report": "write_csv write_report",
        "saving": "restored save",
    },
)
