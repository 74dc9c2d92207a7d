"""A latent that the data depend on by steps alone has no gradient: SVI names it, and takes its smooth form."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from latentzoo import Pair, zoo
from latentzoo.inference.base.errors import ModelError

pytestmark = pytest.mark.filterwarnings("error")
T = torch.arange(40, dtype=torch.float64)
X = torch.where(T < 18.6, 0.0, 2.0) + 0.3 * torch.randn(40, generator=torch.Generator().manual_seed(0)).double()


def steps(x):
    tau = pyro.sample("tau", dist.Uniform(0.0, 40.0))
    low = pyro.sample("low", dist.Normal(0.0, 3.0))
    high = pyro.sample("high", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(torch.where(tau > T, low, high), 0.3), obs=x)


def smooth(x):
    tau = pyro.sample("tau", dist.Uniform(0.0, 40.0))
    low = pyro.sample("low", dist.Normal(0.0, 3.0))
    high = pyro.sample("high", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(low + (high - low) * torch.sigmoid(T - tau), 0.3), obs=x)


def hyper(x):
    """A parent whose child is held does not touch the data, which is no fault."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.Normal(m, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(s, 1.0), obs=x)


def test_steps_are_named():
    with pytest.raises(ModelError, match=r"depends on latent 'tau' by steps alone.*torch\.sigmoid"):
        zoo.fit(Pair(steps), X, inference="svi", progress=False)


@pytest.mark.parametrize("model", [smooth, hyper])
def test_what_is_smooth_is_fitted(model):
    fit = zoo.fit(Pair(model), X, inference="svi", num_steps=20, tol=0, progress=False)
    assert not fit.unchecked
