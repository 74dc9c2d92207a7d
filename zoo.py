"""The front door: models by name, and one call to fit them. No mathematics here."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .cards import card, check_inference, list_models
from .inference.base.errors import OptionError, RegistryError, RunError
from .inference.base.run_folder import read_run
from .inference.drivers.auto import pick
from .inference.drivers.cavi import cavi
from .inference.drivers.em import em
from .inference.drivers.inputs import adapted
from .inference.drivers.svi import svi
from .inference.fit import Fit
from .inference.io.saving import OriginRecord, check_params, restored, told
from .inference.pair import Pair, as_pair, on_table
from .models.registry import ENTRIES, entry, register

Driver = Callable[..., Fit]
DRIVERS: dict[str, Driver] = {"em": em, "cavi": cavi, "svi": svi}


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
    for one, default in found.card.hyperparameters.items():
        if default == "required" and one not in hyperparameters:
            raise RegistryError(f"{name} needs a value of its hyper-parameter '{one}'")
    return found.factory(**hyperparameters)


def fit(
    pair: str | Pair | Callable[..., Any],
    data: Any,
    inference: str = "auto",
    *,
    rows: str | None = None,
    **options: Any,
) -> Fit:
    """Fit a model: a name, a created pair, or a user's own model or pair.

    Parameters
    ----------
    pair : str, Pair or callable
        With a name, hyper-parameters of that model may stand among the options. A Pyro model of the data is a pair
        without a guide.
    data : anything `latentzoo.inference.data.adapt.adapt` takes
        Tensors, arrays, DataFrames, paths of files, names of bundled data; for a model of several arguments a tuple of
        them; for one that reads its data by name a dict, or a DataFrame.
    rows : str, optional
        The plate that holds the rows, of a user's own model. Default: "data", or the one outermost plate that is as
        large as the data.
    inference : str
        The name of a driver, or "auto", which picks and says why in ``fit.reason``.
    **options
        Of the driver: see ``latentzoo.em``.

    Raises
    ------
    OptionError
        No such inference, or an option that its driver does not take.
    """
    if isinstance(pair, str):
        own = {name: options.pop(name) for name in list(options) if name in card(pair).hyperparameters}
        pair = create(pair, **own)
    pair = as_pair(pair)
    if rows is not None:
        pair = replace(pair, rows=rows)
    if inference == "auto":
        data = adapted(pair, data, rows=True)
    name, reason, suited = resolve(pair, inference, data)
    _check_options(name, options, pair)
    return DRIVERS[name](pair, data, **{**suited, **options}).because(reason)


def resolve(pair: Pair, inference: str, data: Any = None) -> tuple[str, str, dict[str, Any]]:
    """The name of the driver that fits a pair (to data, where they are at hand), and, where "auto" picked it, why, and
    the options that suit the pair.
    """
    if inference == "auto":
        known = ENTRIES.get(pair.origin.name) if pair.origin else None
        return pick(pair, data, known.card.inference if known else ())
    check_inference(inference, ["auto", *DRIVERS])
    return inference, "", {}


def takes(inference: str) -> list[str]:
    """Names of the options of a driver."""
    parameters = inspect.signature(DRIVERS[inference]).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def compare(fits: Sequence[Fit], by: str = "bic") -> Any:
    """A table (DataFrame) of fits to the same data, best first by "bic", "aic" or "icl"; it says which did not
    converge, and which are degenerate: these stand behind all others, for their likelihood has no meaning.
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
    return table.sort_values(["degenerate", by]).reset_index(drop=True)


def load(folder: str | Path, pair: Pair | None = None) -> Fit:
    """A saved fit. A registered model is built again from its name; a user's own needs its `pair`.

    Raises
    ------
    RunError
        The folder is missing, damaged, tampered with, of another format, or of a model that is not registered here.
    """
    folder = Path(folder)
    arrays, record = read_run(folder)
    if record.get("kind") != "fit":
        holds = "a checkpoint of an unfinished fit: go on with svi(..., checkpoint=folder, resume=True)"
        raise RunError(f"{folder}: the folder holds {holds if record.get('kind') == 'checkpoint' else 'no fit'}")
    fit = told(folder, arrays, record)
    found = restored(arrays, fit)
    pair = on_table(_pair_of(folder, fit.origin) if pair is None else pair, found["schema"])
    check_params(folder, pair, found["schema"], arrays)
    return Fit(pair=pair, **found)


def _pair_of(folder: Path, origin: OriginRecord | None) -> Pair:
    """The registered pair that a fit was of."""
    if origin is None:
        raise RunError(f"{folder}: the fit is of a pair that was never registered: pass it, zoo.load(folder, pair=...)")
    known = ENTRIES.get(origin.name)
    if known is None or f"{known.factory.__module__}:{known.factory.__qualname__}" != origin.factory:
        raise RunError(
            f"{folder}: the fit is of {origin.factory}, which is not registered here: "
            f"import the module that registers it, or pass pair=..."
        )
    try:
        return create(origin.name, **origin.hyperparameters)
    except Exception as error:  # whatever a factory raises at options that it never gave
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{folder}: record.origin.hyperparameters make no {origin.name}: {words}") from error


def _check_options(driver: str, options: Mapping[str, Any], pair: Pair) -> None:
    """Refuse options that the driver does not take, with near names, or with the driver that does."""
    own, hyperparameters = takes(driver), pair.origin.hyperparameters if pair.origin else {}
    for option in options:
        if option in own:
            continue
        if option in hyperparameters:
            raise OptionError(f"fit: '{option}' is a hyper-parameter, and the pair has been created: give it to create")
        others = [name for name in DRIVERS if option in takes(name)]
        if others:
            raise OptionError(
                f"fit: '{option}' is an option of {others[0]}, not of {driver}: leave it out, or give "
                f'inference="{others[0]}"'
            )
        near = difflib.get_close_matches(option, [*own, *hyperparameters], n=2)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        also = f"; hyper-parameters are {', '.join(hyperparameters)}" if hyperparameters else ""
        raise OptionError(f"fit: no option '{option}'; {hint}{driver} takes {', '.join(own)}{also}")


def _describe(one: Fit) -> str:
    origin = one.pair.origin
    if origin is None:
        return getattr(one.pair.model, "__qualname__", "model")
    return f"{origin.name}({', '.join(f'{k}={v}' for k, v in origin.hyperparameters.items())})"


__all__ = ["card", "compare", "create", "fit", "list_models", "load", "register"]
