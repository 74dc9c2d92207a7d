"""Tables become numbers and codes, and back; what is met later is read as in training."""

import dataclasses
import json
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from latentzoo.inference.base.errors import DataError
from latentzoo.inference.data.adapt import adapt
from latentzoo.inference.data.schema import Schema

NAN = float("nan")


class Pairs(NamedTuple):
    x: Any
    label: Any
    size: Any = None


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
