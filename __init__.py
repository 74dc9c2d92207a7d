"""latentzoo: a zoo of latent variable models on Pyro. One model/guide pair, every inference that fits it."""

from importlib.metadata import PackageNotFoundError, version

from . import models, zoo
from .inference.em import em
from .inference.fit import Fit
from .inference.pair import Pair
from .models.registry import register

try:
    __version__ = version("latentzoo")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.0.0"

__all__ = ["Fit", "Pair", "__version__", "em", "models", "register", "zoo"]
