"""Plates: subsampled, sequential, of another size than the data, along another dim, of another model's making."""

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import by_pyro
from pyro.distributions import constraints

from latentzoo import Pair, em, zoo
from latentzoo.inference.base.errors import DataError, ModelError

ENUMERATE = {"enumerate": "parallel"}
X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + torch.tensor([0.0, 1.0, 2.0])


def with_rows(rows):
    """A normal model of one column whose rows lie as `rows(x)` says."""

    def model(x):
        mean = pyro.param("mean", torch.tensor(0.5))
        with rows(x) as index:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[index, 0])

    return model


@pytest.mark.parametrize(
    "rows",
    [
        lambda x: pyro.plate("data", len(x), subsample_size=5),
        lambda x: pyro.plate("data", len(x), subsample=torch.arange(5)),
    ],
    ids=["subsample_size", "subsample"],
)
@pytest.mark.parametrize("inference", ["em", "cavi", "svi", "auto"])
def test_a_plate_that_holds_some_of_its_rows_is_refused(rows, inference):
    with pytest.raises(ModelError, match=r"plate 'data' holds 5 of its 20 members.*batch_size=5"):
        zoo.fit(Pair(with_rows(rows)), X, inference=inference, progress=False)


def test_a_plate_that_holds_all_of_its_rows_is_the_plate():
    whole = with_rows(lambda x: pyro.plate("data", len(x), subsample_size=len(x)))
    assert float(em(Pair(whole), X, progress=False).params["mean"]) == pytest.approx(float(X[:, 0].mean()), abs=1e-9)


def test_an_inner_plate_that_is_subsampled_is_refused():
    def model(x):
        mean = pyro.param("mean", torch.zeros(3))
        with pyro.plate("data", len(x), dim=-2), pyro.plate("columns", 3, subsample_size=2, dim=-1) as index:
            pyro.sample("x", dist.Normal(mean[index], 1.0), obs=x[:, index])

    with pytest.raises(ModelError, match="plate 'columns' holds 2 of its 3 members"):
        em(Pair(model), X, progress=False)


def test_a_sequential_plate_of_rows_is_refused():
    def model(x):
        mean = pyro.param("mean", torch.tensor(0.5))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x{i}", dist.Normal(mean, 1.0), obs=x[i, 0])

    for inference in ("em", "svi"):
        with pytest.raises(ModelError, match="site 'x0' stands in a sequential plate"):
            zoo.fit(Pair(model), X, inference=inference, progress=False)


def test_a_sequential_plate_inside_the_rows_is_a_loop():
    def model(x):
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        means = pyro.param("means", torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 3.0]]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer=ENUMERATE)
            for column in pyro.plate("columns", 3):
                pyro.sample(f"x{column}", dist.Normal(means[..., column][z], 1.0), obs=x[:, column])

    start = em(Pair(model), X, max_iters=0, tol=0, progress=False)
    assert start.log_likelihood == pytest.approx(by_pyro(model, X, start.params), rel=1e-9)
    fit = em(Pair(model), X, progress=False)
    assert fit.log_likelihood == pytest.approx(by_pyro(model, X, fit.params), rel=1e-9)
    assert fit.latents()["z"].shape == (20, 2)


def test_a_sequential_plate_of_what_rows_share_is_a_loop():
    def model(x):
        means = [pyro.sample(f"mean{c}", dist.Normal(0.0, 2.0)) for c in pyro.plate("columns", 3)]
        with pyro.plate("data", len(x)):
            for c in range(3):
                pyro.sample(f"x{c}", dist.Normal(means[c], 1.0), obs=x[:, c])

    fit = em(Pair(model), X, progress=False)
    for c in range(3):  # the posterior's centre
        assert float(fit.params[f"mean{c}"]) == pytest.approx(float(X[:, c].sum() / (20 + 0.25)), abs=1e-6)


def test_a_plate_of_another_size_than_the_data_is_refused():
    def model(x):
        with pyro.plate("data", 7):
            pyro.sample("x", dist.Normal(pyro.param("mean", torch.tensor(0.5)), 1.0), obs=x[:7, 0])

    for inference in ("em", "cavi", "svi"):
        with pytest.raises(ModelError, match='plate "data" has 7 members, and the data 20 rows'):
            zoo.fit(Pair(model), X, inference=inference, progress=False)


@pytest.mark.parametrize("shape", [(20, 3), (20, 20)])
def test_rows_that_lie_along_another_dim_are_refused(shape):
    data = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def model(x):
        mean = pyro.param("mean", torch.zeros(len(x)))
        with pyro.plate("data", x.shape[1]):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x.T)

    with pytest.raises(ModelError, match="first dim"):
        em(Pair(model), data, progress=False)


def test_square_data_whose_rows_lie_along_the_first_dim_are_taken():
    data = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def model(x):
        mean = pyro.param("mean", torch.zeros(6))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    assert em(Pair(model), data, progress=False).params["mean"].numpy() == pytest.approx(data.mean(0).numpy())


# --- missing cells ----------------------------------------------------------------------------------------------------


def test_a_nan_that_the_model_makes_is_no_missing_cell():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0), obs=x.log())

    x = torch.tensor([1.0, 2.0, -1.0, 3.0, float("nan"), 2.0])
    for inference in ("em", "cavi", "svi"):
        with pytest.raises(DataError, match=r"site 'x' is given NaN in row 2 .*whose cells are all there"):
            zoo.fit(Pair(model), x, inference=inference, progress=False)
    x[2] = 4.0  # a missing cell stays missing through the logarithm
    seen = x[~x.isnan()].double().log()
    assert float(em(Pair(model), x, progress=False).params["mean"]) == pytest.approx(float(seen.mean()), abs=1e-6)


def test_a_missing_cell_in_an_argument_is_named():
    class Line(NamedTuple):
        x: torch.Tensor
        y: torch.Tensor

    def model(d):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(d.y)):
            pyro.sample("y", dist.Normal(slope * d.x, 1.0), obs=d.y)

    data = Line(X[:, 0].clone(), X[:, 1])
    data.x[3] = torch.nan
    with pytest.raises(ModelError, match="site 'y' has a loc that is NaN in row 3"):
        em(Pair(model), data, progress=False)


def test_a_gap_that_is_handed_on_is_no_filler_by_svi_and_cavi():
    class Line(NamedTuple):
        x: torch.Tensor
        y: torch.Tensor

    def model(d):
        slope, mean = pyro.sample("slope", dist.Normal(0.0, 1.0)), pyro.param("mean", torch.tensor(0.0))
        with pyro.plate("data", len(d.y)):
            x = pyro.sample("x", dist.Normal(mean, 1.0), obs=d.x)
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=d.y)

    data = Line(X[:, 0].clone(), X[:, 1])
    data.x[3] = torch.nan
    for inference in ("cavi", "svi"):
        with pytest.raises(ModelError, match="site 'x' has missing cells, and site 'y' is computed from its value"):
            zoo.fit(Pair(model), data, inference=inference, progress=False)
