"""What coordinate ascent cannot take: one plain line each, which names the site, the reason and the way out."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_iris

from latentzoo import Pair, cavi, zoo
from latentzoo.inference.base.errors import ModelError

X = torch.from_numpy(load_iris().data[::5])
ENUMERATE = {"enumerate": "parallel"}


def rows(x):
    return pyro.plate("data", len(x))


def gamma_as_mean(x):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with rows(x):
        pyro.sample("x", dist.Normal(rate, 1.0).expand([4]).to_event(1), obs=x)


def normal_as_scale(x):
    width = pyro.sample("width", dist.Normal(1.0, 0.1))
    with rows(x):
        pyro.sample("x", dist.Normal(0.0, width).expand([4]).to_event(1), obs=x)


def gamma_as_scale(x):
    sd = pyro.sample("sd", dist.Gamma(2.0, 1.0))
    with rows(x):
        pyro.sample("x", dist.Normal(0.0, sd).expand([4]).to_event(1), obs=x)


def lognormal_prior(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with rows(x):
        pyro.sample("x", dist.Normal(0.0, scale).expand([4]).to_event(1), obs=x)


def twice_in_a_site(x):
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    with rows(x):
        pyro.sample("x", dist.Normal(tau, tau**-0.5).expand([4]).to_event(1), obs=x)


def a_sum_of_its_own_cells(x):
    loc = pyro.sample("loc", dist.Normal(0.0, torch.ones(2)).to_event(1))
    with rows(x):
        pyro.sample("x", dist.Normal(loc[0] + loc[1], 1.0).expand([4]).to_event(1), obs=x)


def a_sum_of_precisions(x):
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    with rows(x):
        pyro.sample("x", dist.Normal(0.0, (tau + 1.0) ** -0.5).expand([4]).to_event(1), obs=x)


def link(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with rows(x):
        pyro.sample("x", dist.Poisson(loc.exp()), obs=x[:, 0].round())


def of_the_shape(x):
    shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    with rows(x):
        pyro.sample("x", dist.Gamma(shape, 1.0), obs=x[:, 0])


def student(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with rows(x):
        pyro.sample("x", dist.StudentT(4.0, loc, 1.0), obs=x[:, 0])


def continuous_of_a_row(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with rows(x):
        u = pyro.sample("u", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(loc * u, 1.0), obs=x[:, 0])


def masked_site(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with rows(x), pyro.poutine.mask(mask=torch.arange(len(x)) > 3):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, 0])


def scaled_prior(x):
    with pyro.poutine.scale(scale=0.5):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with rows(x):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, 0])


def outside_the_plate(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    pyro.sample("seen", dist.Normal(loc, 1.0), obs=torch.tensor(0.5))
    with rows(x):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, 0])


def no_priors(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with rows(x):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, 0])


def improper_prior(x):
    rate = pyro.sample("rate", dist.Gamma(-20.0, 1.0))
    with rows(x):
        pyro.sample("x", dist.Poisson(rate), obs=torch.zeros(len(x)).double())


def improper_rate(x):
    tau = pyro.sample("tau", dist.Gamma(1.0, -1e9))
    with rows(x):
        pyro.sample("x", dist.Normal(0.0, tau**-0.5), obs=x[:, 0])


SVI = 'use inference="svi"'
CASES = {
    gamma_as_mean: ["'x'", "'loc'", "'rate'", "Gamma", "expected power 2", SVI],
    normal_as_scale: ["'x'", "'scale'", "'width'", "Normal", "expected power -2", SVI],
    gamma_as_scale: ["'x'", "'scale'", "'sd'", "Gamma", "expected power -2", SVI],
    lognormal_prior: ["'scale'", "LogNormal", "InverseGamma", SVI],
    twice_in_a_site: ["'tau'", "'x'", SVI],
    a_sum_of_its_own_cells: ["'loc'", "'x'", "twice", SVI],
    a_sum_of_precisions: ["'x'", "its scale", "'tau'", "pow", SVI],
    link: ["'x'", "rate", "'loc'", "exp", SVI],
    of_the_shape: ["'x'", "'concentration'", "'shape'", "give it a number", SVI],
    student: ["'x'", "StudentT", SVI],
    continuous_of_a_row: ["'x'", "'u'", "latent of each row", SVI],
    masked_site: ["'x'", "mask", SVI],
    scaled_prior: ["'loc'", "scaled or masked", SVI],
    outside_the_plate: ["'seen'", "outside the data plate", SVI],
    no_priors: ["no latent that rows share has a prior", 'inference="em"'],
}


@pytest.mark.parametrize("model", CASES, ids=lambda model: model.__name__)
def test_it_is_said_in_one_plain_line(model):
    with pytest.raises(ModelError) as caught:
        cavi(Pair(model), X)
    message = str(caught.value)
    assert message.startswith("cavi: ")
    assert "\n" not in message
    for word in CASES[model]:
        assert word in message, message


@pytest.mark.parametrize("driver", ["cavi", "svi", "em"])
def test_a_prior_with_a_number_that_it_cannot_take_is_named(driver):
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.Gamma(torch.tensor([2.0, -1.0]), 1.0).to_event(1))
        with rows(x):
            pyro.sample("x", dist.Normal(loc, tau[0] ** -0.5), obs=x[:, 0])

    with pytest.raises(ModelError, match="Gamma prior of latent 'tau' has concentration -1, expected a positive"):
        zoo.fit(Pair(model), X, inference=driver)


@pytest.mark.parametrize("model", [improper_prior, improper_rate])
def test_an_improper_prior_is_named(model):
    with pytest.raises(ModelError, match=r"Gamma prior of latent '(rate|tau)' has .*, expected a positive number"):
        cavi(Pair(model), X)


def test_auto_goes_elsewhere_where_the_pair_is_not_conjugate():
    assert zoo.resolve(Pair(lognormal_prior), "auto", X)[0] == "svi"  # a posterior all the same
