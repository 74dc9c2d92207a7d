"""Whatever a user has becomes tensors, or one plain line says why not."""

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentzoo.inference import arrays
from latentzoo.inference.bundled import BUNDLED, load_bundled
from latentzoo.inference.data import (
    DataError,
    Schema,
    adapt,
    is_missing,
    map_tensors,
    num_rows,
    slice_rows,
    template,
)

NAN = float("nan")


class Pairs(NamedTuple):
    x: Any
    label: Any
    size: Any = None


@dataclasses.dataclass(frozen=True)
class Corpus:
    tokens: Any
    documents: Any
    vocabulary: Any = None


def mixed_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "size": pd.Categorical(["small", "large", None, "small"], categories=["small", "medium", "large"]),
            "colour": ["red", "blue", "red", None],
            "weight": [1.5, NAN, 2.5, 0.5],
            "count": [3, 1, 2, 7],
            "old": [True, False, True, True],
        }
    )


def says(message: str, *parts: str) -> None:
    assert "\n" not in message
    for part in parts:
        assert part in message, message


# -- arrays and tensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.int32, torch.uint8])
def test_a_tensor_is_kept(dtype: torch.dtype) -> None:
    x = torch.ones(4, 2, dtype=dtype)
    dataset = adapt(x)
    assert dataset.values is x
    assert dataset.schema == Schema(None, {}, "tensor", 2)
    assert dataset.schema.decode(x) is x
    assert adapt(dataset) is dataset


@pytest.mark.parametrize(
    ("met", "kept"),
    [
        (torch.bool, torch.int64),
        (torch.float16, torch.float32),
        (np.bool_, torch.int64),
        (np.uint8, torch.int64),
        (np.uint64, torch.int64),
        (np.int16, torch.int64),
        (np.float16, torch.float32),
        (np.longdouble, torch.float64),
        (np.dtype(">f8"), torch.float64),
        (np.dtype(">i4"), torch.int32),
    ],
)
def test_dtypes_that_are_converted(met: Any, kept: torch.dtype) -> None:
    ones = [[1, 0], [1, 1]]
    values = adapt(torch.tensor(ones, dtype=met) if isinstance(met, torch.dtype) else np.array(ones, met)).values
    assert values.dtype == kept
    assert values.tolist() == ones


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_an_array_is_not_copied(dtype: Any) -> None:
    x = np.ones((5, 3), dtype)
    dataset = adapt(x[1:, ::2])
    assert dataset.values.data_ptr() == x[1:].ctypes.data
    assert dataset.values.shape == (4, 2)
    assert isinstance(dataset.schema.decode(dataset.values), np.ndarray)
    assert dataset.schema.container == "array"


def test_arrays_that_torch_cannot_step_through_are_copied() -> None:
    x = np.arange(6.0).reshape(3, 2)
    assert adapt(x[::-1]).values.tolist() == [[4, 5], [2, 3], [0, 1]]
    records = np.array([(1, 2.0), (3, 4.0)], np.dtype([("a", "i1"), ("b", "f8")]))
    assert adapt(records["b"]).values.tolist() == [2, 4]
    assert adapt(np.ma.masked_equal([[1, 2], [3, 4]], 2)).values.nan_to_num(nan=-1).tolist() == [[1, -1], [3, 4]]


@pytest.mark.parametrize(
    ("data", "dtype"), [([[1, 2], [3, 4]], torch.int64), ([1.5, 2], torch.float64), ((True, False), torch.int64)]
)
def test_lists_of_numbers(data: Any, dtype: torch.dtype) -> None:
    dataset = adapt(data)
    assert dataset.values.dtype == dtype
    assert dataset.values.tolist() == np.array(data).tolist()
    assert dataset.schema.container == "array"


def test_a_read_only_memory_map_is_neither_copied_nor_walked_in_one_step(tmp_path: Path) -> None:
    """Nothing made while adapting is larger than a chunk, whether or not cells are missing."""
    x = np.ones((3 * arrays.CHUNK // 4, 16))
    x[arrays.CHUNK // 2, 3] = NAN
    np.save(tmp_path / "x.npy", x)
    made: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            own = isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() != mapped.ctypes.data
            made.append(out.numel() if own else 0)
            return out

    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # torch otherwise warns of read-only arrays once, and never again
    try:
        with Watch():
            values = adapt(mapped).values
            assert is_missing(values)
    finally:
        torch.set_warn_always(always)
    assert values.data_ptr() == mapped.ctypes.data
    assert len(made) > 2 * len(x) * 16 // arrays.CHUNK
    assert max(made) <= arrays.CHUNK
    assert torch.equal(values.nan_to_num(), torch.from_numpy(x).nan_to_num())
    assert adapt(tmp_path / "x.npy").values.shape == x.shape


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (np.ones((2, 2), complex), ["complex128", "real"]),
        (torch.ones(2, dtype=torch.complex64), ["complex64", "real"]),
        (torch.ones(2, 2).to_sparse(), ["sparse", ".to_dense()"]),
        (scipy.sparse.eye_array(3, format="csr"), ["sparse", ".toarray()"]),
        (scipy.sparse.csr_matrix(np.eye(3)), ["sparse", ".toarray()"]),
        (np.array(["a", "b"]), ["dtype <U1", "DataFrame"]),
        (np.array([1, "b"], object), ["dtype object", "DataFrame"]),
        (["a", "b"], ["dtype <U1", "DataFrame"]),
        ([[1, 2], [3]], ["unequal lengths", "NaN"]),
        (np.array(["2020-01-01"], "M8[D]"), ["datetime64"]),
        (np.array([2**63], np.uint64), [str(2**63), "64 bits"]),
        ({"a": [1]}, ["builtins.dict", "expected a tensor"]),
        (torch.tensor(1.0), ["single number", "(N, D)"]),
        (np.zeros((0, 3)), ["(0, 3)", "no rows"]),
        (torch.zeros(3, 0), ["(3, 0)", "no columns"]),
        ([], ["no rows"]),
        (pd.DataFrame({"a": []}), ["no rows"]),
        (pd.DataFrame(index=range(3)), ["no columns"]),
        (torch.tensor([[0, 1.0], [2, 3], [4, -np.inf]]), ["-inf", "column 1", "row 2"]),
        (torch.tensor([0, np.inf]), ["inf", "row 1"]),
        (pd.DataFrame({"a": [1.0, 2], "b": [0, np.inf]}), ["inf", "column 'b'", "row 1"]),
        (np.array([[1, NAN], [2, NAN]]), ["column 1", "only missing"]),
        (np.array([NAN, NAN]), ["only missing"]),
        (np.array([[NAN, NAN]]), ["only missing"]),
        (pd.DataFrame({"a": [1.0, 2], "b": [None, None]}), ["column 'b'", "only missing"]),
        (Pairs(torch.ones(2), torch.tensor([0, np.inf])), ["data.label", "inf", "row 1"]),
        (Pairs(torch.ones(2), {}), ["data.label", "dict"]),
        (Pairs(1.0, 2.0), ["Pairs", "no field"]),
        (Pairs(pd.DataFrame({"c": ["u", "v"]}), None), ["data.x", "column 'c'", "codes"]),
    ],
)
def test_what_cannot_be_taken(data: Any, parts: list[str]) -> None:
    with pytest.raises(DataError) as error:
        adapt(data)
    says(str(error.value), "data", *parts)


def test_infinite_cells_are_found_in_any_chunk_and_dim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "CHUNK", 12)
    x = torch.zeros(50, 3, 2)
    x[:, 0, 0] = NAN
    adapt(x)  # of the last dim no column is all missing
    x[33, 2, 1] = np.inf
    with pytest.raises(DataError, match=r"met inf in column 1, row 33 "):
        adapt(x)
    assert is_missing(x)
    assert not is_missing(x[:, 1])


def test_one_row_may_be_a_sequence_with_gaps() -> None:
    assert is_missing(adapt(np.array([[1, NAN, 2]])).values)


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_table_becomes_numbers_and_codes_and_back() -> None:
    frame = mixed_frame()
    dataset = adapt(frame)
    expected = [[0, 1, 1.5, 3, 1], [2, 0, NAN, 1, 0], [NAN, 1, 2.5, 2, 1], [0, NAN, 0.5, 7, 1]]
    assert dataset.values.dtype == torch.float64
    torch.testing.assert_close(dataset.values, torch.tensor(expected, dtype=torch.float64), equal_nan=True)
    labels = {"size": ("small", "medium", "large"), "colour": ("blue", "red"), "old": ("False", "True")}
    columns = ("size", "colour", "weight", "count", "old")
    assert dataset.schema == Schema(columns, labels, "frame", 5, ("count",))
    back = dataset.schema.decode(dataset.values)
    pd.testing.assert_frame_equal(back, frame.assign(colour=pd.Categorical(frame["colour"], ["blue", "red"])))
    assert torch.equal(adapt(back, dataset.schema).values.nan_to_num(), dataset.values.nan_to_num())


def test_a_table_without_fractions_is_int64() -> None:
    values = adapt(pd.DataFrame({"a": [1, 2], "b": ["u", "v"]})).values
    assert values.dtype == torch.int64
    assert values.tolist() == [[1, 0], [2, 1]]
    assert adapt(pd.DataFrame({"a": [1, 2], "b": [0.5, 1]})).values.dtype == torch.float64


@pytest.mark.parametrize(
    ("column", "codes", "labels"),
    [
        (pd.array([1, None], "Int64"), [1, NAN], None),
        (pd.array([1.5, None], "Float64"), [1.5, NAN], None),
        (pd.array([True, None], "boolean"), [1, NAN], ("False", "True")),
        (pd.array(["b", None, "a"], "string"), [1, NAN, 0], ("a", "b")),
        (pd.Series([True, None], dtype=object), [1, NAN], ("False", "True")),
        (pd.Series([1, None, 2.5], dtype=object), [1, NAN, 2.5], None),
        (pd.Series([Decimal("0.5"), Decimal(2)]), [0.5, 2], None),
        (pd.Series([2, "a"], dtype=object), [0, 1], ("2", "a")),
        (pd.Series([3.0, 1.0, NAN]).astype("category"), [1, 0, NAN], ("1", "3")),
        (pd.Series(["z", "a"], dtype=pd.CategoricalDtype(["z", "a", "m"])), [0, 1], ("z", "a", "m")),
    ],
)
def test_columns(column: Any, codes: list[float], labels: tuple[str, ...] | None) -> None:
    dataset = adapt(pd.DataFrame({"a": column}))
    np.testing.assert_array_equal(dataset.values[:, 0].numpy(), codes)
    assert dataset.schema.labels == ({} if labels is None else {"a": labels})
    again = adapt(dataset.schema.decode(dataset.values), dataset.schema)
    np.testing.assert_array_equal(again.values[:, 0].numpy(), codes)


@pytest.mark.parametrize(
    ("column", "parts"),
    [
        (pd.to_datetime(["2020-01-01"]), ["'when'", "datetime64"]),
        (pd.to_timedelta([1], "D"), ["'when'", "timedelta64"]),
        (pd.period_range("2020", periods=1, freq="D"), ["'when'", "Period"]),
        ([Path("a")], ["'when'", "PosixPath"]),
        ([1j], ["'when'", "complex"]),
    ],
)
def test_columns_that_cannot_be_taken(column: Any, parts: list[str]) -> None:
    with pytest.raises(DataError) as error:
        adapt(pd.DataFrame({"a": [1], "when": column}))
    says(str(error.value), *parts)


def test_columns_of_one_name() -> None:
    with pytest.raises(DataError, match=r"one name, 'a'"):
        adapt(pd.DataFrame([[1, 2]], columns=["a", "a"]))


def test_a_series_is_one_dimensional() -> None:
    dataset = adapt(pd.Series([3, 1, 2], name="n"))
    assert dataset.values.tolist() == [3, 1, 2]
    assert dataset.schema == Schema(("n",), {}, "frame", None, ("n",))
    pd.testing.assert_series_equal(dataset.schema.decode(dataset.values), pd.Series([3, 1, 2], name="n"))
    assert adapt(pd.Series([1.0])).schema.columns == ("value",)
    assert adapt(pd.Series([9], name="other"), dataset.schema).values.tolist() == [9]
    assert adapt(pd.DataFrame({"m": [0], "n": [5]}), dataset.schema).values.tolist() == [5]


def test_decode_gives_numbers_where_values_are_no_codes_any_more() -> None:
    schema = adapt(pd.DataFrame({"a": ["u", "v"], "n": [1, 2]})).schema
    back = schema.decode(torch.tensor([[0.25, 1.5], [1, 2]]))
    assert back["a"].tolist() == [0.25, 1]
    assert back["n"].tolist() == [1.5, 2]
    assert schema.decode(torch.tensor([[2.0, 1]]))["a"].tolist() == [2]  # beyond the codes
    half = adapt(pd.DataFrame({"b": [True, False]})).schema.decode(torch.tensor([[1.0], [NAN]]))
    assert half["b"].dtype == "boolean"
    assert half["b"].tolist() == [True, pd.NA]
    for wrong in (torch.ones(2), torch.ones(2, 3)):
        with pytest.raises(DataError, match=r"decode: met shape .* expected \(N, 2\) for columns 'a', 'n'"):
            schema.decode(wrong)


def test_schema_goes_through_json() -> None:
    for data in (mixed_frame(), torch.ones(3), [1, 2], Pairs(torch.ones(2), None), pd.Series([1])):
        schema = adapt(data).schema
        assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


# -- after training ----------------------------------------------------------------------------------------------------


def test_a_table_met_later_is_matched_by_name_and_coded_as_in_training() -> None:
    schema = adapt(mixed_frame()).schema
    later = pd.DataFrame(
        {"extra": ["?"], "old": [True], "count": [9], "weight": [None], "colour": ["red"], "size": ["large"]}
    )
    dataset = adapt(later, schema)
    np.testing.assert_array_equal(dataset.values.numpy(), [[2, 1, NAN, 9, 1]])
    assert dataset.schema == schema
    np.testing.assert_array_equal(adapt(adapt(later), schema).values.numpy(), dataset.values.numpy())


def test_bare_numbers_are_taken_as_codes() -> None:
    schema = adapt(mixed_frame()).schema
    dataset = adapt(np.array([[2, NAN, 0.5, 4, 1]]), schema)
    assert dataset.schema == dataclasses.replace(schema, container="array")
    with pytest.raises(
        DataError, match=r"column 'colour' holds 2.0, expected codes 0 to 1 of its labels 'blue', 'red'"
    ):
        adapt([[0, 2, 0.5, 4, 1]], schema)
    with pytest.raises(DataError, match=r"column 'size' holds 0.5"):
        adapt([[0.5, 0, 0.5, 4, 1]], schema)
    labels_as_numbers = adapt(pd.DataFrame({"a": pd.Categorical([0, 1])})).schema
    assert adapt(pd.DataFrame({"a": [1.0, NAN]}), labels_as_numbers).values[0].tolist() == [1]


@pytest.mark.parametrize(
    ("trained", "met", "parts"),
    [
        (torch.ones(3, 2), torch.ones(3, 4), ["met 4 columns", "expected 2 columns"]),
        (torch.ones(3, 2), torch.ones(3), ["met 1-D", "expected 2 columns"]),
        (torch.ones(3), torch.ones(3, 1), ["met 1 column", "expected 1-D"]),
        (pd.DataFrame({"a": [1], "b": [2]}), torch.ones(3, 3), ["met 3 columns", "2 columns ('a', 'b')"]),
        (pd.DataFrame({"a": [1], "b": [2]}), pd.DataFrame({"a": [1], "c": [1]}), ["no column 'b'", "'a', 'b'"]),
        (pd.DataFrame({"a": [1], "b": [2]}), pd.Series([1], name="a"), ["no column 'b'"]),
        (pd.DataFrame({"a": ["u", "v"]}), pd.DataFrame({"a": ["w"]}), ["'a'", "'w'", "not seen", "'u', 'v'"]),
        (pd.DataFrame({"a": ["u", "v"]}), pd.DataFrame({"a": [0]}), ["'a'", "'0'", "'u', 'v'"]),
        (pd.DataFrame({"a": [1.0, 2]}), pd.DataFrame({"a": ["w"]}), ["'a'", "labels ('w')", "numbers"]),
        (torch.ones(3, 1), pd.DataFrame({"a": ["w"]}), ["'a'", "labels", "numbers"]),
        (Pairs(torch.ones(2), None), torch.ones(2), ["met a tensor", "expected a structure"]),
        (torch.ones(2), Pairs(torch.ones(2), None), ["met a structure", "expected a tensor"]),
        (torch.ones(2), torch.tensor([np.inf]), ["inf", "row 0"]),
    ],
)
def test_data_that_do_not_fit_the_training_data(trained: Any, met: Any, parts: list[str]) -> None:
    with pytest.raises(DataError) as error:
        adapt(met, adapt(trained).schema)
    says(str(error.value), *parts)


def test_a_column_may_be_missing_altogether_after_training() -> None:
    schema = adapt(pd.DataFrame({"a": [1.0, 2], "b": ["u", "v"]})).schema
    values = adapt(pd.DataFrame({"a": [None, None], "b": [None, "v"]}, dtype=object), schema).values
    np.testing.assert_array_equal(values.numpy(), [[NAN, NAN], [NAN, 1]])
    assert adapt(pd.DataFrame({"a": pd.array([None], "string"), "b": ["u"]}), schema).values[0, 0].isnan()


# -- structures and rows -----------------------------------------------------------------------------------------------


def test_structures_of_arrays_become_structures_of_tensors() -> None:
    pairs = adapt(Pairs(np.ones((3, 2), np.float32), [0, 1, 1], size=3)).values
    assert isinstance(pairs, Pairs)
    assert pairs.x.dtype == torch.float32
    assert pairs.label.tolist() == [0, 1, 1]
    assert pairs.size == 3
    dataset = adapt(Corpus(pd.Series([5, 6, 7, 8]), torch.tensor([0, 0, 1, 1])))
    assert dataset.values.tokens.tolist() == [5, 6, 7, 8]
    assert dataset.values.vocabulary is None
    assert dataset.schema == Schema(None, {}, "structure", None)
    assert dataset.schema.decode(dataset.values) is dataset.values
    assert adapt(dataset.values, dataset.schema).values == dataset.values


def test_rows_of_tensors_and_structures() -> None:
    x = torch.arange(6.0).reshape(3, 2)
    corpus = Corpus(x, torch.tensor([4, 5, 6]), vocabulary=torch.ones(2))
    assert num_rows(x) == num_rows(corpus) == num_rows(Pairs(3, x)) == 3
    assert slice_rows(x, slice(1, 3)).tolist() == [[2, 3], [4, 5]]
    picked = slice_rows(corpus, torch.tensor([2, 0]))
    assert picked.tokens.tolist() == [[4, 5], [0, 1]]
    assert picked.documents.tolist() == [6, 4]
    assert picked.vocabulary is corpus.vocabulary
    assert template(corpus, 5).documents.tolist() == [4, 5, 6, 4, 5]
    assert template(x, 2).tolist() == [[0, 1], [2, 3]]
    halves = map_tensors(lambda tensor: tensor / 2, Pairs(x, None, 7))
    assert torch.equal(halves.x, x / 2)
    assert halves[1:] == (None, 7)
    assert not is_missing(corpus)
    assert is_missing(Corpus(x, torch.tensor([NAN])))
    assert not is_missing(torch.tensor([np.inf, -np.inf]))  # their sum is NaN


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "X.CSV"])
@pytest.mark.parametrize("kind", [str, Path])
def test_csv(tmp_path: Path, name: str, kind: Callable[[Path], Any]) -> None:
    text = "# a source\n# a note\na,b,c\n1,C#,0.5\n# between\n2,,\n"
    pd.io.common.get_handle(tmp_path / name, "w").close()
    with pd.io.common.get_handle(tmp_path / name, "w", compression="gzip" if name.endswith("gz") else None) as out:
        out.handle.write(text)
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
    frame = mixed_frame()
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
    with pytest.raises(DataError, match="no file '.*absent.csv'"):
        adapt(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="no file 'irises', nor a bundled data set of that name; there are iris, wine"):
        adapt("irises")


# -- bundled -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUNDLED)
def test_every_bundled_set_has_the_size_it_is_said_to_have(name: str) -> None:
    frame = load_bundled(name)
    dataset = adapt(name)
    assert dataset.values.shape == frame.shape
    assert not is_missing(dataset.values)
    assert str(len(frame)) == BUNDLED[name].split()[0]
    widths = re.findall(r"(\d+) (?:lengths|chem|pixels|meas|exer|path|questions)", BUNDLED[name])
    assert widths in ([], [str(frame.shape[1])])


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
    root = Path(arrays.__file__).parents[1]
    program = (
        "import sys, types, torch\n"
        "package = types.ModuleType('latentzoo'); package.__path__ = [sys.argv[1]]; sys.modules['latentzoo'] = package\n"
        "inner = types.ModuleType('latentzoo.inference'); inner.__path__ = [sys.argv[1] + '/inference']\n"
        "sys.modules['latentzoo.inference'] = inner\n"
        "from latentzoo.inference.data import adapt\n"
        "adapt(torch.ones(3, 2)); adapt([1, 2])\n"
        "assert not {'pandas', 'sklearn', 'scipy'} & sys.modules.keys()\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(root)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
