"""Groups of arrays as ArviZ opens them: dims, coords, dtypes, attributes, summary and loo; errors name the variable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentzoo import zoo
from latentzoo.inference.base.errors import OptionError
from latentzoo.inference.io import arviz as export
from latentzoo.inference.io.arviz import import_arviz, to_arviz
from latentzoo.inference.posterior import exact

CHAINS, DRAWS, N, K, D = 2, 400, 30, 3, 2
COORDS = {"component": ["a", "b", "c"], "feature": ["height", "width"], "data": np.arange(N) + 100, "unused": [1]}
DIMS = {"loc": ["component", "feature"], "z": ["data"], "x": ["data", "feature"], "mean": []}
SAMPLED = ("posterior", "posterior_predictive", "log_likelihood", "sample_stats", "prior")


def normal_groups(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Exact posterior draws of the mean of N(mean, I) under a flat prior, with bystanders of every kind."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(N, D))
    mean = x.mean(0) + generator.normal(size=(CHAINS, DRAWS, D)) / np.sqrt(N)
    errors = x - mean[:, :, None, :]
    return {
        "observed_data": {"x": x},
        "constant_data": {"count": np.array(N), "rows": np.arange(N, dtype=np.int32)},
        "prior": {"loc": generator.normal(size=(1, 7, K, D))},
        "sample_stats": {"diverging": np.zeros((CHAINS, DRAWS), bool)},
        "log_likelihood": {"x": (-0.5 * errors**2 - 0.5 * np.log(2 * np.pi)).sum(-1)},
        "posterior_predictive": {"x": mean[:, :, None, :] + generator.normal(size=(CHAINS, DRAWS, N, D))},
        "posterior": {
            "mu": mean,
            "loc": generator.normal(size=(CHAINS, DRAWS, K, D)).astype(np.float32),
            "z": generator.integers(0, K, size=(CHAINS, DRAWS, N)),
            "flag": generator.random(size=(CHAINS, DRAWS)) < 0.5,
        },
    }


def open_groups(groups: Any = None, **changes: Any) -> Any:
    options: dict[str, Any] = {"coords": COORDS, "dims": DIMS, "attrs": {"model": "normal"}, **changes}
    return to_arviz(normal_groups() if groups is None else groups, **options)


def names_of(opened: Any) -> set[str]:
    """Groups of an InferenceData (a method) or of a DataTree (paths)."""
    found = opened.groups() if callable(opened.groups) else opened.groups
    return {name.strip("/") for name in found} - {""}


def test_groups_dims_and_coords() -> None:
    opened = open_groups()
    assert names_of(opened) == {*SAMPLED, "observed_data", "constant_data"}
    assert opened["posterior"]["loc"].dims == ("chain", "draw", "component", "feature")
    assert opened["posterior"]["z"].dims == ("chain", "draw", "data")
    assert opened["posterior"]["mu"].dims == ("chain", "draw", "mu_dim_0")
    assert opened["posterior_predictive"]["x"].dims == ("chain", "draw", "data", "feature")
    assert opened["log_likelihood"]["x"].dims == ("chain", "draw", "data")
    assert opened["observed_data"]["x"].dims == ("data", "feature")
    assert opened["constant_data"]["count"].dims == ()
    assert list(opened["posterior"].coords["component"].values) == ["a", "b", "c"]
    assert list(opened["posterior"].coords["mu_dim_0"].values) == [0, 1]
    assert list(opened["posterior"].coords["chain"].values) == list(range(CHAINS))
    for group in ("posterior", "posterior_predictive", "log_likelihood", "observed_data"):
        assert list(opened[group].coords["data"].values) == list(range(100, 100 + N))


def test_values_and_dtypes_are_those_given() -> None:
    groups = normal_groups()
    opened = open_groups(groups)
    for group, variables in groups.items():
        assert set(opened[group].data_vars) == set(variables)
        for name, array in variables.items():
            met = opened[group][name]
            assert met.shape == array.shape
            np.testing.assert_array_equal(met.values, array)
            assert met.dtype == (np.int64 if name == "flag" else array.dtype)
    assert np.shares_memory(opened["posterior"]["mu"].values, groups["posterior"]["mu"])
    label = opened["posterior"]["loc"].sel(component="b", feature="width").values
    np.testing.assert_array_equal(label, groups["posterior"]["loc"][:, :, 1, 1])


def test_attributes_are_on_the_root_and_on_every_group() -> None:
    attrs = {
        "model": "normal",
        "seed": np.int64(3),
        "bound": -1.5,
        "converged": True,
        "weights": None,
        "options": {"restarts": 20, "sizes": np.arange(2)},
        "created_at": "yesterday",
        "huge": 2**70,
    }
    before = dict(attrs)
    opened = open_groups(attrs=attrs)
    assert attrs == before
    for node in (opened, *(opened[group] for group in names_of(opened))):
        met = node.attrs
        assert (met["model"], met["seed"], met["bound"], met["created_at"]) == ("normal", 3, -1.5, "yesterday")
        assert (met["converged"], met["weights"], met["huge"]) == ("true", "null", str(2**70))
        assert json.loads(met["options"]) == {"restarts": 20, "sizes": [0, 1]}


def test_summary_of_every_cell() -> None:
    groups = normal_groups()
    table = import_arviz().summary(open_groups(groups), var_names=["mu", "loc", "flag"], kind="stats")
    cells = [f"loc[{component}, {feature}]" for component in "abc" for feature in ("height", "width")]
    assert sorted(table.index) == sorted(["mu[0]", "mu[1]", "flag", *cells])
    means = {f"mu[{i}]": groups["posterior"]["mu"][..., i].mean() for i in range(D)}
    for cell, mean in means.items():
        assert float(table.loc[cell, "mean"]) == pytest.approx(mean, abs=6e-3)  # two or three digits are shown
    import_arviz().summary(open_groups(groups), var_names=["mu", "loc", "z", "flag"])  # diagnostics too: no warning


def test_loo_is_that_of_the_closed_form() -> None:
    groups = normal_groups()
    result = import_arviz().loo(open_groups(groups))
    x = groups["observed_data"]["x"]
    without = (x.sum(0) - x) / (N - 1)  # the mean of the other rows; the predictive variance is 1 + 1 / (N - 1)
    variance = 1 + 1 / (N - 1)
    exact = (-0.5 * (x - without) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)).sum()
    in_sample = np.log(np.exp(groups["log_likelihood"]["x"]).mean((0, 1))).sum()
    assert abs(in_sample - exact) > 1.0  # so the next line would catch a loo that leaves nothing out
    elpd = result.elpd_loo if hasattr(result, "elpd_loo") else result.elpd  # ArviZ 0.x, 1.x
    assert float(elpd) == pytest.approx(exact, abs=0.2)


def test_one_draw_opens() -> None:
    """A point estimate: one chain of one draw. Summaries of it are empty, but it must open without a warning."""
    opened = open_groups({"posterior": {"loc": np.zeros((1, 1, K, D))}, "observed_data": {"x": np.zeros((N, D))}})
    assert dict(opened["posterior"].sizes) == {"chain": 1, "draw": 1, "component": K, "feature": D}


def test_groups_without_variables_are_left_out() -> None:
    assert names_of(open_groups({"posterior": {}, "prior": {"loc": np.zeros((1, 2, K, D))}})) == {"prior"}


def test_a_name_may_be_a_dim_of_another_group() -> None:
    opened = open_groups(
        {"posterior": {"component": np.zeros((1, 4, 5), int)}, "prior": {"loc": np.ones((1, 2, K, D))}}
    )
    assert opened["posterior"]["component"].dims == ("chain", "draw", "component_dim_0")


def test_a_netcdf_file_holds_it_all(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    opened = open_groups(attrs={"model": "normal", "converged": True, "seed": 3, "empty": "", "none": None})
    opened.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    back = import_arviz().from_netcdf(tmp_path / "fit.nc")
    assert names_of(back) == names_of(opened)
    for group in names_of(opened):
        for name, array in opened[group].data_vars.items():
            met = back[group][name]
            assert met.dims == array.dims
            assert met.dtype == array.dtype
            np.testing.assert_array_equal(met.values, array.values)
    for node in (back, back["posterior"], back["observed_data"]):
        met = node.attrs
        assert (met["model"], met["converged"], met["seed"], met["empty"], met["none"]) == (
            "normal",
            "true",
            3,
            "",
            "null",
        )
    assert list(back["posterior"].coords["component"].values) == ["a", "b", "c"]
    back.close()


POSTERIOR = {"loc": np.zeros((1, 4, K, D))}


@pytest.mark.parametrize(
    ("groups", "changes", "met"),
    [
        ({"posterir": POSTERIOR}, {}, "unknown groups ['posterir']; expected some of ['posterior'"),
        ({"posterior": {"a": np.zeros(4)}}, {}, "posterior 'a' has shape (4,); expected (chain, draw, ...)"),
        ({"posterior": {"a": np.array([[None]])}}, {}, "posterior 'a' holds Python objects"),
        (
            {"posterior": {"loc": np.zeros((1, 4, K))}},
            {},
            "posterior 'loc' has shape (1, 4, 3); expected the dims ('chain', 'draw', 'component', 'feature')",
        ),
        (
            {"posterior": {"loc": np.zeros((1, 4, K, D, 1))}},
            {},
            "posterior 'loc' has shape (1, 4, 3, 2, 1); expected the dims",
        ),
        (
            {"posterior": {"loc": np.zeros((1, 4, K + 1, D))}},
            {},
            "posterior 'loc' has shape (1, 4, 4, 2) with dims ('chain', 'draw', 'component', 'feature'); "
            "expected 'component' to have length 3, as in its coords",
        ),
        (
            {"posterior": {"z": np.zeros((1, 4, 5)), "y": np.zeros((1, 4, 6))}},
            {"coords": {}, "dims": {"z": ["row"], "y": ["row"]}},
            "posterior 'y' has shape (1, 4, 6) with dims ('chain', 'draw', 'row'); "
            "expected 'row' to have length 5, as in posterior 'z'",
        ),
        (
            {"posterior": {"a": np.zeros((1, 4)), "b": np.zeros((1, 5))}},
            {},
            "posterior 'b' has (chain, draw) = (1, 5); expected (1, 4), as in posterior 'a'",
        ),
        (
            {"posterior": POSTERIOR, "log_likelihood": {"x": np.zeros((1, 5, N))}},
            {},
            "log_likelihood 'x' has (chain, draw) = (1, 5); expected (1, 4), as in posterior 'loc'",
        ),
        (
            {"prior": {"a": np.zeros((1, 4)), "b": np.zeros((1, 5))}},
            {},
            "prior 'b' has shape (1, 5) with dims ('chain', 'draw'); expected 'draw' to have length 4",
        ),
        (
            {"log_likelihood": {"x": np.zeros((1, 5, N + 1))}},
            {},
            "log_likelihood 'x' has shape (1, 5, 31) with dims ('chain', 'draw', 'data'); "
            "expected 'data' to have length 30",
        ),
        (
            {"posterior": {"cov": np.zeros((1, 4, D, D))}},
            {"dims": {"cov": ["feature", "feature"]}},
            "dims of 'cov' are ['feature', 'feature']; expected each name once",
        ),
        (
            {"posterior": POSTERIOR},
            {"dims": {"loc": ["chain", "feature"]}},
            "expected each name once, without ['chain'",
        ),
        ({"posterior": POSTERIOR}, {"dims": {"loc": "kd"}}, "dims of 'loc' are 'kd'; expected a sequence of names"),
        (
            {"posterior": {"component": np.zeros((1, 4)), **POSTERIOR}},
            {},
            "posterior has both a variable and a dim named 'component': rename the dim",
        ),
        (
            {"posterior": POSTERIOR},
            {"coords": {"component": np.zeros((3, 1))}},
            "coords of 'component' have shape (3, 1)",
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_named(groups: Any, changes: dict[str, Any], met: str) -> None:
    with pytest.raises(ValueError, match=r"^to_arviz: ") as caught:
        open_groups(groups, **changes)
    assert met in str(caught.value)


def run_alone(code: str, **environment: str) -> None:
    """Run code in a Python of its own, warnings as errors, with the module at `path` loaded as `export`."""
    load = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('export', {export.__file__!r})\n"
        "export = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(export)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", load + code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr


def test_the_module_needs_only_numpy() -> None:
    run_alone("heavy = {'torch', 'pyro', 'arviz', 'xarray', 'latentzoo'} & set(sys.modules)\nassert not heavy, heavy")


def test_the_notice_of_the_day_is_no_error(tmp_path: Path) -> None:
    """ArviZ 0.x warns when its stamp is missing or of another day, here in an empty cache."""
    run_alone("assert export.import_arviz().__name__ == 'arviz'", XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path))


def test_draws_at_which_the_model_cannot_be_computed_are_a_plain_error(monkeypatch):
    def fails(*args):
        raise torch.linalg.LinAlgError("the input is not positive-definite")

    fit = zoo.fit("gaussian_mixture", "iris")
    monkeypatch.setattr(exact, "row_draws", fails)
    with pytest.raises(OptionError, match=r"draws: met 'laplace', .*\(the input is not positive.*draws=\"bootstrap\""):
        fit.to_arviz("laplace")
