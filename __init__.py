"""latentzoo: a zoo of latent variable models on Pyro. One model/guide pair, every inference that fits it."""

from importlib.metadata import PackageNotFoundError, version

# absolute imports: pytest runs this file a second time under the folder's name, and must not load the library twice
from latentzoo import models, zoo
from latentzoo.inference.data.idx import read_idx
from latentzoo.inference.drivers.cavi import cavi
from latentzoo.inference.drivers.em import em
from latentzoo.inference.drivers.svi import svi
from latentzoo.inference.fit import Fit
from latentzoo.inference.pair import Pair
from latentzoo.models.registry import register

try:
    __version__ = version("latentzoo")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.0.0"

__all__ = ["Fit", "Pair", "__version__", "cavi", "em", "models", "read_idx", "register", "svi", "zoo"]
