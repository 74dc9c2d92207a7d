"""Saved fits: a record that is not what a fit writes, or params that are not of the model, are refused by name."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch

from latentzoo import Pair, zoo
from latentzoo.inference.base.errors import RunError
from latentzoo.inference.base.run_folder import read_run, write_run
from latentzoo.inference.fit import Fit

Arrays = dict[str, torch.Tensor]
Record = dict[str, Any]


@pytest.fixture(scope="module")
def fit() -> Fit:
    return zoo.fit("gaussian_mixture", "iris", num_components=2, restarts=3)


@pytest.fixture(scope="module")
def saved(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Arrays, Record]:
    return read_run(fit.save(tmp_path_factory.mktemp("saved")))


def refused(folder: Path, arrays: Arrays, record: Record, pair: Pair | None = None) -> str:
    """What is said of a run with these; its digest is right, as of one that was made so on purpose."""
    write_run(folder, arrays, record)
    with pytest.raises(RunError) as caught:
        zoo.load(folder, pair)
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert "\n" not in message
    return message


def put(path: str, value: Any) -> Callable[[Record], None]:
    """A change of one field of a record."""

    def change(record: Record) -> None:
        part: Any = record
        *way, last = [int(name) if name.isdecimal() else name for name in path.split(".")]
        for name in way:
            part = part[name]
        if value is ...:
            del part[last]
        else:
            part[last] = value

    return change


FIELDS = [
    ("inference", "magic", "record.inference is 'magic', expected one of 'em', 'cavi', 'svi'"),
    ("inference", ..., "record lacks the field 'inference'"),
    ("guide", None, "record.guide is None, expected text"),
    ("converged", 1, "record.converged is 1, expected true or false"),
    ("converged", "yes", "record.converged is 'yes', expected true or false"),
    ("log_likelihood", "-180", "record.log_likelihood is '-180', expected a number"),
    ("log_likelihood", True, "record.log_likelihood is True, expected a number"),
    ("num_parameters", 3.5, "record.num_parameters is 3.5, expected a whole number"),
    ("num_parameters", -1, "record.num_parameters is -1, expected a number from 0"),
    ("num_rows", -1.0, "record.num_rows is -1.0, expected a number from 0"),
    ("num_rows", float("nan"), "record.num_rows is nan, expected a number from 0"),
    ("num_rows", float("inf"), "record.num_rows is inf, expected a number from 0"),
    ("seed", -1, "record.seed is -1, expected a number from 0"),
    ("seed", 2**64, f"record.seed is {2**64}, expected a number from 0"),
    ("seed", "0", "record.seed is '0', expected a whole number"),
    ("failed", None, "record.failed is None, expected a whole number"),
    ("versions", ["torch"], "record.versions is ['torch'], expected an object"),
    ("versions.torch", 2, "record.versions.torch is 2, expected text"),
    ("extra", 1, "record has the field 'extra', which is none of kind, inference"),
    ("modes", [], "record.modes is empty"),
    ("modes", {}, "record.modes is {}, expected a list"),
    ("modes.0", 3, "record.modes[0] is 3, expected an object"),
    ("modes.0.bound", None, "record.modes[0].bound is None, expected a number"),
    ("modes.0.count", 0, "record.modes[0].count is 0, expected a number from 1"),
    ("modes.0.count", 400, "record.modes count more starts than the 3 bounds"),
    ("modes.0.count", ..., "record.modes[0] lacks the field 'count'"),
    ("schema", None, "record.schema is None, expected an object"),
    ("schema.container", "heap", "record.schema.container is 'heap', expected one of 'tensor'"),
    ("schema.columns", "abc", "record.schema.columns is 'abc', expected a list"),
    ("schema.columns.0", 7, "record.schema.columns[0] is 7, expected text"),
    ("schema.width", 10**12, f"record.schema.width is {10**12}, expected a number from 1"),
    ("schema.width", 0, "record.schema.width is 0, expected a number from 1"),
    ("schema.width", 5, "record.schema has 4 columns, and a width of 5"),
    ("schema.width", ..., "record.schema lacks the field 'width'"),
    ("schema.labels", {"a": "b"}, "record.schema.labels.a is 'b', expected a list"),
    ("schema.graph", "round", "record.schema.graph is 'round', expected one of 'undirected'"),
    ("origin", "gaussian_mixture", "record.origin is 'gaussian_mixture', expected an object"),
    ("origin.name", "gaussian", "is not registered here"),
    ("origin.name", "probabilistic_pca", "is not registered here"),
    ("origin.factory", "os:system", "the fit is of os:system, which is not registered here"),
    ("origin.hyperparameters", [], "record.origin.hyperparameters is [], expected an object"),
    ("origin.hyperparameters.num_components", 10**9, "hyperparameters.num_components is 1000000000, and the run"),
    ("origin.hyperparameters.num_components", 3, "param 'weights' has shape (2,), the model gives it (3,)"),
    ("origin.hyperparameters.num_components", 0, "hyperparameters make no gaussian_mixture: num_components: met 0"),
    ("origin.hyperparameters.num_components", "2", "hyperparameters make no gaussian_mixture"),
    ("origin.hyperparameters.num_components", None, "hyperparameters make no gaussian_mixture"),
    ("origin.hyperparameters.covariance", "round", "make no gaussian_mixture: covariance: met 'round'"),
    ("origin.hyperparameters.covariance", "tied", "param 'covariance' has shape (2, 4, 4), the model gives it (4, 4)"),
    ("origin.hyperparameters.covariance", "diagonal", "the model has a param 'scale', which the run lacks"),
    ("origin.hyperparameters.colour", "red", "make no gaussian_mixture: gaussian_mixture has no hyper-parameter"),
]


@pytest.mark.parametrize(("path", "value", "met"), FIELDS)
def test_a_field_that_is_not_as_it_should_be_is_named(
    saved: tuple[Arrays, Record], tmp_path: Path, path: str, value: Any, met: str
) -> None:
    arrays, record = copy.deepcopy(saved)
    put(path, value)(record)
    began = time.monotonic()
    assert met in refused(tmp_path / "run", arrays, record)
    assert time.monotonic() - began < 5  # nothing of a size that a field made up was allocated


ARRAYS = [
    ("params/weights", torch.tensor([2.0, 3.0]).double(), "param 'weights' is not within its constraint, Simplex"),
    ("params/weights", torch.tensor([0.5, torch.nan]).double(), "param 'weights' is not within its constraint"),
    ("params/weights", torch.tensor([0.5, 0.5]).half(), "param 'weights' is of torch.float16"),
    ("params/weights", torch.tensor([1, 0]), "param 'weights' is of torch.int64"),
    ("params/weights", torch.ones(3).double() / 3, "array 'start/weights' (2,) of torch.float64 is none that a fit"),
    ("params/weights", None, "the model has a param 'weights', which the run lacks"),
    ("params/loc", torch.full((2, 4), torch.nan).double(), "param 'loc' is not within its constraint"),
    ("params/covariance", -torch.eye(4).expand(2, 4, 4).double(), "param 'covariance' is not within its constraint"),
    ("history", None, "has no array 'history'"),
    ("history", torch.empty(0).double(), "array 'history' (0,) of torch.float64 is none that a fit has"),
    ("history", torch.ones(2, 2).double(), "array 'history' (2, 2) of torch.float64 is none that a fit has"),
    ("bounds", torch.ones(3, dtype=torch.int64), "array 'bounds' (3,) of torch.int64 is none that a fit has"),
    ("modes/0/loc", torch.ones(3, 4).double(), "array 'modes/0/loc' (3, 4) of torch.float64 is none that a fit has"),
    ("modes/9/loc", torch.ones(2, 4).double(), "array 'modes/9/loc'"),
    ("modes/x/loc", torch.ones(2, 4).double(), "array 'modes/x/loc'"),
    ("more", torch.ones(1), "array 'more' (1,) of torch.float32 is none that a fit has"),
]


@pytest.mark.parametrize(("name", "value", "met"), ARRAYS)
def test_an_array_that_is_not_the_models_is_named(
    saved: tuple[Arrays, Record], tmp_path: Path, name: str, value: torch.Tensor | None, met: str
) -> None:
    arrays, record = copy.deepcopy(saved)
    arrays.pop(name, None)
    if value is not None:
        arrays[name] = value
    if met.startswith("array 'start"):
        assert met in refused(tmp_path / "run", arrays, record)
        return
    for other in [other for other in arrays if other.startswith(("start/", "modes/")) and other != name]:
        del arrays[other]  # what is said is said of the params
    assert met in refused(tmp_path / "run", arrays, record)


def test_networks_of_other_sizes_are_refused(tmp_path: Path) -> None:
    small = {"hidden": (4,), "latent_dim": 2}
    fit = zoo.fit(zoo.create("vae", **small), "binary_digits", num_steps=2, tol=0, restarts=1)
    arrays, record = read_run(fit.save(tmp_path / "run"))
    assert torch.equal(zoo.load(tmp_path / "run").score("binary_digits"), fit.score())
    for name, value, met in [
        ("hidden", [5], "has shape (4, 2), the model gives it (5, 2)"),
        ("hidden", [4, 4], "has shape "),
        ("latent_dim", 3, "has shape (4, 2), the model gives it (4, 3)"),
        ("likelihood", "poisson", ""),  # of the same sizes: nothing tells
    ]:
        changed = copy.deepcopy(record)
        changed["origin"]["hyperparameters"][name] = value
        if met:
            assert met in refused(tmp_path / "other", arrays, changed)


def test_a_pair_of_ones_own_is_held_against_the_run(tmp_path: Path) -> None:
    def of(width: int) -> Pair:
        def model(x: torch.Tensor) -> None:
            loc = pyro.param("loc", lambda: torch.zeros(width))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc.sum(), 1.0), obs=x)

        return Pair(model)

    fit = zoo.fit(of(2), torch.arange(6.0))
    arrays, record = read_run(fit.save(tmp_path / "run"))
    assert torch.equal(zoo.load(tmp_path / "run", of(2)).score(torch.arange(6.0)), fit.score())
    assert "param 'loc' has shape (2,), the model gives it (3,)" in refused(tmp_path / "run", arrays, record, of(3))


def test_a_pair_that_no_made_up_rows_suit_is_loaded(tmp_path: Path) -> None:
    """What cannot be held against the model is left to its data."""

    def model(x: torch.Tensor) -> None:
        if float(x.min()) < 100:
            raise ArithmeticError("rows that the model was not written for")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(100.0)), 1.0), obs=x)

    data = 100 + torch.arange(6.0)
    fit = zoo.fit(Pair(model), data)
    loaded = zoo.load(fit.save(tmp_path / "run"), Pair(model))
    assert torch.equal(loaded.score(data), fit.score())


def test_a_run_of_format_1_loads(fit: Fit, saved: tuple[Arrays, Record], tmp_path: Path) -> None:
    arrays, record = saved
    payload = safetensors.torch.save(arrays)
    sha256 = hashlib.sha256(payload).hexdigest()
    file = f"arrays-{sha256[:12]}.safetensors"
    tensors = {n: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for n, t in arrays.items()}
    described = {"file": file, "sha256": sha256, "bytes": len(payload), "tensors": tensors}
    header = {"kind": "latentzoo run", "format": 1, "versions": {}, "arrays": described, "record": record}
    (tmp_path / file).write_bytes(payload)
    (tmp_path / "run.json").write_text(json.dumps(header, allow_nan=False))
    loaded = zoo.load(tmp_path)
    torch.testing.assert_close(loaded.score("iris"), fit.score(), rtol=1e-12, atol=1e-12)
    assert loaded.summary() == fit.summary()
    record = copy.deepcopy(record)
    record["seed"] = "one"
    header["record"] = record
    (tmp_path / "run.json").write_text(json.dumps(header))
    with pytest.raises(RunError, match=r"record.seed is 'one', expected a whole number"):
        zoo.load(tmp_path)
