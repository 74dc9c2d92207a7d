"""What the engine says when a model, an option or a fit cannot go on. One plain line: what was met, and the way out."""

from __future__ import annotations

import sys
import warnings
from typing import Any


class ModelError(ValueError):
    """A model that the asked inference cannot take: the message names the site, the reason and the way out."""


class NotConjugate(ModelError):
    """A model that is not conditionally conjugate.

    Attributes
    ----------
    latent : str, optional
        Whose factor has not the moment that is asked for.
    site : str, optional
        Whose expected density has no closed form.
    """

    def __init__(self, message: str, *, latent: str | None = None, site: str | None = None) -> None:
        super().__init__(message)
        self.latent, self.site = latent, site


class HasNetworks(ModelError):
    """A model with a network, met by what has no use for one."""

    def __init__(self, network: str) -> None:
        self.network = network
        super().__init__(f"the model has a network, '{network}', whose weights are learned by gradient: use \"svi\"")


class OptionError(ValueError):
    """An option with a value that makes no sense: the message names the option, what was met and what was expected."""


class FitError(RuntimeError):
    """A fit that cannot go on.

    Attributes
    ----------
    params : dict
        The last good values of the params.
    fit : Fit, optional
        The last good state as a fit, which can be looked at and saved; its class stands floors above this file.
    """

    def __init__(self, message: str, params: dict[str, Any], fit: Any = None) -> None:
        super().__init__(message)
        self.params, self.fit = params, fit


class ConvergenceWarning(UserWarning):
    """A fit that stopped before it met its tolerance, or met a degenerate optimum."""


def warn(message: str) -> None:
    """A `ConvergenceWarning` at the line that called the package, however many of its own lie between."""
    package, depth, frame = __name__.partition(".")[0], 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, ConvergenceWarning, stacklevel=depth)


class RunError(ValueError):
    """A run folder that cannot be written or read. One plain line: the folder, what was met, and the way out."""


class DataError(ValueError):
    """Data that cannot be taken: the message names the argument or column, what was met, and the way out."""


class RegistryError(ValueError):
    """A name that is taken, unknown, or a hyper-parameter that the factory does not have."""
