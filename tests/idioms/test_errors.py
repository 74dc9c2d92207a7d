"""Errors of a model's own code: one line each, with the line of the model that they arose at."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from latentzoo import Pair, zoo
from latentzoo.inference.base.errors import ModelError

pytestmark = pytest.mark.filterwarnings("error")
X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def wrong_shape(x):
    loc = pyro.param("loc", torch.zeros(4))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(x @ loc, 1.0), obs=x[:, 0])


def wrong_index(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, 7])


def wrong_name(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(x.middle(), 1.0), obs=x[:, 0])


def wrong_dtype(x):
    loc = pyro.param("loc", torch.zeros(3))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(x.float() @ loc, 1.0), obs=x[:, 0])


@pytest.mark.parametrize("inference", ["em", "cavi", "svi", "auto"])
@pytest.mark.parametrize(
    ("model", "line"),
    [(wrong_shape, "x @ loc"), (wrong_index, "obs=x[:, 7]"), (wrong_name, "x.middle()"), (wrong_dtype, "x.float()")],
)
def test_the_line_of_the_model_is_named(model, line, inference):
    with pytest.raises(ModelError) as caught:
        zoo.fit(Pair(model), X, inference=inference, progress=False)
    words = str(caught.value)
    assert "the model fails at test_errors.py:" in words
    assert line in words
    assert "\n" not in words
    assert len(words) < 400
