"""From named arrays to what ArviZ opens: the one place that knows the two ArviZ versions.

ArviZ 0.x gives an ``InferenceData``, ArviZ 1.x an xarray ``DataTree``; groups, variables, dims, coords, attributes and
dtypes are the same in both. This module imports nothing of latentzoo, and ArviZ, which takes a second, only when asked.

What ``az.summary`` and ``az.loo`` ask of the arrays, measured on 0.23.4 and 1.3.0:

- With one draw ``loo`` raises IndexError, and ``summary`` gives NaN for the sd, the Monte Carlo errors, ess and r-hat.
  ``summary`` needs 4 draws for its errors and ess, and 2 chains for r-hat.
- ``loo`` needs 25 draws in all on 1.x (or ``n_draws_tail must be at least 5``), and 30 for Pareto k to be a number; 0.x
  calls k infinite below 21. Either warns of k above ``min(1 - 1 / log10(draws), 0.7)``: with a sound posterior often at
  100 draws, seldom from 500 on.
- A row whose log-likelihood is the same in every draw (one point estimate repeated, or a row with no observed cell) has
  no tail to fit: 1.x raises ``All tail values are the same``, 0.x warns with k = inf.
- A variable with a cell that never changes (a structural zero, a label that is certain) makes ``summary`` divide 0 by
  0: a NaN in ``mcse_sd`` with a RuntimeWarning. ``kind="stats"`` leaves that column out.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, dict[str, np.ndarray]]

_SAMPLE_DIMS = ("chain", "draw")
_FROM_THE_POSTERIOR = ("posterior", "posterior_predictive", "log_likelihood", "sample_stats")
_DATA = ("observed_data", "constant_data")
_GROUPS = (*_FROM_THE_POSTERIOR, "prior", "prior_predictive", *_DATA)


def import_arviz() -> Any:
    """ArviZ, whichever version is installed, without the notice that 0.x gives on its first import of a day."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
        return importlib.import_module("arviz")


def to_arviz(
    groups: Mapping[str, Mapping[str, np.ndarray]],
    *,
    coords: Mapping[str, Sequence[Any] | np.ndarray],
    dims: Mapping[str, Sequence[str]],
    attrs: Mapping[str, Any],
) -> Any:
    """Groups of named arrays as the object that the installed ArviZ works with.

    Parameters
    ----------
    groups : mapping of str to mapping of str to numpy.ndarray
        ``groups[group][variable]``. Arrays of posterior, posterior_predictive, log_likelihood, sample_stats, prior and
        prior_predictive are ``(chain, draw, *shape)``, with the same chains and draws in the first four; those of
        observed_data and constant_data are ``shape``. A group without variables is left out. Numbers keep their dtype,
        and the object shares the arrays' memory; booleans become integers, which ArviZ 1.x needs for its summary,
        except in sample_stats, where they are flags.
    coords : mapping of str to sequence
        The labels along a dim, by its name. A dim without an entry is counted from 0. Entries that no variable uses are
        ignored.
    dims : mapping of str to sequence of str
        The names of the dims ``shape`` of a variable, in every group that has it. A variable without an entry gets
        ``<variable>_dim_0``, ... A log-likelihood may have only the first of its variable's dims: per row, without
        those of the event.
    attrs : mapping of str to anything
        Set on the root and on every group. Text and numbers stay; all else (None, booleans, lists, mappings) becomes
        JSON text, which every file format of ArviZ can hold.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        By the version of ArviZ: 0.x or 1.x.

    Raises
    ------
    ValueError
        If a group is unknown, or an array does not have the shape that its group, its dims or its coords ask for. The
        message names the group, the variable, the shape met and what was expected.
    """
    arrays = _collect(groups)
    labels = {name: np.asarray(values) for name, values in coords.items()}
    for name, values in labels.items():
        if values.ndim != 1:
            raise ValueError(f"to_arviz: coords of {name!r} have shape {values.shape}; expected one label per index")
    _check_draws(arrays)
    for group in arrays:
        _check_group(group, arrays[group], labels, dims)

    arviz = import_arviz()
    options = {"coords": labels, "dims": {name: list(names) for name, names in dims.items()}}
    if int(arviz.__version__.split(".")[0]) >= 1:
        opened = arviz.from_dict(arrays, **options)
    else:
        opened = arviz.from_dict(**arrays, **options)
        _restore_scalars(opened, arrays)
    plain = {name: _attribute(value) for name, value in attrs.items()}
    for node in (opened, *(opened[group] for group in arrays)):
        node.attrs.update(plain)
    return opened


def _collect(groups: Mapping[str, Mapping[str, np.ndarray]]) -> Arrays:
    """The groups that have variables, in one order whatever the version, as arrays that ArviZ can compute with."""
    unknown = sorted(set(groups) - set(_GROUPS))
    if unknown:
        raise ValueError(f"to_arviz: unknown groups {unknown}; expected some of {list(_GROUPS)}")
    arrays: Arrays = {}
    for group in _GROUPS:
        for variable, value in groups.get(group, {}).items():
            array = np.asarray(value)
            if array.dtype == object:
                raise ValueError(f"to_arviz: {group} {variable!r} holds Python objects; expected numbers or text")
            if group not in _DATA and array.ndim < 2:
                raise ValueError(f"to_arviz: {group} {variable!r} has shape {array.shape}; expected (chain, draw, ...)")
            if array.dtype == bool and group not in (*_DATA, "sample_stats"):
                array = array.astype(np.int64)
            arrays.setdefault(group, {})[variable] = array
    return arrays


def _check_draws(arrays: Arrays) -> None:
    """Within a group xarray would pad missing draws with NaN, unasked; across groups ``loo`` pairs them by position."""
    first: tuple[str, str, tuple[int, ...]] | None = None
    for group in _FROM_THE_POSTERIOR:
        for variable, array in arrays.get(group, {}).items():
            met = array.shape[:2]
            first = first or (group, variable, met)
            if met != first[2]:
                raise ValueError(
                    f"to_arviz: {group} {variable!r} has (chain, draw) = {met}; "
                    f"expected {first[2]}, as in {first[0]} {first[1]!r}"
                )


def _check_group(
    group: str, variables: Mapping[str, np.ndarray], coords: Mapping[str, np.ndarray], dims: Mapping[str, Sequence[str]]
) -> None:
    """Every dim of a group has one length, that of its coords, and a name that no variable has."""
    lengths: dict[str, tuple[int, str]] = {}
    for variable, array in variables.items():
        names = _dim_names(group, variable, array, dims)
        for name, length in zip(names, array.shape, strict=True):
            source = (len(coords[name]), "its coords") if name in coords else (length, f"{group} {variable!r}")
            expected, where = lengths.setdefault(name, source)
            if length != expected:
                raise ValueError(
                    f"to_arviz: {group} {variable!r} has shape {array.shape} with dims {names}; "
                    f"expected {name!r} to have length {expected}, as in {where}"
                )
    for name in sorted(lengths.keys() & variables.keys()):
        raise ValueError(f"to_arviz: {group} has both a variable and a dim named {name!r}: rename the dim")


def _dim_names(group: str, variable: str, array: np.ndarray, dims: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The names of all dims of a variable, as both versions of ArviZ will have them."""
    leading = () if group in _DATA else _SAMPLE_DIMS
    count = array.ndim - len(leading)
    named = dims.get(variable)
    if named is None:
        return (*leading, *(f"{variable}_dim_{i}" for i in range(count)))
    if isinstance(named, str) or not all(isinstance(name, str) for name in named):
        raise ValueError(f"to_arviz: dims of {variable!r} are {named!r}; expected a sequence of names")
    if len(set(named)) < len(named) or set(named) & set(_SAMPLE_DIMS):
        raise ValueError(
            f"to_arviz: dims of {variable!r} are {list(named)}; expected each name once, without {list(_SAMPLE_DIMS)}: "
            "the second side of a square needs a name of its own"
        )
    if count != len(named) and not (group == "log_likelihood" and count < len(named)):
        expected = (*leading, *named)
        raise ValueError(f"to_arviz: {group} {variable!r} has shape {array.shape}; expected the dims {expected}")
    return (*leading, *named[:count])


def _restore_scalars(opened: Any, arrays: Arrays) -> None:
    """ArviZ 0.x gives a single number among the data a dim of length 1; 1.x leaves it a number, and so do we."""
    for group in _DATA:
        for variable, array in arrays.get(group, {}).items():
            if array.ndim == 0:
                dataset = opened[group]
                (extra,) = dataset[variable].dims
                setattr(
                    opened, group, dataset.assign({variable: dataset[variable].squeeze(drop=True)}).drop_vars(extra)
                )


def _attribute(value: Any) -> str | int | float:
    """A value that an attribute of a netCDF or Zarr file can hold."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return int(value)
    return json.dumps(value, default=lambda other: other.tolist() if hasattr(other, "tolist") else str(other))
