"""Raters and items: the published table of 1979, EM by hand, and what may be wrong with a table of ratings."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from latentzoo import em, zoo
from latentzoo.inference.base.errors import DataError, OptionError
from latentzoo.inference.data.bundled.tables import load_bundled

BETTER, PUBLISHED = -191.5689, -192.890881


def ratings(seed=0, items=200, raters=8, labels=3, most=6):
    """Ratings simulated from known errors: each item rated up to `most` times, by some raters twice."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, labels, items)
    item = np.repeat(np.arange(items), rng.integers(1, most + 1, items))
    rater = rng.integers(0, raters, len(item))
    right = rng.random(len(item)) < rng.uniform(0.5, 0.95, raters)[rater]
    label = np.where(right, truth[item], rng.integers(0, labels, len(item)))
    return pd.DataFrame({"item": item, "rater": rater, "label": label}), truth


def by_hand(table, iterations, strength=0.0, expected=0.7):
    """EM as the paper has it, equations 2.3 to 2.5, with loops over the ratings; log-likelihoods, then what it ends
    with."""
    items, raters, labels = (int(table[name].max()) + 1 for name in ("item", "rater", "label"))
    triples = table.to_numpy().astype(int)
    prior = strength * np.where(np.eye(labels) > 0, expected, (1 - expected) / (labels - 1))
    chance = np.zeros((items, labels))
    for i, _, x in triples:
        chance[i, x] += 1
    chance /= chance.sum(1, keepdims=True)
    bounds = []
    for _ in range(iterations + 1):
        shares = chance.mean(0)
        errors = np.tile(prior, (raters, 1, 1))
        for i, j, x in triples:
            errors[j, :, x] += chance[i]
        errors /= errors.sum(2, keepdims=True)
        log_joint = np.tile(np.log(shares), (items, 1))
        for i, j, x in triples:
            log_joint[i] += np.log(np.maximum(errors[j, :, x], 1e-300))
        evidence = np.logaddexp.reduce(log_joint, 1)
        chance = np.exp(log_joint - evidence[:, None])
        bounds.append(evidence.sum())
    return np.array(bounds), shares, errors, chance


# --- the paper --------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(shared_data):
    """The table as it is kept beside the checkout, in codes from 0; and what the paper printed."""
    table = pd.read_csv(shared_data("dawid_skene_anesthesia.csv"), comment="#")
    table = table[["patient", "observer", "rating"]] - [0, 1, 1]
    return table, json.loads(shared_data("published_dawid_skene_1979.json").read_text())


def test_from_the_majority_vote_em_ends_where_the_paper_does(published):
    table, paper = published
    fit = em(zoo.create("dawid_skene"), table)
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(PUBLISHED, abs=1e-5)
    errors = [paper["error_rates_true_by_observed"][number] for number in "12345"]
    np.testing.assert_allclose(fit.params["weights"], paper["class_probabilities"], atol=0.01)
    np.testing.assert_allclose(fit.params["confusion"], errors, atol=0.01)
    chance = fit.latents()["z"]
    for patient, probs in paper["patient_class_posteriors_nontrivial"].items():
        np.testing.assert_allclose(chance[int(patient) - 1], probs, atol=0.01)


def test_random_starts_reach_a_better_optimum_than_the_published_one(published):
    fit = em(zoo.create("dawid_skene"), published[0], restarts=200)
    bounds = [mode.bound for mode in fit.mode_map]
    assert bounds[0] == pytest.approx(BETTER, abs=1e-4)
    assert min(abs(bound - PUBLISHED) for bound in bounds) < 1e-5
    assert fit.mode_map.bounds[0] == pytest.approx(PUBLISHED, abs=1e-5)  # the first start is the majority vote


def test_the_bundled_table_is_the_published_one(published):
    table = load_bundled("anesthesia")
    codes = table.assign(rater=table.rater.cat.codes, label=table.label.cat.codes)
    ours, theirs = (frame.to_numpy().tolist() for frame in (codes, published[0]))
    assert sorted(ours) == sorted(theirs)
    assert len(table) == 315


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_every_iteration_is_that_of_the_paper():
    table, _ = ratings()
    bounds, shares, errors, chance = by_hand(table, 12)
    fit = em(zoo.create("dawid_skene"), table, max_iters=12, tol=0)
    np.testing.assert_allclose(fit.history, bounds, rtol=1e-10)
    np.testing.assert_allclose(fit.params["weights"], shares, atol=1e-9)
    np.testing.assert_allclose(fit.params["confusion"], errors, atol=1e-8)
    np.testing.assert_allclose(fit.latents()["z"], chance, atol=1e-8)


def test_hierarchical_adds_the_labels_of_the_population():
    table, _ = ratings(1)
    bounds, shares, errors, _ = by_hand(table, 60, strength=4.0, expected=0.8)
    pair = zoo.create("dawid_skene", variant="hierarchical", strength=4.0, expected=0.8)
    fit = em(pair, table, max_iters=60, tol=0)
    assert fit.log_likelihood == pytest.approx(bounds[-1], rel=1e-9)
    np.testing.assert_allclose(fit.params["confusion"], errors, atol=1e-7)
    np.testing.assert_allclose(fit.params["weights"], shares, atol=1e-7)


def test_one_coin_ends_at_the_expected_share_of_right_labels():
    table, _ = ratings(2)
    fit = em(zoo.create("dawid_skene", variant="one_coin"), table, tol=1e-13)
    chance = fit.latents()["z"].numpy()
    table = table.assign(right=chance[table.item, table.label])
    np.testing.assert_allclose(fit.params["accuracy"], table.groupby("rater").right.mean(), atol=1e-5)
    np.testing.assert_allclose(fit.params["weights"], chance.mean(0), atol=1e-6)


@pytest.mark.parametrize("variant", ["full", "one_coin", "hierarchical"])
def test_the_truth_is_found_more_often_than_by_vote(variant):
    table, truth = ratings(3, items=2000, raters=12)
    fit = em(zoo.create("dawid_skene", variant=variant), table)
    votes = pd.crosstab(table.item, table.label).to_numpy()
    assert (fit.clusters().numpy() == truth).mean() > (votes.argmax(1) == truth).mean() + 0.01


def test_missing_labels_are_left_out():
    table, _ = ratings(4)
    gone = np.arange(len(table)) % 7 == 0
    some = table.astype({"label": float}).mask(np.column_stack([np.zeros_like(gone)] * 2 + [gone]))
    start = em(zoo.create("dawid_skene"), table, max_iters=1, tol=0).params
    with_gaps = em(zoo.create("dawid_skene"), some, start=start, max_iters=9, tol=0)
    without = em(zoo.create("dawid_skene"), table[~gone], start=start, max_iters=9, tol=0)
    items = table.item.unique()
    kept = np.isin(items, table.item[~gone].unique())
    assert not kept.all()  # an item may be left without any label
    torch.testing.assert_close(with_gaps.score(some)[kept], with_gaps.score(table[~gone]))
    assert with_gaps.log_likelihood == pytest.approx(with_gaps.score(table[~gone]).sum().item(), rel=1e-12)
    lonely = with_gaps.latents()["z"][~torch.from_numpy(kept)]
    torch.testing.assert_close(lonely, with_gaps.params["weights"].expand_as(lonely))
    assert without.log_likelihood == pytest.approx(with_gaps.log_likelihood, rel=1e-2)


# --- what users do ----------------------------------------------------------------------------------------------------


def test_names_in_any_order_of_columns():
    table, _ = ratings(5)
    named = table.assign(rater="r" + table.rater.astype(str), label=np.array(["cat", "dog", "owl"])[table.label])
    codes = em(zoo.create("dawid_skene"), table)
    for columns in (["label", "item", "rater"], ["rater", "label", "item"]):
        fit = em(zoo.create("dawid_skene"), named.sample(frac=1, random_state=1)[columns])
        torch.testing.assert_close(fit.params["confusion"], codes.params["confusion"])
    other = named.rename(columns={"item": "photo", "rater": "worker", "label": "animal"})
    fit = em(zoo.create("dawid_skene"), other)
    torch.testing.assert_close(fit.params["confusion"], codes.params["confusion"])
    drawn = fit.generate(5, seed=1)
    assert list(drawn.columns) == ["photo", "worker", "animal"]
    assert drawn.photo.nunique() == 5
    assert set(drawn.animal) <= {"cat", "dog", "owl"}
    new = pd.DataFrame({"photo": ["b", "a", "a"], "worker": ["r1", "r2", "r1"], "animal": ["owl", "cat", "dog"]})
    assert fit.score(new).shape == (2,)
    assert fit.score(new)[0] < fit.score(new)[1]  # in order of the items; two labels are less likely than one


def test_rows_of_arviz_and_of_the_report_bear_the_names_of_the_items(tmp_path):
    from latentzoo.inference.io.report import write_report

    table, _ = ratings(6, items=30)
    table["item"] = "photo " + (100 + table.item).astype(str)
    fit = em(zoo.create("dawid_skene"), table)
    names = sorted(table.item.unique())
    assert fit.to_arviz().posterior.coords["data"].values.tolist() == names
    write_report(fit, tmp_path, ["bound"])
    assert pd.read_csv(tmp_path / "latents.csv").item.tolist() == names
    assert zoo.load(tmp_path).score(table).tolist() == fit.score().tolist()
    with pytest.raises(DataError, match="loaded from a folder, which holds no data, and new groups"):
        zoo.load(tmp_path).generate(3)


def test_a_rater_of_one_label_is_fitted():
    table, _ = ratings(7)
    table.loc[len(table)] = [3, 8, 1]
    for variant in ("full", "one_coin", "hierarchical"):
        fit = em(zoo.create("dawid_skene", variant=variant), table, restarts=3)
        assert fit.converged
        assert all(torch.isfinite(value).all() for value in fit.params.values())
        assert torch.isfinite(fit.score()).all()
        assert len(fit.params["accuracy" if variant == "one_coin" else "confusion"]) == 9


# --- bad tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": -1}, "column 'label' holds -1: expected codes 0, 1, ..., or text"),
        ({"label": 1.5}, "column 'label' holds 1.5: expected codes"),
        ({"rater": -2}, "column 'rater' holds -2: expected codes"),
        ({"rater": 0.5}, "column 'rater' holds 0.5: expected codes"),
        ({"rater": np.nan}, "column 'rater' is missing beside a label"),
        ({"item": np.nan}, "column 'item' is missing in row 5"),
        ({"label": np.inf}, "expected finite numbers"),
    ],
)
def test_wrong_cells(change, message):
    table = ratings()[0].astype(float)
    for name, value in change.items():
        table.loc[5, name] = value
    with pytest.raises(DataError, match=message):
        em(zoo.create("dawid_skene"), table)


def test_tables_that_tell_nothing_of_raters():
    table, _ = ratings()
    pair = zoo.create("dawid_skene")
    with pytest.raises(DataError, match="no item has two labels"):
        em(pair, table.drop_duplicates("item").assign(rater=0))  # one rater, who saw each item once
    with pytest.raises(DataError, match="expected a rating a row, of three columns: item, rater, label"):
        em(pair, table[["item", "label"]])
    with pytest.raises(DataError, match="expected a long table: 'item'"):
        em(pair, table[["label"]])
    with pytest.raises(DataError, match="expected a long table: a first column 'item'"):
        em(pair, np.arange(9.0))
    with pytest.raises(DataError, match="met only missing cells in column 'label'"):
        em(pair, table.assign(label=np.nan))


def test_one_rater_who_looked_several_times_is_enough():
    table, truth = ratings(8, items=400, raters=1, most=7)
    fit = em(zoo.create("dawid_skene"), table)
    assert fit.converged
    assert (fit.clusters().numpy() == truth).mean() > 0.6


def test_raters_and_labels_unseen_in_training():
    table, _ = ratings(9)
    fit = em(zoo.create("dawid_skene"), table)
    with pytest.raises(DataError, match="met rater 8: in training they were 0 to 7"):
        fit.score(table.assign(rater=table.rater + 1))
    with pytest.raises(DataError, match="expected one of the codes 0 to 2"):
        fit.score(table.assign(label=table.label + 1))
    named = em(zoo.create("dawid_skene"), table.assign(rater="r" + table.rater.astype(str)))
    with pytest.raises(DataError, match="'rater' holds label 'x', which was not seen in training"):
        named.score(table.assign(rater="x"))


def test_options():
    for wrong in ({"variant": "two_coin"}, {"strength": -1.0}, {"expected": 1.0}):
        with pytest.raises(OptionError, match=f"^{next(iter(wrong))}: met"):
            zoo.create("dawid_skene", **wrong)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_the_picture_shows_the_confusion_of_each_rater():
    fit = em(zoo.create("dawid_skene"), "anesthesia")
    figure = fit.plot()
    maps = [axes for axes in figure.axes if axes.get_title(loc="left").startswith("observer")]
    assert [axes.get_title(loc="left") for axes in maps][:2] == ["observer 1  (135 labels)", "observer 2  (45 labels)"]
    for axes, expected in zip(maps, fit.params["confusion"], strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), expected)
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "3", "4"]


def test_the_picture_leaves_out_the_least_active_raters():
    table, _ = ratings(10, items=400, raters=20)
    table = table[(table.rater != 4) | (table.index % 2 == 0)]
    fit = em(zoo.create("dawid_skene", variant="one_coin"), table)
    maps = [axes for axes in fit.plot("confusion").axes if axes.get_title(loc="left").startswith("rater")]
    order = table.rater.value_counts()
    assert len(maps) == 12
    assert f"rater {order.index[0]}  ({order.iloc[0]} labels)" == maps[0].get_title(loc="left")
    accuracy = fit.params["accuracy"][order.index[0]]
    np.testing.assert_allclose(np.diag(maps[0].images[0].get_array()), accuracy)
    with pytest.raises(OptionError, match="no column of categories depends on another column"):
        em(zoo.create("latent_class"), "carcinoma").plot("confusion")
