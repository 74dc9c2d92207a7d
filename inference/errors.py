"""What the engine says when a model, an option or a fit cannot go on. One plain line: what was met, and the way out."""

from __future__ import annotations

from typing import Any


class ModelError(ValueError):
    """A model that the asked inference cannot take: the message names the site, the reason and the way out."""


class OptionError(ValueError):
    """An option with a value that makes no sense: the message names the option, what was met and what was expected."""


class FitError(RuntimeError):
    """A fit that cannot go on.

    Attributes
    ----------
    params : dict
        The last good values of the params.
    """

    def __init__(self, message: str, params: dict[str, Any]) -> None:
        super().__init__(message)
        self.params = params


class ConvergenceWarning(UserWarning):
    """A fit that stopped before it met its tolerance, or met a degenerate optimum."""
