"""Bad input meets one plain error that names what was met, what was expected, and the way out."""

import json

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from latentzoo import Pair, zoo
from latentzoo.inference.data import DataError
from latentzoo.inference.errors import ModelError, OptionError
from latentzoo.inference.runs import RunError
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


def test_one_row():
    refuses(DataError, "one row", data=X[:1], num_components=1)


def test_more_components_than_rows():
    refuses(DataError, "'z'", "80", "60 rows", num_components=80)


def test_a_constant_column_is_named():
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(b=1.0)
    for covariance in ("full", "tied", "diagonal"):
        refuses(DataError, "column 'b'", "constant", "drop the column", data=frame, covariance=covariance)
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
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    refuses(ModelError, "em", "'z'", "continuous", "svi", data=X[:, 0], model=Pair(model))


def test_a_model_without_a_data_plate():
    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)

    refuses(ModelError, '"data"', "rows", data=X[:, 0], model=Pair(model))


def test_a_model_that_observes_nothing():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})

    refuses(ModelError, "observes nothing", data=X[:, 0], model=Pair(model))


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
    [("max_iters", -1), ("tol", float("nan")), ("restarts", 0), ("m_steps", 0), ("variance_floor", -1.0), ("seed", -1)],
)
def test_options_out_of_range(option, value):
    refuses(OptionError, option, str(value), **{option: value})


def test_weights_that_do_not_fit():
    refuses(OptionError, "weights", "(3,)", "(60,)", weights=[1.0, 2.0, 3.0])
    refuses(OptionError, "weights", "negative", weights=[-1.0] * 60)


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


def test_a_run_folder_of_another_version(tmp_path):
    zoo.fit("gaussian_mixture", X, num_components=2).save(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**run, "format": 99}))
    with pytest.raises(RunError, match="99"):
        zoo.load(tmp_path)


def test_a_run_of_a_model_that_is_not_registered_imports_nothing(tmp_path):
    zoo.fit("gaussian_mixture", X, num_components=2).save(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    run["record"]["origin"] = {"name": "system", "factory": "os:system", "hyperparameters": {"command": "true"}}
    (tmp_path / "run.json").write_text(json.dumps(run))
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
