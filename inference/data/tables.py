"""Tables and files: columns of a pandas DataFrame as numbers and codes, and what a path holds.

pandas is imported where a table or a file has been met: it takes a second, and many sessions need none.
"""

from __future__ import annotations

import gzip
import re
import zipfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import DataError
from .bundled.tables import load_bundled
from .idx import is_idx, read_idx
from .paths import located
from .structures import listed, to_int64

BOOLEAN = ("False", "True")
"""Labels of a column of booleans."""

FILES = (".csv", ".csv.gz", ".parquet", ".npz", ".npy", "-idx3-ubyte")

_NUMBERS = (int, float, np.integer, np.floating, Decimal)


def encode_column(series: Any, column: str, known: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...], bool]:
    """A column of a table as numbers, or as codes of its labels.

    Parameters
    ----------
    series : pandas.Series
        (N,)
    column : str
        Its name, for messages.
    known : sequence of str, optional
        Its labels in training, empty if it held numbers; None in training itself.

    Returns
    -------
    values : (N,) array
        int64, or float64 with NaN where a cell is missing and where the column held fractions.
    labels : tuple of str
        In order of their codes; empty for numbers.
    integers : bool
        Whether the column is of whole numbers.

    Raises
    ------
    DataError
        For dates, complex numbers and cells that are neither numbers nor labels; for labels unknown in training.
    """
    import pandas as pd

    kind, missing = series.dtype.kind, bool(series.isna().any())
    if kind in "mM":
        raise DataError(
            f"data: column {column!r} holds {series.dtype}, expected numbers or labels; give days, say, or drop it"
        )
    if kind not in "biufO":
        raise DataError(f"data: column {column!r} holds {series.dtype}, expected real numbers or labels")
    types: set[type] = set()
    if kind == "O" and not isinstance(series.dtype, pd.CategoricalDtype | pd.StringDtype):
        types = {type(cell) for cell in series[series.notna()]}
        strange = sorted(kind.__name__ for kind in types if not issubclass(kind, (str, bool, np.bool_, *_NUMBERS)))
        if strange:
            met = f"cells of type {listed(strange, quote=False)}"
            raise DataError(f"data: column {column!r} holds {met}, expected numbers or labels; convert or drop it")
        if all(issubclass(kind, _NUMBERS) and kind is not bool for kind in types):
            kind = "f"
    if kind in "iuf" and not known:
        if kind == "f" or missing:
            return series.to_numpy(dtype=np.float64, na_value=np.nan), (), kind != "f"
        return to_int64(series.to_numpy(), f"data: column {column!r}"), (), True
    if known is not None and not known:
        if series.isna().all():
            return np.full(len(series), np.nan), (), False
        met = listed(_text(cell) for cell in series.dropna().unique())
        raise DataError(f"data: column {column!r} holds labels ({met}), expected numbers as in training")
    codes, found = pd.factorize(series)  # -1 where missing
    texts = [_text(label) for label in found]
    if known is None:
        if kind == "b" or (types and types <= {bool, np.bool_}):
            known = BOOLEAN
        elif isinstance(series.dtype, pd.CategoricalDtype):
            known = tuple(dict.fromkeys(_text(label) for label in series.cat.categories))
        else:
            known = sorted(set(texts))
    place = {label: code for code, label in enumerate(known)}
    unseen = [text for text in texts if text not in place]
    if unseen:
        met = f"label {unseen[0]!r}, which was not seen in training"
        raise DataError(f"data: column {column!r} holds {met}; the labels known are {listed(known)}")
    table = np.array([place[text] for text in texts] + [-1], dtype=np.int64)  # the last one is for missing cells
    codes = table[codes]
    return (np.where(codes < 0, np.nan, codes) if missing else codes), tuple(known), False


def _text(label: Any) -> str:
    """A label as text; 1.0 reads as 1, for a file with missing cells turns integers to floats."""
    return str(int(label)) if isinstance(label, float | np.floating) and float(label).is_integer() else str(label)


def read(source: str | Path) -> Any:
    """What a path or the name of a bundled data set stands for: a pandas DataFrame or an array.

    A .npy file is memory-mapped. Lines of a CSV file that begin with # are skipped, and a first column without a name
    (row names, as pandas and R write them) is left out.

    Raises
    ------
    DataError
        For a path or name that does not exist, cannot be read, or holds several arrays.
    """
    place = located(source)
    if place is None:
        return load_bundled(str(source))
    path, member = place
    name = path.name.lower()
    try:
        if name.endswith((".csv", ".csv.gz")):
            return _read_csv(path)
        if name.endswith(".parquet"):
            import pandas as pd

            return pd.read_parquet(path)
        if name.endswith(".npy"):
            return np.load(path, mmap_mode="r")
        if name.endswith(".npz"):
            return _read_npz(path, member)
        if is_idx(path):
            return read_idx(path)
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"data: cannot read {str(source)!r}: {reason}") from error
    raise DataError(f"data: cannot tell what {str(source)!r} holds; expected a name ending in {', '.join(FILES)}")


def _read_csv(path: Path) -> Any:
    import pandas as pd

    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as lines:
        comments = [number for number, line in enumerate(lines) if line.startswith(b"#")]
    compression = "gzip" if path.suffix.lower() == ".gz" else None
    frame = pd.read_csv(path, skiprows=comments, compression=compression, low_memory=False)
    names = [str(name) for name in frame.columns]
    if all(re.fullmatch(r"[-+\d.eE]+", name) for name in names) and any("." in name for name in names):
        raise DataError(f"data: the first line of {str(path)!r} holds numbers, expected names; add a line of names")
    return frame.iloc[:, 1:] if names[0] == "Unnamed: 0" else frame


def _read_npz(path: Path, member: str | None) -> np.ndarray:
    with np.load(path) as arrays:
        names = arrays.files
        if member is None and len(names) == 1:
            member = names[0]
        if member not in names:
            met = f"{str(path)!r} holds arrays {listed(names)}" + (f", but no {member!r}" if member else "")
            raise DataError(f"data: {met}; pick one with '{path.name}:{names[0] if names else 'name'}'")
        array: np.ndarray = arrays[member]
        return array
