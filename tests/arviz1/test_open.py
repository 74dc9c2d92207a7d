"""ArviZ 1.x opens what the fits export. Runs in an environment with ArviZ 1.x and numpy only (make test-arviz1).

The groups were written by make_groups.py into the folder that LATENTZOO_GROUPS names; inference/io/arviz.py, which
imports nothing of latentzoo, is loaded from its file.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import arviz as az
import numpy as np
import pytest
import xarray as xr

FOLDER = Path(os.environ["LATENTZOO_GROUPS"])
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
DATA = ("observed_data", "constant_data")

# A cell that never changes, such as a structural zero, makes ArviZ divide 0 by 0: a NaN in mcse_sd.
constant_cells = pytest.mark.filterwarnings("ignore:invalid value encountered in scalar divide:RuntimeWarning")


class Opened(NamedTuple):
    tree: Any
    arrays: dict[str, dict[str, np.ndarray]]
    coords: dict[str, list[Any]]
    dims: dict[str, list[str]]
    attrs: dict[str, Any]


def load_export() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "inference" / "io" / "arviz.py"
    spec = importlib.util.spec_from_file_location("latentzoo_export", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=NAMES, scope="module")
def opened(request: pytest.FixtureRequest) -> Opened:
    arrays: dict[str, dict[str, np.ndarray]] = {}
    with np.load(FOLDER / f"{request.param}.npz", allow_pickle=False) as file:
        for key in file.files:
            group, variable = key.split("/", 1)
            arrays.setdefault(group, {})[variable] = file[key]
    rest = json.loads((FOLDER / f"{request.param}.json").read_text())
    return Opened(load_export().to_arviz(arrays, **rest), arrays, **rest)


def test_the_folder_has_fits() -> None:
    assert NAMES, f"{FOLDER} holds no groups: run make_groups.py first"
    assert int(az.__version__.split(".")[0]) >= 1


def test_it_is_a_tree_with_the_groups_and_their_attributes(opened: Opened) -> None:
    assert isinstance(opened.tree, xr.DataTree)
    assert set(opened.tree.children) == {group for group, variables in opened.arrays.items() if variables}
    for node in (opened.tree, *opened.tree.children.values()):
        for name, value in opened.attrs.items():
            met = node.attrs[name]
            assert (
                met == value if isinstance(value, (str, int, float)) and value is not True else json.loads(met) == value
            )


def test_variables_have_their_values_dims_and_coords(opened: Opened) -> None:
    for group, variables in opened.arrays.items():
        for name, array in variables.items():
            met = opened.tree[group][name]
            np.testing.assert_array_equal(met.values, array)
            assert met.dtype == array.dtype or array.dtype == bool
            leading = () if group in DATA else ("chain", "draw")
            assert met.dims[: len(leading)] == leading
            named = opened.dims.get(name, met.dims[len(leading) :])
            assert met.dims == (*leading, *named)[: array.ndim]
            for dim in set(met.dims) & opened.coords.keys():
                assert met.coords[dim].values.tolist() == opened.coords[dim]


@constant_cells
def test_summary(opened: Opened) -> None:
    posterior = opened.arrays["posterior"]
    table = az.summary(opened.tree, round_to="none")
    assert len(table) == sum(array[0, 0].size for array in posterior.values())
    for name, array in posterior.items():  # ArviZ has an order of its own, of variables and of their cells
        own = table[[label == name or label.startswith(f"{name}[") for label in table.index]]
        means = np.sort(array.mean((0, 1)), axis=None)
        np.testing.assert_allclose(np.sort(own["mean"].to_numpy(float)), means, rtol=1e-4, atol=1e-6)


# an honest warning about a few flowers far out, which says nothing of the export
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_loo(opened: Opened) -> None:
    log_likelihood = opened.arrays.get("log_likelihood")
    if not log_likelihood:
        pytest.skip("this fit has no per-row log-likelihood")
    (name,) = log_likelihood
    array = log_likelihood[name]
    # an autoencoder has no posterior, so all of its draws are one; the smoothing of ArviZ 1.x refuses weights all alike
    if (array == array[:1, :1]).all():
        pytest.skip("one draw, or all alike: a point estimate has no posterior to leave a row out of")
    result = az.loo(opened.tree, pointwise=True)
    in_sample = np.log(np.exp(array).mean((0, 1))).sum()
    assert result.n_data_points == array[0, 0].size
    assert np.isfinite(result.elpd)
    assert result.elpd < in_sample  # leaving a row out never helps to predict it
    assert np.isfinite(np.asarray(result.pareto_k)).all()
