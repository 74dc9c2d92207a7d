"""Long tables: several rows of the table are one row of the model."""

import time

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from latentzoo import Pair, zoo
from latentzoo.inference.base.errors import DataError
from latentzoo.inference.data.adapt import adapt
from latentzoo.inference.data.schema import Schema

NAN = float("nan")
TABLE = pd.DataFrame(
    {"word": ["b", "a", "b", "a", None], "count": [3, 1, 2, 5, 4], "page": ["p10", "p2", "p2", "p10", "p3"]}
)


def test_groups_are_padded_and_in_order():
    found = adapt(TABLE, by="page")
    expected = [[[1.0, 3.0], [0.0, 5.0]], [[0.0, 1.0], [1.0, 2.0]], [[NAN, 4.0], [NAN, NAN]]]
    np.testing.assert_array_equal(found.values.numpy(), expected)
    assert found.names.tolist() == ["p10", "p2", "p3"]
    assert found.schema == Schema(("word", "count"), {"word": ("a", "b")}, "frame", 2, ("count",), "page")


def test_the_first_column_where_none_has_the_name():
    found = adapt(TABLE[["page", "word"]], by="document")
    assert found.schema.by == "page"
    again = adapt(TABLE[["word", "page"]], found.schema, by="document")
    np.testing.assert_array_equal(again.values, found.values)


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray, lambda x: x.tolist()])
def test_arrays_have_it_first(kind):
    table = np.array([[7.0, 1.5, 0.0], [2.0, NAN, 1.0], [7.0, 2.5, 3.0]])
    found = adapt(kind(table), by="item")
    np.testing.assert_array_equal(found.values, [[[NAN, 1.0], [NAN, NAN]], [[1.5, 0.0], [2.5, 3.0]]])
    assert found.names.tolist() == [2, 7]
    back = found.schema.decode(found.values, found.names)
    assert isinstance(back, torch.Tensor if kind is torch.as_tensor else np.ndarray)
    np.testing.assert_array_equal(back, table[[1, 0, 2]])


def test_groups_that_are_padded_already_stay():
    values = adapt(TABLE, by="page").values
    found = adapt(values, by="page")
    assert found.values is values
    assert found.names is None
    assert found.schema.decode(found.values) is values


def test_there_and_back():
    found = adapt(TABLE, by="page")
    back = found.schema.decode(found.values, found.names)
    assert list(back.columns) == ["page", "word", "count"]
    assert back["count"].tolist() == [3, 5, 1, 2, 4]
    assert back["count"].dtype.kind == "i"
    assert back.page.tolist() == ["p10", "p10", "p2", "p2", "p3"]
    assert back.word.isna().tolist() == [False] * 4 + [True]
    pd.testing.assert_frame_equal(found.schema.decode(adapt(back, found.schema).values, found.names), back)
    assert Schema.from_json(found.schema.to_json()) == found.schema


def test_values_in_the_order_that_is_theirs():
    frame = pd.DataFrame({"item": [10, 9, 100, 9], "x": [1, 2, 3, 4]})
    assert adapt(frame, by="item").names.tolist() == [9, 10, 100]
    assert adapt(frame.astype({"item": float}), by="item").names.tolist() == [9, 10, 100]
    days = pd.Categorical(["tue", "mon", "tue", "wed"], ["mon", "tue", "wed"])
    assert adapt(frame.assign(item=days), by="item").names.tolist() == ["mon", "tue", "wed"]
    mixed = adapt(frame.assign(item=pd.Series([1, "b", 2, "a"], dtype=object)), by="item")
    assert mixed.names.tolist() == [1, 2, "a", "b"]


def test_rows_keep_their_order_within_a_group():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"item": rng.integers(0, 40, 1000), "x": np.arange(1000)})
    found = adapt(frame, by="item")
    for name, group in zip(found.names, found.values[..., 0], strict=True):
        assert group[~group.isnan()].tolist() == frame.x[frame.item == name].tolist()


def test_files_and_names_of_bundled_data(tmp_path):
    TABLE.to_csv(tmp_path / "x.csv", index=False)
    np.testing.assert_array_equal(adapt(tmp_path / "x.csv", by="page").values, adapt(TABLE, by="page").values)
    assert adapt("anesthesia", by="item").values.shape == (45, 7, 2)


def test_half_a_million_rows_take_no_time():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"item": rng.integers(0, 100_000, 500_000), "x": rng.integers(0, 9, 500_000)})
    times = []
    for _ in range(3):
        start = time.perf_counter()
        adapt(table, by="item")
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TABLE[["page"]], "met columns 'page', expected a long table: 'page', whose values say"),
        (TABLE.assign(page=["a", None, "b", "b", "a"]), "column 'page' is missing in row 1: say what the row"),
        (np.arange(4), r"met shape \(4,\), expected a long table: a first column 'page'"),
        (np.ones((4, 1)), "expected a long table: a first column 'page'"),
        (TABLE.iloc[:0], "which has no rows"),
        (TABLE.assign(count=np.inf), "met inf in column 'count', row 0"),
    ],
)
def test_bad_tables(data, message):
    with pytest.raises(DataError, match=message):
        adapt(data, by="page")


def test_columns_of_training_are_asked_for():
    schema = adapt(TABLE, by="page").schema
    with pytest.raises(DataError, match="met no column 'count'"):
        adapt(TABLE[["page", "word"]], schema)
    with pytest.raises(DataError, match="label 'z', which was not seen in training"):
        adapt(TABLE.assign(word="z"), schema)


# --- a model of one's own: documents of words, each document on one topic -------------------------------------------


def topics(x):
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
    words = pyro.param("words", torch.ones(2, 4) / 4, constraint=constraints.simplex)
    with pyro.plate("data", len(x)):
        topic = pyro.sample("topic", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("word", dist.Categorical(words[topic.unsqueeze(-1)]).to_event(1), obs=x[..., 0])


def start(x, generator):
    return {"words": torch.rand(2, 4, generator=generator).softmax(-1)}


@pytest.fixture
def corpus():
    rng = np.random.default_rng(0)
    words = np.array(["cell", "gene", "goal", "team"])
    rows = [(f"d{d:02d}", words[2 * (d % 2) + rng.integers(0, 2)]) for d in range(40) for _ in range(1 + d % 6)]
    return pd.DataFrame(rows, columns=["document", "word"])


def test_a_pair_of_ones_own_with_one_column(corpus):
    fit = zoo.fit(Pair(topics, initialize=start, by="document"), corpus, restarts=5)
    chance = fit.latents()["topic"]
    assert chance.shape == (40, 2)
    assert len(set(chance[::2].argmax(-1).tolist())) == len(set(chance[1::2].argmax(-1).tolist())) == 1
    assert fit.score(corpus[corpus.document == "d07"]).item() == pytest.approx(fit.score()[7].item())
    drawn = fit.generate(12, seed=0)
    assert drawn.groupby("document").size().tolist() == [1 + d % 6 for d in range(12)]  # as long as those of the data


def test_missing_cells_are_filled_in_and_padding_is_not(corpus):
    fit = zoo.fit(Pair(topics, initialize=start, by="document"), corpus.assign(length=1.0), restarts=5)
    gone = corpus.index == 5
    gaps = corpus.assign(length=1.0, word=corpus.word.mask(gone))
    filled = fit.impute(gaps)
    assert filled.shape == gaps.shape
    assert filled.document.tolist() == corpus.document.tolist()
    assert not filled.word.isna().any()
    assert filled.word[~gone].tolist() == corpus.word[~gone].tolist()
    again = fit.reconstruct(gaps)
    assert again.shape == gaps.shape
    assert again.document.tolist() == corpus.document.tolist()


def test_starts_that_are_yielded(corpus):
    seen = []

    def yielding(x, generator):
        seen.append("asked")
        yield {"words": torch.tensor([[0.4, 0.4, 0.1, 0.1], [0.1, 0.1, 0.4, 0.4]])}
        yield {"words": torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.4, 0.4, 0.1, 0.1]])}

    pair = Pair(topics, initialize=yielding, by="document")
    fit = zoo.fit(pair, corpus, restarts=4, tol=1e-12)
    assert seen == ["asked"]
    assert len(fit.mode_map.bounds) == 4
    first, second, *jittered = fit.mode_map.bounds
    assert first == pytest.approx(second, rel=1e-10)  # the labels change places
    assert np.isfinite(jittered).all()


def test_by_is_the_name_of_a_column():
    with pytest.raises(TypeError, match="by must be the name of a column, met int"):
        Pair(topics, by=3)
