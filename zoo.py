"""The front door: models by name, and one call to fit them. No mathematics here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .inference.em import em
from .inference.errors import OptionError
from .inference.fit import Fit
from .inference.pair import Pair, on_table
from .inference.runs import RunError, read_run
from .inference.saving import restored
from .inference.svi import svi
from .models.registry import ENTRIES, Card, RegistryError, entry, register

Driver = Callable[..., Fit]
DRIVERS: dict[str, Driver] = {"em": em, "svi": svi}


def list_models(family: str | None = None, inference: str | None = None) -> list[str]:
    """Names of the models, sorted; of one family, or those that one inference fits."""
    cards = [found.card for found in ENTRIES.values()]
    families = sorted({c.family for c in cards})
    if family is not None and family not in families:
        raise OptionError(f"family: met {family!r}, expected one of {', '.join(families)}")
    if inference is not None:
        _driver(inference)
    return sorted(
        c.name for c in cards if family in (None, c.family) and (inference is None or inference in c.inference)
    )


def card(name: str) -> Card:
    """What a model is: its story, data, inference, references and published checks. ``print`` it."""
    return entry(name).card


def create(name: str, **hyperparameters: Any) -> Pair:
    """The pair of a registered model.

    Raises
    ------
    RegistryError
        No such model, or no such hyper-parameter.
    """
    found = entry(name)
    unknown = sorted(set(hyperparameters) - set(found.card.hyperparameters))
    if unknown:
        has = ", ".join(found.card.hyperparameters) or "none"
        raise RegistryError(f"{name} has no hyper-parameter {', '.join(map(repr, unknown))}: it has {has}")
    return found.factory(**hyperparameters)


def fit(pair: str | Pair, data: Any, inference: str = "auto", **options: Any) -> Fit:
    """Fit a model: a name, a created pair, or a user's own pair.

    Parameters
    ----------
    pair : str or Pair
        With a name, hyper-parameters of that model may stand among the options.
    data : anything `latentzoo.inference.data.adapt` takes
        Tensors, arrays, DataFrames, paths of files, names of bundled data.
    inference : str
        "em", or "auto", which picks and says why in ``fit.reason``.
    **options
        Of the driver: see ``latentzoo.em``.
    """
    if isinstance(pair, str):
        own = {name: options.pop(name) for name in list(options) if name in card(pair).hyperparameters}
        pair = create(pair, **own)
    if not isinstance(pair, Pair):
        raise OptionError(f"fit: met a {type(pair).__name__}, expected the name of a model or a Pair(model, guide)")
    name, reason = _pick(pair) if inference == "auto" else (inference, "")
    return _driver(name)(pair, data, **options).because(reason)


def compare(fits: Sequence[Fit], by: str = "bic") -> Any:
    """A table (DataFrame) of fits to the same data, best first by "bic", "aic" or "icl"; it says which did not
    converge.
    """
    import pandas as pd

    if by not in ("aic", "bic", "icl"):
        raise OptionError(f"by: met {by!r}, expected one of aic, bic, icl")
    if not fits:
        raise OptionError("compare: met no fits")
    rows = {f.num_rows for f in fits}
    if len(rows) > 1:
        raise OptionError(f"compare: the fits are of different data ({', '.join(f'{r:g} rows' for r in sorted(rows))})")
    table = pd.DataFrame(
        {
            "model": [_describe(f) for f in fits],
            "log_likelihood": [f.log_likelihood for f in fits],
            "parameters": [f.num_parameters for f in fits],
            "aic": [f.aic for f in fits],
            "bic": [f.bic for f in fits],
            "icl": [f.icl for f in fits],
            "converged": [f.converged for f in fits],
            "degenerate": [f.mode_map[0].degenerate for f in fits],
        }
    )
    return table.sort_values(by, kind="stable").reset_index(drop=True)


def load(folder: str | Path, pair: Pair | None = None) -> Fit:
    """A saved fit. A registered model is built again from its name; a user's own needs its `pair`.

    Raises
    ------
    RunError
        The folder is missing, damaged, tampered with, of another format, or of a model that is not registered here.
    """
    arrays, record = read_run(folder)
    if record.get("kind") != "fit":
        holds = "a checkpoint of an unfinished fit: go on with svi(..., checkpoint=folder, resume=True)"
        raise RunError(f"{folder}: the folder holds {holds if record.get('kind') == 'checkpoint' else 'no fit'}")
    origin = record["origin"]
    if pair is None:
        if origin is None:
            raise RunError(
                f"{folder}: the fit is of a pair that was never registered: pass it, zoo.load(folder, pair=...)"
            )
        known = ENTRIES.get(origin["name"])
        if known is None or f"{known.factory.__module__}:{known.factory.__qualname__}" != origin["factory"]:
            raise RunError(
                f"{folder}: the fit is of {origin['factory']}, which is not registered here: "
                f"import the module that registers it, or pass pair=..."
            )
        pair = create(origin["name"], **origin["hyperparameters"])
    found = restored(arrays, record)
    return Fit(pair=on_table(pair, found["schema"]), **found)


def _pick(pair: Pair) -> tuple[str, str]:
    return "em", "auto: every latent of a row can be summed out, so EM is exact"


def _driver(name: str) -> Driver:
    if name not in DRIVERS:
        raise OptionError(f"inference: met {name!r}, expected one of {', '.join(['auto', *DRIVERS])}")
    return DRIVERS[name]


def _describe(one: Fit) -> str:
    origin = one.pair.origin
    if origin is None:
        return getattr(one.pair.model, "__qualname__", "model")
    return f"{origin.name}({', '.join(f'{k}={v}' for k, v in origin.hyperparameters.items())})"


__all__ = ["card", "compare", "create", "fit", "list_models", "load", "register"]
