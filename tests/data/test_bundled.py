"""Data by path or by name: files, and the bundled sets."""

import gzip
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris

from latentzoo.inference.base.errors import DataError
from latentzoo.inference.data import structures as arrays
from latentzoo.inference.data.adapt import adapt
from latentzoo.inference.data.bundled.docstrings import words_of
from latentzoo.inference.data.bundled.tables import BUNDLED, load_bundled
from latentzoo.inference.data.schema import Schema
from latentzoo.inference.data.structures import is_missing

NAN = float("nan")


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "X.CSV"])
@pytest.mark.parametrize("kind", [str, Path])
def test_csv(tmp_path: Path, name: str, kind: Callable[[Path], Any]) -> None:
    text = "# a source\n# a note\na,b,c\n1,C#,0.5\n# between\n2,,\n"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    dataset = adapt(kind(tmp_path / name))
    np.testing.assert_array_equal(dataset.values.numpy(), [[1, 0, 0.5], [2, NAN, NAN]])
    assert dataset.schema == Schema(("a", "b", "c"), {"b": ("C#",)}, "frame", 3, ("a",))


def test_row_names_of_a_csv_are_left_out_and_a_lost_header_is_an_error(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.5, 2.5], "b": [3, 4]})
    frame.to_csv(tmp_path / "named.csv")
    assert adapt(tmp_path / "named.csv").schema.columns == ("a", "b")
    np.savetxt(tmp_path / "bare.csv", frame.to_numpy(), delimiter=",")
    with pytest.raises(DataError, match=r"first line of .*bare.csv' holds numbers"):
        adapt(tmp_path / "bare.csv")
    pd.DataFrame({"1990": [1], "1991": [2]}).to_csv(tmp_path / "years.csv", index=False)
    assert adapt(tmp_path / "years.csv").values.tolist() == [[1, 2]]


def test_parquet_keeps_categories(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": pd.Categorical(["v", None], categories=["w", "v"]), "b": [1.5, 2], "c": [3, 4]})
    frame.to_parquet(tmp_path / "x.parquet")
    assert adapt(tmp_path / "x.parquet").schema == adapt(frame).schema


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.ones(3))
    np.savez(tmp_path / "two.npz", x=np.ones(3), y=np.zeros((2, 2)))
    assert adapt(str(tmp_path / "one.npz")).values.tolist() == [1, 1, 1]
    assert adapt(f"{tmp_path}/two.npz:y").values.shape == (2, 2)
    with pytest.raises(DataError, match=r"holds arrays 'x', 'y'; pick one with 'two.npz:x'"):
        adapt(tmp_path / "two.npz")
    with pytest.raises(DataError, match=r"holds arrays 'x', 'y', but no 'z'"):
        adapt(f"{tmp_path}/two.npz:z")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1")
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    for name in ("bad.npz", "bad.npy", "bad.parquet", "bad.csv.gz", "empty.csv"):
        (tmp_path / name).write_bytes(b"" if name == "empty.csv" else b"no such thing")
    for name in ("bad.npz", "bad.npy", "bad.parquet", "bad.csv.gz", "empty.csv", "pickled.npy"):
        with pytest.raises(DataError, match=f"cannot read '.*{re.escape(name)}': "):
            adapt(tmp_path / name)
    with pytest.raises(DataError, match=r"x.txt' holds; expected a name ending in .csv, "):
        adapt(tmp_path / "x.txt")
    with pytest.raises(DataError, match=r"no file '.*absent.csv'"):
        adapt(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="no file 'irises', nor a bundled data set of that name; there are iris, wine"):
        adapt("irises")


@pytest.mark.parametrize("name", BUNDLED)
def test_every_bundled_set_has_the_size_it_is_said_to_have(name: str) -> None:
    frame = load_bundled(name)
    dataset = adapt(name)
    assert dataset.values.shape == frame.shape
    assert not is_missing(dataset.values)
    if name == "docstrings":  # as many as the installed version documents
        assert len(frame) > 200
    elif name == "documentation":
        assert len(frame) >= 2000
        assert 500 <= frame.shape[1] <= 1500
        assert frame.sum(axis=1).min() >= 10  # no document without words, of which a topic model can say nothing
        assert frame.index.is_unique
    else:
        assert str(len(frame)) == BUNDLED[name].split()[0]
    widths = re.findall(r"(\d+) (?:lengths|chem|pixels|meas|exer|path|questions)", BUNDLED[name])
    assert widths in ([], [str(frame.shape[1])])


def test_only_the_prose_of_a_docstring_is_counted() -> None:
    text = """Smooth a signal.

Filters `inside` with ``code`` and :func:`role`.

.. versionadded:: 1.2

Parameters
----------
window : ndarray, optional
    Weights of the
    average.

See Also
--------
other : Something else.

Notes
-----
The mean is

.. math::

    \\frac{a}{b}

which is a_name and call(x), of 3d kind.

References
----------
.. [1] A book.

Examples
--------
>>> smooth(1)
Printed
"""
    expected = "smooth a signal filters with and weights of the average the mean is which is and of kind"
    assert words_of(text) == [word for word in expected.split() if len(word) > 2]


def test_unknown_bundled_name() -> None:
    with pytest.raises(ValueError, match="no data set 'x'; there are iris, "):
        load_bundled("x")


@pytest.mark.parametrize("name", ["carcinoma", "stouffer_toby", "cheating"])
def test_typed_response_patterns_are_the_published_ones(name: str, shared_data: Callable[[str], Path]) -> None:
    frame = load_bundled(name)
    published = pd.read_csv(shared_data(f"{name}.csv"), comment="#")[list(frame.columns)]
    codes = adapt(frame).values + 1
    assert Counter(map(tuple, codes.tolist())) == Counter(map(tuple, published.astype(int).to_numpy().tolist()))
    assert set(adapt(frame).schema.labels.values()) in ({("no", "yes")}, {("particularistic", "universalistic")})


def test_typed_numbers_are_the_published_ones(shared_data: Callable[[str], Path]) -> None:
    deaths = pd.read_csv(shared_data("hasselblad_deaths.csv"), comment="#")
    expected = np.repeat(deaths["deaths_per_day"], deaths["freq"])
    assert load_bundled("hasselblad_deaths")["deaths_per_day"].tolist() == expected.tolist()
    galaxies = pd.read_csv(shared_data("galaxies.csv"), comment="#")["dat"]
    np.testing.assert_array_equal(load_bundled("galaxies")["velocity"], galaxies / 1000)


def test_tensors_need_neither_pandas_nor_scikit_learn() -> None:
    """They take a second to import; sys.modules tells whether a table can have been met at all."""
    root = Path(arrays.__file__).parents[2]
    program = (
        "import sys, types, torch\n"
        "for name, path in zip(('latentzoo', 'latentzoo.inference'), sys.argv[1:]):\n"
        "    sys.modules[name] = types.ModuleType(name)  # whatever else the package imports is not asked about\n"
        "    sys.modules[name].__path__ = [path]\n"
        "from latentzoo.inference.data.adapt import adapt\n"
        "adapt(torch.ones(3, 2)); adapt([1, 2])\n"
        "assert not {'pandas', 'sklearn', 'scipy'} & sys.modules.keys()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(root), str(root / "inference")], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


def test_iris_is_that_of_scikit_learn() -> None:
    pd.testing.assert_frame_equal(load_bundled("iris"), load_iris(as_frame=True)["data"], check_exact=True)
