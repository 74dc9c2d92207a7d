"""Mixed tables, likelihoods as objects, anomalies and attributes: what people do with networks."""

import functools
import shlex
import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import statsmodels.api as sm
import torch
from pyro.distributions import constraints
from scipy import stats
from scipy.special import expit, log_softmax
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

from latentzoo import __main__ as command_line
from latentzoo import zoo
from latentzoo.cards import kinds_of
from latentzoo.cli.typed import value
from latentzoo.inference.base.errors import ConvergenceWarning, DataError, OptionError
from latentzoo.inference.data.columns import BINARY, CATEGORICAL, COUNT, NUMERIC
from latentzoo.inference.distributions.missing import marginal_log_prob
from latentzoo.inference.nn.likelihoods import Likelihood, likelihood_of
from latentzoo.inference.nn.tabular import Columns
from latentzoo.inference.posterior.anomaly import roc

IRIS = load_iris(as_frame=True).data
IMAGES = load_digits()
INK = (IMAGES.data > 8).astype(np.float64)
SHORT = {"num_steps": 5, "tol": 0}


def marriages(rows=600):
    """Fair's survey (1978) as a table of all kinds, under row names."""
    found = sm.datasets.fair.load_pandas().data.sample(rows, random_state=0)
    return pd.DataFrame(
        {
            "age": found.age,
            "children": found.children.round().astype("Int64"),
            "occupation": pd.Categorical(found.occupation.astype(int).map(lambda code: f"group {code}")),
            "years": found.yrs_married,
            "affair": (found.affairs > 0).astype("boolean"),
            "education": found.educ,
        }
    )


TABLE = marriages()
HIDDEN = np.random.default_rng(1).random(TABLE.shape) < 0.2


@functools.cache
def fitted():
    """A fit of the survey with a fifth of its cells hidden."""
    options = {"latent_dim": 3, "hidden": (32,), "objective": "iwae", "num_particles": 5}
    return zoo.fit("missing_data_vae", TABLE.mask(HIDDEN), **options, num_steps=700, learning_rate=0.01, tol=0)


# --- densities --------------------------------------------------------------------------------------------------------

KINDS = (COUNT, CATEGORICAL, NUMERIC, BINARY, CATEGORICAL, NUMERIC, COUNT)
COLUMNS = Columns(KINDS, (1, 3, 1, 1, 5, 1, 1), tuple("abcdefg"))
ROWS = torch.tensor(
    [[0, 2, 170.5, 1, 4, -2.0, 7], [3, 0, 150.0, 0, 0, 1.5, 0], [11, 1, 181.0, 1, 3, 0.3, 2]], dtype=torch.float64
)


@pytest.mark.parametrize("covariance", ["learned", "diagonal"])
def test_densities_of_mixed_rows_are_sums_of_those_of_scipy(covariance):
    law = likelihood_of("mixed", covariance, columns=COLUMNS)
    own = covariance == "diagonal"
    assert law.num_outputs(7) == 2 + 2 * own + 1 + 2 + 3 + 5
    torch.manual_seed(0)
    out = torch.randn(3, law.num_outputs(7), dtype=torch.float64)
    given = {"center": [0.5, 0, 165, 0.4, 0, 0.1, 1.0], "unit": [1, 1, 9, 1, 1, 2, 1], "concentration": [2, 0.5]}
    given |= {} if own else {"scale": [0.5, 1.5]}
    with pyro.get_param_store().scope():
        for name, numbers in given.items():
            pyro.param(name, torch.tensor(numbers, dtype=torch.float64))
        fn = law.of(out, 7)
        found = fn.log_prob(ROWS).detach().numpy()

        seen = torch.tensor([True, False, True, True, True, False, False]).expand(3, 7)
        margin = marginal_log_prob(fn, ROWS, seen).detach().numpy()
    x, out = ROWS.numpy(), out.numpy()
    center, unit = np.array(given["center"]), np.array(given["unit"])
    loc, rest = out[:, :2], out[:, 2:]
    scale = np.log1p(np.exp(rest[:, :2])) + 1e-4 if own else np.array(given["scale"])
    rest = rest[:, 2:] if own else rest
    cells = np.zeros((3, 7))
    cells[:, [2, 5]] = stats.norm.logpdf(x[:, [2, 5]], center[[2, 5]] + unit[[2, 5]] * loc, unit[[2, 5]] * scale)
    cells[:, 3] = stats.bernoulli.logpmf(x[:, 3], expit(rest[:, 0]))
    for number, place in enumerate((0, 6)):
        mean = np.expm1(center[place]) * (np.log1p(np.exp(rest[:, 1 + number])) + 1e-4)
        r = given["concentration"][number]
        cells[:, place] = stats.nbinom.logpmf(x[:, place], r, r / (r + mean))
    for place, odds in ((1, rest[:, 3:6]), (4, rest[:, 6:11])):
        cells[:, place] = np.take_along_axis(log_softmax(odds, -1), x[:, [place]].astype(int), 1)[:, 0]
    np.testing.assert_allclose(found, cells.sum(1), rtol=1e-9)
    np.testing.assert_allclose(margin, cells[:, [0, 2, 3, 4]].sum(1), rtol=1e-9)


def test_rows_are_drawn_as_their_densities_say():
    law = likelihood_of("mixed", columns=COLUMNS)
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(0)
        fn = law.of(torch.randn(1, law.num_outputs(7)), 7)
        drawn = fn.sample((20_000,))[:, 0]
    assert fn.support.check(drawn).all()
    logits = fn.parts[-1].fn.base_dist.logits[0].detach()  # (2, 5), the first with three labels
    for place, own in ((1, logits[0, :3]), (4, logits[1])):
        share = torch.stack([(drawn[:, place] == code).float().mean() for code in range(len(own))])
        torch.testing.assert_close(share, own.softmax(-1), atol=0.015, rtol=0)
    for place, part, number in ((2, 0, 0), (3, 1, 0), (0, 2, 0), (6, 2, 1)):
        mean = fn.parts[part].fn.mean[0, number].detach()
        error = fn.parts[part].fn.variance[0, number].detach().sqrt() / 20_000**0.5
        assert abs(drawn[:, place].mean() - mean) < 5 * error


def test_standardised_numbers_alone_are_the_gaussian_likelihood():
    x = ((IRIS - IRIS.mean()) / IRIS.std(ddof=0)).to_numpy()
    options = {"hidden": (8,), "num_steps": 50, "tol": 0, "learning_rate": 0.01}
    one, other = (zoo.fit("vae", x, likelihood=name, **options) for name in ("mixed", "gaussian"))
    torch.testing.assert_close(one.history, other.history, rtol=1e-4, atol=1e-2)


def test_a_density_is_of_the_units_of_the_table():
    """In other units the same fit: every age costs log 365 nats more in days than in years."""
    days = TABLE.assign(age=TABLE.age * 365)
    options = {"likelihood": "mixed", "hidden": (8,), "num_steps": 60, "tol": 0, "learning_rate": 0.01}
    one, other = (zoo.fit("vae", table, **options) for table in (TABLE, days))
    gone = one.score(TABLE) - other.score(days)
    np.testing.assert_allclose(gone.numpy(), np.log(365), atol=5e-3)
    assert other.generate(500)["age"].mean() == pytest.approx(365 * TABLE.age.mean(), rel=0.1)


def test_beta_one_is_the_plain_vae_on_mixed_tables_too():
    options = {"likelihood": "mixed", "hidden": (8,), "num_steps": 20, "tol": 0}
    plain, one = zoo.fit("vae", TABLE, **options), zoo.fit("beta_vae", TABLE, beta=1.0, **options)
    assert torch.equal(plain.history, one.history)


# --- a person's own table ---------------------------------------------------------------------------------------------


def test_cells_are_imputed_better_than_by_mean_and_mode():
    """Years of marriage follow age, children follow years, and occupation education."""
    filled = fitted().impute(TABLE.mask(HIDDEN))
    for place, name in enumerate(TABLE):
        hidden = HIDDEN[:, place]
        truth, mine = TABLE[name][hidden], filled[name][hidden]
        seen = TABLE[name][~hidden].astype(filled[name].dtype)
        pd.testing.assert_series_equal(filled[name][~hidden], seen, check_exact=True)
        if name in ("occupation", "affair"):
            mode = TABLE[name][~hidden].mode()[0]
            assert (mine == truth).mean() >= (truth == mode).mean() + (0.05 if name == "occupation" else -0.02)
        else:
            errors = [((guess - truth).astype(float) ** 2).mean() for guess in (mine, TABLE[name][~hidden].mean())]
            assert errors[0] < {"age": 0.5, "years": 0.4, "children": 0.75, "education": 1.0}[name] * errors[1], name


def test_a_table_comes_back_as_the_persons_own():
    gaps = TABLE.mask(HIDDEN)
    for back in (fitted().impute(gaps), fitted().reconstruct(gaps)):
        assert back.index.equals(TABLE.index)
        assert list(back) == list(TABLE)
        assert back["occupation"].cat.categories.tolist() == TABLE["occupation"].cat.categories.tolist()
        assert back["affair"].dtype == bool
        assert not back.isna().any().any()
    new = fitted().generate(400, seed=1)
    assert set(new["occupation"]) <= set(TABLE["occupation"])
    assert new["children"].dtype == np.int64
    assert (new["children"] >= 0).all()
    for name in ("age", "years", "education", "children"):
        assert new[name].mean() == pytest.approx(float(TABLE[name].mean()), abs=0.2 * float(TABLE[name].std())), name
    assert np.corrcoef(new.age, new.years)[0, 1] > 0.7  # 0.89 in the data
    assert list(fitted().embeddings(gaps).index) == list(TABLE.index)
    assert fitted().interpolate(0, 5, 4, gaps)["affair"].dtype == bool


def test_kinds_are_said_by_name_number_or_word():
    x = np.column_stack([np.arange(60) % 3, np.arange(60) % 2, np.arange(60) / 7])
    said, texts = {0: "categorical", 1: "binary"}, ("0=categorical", "1=binary")
    fit = zoo.fit("vae", x, likelihood="mixed", kinds=said, num_categories=3, hidden=(4,), **SHORT)
    assert fit.params["decoder$$$2.weight"].shape[0] == 3 + 1 + 1
    words = zoo.fit("vae", x, likelihood="mixed", kinds=texts, num_categories=3, hidden=(4,), **SHORT)
    assert torch.equal(fit.history, words.history)
    assert value("kinds", "a b=count,c=numeric", kinds_of("vae")["kinds"]) == ("a b=count", "c=numeric")


def test_a_count_that_is_0_or_1_alone_is_pointed_out():
    table = IRIS.assign(flag=(IRIS.iloc[:, 0] > 5).astype(int))
    words = r"column 'flag' holds 0 and 1 alone.*kinds=\{'flag': 'binary'\}"
    with pytest.warns(ConvergenceWarning, match=words) as met:
        zoo.fit("vae", table, likelihood="mixed", restarts=3, **SHORT)
    assert len(met) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        for kind in ("binary", "count"):
            zoo.fit("vae", table, likelihood="mixed", kinds={"flag": kind}, **SHORT)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gaussian_mixture_vae", {"num_components": 3}),
        ("conditional_vae", {"conditions": ("age", "occupation")}),
        ("semi_supervised_vae", {"num_classes": 6}),
        ("hierarchical_vae", {}),
    ],
)
def test_other_models_take_mixed_tables_too(name, options, tmp_path):
    table = TABLE[["occupation", "children", "age", "affair"]].dropna()
    fit = zoo.fit(name, table, likelihood="mixed", hidden=(8,), num_steps=60, tol=0, learning_rate=0.01, **options)
    assert fit.history[-1] > fit.history[0]
    assert fit.generate(5).dtypes.astype(str).tolist() == ["category", "int64", "float64", "bool"]
    fit.save(tmp_path / "run")
    assert torch.equal(zoo.load(tmp_path / "run").score(table), fit.score(table))


# --- a likelihood of one's own ----------------------------------------------------------------------------------------


def laplace():
    def of(out, d):
        return dist.Laplace(out, pyro.param("width", torch.ones(d), constraint=constraints.positive)).to_event(1)

    return Likelihood(num_outputs=lambda d: d, of=of, start=lambda x: x.nanmean(0), name="laplace")


def test_a_likelihood_of_ones_own_is_learned_and_saved(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 1))
    x = z @ [[3.0, -2.0, 1.0, 2.0]] + rng.laplace(scale=0.5, size=(500, 4)) + 10
    options = {"latent_dim": 1, "hidden": (), "num_steps": 800, "tol": 0, "learning_rate": 0.02}
    pair = zoo.create("vae", likelihood=laplace(), **{k: options.pop(k) for k in ("latent_dim", "hidden")})
    fit = zoo.fit(pair, x, **options)
    assert fit.params["width"].numpy() == pytest.approx(0.5, abs=0.12)
    line = fit.params["decoder$$$0.weight"][:, 0].numpy()
    assert abs(line @ [3, -2, 1, 2]) / np.linalg.norm(line) / 18**0.5 > 0.99
    assert fit.generate(2000).mean(0) == pytest.approx(x.mean(0), abs=0.4)
    assert "likelihood=laplace" in fit.plot("embedding").get_suptitle()
    gaps = np.where(rng.random(x.shape) < 0.1, np.nan, x)
    assert np.isfinite(fit.impute(gaps)).all()
    fit.save(tmp_path / "run")
    with pytest.raises(ValueError, match="pass it"):
        zoo.load(tmp_path / "run")
    assert torch.equal(zoo.load(tmp_path / "run", pair).score(x), fit.score(x))


def test_a_likelihood_of_ones_own_may_show_the_encoder_what_it_likes():
    seen = []

    def inputs(x):
        seen.append(x.shape[1])
        return torch.cat([x.nan_to_num(), x.nan_to_num() ** 2], -1)

    own = Likelihood(laplace().num_outputs, laplace().of, inputs=inputs, num_inputs=lambda d: 2 * d)  # starts at 0
    fit = zoo.fit("missing_data_vae", IRIS, likelihood=own, hidden=(6,), **SHORT)
    assert fit.params["decoder$$$2.weight"].shape == (4, 6)
    assert fit.guide_parts["value/encoder$$$0.weight"].shape == (6, 2 * 4 + 4)
    assert set(seen) == {4}


# --- anomalies --------------------------------------------------------------------------------------------------------


def test_the_curve_is_that_of_scikit_learn_ties_and_all():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 9, 200) / 2, rng.random(200) < 0.3
    found = roc(scores + labels, labels)
    assert found.auc == pytest.approx(roc_auc_score(labels, scores + labels), abs=1e-12)
    false_alarms, hits, _ = roc_curve(labels, scores + labels, drop_intermediate=False)
    np.testing.assert_allclose(found.false_alarms, false_alarms)
    np.testing.assert_allclose(found.found, hits)


def test_a_digit_that_was_never_seen_is_found():
    other = IMAGES.target == 4
    known, new = INK[~other][:1000], np.concatenate([INK[~other][1000:], INK[other]])
    labels = np.arange(len(new)) >= len(new) - other.sum()
    fit = zoo.fit("vae", known, latent_dim=10, hidden=(64,), epochs=60, learning_rate=5e-3, tol=0)
    table = pd.DataFrame(new, index=[f"image {n}" for n in range(len(new))])
    for by, least in (("density", 0.9), ("reconstruction", 0.9)):
        found = fit.anomaly(table, by=by)
        assert found.index[3] == "image 3"
        assert roc_auc_score(labels, found) > least
    np.testing.assert_allclose(fit.anomaly(new), -fit.score(new).numpy())
    figure = fit.plot("roc", new, labels)
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert words[0] == f"minus log p(x): AUC {roc_auc_score(labels, fit.anomaly(new)):.3f}"
    assert "reconstruction" in words[1]


def test_anomalies_of_a_mixture_are_its_negative_scores():
    fit = zoo.fit("gaussian_mixture", IRIS.iloc[:100], num_components=2)
    found = fit.anomaly(IRIS)
    np.testing.assert_array_equal(found, -fit.score(IRIS).numpy())
    labels = np.arange(150) >= 100
    assert roc(found, labels).auc > 0.9
    assert len(fit.plot("roc", IRIS, labels).axes[0].get_legend().get_texts()) == 2
    with pytest.raises(OptionError, match="'reconstruction' is for fits with networks"):
        fit.anomaly(IRIS, by="reconstruction")


def test_anomalies_of_groups_are_called_by_their_names():
    fit = zoo.fit("dawid_skene", "anesthesia")
    found = fit.anomaly()
    assert found.index.tolist() == list(range(1, 46))  # patients, of 315 grades
    np.testing.assert_array_equal(found, -fit.score().numpy())


def test_reconstruction_is_the_expected_likelihood_alone():
    """Of a linear model in closed form: E log p(x | z) of a normal posterior."""
    fit = zoo.fit("linear_vae", IRIS, num_steps=400, learning_rate=0.02, tol=0)
    x, z = torch.tensor(IRIS.to_numpy()), fit.latents(IRIS)["z"].mean
    load, bias = (fit.params[f"decoder$$$0.{name}"].double() for name in ("weight", "bias"))
    scale = fit.params["scale"].double()
    tril = torch.linalg.cholesky(torch.cov(fit.posterior("z", IRIS).sample((4000,))[:, 0].double().T))
    spread = ((load @ tril) ** 2).sum() / scale**2
    exact = dist.Normal(z @ load.mT + bias, scale).log_prob(x).sum(1) - 0.5 * spread
    found = fit.anomaly(IRIS, by="reconstruction").to_numpy()
    assert abs((found + exact.numpy()).mean()) < 0.15
    assert np.corrcoef(found, -exact.numpy())[0, 1] > 0.98


# --- attributes -------------------------------------------------------------------------------------------------------


def test_digits_are_made_by_label_and_by_weight():
    """A classifier of real digits reads those made under a label; bold ones have more ink."""
    ink = INK.sum(1)
    table = pd.DataFrame(INK.astype(int), columns=[f"p{n}" for n in range(64)])
    table["label"] = pd.Categorical(IMAGES.target)
    table["weight"] = pd.Categorical(np.where(ink > np.median(ink), "bold", "light"))
    options = {"likelihood": "bernoulli", "conditions": ("label", "weight"), "latent_dim": 4, "hidden": (64,)}
    fit = zoo.fit("conditional_vae", table, **options, epochs=25, learning_rate=5e-3, tol=0)
    judge = LogisticRegression(max_iter=2000).fit(INK, IMAGES.target)
    wanted = np.repeat(np.arange(10), 30)
    made = fit.generate(300, given={"label": wanted, "weight": "bold"})
    pixels = made.drop(columns=["label", "weight"])
    assert made["label"].tolist() == [str(n) for n in wanted]
    assert (judge.predict(pixels.to_numpy()) == wanted).mean() > 0.75
    light = fit.generate(300, given={"label": wanted, "weight": "light"}).drop(columns=["label", "weight"])
    assert pixels.to_numpy().sum(1).mean() > light.to_numpy().sum(1).mean() + 3
    assert (fit.generate(5, given={"label": 3})["label"] == "3").all()


# --- bad input --------------------------------------------------------------------------------------------------------


def test_columns_are_named_where_they_stand_in_the_table():
    table = TABLE.dropna().assign(children=lambda t: t.children.astype(int))
    table.iloc[4, 1] = -2
    with pytest.raises(DataError, match="row 4, column 'children', holds -2, which NegativeBinomial cannot take"):
        zoo.fit("vae", table, likelihood="mixed")
    with pytest.raises(DataError, match="row 4, column 'children', holds -2"):
        zoo.fit("conditional_vae", table, likelihood="mixed", conditions=("education", "age"))
    zoo.fit("vae", table, likelihood="mixed", kinds={"children": "numeric"}, **SHORT)
    table = IRIS.round().astype(int).assign(last=-1)
    with pytest.raises(DataError, match="column 'last', holds -1"):
        zoo.fit("conditional_vae", table, likelihood="poisson")


def test_labels_out_of_range_are_named():
    x = np.column_stack([np.arange(60) % 4, np.arange(60) / 7])
    with pytest.raises(DataError, match=r"column 0, holds 3, which Categorical cannot take: expected .* 0 to 2"):
        zoo.fit("vae", x, likelihood="mixed", kinds={0: "categorical"}, num_categories=3)
    with pytest.raises(DataError, match="column 0, a condition, holds 3, expected one of the codes 0 to 2"):
        zoo.fit("conditional_vae", x, kinds={0: "categorical"}, num_categories=3)
    digits = np.column_stack([np.full(1797, 11.0), INK])
    with pytest.raises(DataError, match="column 0, holds 11, which Categorical cannot take"):
        zoo.fit("semi_supervised_vae", digits)


@pytest.mark.parametrize("covariance", ["learned", "diagonal"])
def test_a_constant_number_is_refused_and_a_constant_label_is_not(covariance):
    with pytest.raises(DataError, match="column 'same' of site 'x' is constant"):
        zoo.fit("vae", TABLE.assign(same=1.5), likelihood="mixed", covariance=covariance)
    fit = zoo.fit("vae", TABLE.assign(same="yes", none=0), likelihood="mixed", kinds={"none": "binary"}, **SHORT)
    assert torch.isfinite(fit.history).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"likelihood": "mixed", "kinds": {"age": "ordinal"}},
            "kinds: met 'ordinal' for column 'age', expected one of",
        ),
        ({"likelihood": "mixed", "kinds": ("age",)}, "kinds: met 'age', expected a column and its kind"),
        ({"likelihood": "mixed", "kinds": {"wealth": "count"}}, "kinds: met 'wealth', which is no column of the data"),
        (
            {"likelihood": "mixed", "kinds": {"occupation": "count"}},
            "column 'occupation' holds 6 labels, so it is no c",
        ),
        ({"likelihood": "mixed", "covariance": "full"}, "covariance: met 'full', expected one of learned, diagonal"),
        ({"likelihood": "student"}, "likelihood: met 'student', expected one of bernoulli, .*, mixed, or a Likelihood"),
        ({"likelihood": "gaussian"}, "column 'occupation' holds labels .*likelihood=\"mixed\""),
    ],
)
def test_kinds_and_likelihoods_that_make_no_sense(options, words):
    with pytest.raises((OptionError, DataError), match=words):
        zoo.fit("vae", TABLE, **options)


def test_conditions_that_make_no_sense():
    table = IRIS.assign(species=pd.Categorical(np.repeat(["setosa", "versicolor", "virginica"], 50)))
    fit = zoo.fit("conditional_vae", table, conditions="species", hidden=(4,), **SHORT)
    assert fit.generate(3, given={"species": "virginica"})["species"].tolist() == ["virginica"] * 3
    for given, words in (
        ({"species": "rose"}, r"given 'species' is 'rose', expected one of its labels 'setosa', 'versicolor', 'virg"),
        ({"species": ["setosa"] * 2}, r"has shape \(2,\), expected one value, or one for each row"),
        (
            {"petal width (cm)": 1.0},
            "column 'petal width .cm.', which the model makes itself: its conditions are 'spec",
        ),
        ({"colour": 1.0}, "given names .'colour'., which are no sites"),
    ):
        with pytest.raises(DataError, match=words):
            fit.generate(3, given=given)
    with pytest.raises(DataError, match="conditions: met 'colour', which is no column of the data"):
        zoo.fit("conditional_vae", table, conditions=("colour",))
    with pytest.raises(DataError, match="conditions: met 5 columns, which is all that the data have"):
        zoo.fit("conditional_vae", table, conditions=5)
    with pytest.raises(DataError, match="column 'species', a condition, has missing cells"):
        zoo.fit(
            "conditional_vae", table.assign(species=table.species.where(np.arange(150) > 3)), conditions=("species",)
        )


def test_labels_of_a_curve_that_make_no_sense():
    fit = zoo.fit("gaussian_mixture", IRIS, num_components=2)
    for labels, words in (
        (np.ones(150), "all rows are anomalous"),
        (np.ones(3), r"labels: met shape \(3,\), expected one for each row, \(150,\)"),
        (np.arange(150), "expected True .or 1."),
    ):
        with pytest.raises(DataError, match=words):
            fit.plot("roc", IRIS, labels)
    with pytest.raises(OptionError, match="needs to know which rows are anomalous"):
        fit.plot("roc")
    with pytest.raises(OptionError, match="labels: kind 'bound' takes none"):
        fit.plot("bound", labels=np.ones(150))
    with pytest.raises(OptionError, match="by: met 'oddity', expected one of density, reconstruction"):
        fit.anomaly(IRIS, by="oddity")


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_verbs_run_from_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(line):
        code = command_line.main(shlex.split(line))
        return code, *capsys.readouterr()

    TABLE.mask(HIDDEN).assign(odd=(TABLE.age > 40).astype(int)).to_csv("gaps.csv", index=False)
    kinds = "--kinds children=count --num-steps 5 --tol 0 --hidden 4"
    assert run(f"fit missing_data_vae gaps.csv --drop odd {kinds} --out run")[0] == 0
    code, out, err = run("anomaly run gaps.csv --labels odd --roc curve.png")
    assert (code, len(out.splitlines()), out[:11]) == (0, 601, "row,anomaly")
    assert "AUC 0." in err
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert run("anomaly run gaps.csv --by reconstruction --out a.csv")[0] == 0
    assert run("anomaly run gaps.csv --roc c.png")[2] == (
        "latentzoo: error: --roc: a curve needs --labels, the column that says which rows are anomalous\n"
    )
    for verb in ("impute", "reconstruct"):
        assert run(f"{verb} run gaps.csv --out {verb}.csv") == (0, "", "")
        back = pd.read_csv(f"{verb}.csv")
        assert list(back) == list(TABLE)
        assert not back.isna().any().any()
    assert run("latents run gaps.csv")[1].startswith("row,z[0]_mean,z[1]_mean,z[0]_sd,z[1]_sd\n")
    options = "--conditions occupation,affair --likelihood mixed --num-steps 5 --tol 0 --hidden 4"
    TABLE.to_csv("whole.csv", index=False)
    assert run(f"fit conditional_vae whole.csv {options} --out by")[0] == 0
    out = run("generate by --num 3 --given 'occupation=group 3' affair=True")[1]
    assert out.count("group 3") == 3
    assert out.count("True") == 3
    assert "expected a name and a value" in run("generate by --given occupation")[2]
