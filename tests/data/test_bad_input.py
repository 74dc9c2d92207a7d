"""Bad input meets one plain error that names what was met, what was expected, and the way out."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from latentzoo import Pair, em, zoo
from latentzoo.inference.base import run_folder
from latentzoo.inference.base.errors import ConvergenceWarning, DataError, ModelError, OptionError, RunError
from latentzoo.inference.base.run_folder import read_run, write_run
from latentzoo.inference.data.seeding import SEEDING_ROWS, kmeans_plusplus
from latentzoo.models.registry import RegistryError, register

X = np.random.default_rng(0).normal(size=(60, 3))


def refuses(error, *words, data=X, model="gaussian_mixture", **options):
    with pytest.raises(error) as caught:
        zoo.fit(model, data, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# --- data -------------------------------------------------------------------------------------------------------------


def test_an_empty_table():
    refuses(DataError, "no rows", "(0, 3)", data=np.empty((0, 3)))


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_one_row(inference):
    refuses(DataError, "one row", data=X[:1], num_components=1, inference=inference)


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_more_components_than_rows(inference):
    refuses(DataError, "'z'", "80", "60 rows", num_components=80, inference=inference)


def test_more_components_than_distinct_rows():
    few = np.repeat(X[:5], 12, axis=0)
    refuses(DataError, "'z'", "6 values", "5 distinct rows", data=few, num_components=6, covariance="diagonal")
    refuses(DataError, "'z'", "5 distinct rows", data=np.arange(60) % 5, num_components=6, model="poisson_mixture")
    few[0, 0] = np.nan  # a missing cell makes a row of its own
    refuses(DataError, "'z'", "6 distinct rows", data=few, num_components=7, covariance="diagonal")
    with pytest.raises(DataError, match=r"3 centres.*2 distinct rows"):
        kmeans_plusplus(torch.tensor([[0.0], [1.0]]).repeat(9, 1), 3, torch.Generator())


def test_as_many_components_as_distinct_rows_find_them_all():
    rows = torch.arange(5.0).repeat(SEEDING_ROWS // 5 + 1).unsqueeze(1)
    for rare in (0, 1):  # a row that a sample of the others hardly ever holds
        table = torch.cat([rows, torch.full((rare, 1), 9.0)])
        seeds = kmeans_plusplus(table, 5 + rare, torch.Generator().manual_seed(0))
        assert seeds.flatten().sort().values.tolist() == [0, 1, 2, 3, 4, 9][: 5 + rare]


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_a_constant_column_is_named(inference):
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(b=1.0)
    for covariance in ("full", "tied", "diagonal"):
        words = ("column 'b'", "constant", "drop the column")
        refuses(DataError, *words, data=frame, covariance=covariance, inference=inference)
    refuses(DataError, "column 1", "constant", data=frame.to_numpy())
    refuses(DataError, "constant", data=np.ones(50))


def test_infinite_values():
    bad = X.copy()
    bad[4, 1] = np.inf
    refuses(DataError, "inf in column 1, row 4", "finite numbers", "drop the row", data=bad)


def test_text_in_a_numeric_model():
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(kind=["left", "right"] * 30)
    refuses(DataError, "'kind'", "text", "latent_class", data=frame)
    refuses(DataError, data=np.array([["a", "b"]] * 9, dtype=object))


@pytest.mark.parametrize("bad", [-1.0, 2.5])
def test_counts_that_are_no_counts(bad):
    counts = np.array([3.0, 1.0, 4.0, 1.0, 5.0, bad, 2.0, 6.0])
    refuses(DataError, "row 5", f"{bad:g}", "whole numbers", data=counts, model="poisson_mixture")


def test_negative_codes():
    refuses(DataError, "-1", "codes", data=np.array([[0, 1], [1, -1], [1, 0], [0, 1]]), model="latent_class")


def test_a_category_unseen_in_training():
    fit = zoo.fit("latent_class", np.tile([[0, 1], [1, 0], [1, 1]], (9, 1)))
    with pytest.raises(DataError, match=r"row 0 holds 2.*codes 0 to 1.*missing"):
        fit.score(np.array([[2, 0]]))
    frame = pd.DataFrame({"a": ["no", "yes"] * 9, "b": ["x", "x", "y"] * 6})
    fit = zoo.fit("latent_class", frame)
    with pytest.raises(DataError, match=r"'b'.*'z'"):
        fit.score(pd.DataFrame({"a": ["no"], "b": ["z"]}))


def test_another_number_of_columns_at_score_time():
    fit = zoo.fit("gaussian_mixture", X, num_components=2)
    with pytest.raises(DataError, match=r"2 columns.*3"):
        fit.score(X[:, :2])
    named = zoo.fit("gaussian_mixture", pd.DataFrame(X, columns=["a", "b", "c"]), num_components=2)
    with pytest.raises(DataError, match="c"):
        named.score(pd.DataFrame(X[:, :2], columns=["a", "b"]))


# --- models -----------------------------------------------------------------------------------------------------------


def two_means(x):
    return pyro.param("loc", torch.tensor([-1.0, 1.0]))


def test_a_latent_sampled_outside_the_plate_it_needs():
    def model(x):
        loc = two_means(x)
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    refuses(ModelError, "'z'", 'outside the plate "data"', "sample it inside", data=X[:, 0], model=Pair(model))


def test_an_enumerable_latent_without_its_mark():
    def model(x):
        loc = two_means(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    refuses(ModelError, "'z'", '{"enumerate": "parallel"}', data=X[:, 0], model=Pair(model))


def test_a_continuous_latent_of_each_row():
    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.StudentT(3.0, z, scale), obs=x)

    refuses(ModelError, "em", "'z'", "continuous", "svi", data=X[:, 0], model=Pair(model), inference="em")


def test_a_model_without_a_data_plate():
    def model(x):
        with pyro.plate("rows", 5):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x[:5])

    refuses(ModelError, '"data"', "rows", data=X[:, 0], model=Pair(model))


def test_a_model_that_observes_nothing():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})

    refuses(ModelError, "observes nothing", data=X[:, 0], model=Pair(model))


def columns(weights=(2,), loc=(2,), event=0):
    """A mixture of normals with params of the shapes given, whose rows have `event` dims."""

    def model(x):
        shares = pyro.param("shares", torch.full(weights, 1 / weights[-1]), constraint=constraints.simplex)
        center = pyro.param("center", torch.linspace(-1, 1, int(np.prod(loc))).reshape(loc))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(shares), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(center[z], 1.0).to_event(event), obs=x)

    return Pair(model)


@pytest.mark.parametrize("inference", ["em", "svi"])
@pytest.mark.parametrize(
    ("pair", "data", "words"),
    [
        (columns(), X[:, :1], ["'x'", "(60, 1)", "60 at dim -2", '"data" of 60', "x[:, 0]"]),
        (columns(), X[None, :, 0], ["'x'", "(1, 60)", "60 at dim -1", '"data" has 1', "x[:, 0]"]),
        (columns(loc=(2, 3)), X, ["'x'", "size 3 at batch dim -1", '"data" has 60', ".to_event(1)"]),
        (columns(loc=(2, 3)), X[:3], ["'x'", "(3, 3)", "3 at dim -2", '"data" of 3', ".to_event(1)"]),
        (columns(weights=(4, 60, 2)), X[:, 0], ["'z'", "(4, 60)", "4 at dim -2", '"data" of 60', "own"]),
        (columns(weights=(4, 2)), X[:, 0], ["'z'", "size 4 at batch dim -1", '"data" has 60', "own"]),
        (columns(loc=(2, 3), event=1), X[:, 0], ["'x'", "(60,)", "(3,) in each row", ".to_event"]),
        (columns(loc=(2, 3), event=1), X[:, :1], ["'x'", "(60, 1)", "(3,) in each row", ".to_event"]),
    ],
    ids=["column", "row", "no event", "square", "latent in no plate", "latent", "flat", "one of three"],
)
def test_shapes_that_do_not_fit_the_plates(pair, data, words, inference):
    refuses(ModelError, *words, data=data, model=pair, inference=inference)


def test_a_bug_of_ones_own_keeps_its_words():
    def model(x):
        with pyro.plate("data", len(x)):
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        zoo.fit(Pair(model), X, inference="em")


def test_a_param_that_no_site_uses():
    def model(x):
        pyro.param("spare", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)

    refuses(ModelError, "'spare'", "no site", data=X[:, 0], model=Pair(model))


def test_a_param_that_no_gradient_reaches():
    def model(x):
        size = pyro.param("size", torch.tensor(3.2), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.round(size.detach()) * 1.0, 1.0), obs=x)

    refuses(ModelError, "'size'", "gradient", data=X[:, 0], model=Pair(model))


def test_starting_values_that_do_not_fit():
    good = zoo.create("gaussian_mixture", num_components=2)
    wrong_name = Pair(good.model, initialize=lambda x, generator: {"centre": torch.zeros(2, 3)})
    refuses(ModelError, "'centre'", "loc", model=wrong_name)
    wrong_shape = Pair(good.model, initialize=lambda x, generator: {"loc": torch.zeros(3, 2)})
    refuses(ModelError, "'loc'", "(3, 2)", "(2, 3)", model=wrong_shape)


def test_a_pair_of_something_else():
    with pytest.raises(TypeError, match="model must be a function"):
        Pair("gaussian_mixture")
    refuses(OptionError, "int", "Pair", model=3)


# --- options and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_iters", -1),
        ("max_iters", 2.5),
        ("tol", float("nan")),
        ("tol", "small"),
        ("restarts", 0),
        ("restarts", 1.5),
        ("m_steps", 0),
        ("variance_floor", -1.0),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 2**64),
        ("seed", 0.5),
        ("seed", True),
        ("seed", None),
    ],
)
def test_options_out_of_range(option, value):
    refuses(OptionError, option, str(value), **{option: value})


def test_numbers_of_numpy_are_numbers():
    options = {"seed": np.int64(3), "restarts": np.int32(2), "max_iters": np.int64(500), "tol": np.float32(1e-6)}
    plain = {name: value.item() for name, value in options.items()}
    fits = [zoo.fit("gaussian_mixture", X, num_components=1, **given) for given in (options, plain)]
    assert fits[0].log_likelihood == fits[1].log_likelihood
    assert zoo.fit("gaussian_mixture", X, num_components=1, seed=2**63 - 1).converged


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 0.5, "one"])
def test_seeds_and_numbers_of_draws(seed):
    fit = zoo.fit("gaussian_mixture", X, num_components=1)
    verbs = {
        "generate": lambda **o: fit.generate(3, **o),
        "sample_posterior": lambda **o: fit.sample_posterior(3, **o),
        "param_draws": lambda **o: fit.param_draws(3, **o),
        "to_arviz": lambda **o: fit.to_arviz(**o),
    }
    for verb in verbs.values():
        with pytest.raises(OptionError, match=f"seed: met {seed!r}, expected a whole number from 0 to {2**63 - 1}"):
            verb(seed=seed)
        verb(seed=2**63 - 1)


@pytest.mark.parametrize("num", [0, -1, 2.5])
def test_numbers_of_draws(num):
    fit = zoo.fit("gaussian_mixture", X, num_components=1)
    for verb in (fit.generate, fit.sample_posterior, fit.param_draws, lambda n: fit.to_arviz("laplace", n)):
        with pytest.raises(OptionError, match=f"(num|num_draws): met {num}, expected a whole number of at least 1"):
            verb(num)


def test_options_that_the_driver_does_not_take():
    refuses(OptionError, "'restart'", "did you mean 'restarts'", "em takes max_iters, tol,", restart=3)
    refuses(OptionError, "'num_component'", "did you mean 'num_components'", "hyper-parameters are", num_component=3)
    refuses(OptionError, "'num_steps' is an option of svi, not of em", 'inference="svi"', num_steps=9)
    refuses(OptionError, "'m_steps' is an option of em, not of svi", inference="svi", m_steps=9)
    pair = zoo.create("gaussian_mixture")
    refuses(OptionError, "'num_components' is a hyper-parameter", "give it to create", model=pair, num_components=2)
    refuses(OptionError, "'colour'", "em takes", model=columns(), data=X[:, 0], colour=2)


def test_a_warning_points_at_the_line_that_asked_for_the_fit():
    pair = zoo.create("gaussian_mixture", num_components=2)
    calls = [
        lambda: zoo.fit(pair, X, max_iters=1),
        lambda: em(pair, X, max_iters=1),
        lambda: zoo.fit(pair, X, inference="svi", num_steps=1),
    ]
    for call in calls:
        with pytest.warns(ConvergenceWarning) as caught:
            call()
        assert [(one.filename, one.lineno) for one in caught] == [(__file__, call.__code__.co_firstlineno)]


def test_degenerate_fits_stand_behind_all_sound_ones():
    spikes = np.concatenate([X[:40, 0], np.full(20, 30.0)])
    with pytest.warns(ConvergenceWarning, match="collapsed"):
        spiked = zoo.fit("gaussian_mixture", spikes, num_components=2, restarts=9, seed=1)
    sound = [zoo.fit("gaussian_mixture", spikes, num_components=1), zoo.fit("poisson_mixture", np.arange(60) % 7)]
    assert spiked.bic < min(one.bic for one in sound)
    for by in ("aic", "bic", "icl"):
        table = zoo.compare([sound[1], spiked, sound[0]], by)
        assert table.degenerate.tolist() == [False, False, True]
        assert table[by][:2].is_monotonic_increasing


def test_inferences_are_listed_by_their_names():
    for name in ("auto", "magic"):
        with pytest.raises(OptionError, match=rf"inference: met '{name}', expected one of {', '.join(zoo.DRIVERS)}$"):
            zoo.list_models(inference=name)


def test_weights_that_do_not_fit():
    refuses(OptionError, "weights", "(3,)", "(60,)", weights=[1.0, 2.0, 3.0])
    refuses(OptionError, "weights", "negative", weights=[-1.0] * 60)
    refuses(OptionError, "weights", "list", "one number per row", weights=["heavy"] * 60)


def test_weights_that_may_not_be_written_are_taken():
    weights = np.linspace(0.5, 2.0, 60)
    weights.setflags(write=False)
    same = zoo.fit("gaussian_mixture", X, num_components=1, weights=weights.tolist())
    assert zoo.fit("gaussian_mixture", X, num_components=1, weights=weights).log_likelihood == same.log_likelihood


def test_a_regression_on_nothing_is_a_mixture_of_normals():
    x = np.concatenate([X[:, 0], 9 + X[:, 1]])
    alone = zoo.fit("mixture_of_regressions", x[:, None], num_components=2, restarts=5)
    assert alone.log_likelihood == pytest.approx(zoo.fit("gaussian_mixture", x, num_components=2).log_likelihood)


def test_unknown_names():
    refuses(RegistryError, "gausian_mixture", "gaussian_mixture", model="gausian_mixture")
    refuses(OptionError, "inference", "'gibbs'", "em", inference="gibbs")
    refuses(OptionError, "device", "'quantum'", device="quantum")
    refuses(OptionError, "covariance", "'round'", "full", covariance="round")
    with pytest.raises(RegistryError, match=r"no hyper-parameter 'num_topics'.*num_components"):
        zoo.create("gaussian_mixture", num_topics=3)


def test_a_name_that_is_taken():
    def gaussian_mixture():
        """Another."""

    with pytest.raises(RegistryError, match=r"taken by latentzoo.models.mixtures.gaussian"):
        register(family="mixtures", summary="", data="")(gaussian_mixture)


# --- run folders ------------------------------------------------------------------------------------------------------


def test_a_run_folder_of_another_version(tmp_path, monkeypatch):
    zoo.fit("gaussian_mixture", X, num_components=2).save(tmp_path)
    arrays, record = read_run(tmp_path)
    monkeypatch.setattr(run_folder, "FORMAT", 99)
    write_run(tmp_path, arrays, record)
    monkeypatch.undo()
    with pytest.raises(RunError, match="99"):
        zoo.load(tmp_path)


def test_a_run_of_a_model_that_is_not_registered_imports_nothing(tmp_path):
    zoo.fit("gaussian_mixture", X, num_components=2).save(tmp_path)
    arrays, record = read_run(tmp_path)
    origin = {"name": "system", "factory": "os:system", "hyperparameters": {"command": "true"}}
    write_run(tmp_path, arrays, record | {"origin": origin})
    with pytest.raises(RunError, match=r"os:system.*not registered"):
        zoo.load(tmp_path)


def test_a_run_of_ones_own_pair_asks_for_it(tmp_path):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)

    fit = zoo.fit(Pair(model), X[:, 0])
    fit.save(tmp_path)
    with pytest.raises(RunError, match="pair="):
        zoo.load(tmp_path)
    assert torch.equal(zoo.load(tmp_path, pair=Pair(model)).score(X[:, 0]), fit.score())
    with pytest.raises(DataError, match="pass the data"):
        zoo.load(tmp_path, pair=Pair(model)).score()
