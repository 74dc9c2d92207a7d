"""Pairs with networks: bad input, interruptions, and the models one by one."""

from functools import partial

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from torch import nn

from latentzoo import Pair, zoo
from latentzoo.inference.base.errors import ConvergenceWarning, DataError, FitError, ModelError, OptionError
from latentzoo.inference.nn.networks import mlp
from latentzoo.inference.svi.options import FreeBits, Warmup

pytestmark = pytest.mark.filterwarnings("ignore::latentzoo.inference.base.errors.ConvergenceWarning")

IRIS = load_iris(as_frame=True).data
DIGITS = (load_digits().data > 8).astype(np.float64)
SHORT = {"num_steps": 5, "tol": 0}


# --- bad input --------------------------------------------------------------------------------------------------------


def test_values_outside_the_support_are_named_by_row_and_column():
    with pytest.raises(DataError, match=r"row 0, column 'sepal length \(cm\)', holds 5.1.*expected 0 or 1"):
        zoo.fit("vae", IRIS)
    with pytest.raises(DataError, match="counts: whole numbers"):
        zoo.fit("vae", IRIS, likelihood="poisson")
    with pytest.raises(DataError, match=r"column 1, holds 3.*codes 0 to 2"):
        zoo.fit("vae", np.array([[0, 3], [1, 2]]), likelihood="categorical", num_categories=3)


def test_a_fit_says_the_same_of_values_it_scores():
    fit = zoo.fit("vae", DIGITS, hidden=(8,), **SHORT)
    with pytest.raises(DataError, match="row 0, column 0, holds 7"):
        fit.score(np.full((2, 64), 7.0))


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(OptionError, match="batch_size: met 200, expected a whole number from 1 to 150"):
        zoo.fit("linear_vae", IRIS, batch_size=200)


def test_networks_of_the_wrong_shape_are_named_with_their_layer():
    with pytest.raises(ModelError, match=r"layer '0' of network 'encoder'.*shape \(16, 4\), expected 5 numbers"):
        zoo.fit("vae", IRIS, likelihood="gaussian", encoder=mlp(5, (8,), 4))
    with pytest.raises(ModelError, match=r"site 'x' has events of shape \(3,\), the data's are \(4,\)"):
        zoo.fit("vae", IRIS, likelihood="gaussian", covariance="fixed", decoder=mlp(2, (8,), 3))


def test_a_constant_column_under_a_learned_variance_is_refused():
    table = IRIS.assign(same=1.0)
    for covariance in ("learned", "diagonal", "full", "low_rank"):
        with pytest.raises(DataError, match="column 'same' of site 'x' is constant"):
            zoo.fit("vae", table, likelihood="gaussian", covariance=covariance)
    assert torch.isfinite(zoo.fit("vae", table, likelihood="gaussian", covariance="fixed", **SHORT).history).all()
    assert torch.isfinite(zoo.fit("linear_vae", table, **SHORT).history).all()  # one variance for all columns


def test_a_row_without_any_cell_is_refused_in_training_and_scores_nothing():
    holes = IRIS.copy()
    holes.iloc[3] = np.nan
    with pytest.raises(DataError, match="row 3 has no observed cell"):
        zoo.fit("linear_vae", holes)
    fit = zoo.fit("linear_vae", IRIS, **SHORT)
    assert fit.score(holes)[3] == 0


def test_options_that_make_no_sense():
    for options, words in (
        ({"objective": "evidence"}, "objective: met 'evidence'"),
        ({"objective": "iwae", "num_particles": 1}, "num_particles: met 1"),
        ({"objective": "iwae", "warmup": Warmup(5)}, "warmup, free_bits"),
        ({"validation": 1.0}, "validation: met 1.0"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"start": {"scale": torch.ones(2)}}, r"start: 'scale' met shape \(2,\), expected \(\)"),
    ):
        with pytest.raises((OptionError, ModelError), match=words):
            zoo.fit("linear_vae", IRIS, **options)
    with pytest.raises(OptionError, match="epochs: met 3, an option of pairs with networks"):
        zoo.fit("gaussian_mixture", IRIS, num_components=2, inference="svi", epochs=3)


@pytest.mark.parametrize("inference", ["em", "cavi"])
def test_other_drivers_say_that_networks_are_learned_by_gradient(inference):
    with pytest.raises(ModelError, match="a network, 'decoder'"):
        zoo.fit("linear_vae", IRIS, inference=inference)


def test_a_latent_that_rows_share_is_refused():
    net = mlp(2, (), 4)

    def model(x):
        decode = pyro.module("net", net)
        scale = pyro.sample("scale", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), scale).to_event(1), obs=x)

    with pytest.raises(ModelError, match="site 'scale' lies outside the plate"):
        zoo.fit(Pair(model), IRIS, inference="svi")


def test_a_bound_that_is_no_number_stops_the_fit_with_what_was_reached():
    with pytest.raises(FitError, match="standardise the columns") as caught:
        zoo.fit("vae", IRIS * 1e30, likelihood="gaussian", covariance="diagonal", num_steps=50)
    assert torch.isfinite(caught.value.fit.params["decoder$$$0.weight"]).all()


def test_a_model_that_can_no_longer_be_computed_stops_the_fit_with_what_was_reached():
    net = mlp(1, (4,), 4)

    def model(x):
        decode = pyro.module("net", net)
        level = pyro.param("level", torch.tensor(1.0))
        root = torch.linalg.cholesky(level * torch.eye(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z) + level + 0.0 * root.sum(), 1.0).to_event(1), obs=x)

    with pytest.raises(FitError, match="not finite after") as caught:
        zoo.fit(Pair(model), IRIS - 99, inference="svi", learning_rate=0.02, num_steps=900, tol=0)
    assert 0 < caught.value.fit.params["level"] < 1
    assert caught.value.fit.score(IRIS).isfinite().all()


# --- going on, and leaving no trace -----------------------------------------------------------------------------------


def test_an_interrupted_fit_can_be_saved_and_loaded(tmp_path):
    calls = []
    decoder = mlp(2, (8,), 64)

    def interrupting(module, args):
        calls.append(1)
        if len(calls) == 60:
            raise KeyboardInterrupt

    handle = decoder.register_forward_pre_hook(interrupting)
    pair = zoo.create("vae", decoder=decoder)
    with pytest.warns(ConvergenceWarning, match="interrupted after"):
        fit = zoo.fit(pair, DIGITS, num_steps=500)
    handle.remove()
    assert 10 < len(fit.history) < 61
    fit.save(tmp_path / "run")
    with pytest.raises(ValueError, match="pass it"):  # a network of one's own cannot be made from a name
        zoo.load(tmp_path / "run")
    assert torch.equal(zoo.load(tmp_path / "run", pair).score(DIGITS), fit.score(DIGITS))


def test_a_resumed_fit_is_that_which_never_stopped(tmp_path):
    pair = zoo.create("vae", hidden=(8,))
    whole = zoo.fit(pair, DIGITS, num_steps=120, validation=0.1, learning_rate=0.01)
    half = {"validation": 0.1, "learning_rate": 0.01, "checkpoint": tmp_path / "run"}
    zoo.fit(pair, DIGITS, num_steps=70, **half)
    again = zoo.fit(zoo.create("vae", hidden=(8,)), DIGITS, num_steps=120, resume=True, **half)
    assert torch.equal(whole.history, again.history)
    assert all(torch.equal(whole.params[name], again.params[name]) for name in whole.params)
    with pytest.raises(OptionError, match="its learning_rate is"):
        zoo.fit(pair, DIGITS, num_steps=120, resume=True, **{**half, "learning_rate": 0.02})


def test_two_fits_of_a_pair_never_see_each_other_and_its_networks_stay_as_they_were():
    encoder, decoder = mlp(64, (8,), 4), mlp(2, (8,), 64)
    before = [w.detach().clone() for w in (*encoder.parameters(), *decoder.parameters())]
    pair = zoo.create("vae", encoder=encoder, decoder=decoder)
    one = zoo.fit(pair, DIGITS, num_steps=30, tol=0)
    zoo.fit(pair, DIGITS[:500], num_steps=30, tol=0)
    again = zoo.fit(pair, DIGITS, num_steps=30, tol=0)
    assert torch.equal(one.history, again.history)
    assert all(torch.equal(a, b) for a, b in zip(before, (*encoder.parameters(), *decoder.parameters()), strict=True))
    assert all(w.grad is None for w in encoder.parameters())


def test_held_out_rows_keep_the_best_weights():
    """Far too many weights for 60 rows: the bound of the rows held out falls again while that of the others rises."""
    options = {"hidden": (200,), "latent_dim": 10, "learning_rate": 0.01, "num_steps": 600, "tol": 0, "seed": 1}
    last = zoo.fit("vae", DIGITS[:60], **options)
    best = zoo.fit("vae", DIGITS[:60], validation=0.25, **options)
    new = DIGITS[1000:1300]
    assert float(best.score(new).mean()) > float(last.score(new).mean()) + 1


def test_restarts_race_and_rows_have_weights():
    fit = zoo.fit("linear_vae", IRIS, restarts=3, **SHORT)
    assert len(fit.mode_map.bounds) == 3
    none = zoo.fit("linear_vae", IRIS, weights=[1.0] * 50 + [0.0] * 100, num_steps=800, tol=0, learning_rate=0.03)
    assert none.params["decoder$$$0.bias"].numpy() == pytest.approx(IRIS[:50].mean().to_numpy(), abs=0.3)
    assert none.num_rows == 50


def test_warm_up_and_free_bits_keep_latents_in_use():
    assert Warmup(10).weight(0) == 0
    assert Warmup(10, start=0.5).weight(5) == 0.75
    assert [Warmup(10, cycles=2).weight(step) for step in (0, 5, 15, 20, 30, 999)] == [0, 0.5, 1, 0, 1, 1]
    options = {"hidden": (16,), "num_steps": 60, "tol": 0, "learning_rate": 0.01}
    plain = zoo.fit("vae", DIGITS, **options)
    warm = zoo.fit("vae", DIGITS, warmup=Warmup(200), **options)
    bits = zoo.fit("vae", DIGITS, free_bits=FreeBits(3.0), **options)
    spread = [float(fit.latents(DIGITS)["z"].mean.var(0).sum()) for fit in (plain, warm, bits)]
    assert spread[1] > spread[0]
    assert spread[2] > spread[0]


def test_a_pair_of_ones_own_needs_no_guide_and_has_no_draws_of_weights():
    net = mlp(2, (8,), 4)

    def model(x):
        decode = pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), 1.0).to_event(1), obs=x)

    fit = zoo.fit(Pair(model), IRIS, **SHORT)
    assert (fit.inference, fit.guide) == ("svi", "amortized")
    assert "a network, 'net'" in fit.reason
    assert fit.posterior("z", IRIS).event_shape == (2,)
    with pytest.raises(DataError, match="param_draws: of weights"):
        fit.param_draws()
    with pytest.raises(DataError, match="gaps: the fit has no encoder"):
        zoo.fit("probabilistic_pca", IRIS).gaps()


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["fixed", "learned", "diagonal", "low_rank", "full"])
def test_every_covariance_of_a_gaussian_vae_learns_iris(covariance, tmp_path):
    x = (IRIS - IRIS.mean()) / IRIS.std(ddof=0)
    options = {"likelihood": "gaussian", "covariance": covariance, "scale": 0.5, "hidden": (16,), "posterior": "full"}
    fit = zoo.fit("vae", x, num_steps=300, tol=0, learning_rate=0.01, **options)
    single = dist.Normal(0.0, 1.0).log_prob(torch.tensor(np.array(x))).sum()
    assert float(fit.score(x).sum()) > float(single) + 50
    assert isinstance(fit.generate(3), pd.DataFrame)
    gaps = x.mask(np.random.default_rng(0).random(x.shape) < 0.2).fillna({x.columns[0]: 0.0})
    assert not fit.impute(gaps).isna().any().any()


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial", "categorical"])
def test_counts_and_categories_are_learned(likelihood):
    """Two kinds of rows, told apart by one latent: far better than one distribution for all."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 300)
    x = rng.poisson(np.where(kind[:, None] == 1, 4.0, 1.0), (300, 5)).clip(max=9)
    fit = zoo.fit(
        "vae", x, latent_dim=1, likelihood=likelihood, hidden=(16,), num_categories=10, num_steps=400, tol=0,
        learning_rate=0.02,
    )  # fmt: skip
    alone = dist.Poisson(torch.from_numpy(x.mean(0))).log_prob(torch.from_numpy(x)).sum()
    assert float(fit.score(x).sum()) > float(alone) + 50
    code = fit.embeddings(x).to_numpy()[:, 0]
    assert abs(np.corrcoef(code, kind)[0, 1]) > 0.7
    drawn = fit.generate(500)
    assert drawn.mean() == pytest.approx(x.mean(), rel=0.15)


def test_missing_cells_are_imputed_from_the_rest_of_their_row():
    x = IRIS.to_numpy()
    holes = np.random.default_rng(1).random(x.shape) < 0.25
    holes[:, 0] = False
    gaps = np.where(holes, np.nan, x)
    options = {"objective": "iwae", "num_particles": 5, "hidden": (32,), "num_steps": 1000, "learning_rate": 0.01}
    fit = zoo.fit("missing_data_vae", gaps, tol=0, **options)
    filled = fit.impute(gaps)
    assert np.array_equal(filled[~holes], x[~holes])
    error = ((filled - x)[holes] ** 2).mean() ** 0.5
    assert error < 0.5 * ((np.nanmean(gaps, 0) - x)[holes] ** 2).mean() ** 0.5


def test_rows_made_under_conditions_follow_them():
    table = IRIS[["petal length (cm)", "sepal length (cm)", "petal width (cm)"]]
    fit = zoo.fit("conditional_vae", table, hidden=(32,), num_steps=600, tol=0, learning_rate=0.01)
    low, high = (fit.generate(200, given={"petal length (cm)": v}) for v in (1.5, 5.5))
    assert (low["petal length (cm)"] == 1.5).all()
    near = {v: IRIS[(IRIS["petal length (cm)"] - v).abs() < 0.5]["petal width (cm)"].mean() for v in (1.5, 5.5)}
    assert low["petal width (cm)"].mean() == pytest.approx(near[1.5], abs=0.25)
    assert high["petal width (cm)"].mean() == pytest.approx(near[5.5], abs=0.25)


def test_a_few_labels_are_enough_to_tell_digits_apart():
    found = load_digits()
    label = np.where(np.arange(1797) % 10 == 0, found.target.astype(float), np.nan)
    table = np.column_stack([label, DIGITS])
    fit = zoo.fit("semi_supervised_vae", table, hidden=(64,), epochs=25, tol=0, learning_rate=5e-3)
    table[1000:, 0] = np.nan
    guess = fit.latents(table[1000:1300])["y"].argmax(1).numpy()
    assert (guess == found.target[1000:1300]).mean() > 0.6


def test_lines_between_rows_begin_and_end_at_their_reconstructions():
    fit = zoo.fit("linear_vae", IRIS, num_steps=500, tol=0, learning_rate=0.02)
    line = fit.interpolate(0, 100, num=5).to_numpy()
    ends = fit.reconstruct(IRIS).to_numpy()[[0, 100]]
    assert np.abs(line[[0, -1]] - ends).max() < 0.15
    np.testing.assert_allclose(line[2], line[[0, -1]].mean(0), atol=1e-4)
    assert list(fit.embeddings(IRIS).columns) == ["z_0", "z_1"]


def test_pictures_of_networks():
    fit = zoo.fit("vae", DIGITS, hidden=(8,), **SHORT)
    assert "expected images" in fit.plot().axes[0].get_title(loc="left")
    assert "posterior means" in fit.plot("embedding").axes[0].get_title(loc="left")
    with pytest.raises(OptionError, match="a fit with networks has"):
        fit.plot("clusters")
    with pytest.raises(OptionError, match="no square images"):
        zoo.fit("linear_vae", IRIS, **SHORT).plot("manifold")


def test_a_network_with_dropout_scores_without_it():
    decoder = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.Linear(16, 64))
    fit = zoo.fit(zoo.create("vae", decoder=decoder, hidden=(8,)), DIGITS, **SHORT)
    assert decoder.training
    once, twice = fit.reconstruct(DIGITS[:5]), fit.reconstruct(DIGITS[:5])
    np.testing.assert_array_equal(once, twice)


# --- optimizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9)])
def test_other_optimizers_of_torch_step_and_resume(optimizer, tmp_path):
    options = {"optimizer": optimizer, "learning_rate": 0.01, "hidden": (8,), "batch_size": 50, "tol": 0, "seed": 3}
    whole = zoo.fit("vae", DIGITS[:200], num_steps=40, **options)
    adam = zoo.fit("vae", DIGITS[:200], num_steps=40, **{**options, "optimizer": None})
    assert whole.history[-1] > whole.history[0]
    assert not torch.equal(whole.history, adam.history)
    kept = {"checkpoint": tmp_path / "run", **options}
    zoo.fit("vae", DIGITS[:200], num_steps=15, **kept)
    again = zoo.fit("vae", DIGITS[:200], num_steps=40, resume=True, **kept)
    assert torch.equal(again.history, whole.history)


def test_what_makes_no_optimizer_is_refused():
    for wrong, word in ((torch.optim.LBFGS, "LBFGS"), (lambda weights, lr: weights, "list")):
        with pytest.raises(OptionError, match=f"optimizer: met one that makes a {word}"):
            zoo.fit("vae", DIGITS[:200], hidden=(8,), num_steps=2, optimizer=wrong)
    with pytest.raises(OptionError, match=r"optimizer: .* an option of pairs with networks"):
        zoo.fit("gaussian_mixture", "iris", num_components=2, inference="svi", optimizer=torch.optim.AdamW)
