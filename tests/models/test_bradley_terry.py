"""Paired comparisons against published strengths, and against the minorisation of Hunter (2004) coded by hand."""

import numpy as np
import pandas as pd
import pytest
import torch

from latentzoo import zoo
from latentzoo.inference.base.errors import DataError
from latentzoo.inference.data.bundled.tables import load_bundled

TEAMS = ["Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore"]


def contests(rows, strength, tie=0.0, seed=0):
    """Codes (N, 3): two players, and 0, 1, 2 for a loss, a tie, a win of the first."""
    generator = np.random.default_rng(seed)
    first, gap = generator.integers(0, len(strength), rows), generator.integers(1, len(strength), rows)
    second = (first + gap) % len(strength)
    a, b = strength[first], strength[second]
    parts = np.stack([b, tie * np.sqrt(a * b), a], 1)
    share = (parts / parts.sum(1, keepdims=True)).cumsum(1)
    return np.stack([first, second, (generator.random((rows, 1)) > share).sum(1)], 1)


def log_likelihood(table, strength, tie=0.0):
    a, b = strength[table[:, 0]], strength[table[:, 1]]
    parts = np.stack([b, tie * np.sqrt(a * b), a], 1)
    return np.log(parts[np.arange(len(table)), table[:, 2]] / parts.sum(1)).sum()


def minorise(table, strength, tie):
    """One iteration of MM (Hunter 2004, section 4): every square root and every logarithm gives way to its tangent."""
    first, second, result = table.T
    a, b = strength[first], strength[second]
    whole = a + b + tie * np.sqrt(a * b)
    points = np.bincount(first, (result == 2) + 0.5 * (result == 1), len(strength))
    points = points + np.bincount(second, (result == 0) + 0.5 * (result == 1), len(strength))
    weight = np.bincount(first, (1 + tie / 2 * np.sqrt(b / a)) / whole, len(strength))
    weight = weight + np.bincount(second, (1 + tie / 2 * np.sqrt(a / b)) / whole, len(strength))
    new = points / weight
    new = new / new.sum()
    a, b = new[first], new[second]
    if tie:
        tie = (result == 1).sum() / (np.sqrt(a * b) / (a + b + tie * np.sqrt(a * b))).sum()
    return new, tie


@pytest.mark.parametrize("ties", [False, True])
def test_em_ends_where_the_minorisation_ends_and_both_rise(ties):
    table = contests(1500, np.array([0.1, 0.4, 1.0, 2.0, 5.0]), 0.7 if ties else 0.0)
    strength, tie, rise = np.full(5, 0.2), float(ties), []
    for _ in range(400):
        rise.append(log_likelihood(table, strength, tie))
        strength, tie = minorise(table, strength, tie)
    assert (np.diff(rise) >= -1e-10 * abs(rise[-1])).all()
    codes = table if ties else np.concatenate([table[:, :2], table[:, 2:] // 2], 1)
    fit = zoo.fit("bradley_terry", codes, ties=ties)
    assert (np.diff(fit.history) >= -1e-10 * abs(fit.log_likelihood)).all()
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(rise[-1], rel=1e-10)
    np.testing.assert_allclose(fit.params["strength"], strength, rtol=1e-5)
    if ties:
        assert fit.params["tie"].item() == pytest.approx(tie, rel=1e-5)
    assert fit.num_parameters == 4 + ties


def test_without_ties_a_step_of_the_minorisation_is_a_step_of_em():
    """Arrival times that are exponential: with the first of both as latent, Exponential(a + b), EM is the update."""
    table = contests(300, np.array([0.5, 1.0, 2.0]))
    before = np.array([0.3, 0.3, 0.4])
    expected_time = 1 / (before[table[:, 0]] + before[table[:, 1]])
    wins = np.bincount(np.where(table[:, 2] == 2, table[:, 0], table[:, 1]), minlength=3)
    time = np.bincount(table[:, 0], expected_time, 3) + np.bincount(table[:, 1], expected_time, 3)
    after = wins / time
    np.testing.assert_allclose(minorise(table, before, 0.0)[0], after / after.sum(), rtol=1e-12)


def test_baseball_has_the_published_strengths():
    fit = zoo.fit("bradley_terry", "baseball")
    found = (fit.params["strength"] / fit.params["strength"][-1]).log()
    assert found.tolist() == pytest.approx([1.5814, 1.4364, 1.2945, 1.2476, 1.1077, 0.6839, 0.0], abs=6e-5)
    assert list(load_bundled("baseball")["first"].cat.categories) == TEAMS


def test_words_and_codes_are_one():
    table = contests(400, np.array([0.5, 1.0, 2.0, 3.0]), 0.5)
    fit = zoo.fit("bradley_terry", table, ties=True)
    names = np.array(["Dora", "Ada", "Carl", "Bo"])  # in another order than that of the alphabet
    for words in (["loss", "tie", "win"], ["L", "D", "W"], ["lost", "draw", "won"]):
        frame = pd.DataFrame(
            {"result": np.array(words)[table[:, 2]], "second": names[table[:, 1]], "first": names[table[:, 0]]}
        )
        named = zoo.fit("bradley_terry", frame, ties=True)
        assert named.log_likelihood == pytest.approx(fit.log_likelihood, rel=1e-10)
        order = [int(np.flatnonzero(names == name)[0]) for name in sorted(names)]
        torch.testing.assert_close(named.params["strength"], fit.params["strength"][order], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(named.score(frame), fit.score(table))
    flags = pd.DataFrame({"first": names[table[:, 0]], "second": names[table[:, 1]], "result": table[:, 2] == 2})
    plain = zoo.fit("bradley_terry", np.concatenate([table[:, :2], (table[:, 2:] == 2).astype(int)], 1))
    assert zoo.fit("bradley_terry", flags).log_likelihood == pytest.approx(plain.log_likelihood, rel=1e-10)


def test_winners_may_all_stand_first():
    table = contests(300, np.array([0.5, 1.0, 2.0]))
    won = table[:, 2] == 2
    ordered = pd.DataFrame(
        {"first": np.where(won, *table[:, :2].T), "second": np.where(won, *table[:, 1::-1].T), "result": "win"}
    )
    fit = zoo.fit("bradley_terry", ordered)
    codes = np.concatenate([table[:, :2], won[:, None].astype(int)], 1)
    assert fit.log_likelihood == pytest.approx(zoo.fit("bradley_terry", codes).log_likelihood, rel=1e-10)


def test_many_contests_are_generated_among_the_players_that_there_are():
    fit = zoo.fit("bradley_terry", "baseball")
    new = fit.generate(20_000, seed=1)
    assert set(new["result"]) == {"win", "loss"}
    pair = new[(new["first"] == "Milwaukee") & (new["second"] == "Baltimore")]
    a, b = fit.params["strength"][[0, 6]].tolist()
    assert (pair["result"] == "win").mean() == pytest.approx(a / (a + b), abs=4 * 0.5 / len(pair) ** 0.5)


def test_a_missing_result_says_nothing():
    frame = load_bundled("baseball")
    gap = frame.copy()
    gap.loc[3, "result"] = None
    fit = zoo.fit("bradley_terry", gap)
    assert fit.score()[3].item() == 0.0
    assert fit.log_likelihood == pytest.approx(zoo.fit("bradley_terry", frame.drop(index=3)).log_likelihood, rel=1e-10)
    assert fit.impute()["result"].notna().all()


# --- bad input --------------------------------------------------------------------------------------------------------


def refuses(match, data, **options):
    with pytest.raises(DataError, match=match):
        zoo.fit("bradley_terry", data, **options)


def test_a_player_who_never_lost_is_named():
    frame = load_bundled("baseball")
    one = frame["first"].eq("Boston") | frame["second"].eq("Boston")
    won = frame["first"].eq("Boston").map({True: "win", False: "loss"})
    frame["result"] = frame["result"].where(~one, won)
    refuses("player Boston never lost to any other player.*leave them out", frame)
    refuses("player 2 never lost", np.array([[0, 1, 1], [1, 0, 1], [2, 0, 1], [1, 2, 0]]))
    refuses("player 0, 1 never lost", np.array([[0, 1, 1], [1, 0, 1], [2, 3, 1], [3, 2, 1]]))  # two leagues


def test_a_tie_saves_who_never_lost():
    table = np.array([[0, 1, 2], [1, 2, 0], [0, 2, 1], [1, 0, 1], [2, 1, 0]])
    assert torch.isfinite(zoo.fit("bradley_terry", table, ties=True).params["strength"]).all()


def test_ties_are_asked_for_where_there_are_some_and_only_there():
    table = contests(60, np.ones(3), 1.0)
    words = pd.DataFrame(table, columns=["first", "second", "result"]).replace({"result": {0: "L", 1: "D", 2: "W"}})
    refuses("'D': create the model with ties=True", words)
    refuses("Categorical cannot take: expected one of the codes 0 to 1", table)
    refuses("holds no tie: create the model with ties=False", table[table[:, 2] != 1], ties=True)


def test_what_is_no_table_of_contests():
    refuses(r"met shape \(20, 2\), expected three columns: first, second, result", np.ones((20, 2)))
    frame = load_bundled("baseball").astype(str)
    frame.loc[0, "result"] = "postponed"
    refuses("holds 'postponed': expected win, tie or loss", frame)
    gap = load_bundled("baseball")
    gap.loc[7, "second"] = None
    refuses("column 'second' is missing in row 7: a comparison needs both", gap)


def test_players_unseen_in_training():
    fit = zoo.fit("bradley_terry", contests(200, np.ones(4)) // [1, 1, 2])
    with pytest.raises(DataError, match="met player 4: in training they were 0 to 3"):
        fit.score(np.array([[0, 4, 1], [1, 0, 0]]))
    named = zoo.fit("bradley_terry", "baseball")
    new = load_bundled("baseball").head(3).astype(str)
    new.loc[0, "first"] = "Chicago"
    with pytest.raises(DataError, match="Chicago"):
        named.score(new)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_strengths_are_drawn_in_order_with_their_intervals():
    fit = zoo.fit("bradley_terry", "baseball")
    axes = fit.plot().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == TEAMS[::-1]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), np.sort(fit.params["strength"]))
    segments = np.stack([s[:, 0] for s in axes.collections[0].get_segments()])
    estimate = np.sort(fit.params["strength"])
    assert (segments[:, 0] < estimate).all()
    assert (segments[:, 1] > estimate).all()
