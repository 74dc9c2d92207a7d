"""Arrays, tensors and structures of them become rows of tensors, or one plain line says why not."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentzoo.inference.base.errors import DataError
from latentzoo.inference.data import structures as arrays
from latentzoo.inference.data.adapt import adapt
from latentzoo.inference.data.schema import Schema
from latentzoo.inference.data.structures import is_missing, map_tensors, num_rows, slice_rows, template
from latentzoo.inference.data.tables import read

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


def says(message: str, *parts: str) -> None:
    assert "\n" not in message
    for part in parts:
        assert part in message, message


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
    record = np.array([(1.5, 2)], np.dtype([("a", "f8"), ("b", "i1")]))
    assert adapt(record["a"]).values.tolist() == [1.5]
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
    assert isinstance(read(tmp_path / "x.npy"), np.memmap)
    assert adapt(tmp_path / "x.npy").values.shape == x.shape


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (np.ones((2, 2), complex), ["complex128", "real"]),
        (torch.ones(2, dtype=torch.complex64), ["complex64", "real"]),
        (np.array(["a", "b"]), ["dtype <U1", "DataFrame"]),
        (np.array([1, "b"], object), ["dtype object", "DataFrame"]),
        (["a", "b"], ["dtype <U1", "DataFrame"]),
        ([[1, 2], [3]], ["unequal lengths", "NaN"]),
        (np.array(["2020-01-01"], "M8[D]"), ["datetime64"]),
        (np.array([2**63], np.uint64), [str(2**63), "64 bits"]),
        ({1.0, 2.0}, ["builtins.set", "expected a tensor"]),
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
