"""One posterior of every kind: draws, marginals and factors say the same, and what a kind cannot give is refused."""

from __future__ import annotations

import warnings

import networkx as nx
import pyro.distributions as dist
import pytest
import torch

from latentzoo import zoo
from latentzoo.inference.base.errors import DataError, OptionError
from latentzoo.inference.posterior.amortized import Encoder
from latentzoo.inference.posterior.conjugate import Conjugate
from latentzoo.inference.posterior.counts import Counts
from latentzoo.inference.posterior.exact import Point
from latentzoo.inference.posterior.graphs import Graph
from latentzoo.inference.posterior.guided import Guided
from latentzoo.inference.program.deterministic import Moments

COUNTED = torch.poisson(torch.full((12, 6), 3.0), generator=torch.Generator().manual_seed(0))
KINDS = {
    "point": (Point, "gaussian_mixture", "iris", {"restarts": 1}),
    "normal": (
        Guided,
        "bayesian_gaussian_mixture",
        "iris",
        {"inference": "svi", "guide": "mean_field", "num_steps": 50},
    ),
    "conjugate": (Conjugate, "bayesian_pca", "iris", {"max_iters": 20}),
    "counts": (Counts, "lda", COUNTED, {"inference": "cavi", "max_iters": 20}),
    "graph": (Graph, "stochastic_block_model", nx.florentine_families_graph, {"max_iters": 20}),
    "encoder": (Encoder, "vae", (COUNTED > 2).float(), {"num_steps": 20}),
}
NUM = 4_000
FITS = {}


@pytest.fixture(params=KINDS)
def fit(request):
    if request.param not in FITS:
        _, name, data, options = KINDS[request.param]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # short fits, which say that they are
            FITS[request.param] = zoo.fit(name, data() if callable(data) else data, seed=1, **options)
    return FITS[request.param]


def test_the_kind_is_that_of_the_guide_and_of_a_loaded_fit(request, fit, tmp_path):
    kind = KINDS[request.node.callspec.params["fit"]][0]
    assert type(fit.kind) is kind
    fit.save(tmp_path / "run")
    assert type(zoo.load(tmp_path / "run").kind) is kind


def test_draws_have_the_moments_of_the_marginals(fit):
    drawn = fit.sample_posterior(NUM)
    for name, found in fit.latents().items():
        if isinstance(found, Moments):
            error = 6 * found.sd.clamp_min(1e-3) / NUM**0.5 + 0.15 * found.sd  # moments themselves are means over draws
            assert ((drawn[name].mean(0) - found.mean).abs() <= error).all()
            continue
        share = torch.nn.functional.one_hot(drawn[name].long(), found.shape[-1]).double().mean(0)
        assert ((share - found).abs() <= 0.15).all()
        assert (share - found).abs().mean() < 0.02


def test_the_distribution_of_a_latent_has_its_moments(fit):
    for name, found in fit.latents().items():
        if isinstance(fit.kind, Encoder) and isinstance(found, Moments) and name not in ("z",):
            continue
        law = fit.posterior(name)
        if isinstance(found, Moments):
            assert law.mean.numel() == found.mean.numel()
            assert ((law.mean.reshape(found.mean.shape).double() - found.mean).abs() <= 0.4 * found.sd + 1e-6).all()
        else:
            assert isinstance(law, dist.Categorical)
            torch.testing.assert_close(law.probs, found)


def test_what_a_kind_cannot_give_is_refused_in_one_wording(fit):
    if isinstance(fit.kind, Encoder):
        for verb in (fit.shared_draws, fit.param_draws, fit.half_steps):
            with pytest.raises(DataError, match=f"^{verb.__name__}: of weights of networks there is a point alone"):
                verb()
    else:
        for verb, args in ((fit.importance, ()), (fit.embeddings, ()), (fit.interpolate, (0, 1)), (fit.gaps, ())):
            with pytest.raises(DataError, match=f"^{verb.__name__}: the fit has no encoder"):
                verb(*args)
        with pytest.raises(OptionError, match="'reconstruction' is for fits with networks"):
            fit.anomaly(by="reconstruction")
    if not isinstance(fit.kind, Conjugate):
        with pytest.raises(OptionError, match=r"^predictions: met a fit without a mean field over products"):
            fit.predictions()
    with pytest.raises(DataError, match=r"^posterior: no latent named 'nothing'; the model has"):
        fit.posterior("nothing")


def test_groups_of_every_kind_have_the_draws_of_its_posterior(fit):
    opened = fit.to_arviz(num_draws=6)
    num = 6 if fit.kind.guided else 1
    assert dict(opened.posterior.sizes)["draw"] == num
    assert set(fit.latents()) <= set(opened.posterior.data_vars)
    assert opened.log_likelihood["x"].dims == ("chain", "draw", "data")
    assert opened.posterior_predictive["x"].shape[2:] == opened.observed_data["x"].shape
