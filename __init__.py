"""latentzoo: a zoo of latent variable models on Pyro. One model/guide pair, every inference that fits it.

Each name is imported when it is first used: what the command line is asked is answered before torch, which takes
seconds.
"""

from typing import TYPE_CHECKING, Any

# absolute imports: pytest runs this file a second time under the folder's name, and must not load the library twice
from latentzoo.inference.base.lazy import lazily

if TYPE_CHECKING:
    from latentzoo import models, zoo
    from latentzoo.inference.data.idx import read_idx
    from latentzoo.inference.drivers.cavi import cavi
    from latentzoo.inference.drivers.em import em
    from latentzoo.inference.drivers.svi import svi
    from latentzoo.inference.fit import Fit
    from latentzoo.inference.pair import Pair
    from latentzoo.models.registry import register

_get, __dir__, _ = lazily(
    "latentzoo",
    {
        "": "models zoo",
        "inference.data.idx": "read_idx",
        "inference.drivers.cavi": "cavi",
        "inference.drivers.em": "em",
        "inference.drivers.svi": "svi",
        "inference.fit": "Fit",
        "inference.pair": "Pair",
        "models.registry": "register",
    },
)


def __getattr__(name: str) -> Any:
    if name != "__version__":
        return _get(name)
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("latentzoo")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0.0.0"


__all__ = ["Fit", "Pair", "__version__", "cavi", "em", "models", "read_idx", "register", "svi", "zoo"]
