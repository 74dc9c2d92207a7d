"""Missing cells are integrated out exactly: scores, M-steps and imputations against brute force and algebra."""

import numpy as np
import pytest
import torch
from oracle import bound, expected_complete, joint, marginals, random_values
from scipy.stats import multivariate_normal
from stories import PRIORS, SMOOTH, STORIES
from stories.base import COUNTS, SIGNS, TABLE
from torch.distributions import transform_to

from latentzoo import Pair, em, zoo
from latentzoo.inference.base.errors import ModelError
from latentzoo.inference.trace.handlers import engine_state
from latentzoo.inference.trace.structure import read
from latentzoo.models.registry import ENTRIES

TABLES = {
    "gaussian_mixture": TABLE,
    "poisson_mixture": COUNTS,
    "latent_class": COUNTS.clamp(max=3),
    "item_response": SIGNS,
}
REGISTERED = [(name, example) for name in TABLES for example in ENTRIES[name].examples]
WHOLE_EVENTS = ("multinomial", "multinomial_logits", "one_hot")  # missing as a whole row, or not at all
# what these observe is computed from several cells, or asks of each value whether it passes a mask
OTHERWISE = ("mixed_columns", "masked")
GAPPED = [
    n for n, s in STORIES.items() if n not in OTHERWISE and (n == "regressions" or isinstance(s.data, torch.Tensor))
]
NORMALS = [n for n in GAPPED if n.startswith("mvn") or n in ("plain_normal", "prior_of_a_vector_mean")]
IN_TURN = ("shared_means", "conjugate_means", "bounded_rates")  # arguments that move in turn, or stop at a bound
EXACT = dict(rtol=1e-9, atol=1e-9)


def with_gaps(values, whole_rows=False, seed=0):
    """A fifth of the cells and the third row missing, the first two rows whole."""
    holes = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)) < 0.2
    if whole_rows:
        holes = holes[:, :1].expand_as(holes).clone()
    holes[:2], holes[2] = False, True
    return torch.where(holes, torch.nan, values.double())


def gapped_story(name):
    model, data = STORIES[name]
    if not isinstance(data, torch.Tensor):
        return model, data._replace(y=with_gaps(data.y))
    return model, with_gaps(data, name in WHOLE_EVENTS)


def first_rows(data, count):
    return data[:count] if isinstance(data, torch.Tensor) else type(data)(*(field[:count] for field in data))


@pytest.mark.parametrize("natural", [True, False], ids=["natural", "by running the model"])
@pytest.mark.parametrize("name", GAPPED)
def test_scores_are_those_of_the_cells_that_are_left(name, natural):
    model, data = gapped_story(name)
    data = first_rows(data, 10)
    values = random_values(model, first_rows(STORIES[name].data, 10), 0)
    expected = joint(model, data, values)
    fit = em(Pair(model), data, start=values, max_iters=0, tol=0, natural=natural)
    assert fit.history[0].item() == pytest.approx((expected.log_evidence.sum() + expected.log_prior).item(), rel=1e-10)
    torch.testing.assert_close(fit.score(), expected.log_evidence, **EXACT)
    assert fit.score()[2].item() == pytest.approx(0.0, abs=1e-12)
    found = {name: probs for name, probs in fit.latents().items() if isinstance(probs, torch.Tensor)}
    for latent, probs in marginals(expected, {n: p.shape[-1] for n, p in found.items()}).items():
        torch.testing.assert_close(found[latent], probs, **EXACT)


@pytest.mark.parametrize(("name", "example"), REGISTERED, ids=str)
def test_registered_models_score_the_cells_that_are_left(name, example):
    model, data = zoo.create(name, **example).model, with_gaps(TABLES[name])
    values = random_values(model, data, 0)
    fit = em(Pair(model), data, start=values, max_iters=0, tol=0)
    expected = joint(model, data, values)
    torch.testing.assert_close(fit.score(), expected.log_evidence, **EXACT)
    torch.testing.assert_close(fit.latents()["z"], expected.posterior.mT, **EXACT)
    assert fit.score()[2].item() == pytest.approx(0.0, abs=1e-12)
    if "weights" in values:
        torch.testing.assert_close(fit.latents()["z"][2], values["weights"], **EXACT)


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_gaussians_score_their_blocks_as_scipy_does(covariance):
    x = with_gaps(TABLE)
    model = zoo.create("gaussian_mixture", num_components=2, covariance=covariance).model
    values = random_values(model, x, 1)
    fit = em(Pair(model), x, start=values, max_iters=0, tol=0)
    matrices = values["covariance"].expand(2, 3, 3).numpy()
    for row, score in zip(x.numpy(), fit.score().tolist(), strict=True):
        seen = ~np.isnan(row)
        parts = [
            weight * (multivariate_normal.pdf(row[seen], loc[seen], matrix[np.ix_(seen, seen)]) if seen.any() else 1.0)
            for weight, loc, matrix in zip(values["weights"].numpy(), values["loc"].numpy(), matrices, strict=True)
        ]
        assert score == pytest.approx(np.log(sum(parts)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", [n for n in GAPPED if n not in {*SMOOTH, *NORMALS, *IN_TURN, "markov"}])
def test_m_steps_leave_no_slope_where_cells_are_missing(name):
    model, data = gapped_story(name)
    start = random_values(model, STORIES[name].data, 0)
    q = joint(model, data, start).posterior
    found = em(Pair(model), data, start=start, max_iters=1, tol=0, variance_floor=0.0).params
    with engine_state(0):
        structure = read(model, data)
    transforms = {key: transform_to(structure.params[key].constraint) for key in found}
    free = {key: transforms[key].inv(value).requires_grad_() for key, value in found.items()}
    value = expected_complete(q, joint(model, data, {key: transforms[key](one) for key, one in free.items()}))
    for slope in torch.autograd.grad(value, list(free.values())):
        assert slope.abs().max() < 1e-8 * (1 + value.abs())


@pytest.mark.parametrize("name", GAPPED)
def test_the_bound_never_falls_and_nothing_turns_nan(name):
    model, data = gapped_story(name)
    start = random_values(model, STORIES[name].data, 1)
    fit = em(Pair(model), data, start=start, max_iters=4 if name in SMOOTH else 12, tol=0, m_steps=4)
    assert torch.isfinite(fit.history).all()
    assert (fit.history.diff() >= -1e-9 * (1 + fit.history[:-1].abs())).all()
    assert fit.history[-1] > fit.history[0]
    assert fit.history[-1].item() == pytest.approx(bound(model, data, fit.params), rel=1e-9)


def classical_step(x, loc, covariance):
    """One EM step of a multivariate normal, row by row (Little and Rubin 2002, section 11.2)."""
    filled, extra = np.zeros_like(x), np.zeros_like(covariance)
    for n, row in enumerate(x):
        seen, unseen = ~np.isnan(row), np.isnan(row)
        slope = covariance[np.ix_(unseen, seen)] @ np.linalg.pinv(covariance[np.ix_(seen, seen)])
        filled[n, seen] = row[seen]
        filled[n, unseen] = loc[unseen] + slope @ (row[seen] - loc[seen])
        extra[np.ix_(unseen, unseen)] += covariance[np.ix_(unseen, unseen)] - slope @ covariance[np.ix_(seen, unseen)]
    mean = filled.mean(0)
    return mean, ((filled - mean).T @ (filled - mean) + extra) / len(x)


@pytest.mark.parametrize("name", ["plain_normal", "gaussian_mixture"])
def test_em_of_a_normal_is_the_classical_one(name):
    x = with_gaps(TABLE)
    loc, covariance = np.zeros(3), np.eye(3)
    for _ in range(10):
        loc, covariance = classical_step(x.numpy(), loc, covariance)
    if name == "plain_normal":
        start = {"loc": torch.zeros(3), "covariance": torch.eye(3)}
        fit = em(Pair(STORIES[name].model), x, start=start, max_iters=10, tol=0)
    else:
        start = {"loc": torch.zeros(1, 3), "covariance": torch.eye(3).unsqueeze(0)}
        fit = em(zoo.create(name, num_components=1), x, start=start, max_iters=10, tol=0)
    np.testing.assert_allclose(fit.params["loc"].numpy().reshape(3), loc, rtol=1e-9)
    np.testing.assert_allclose(fit.params["covariance"].numpy().reshape(3, 3), covariance, rtol=1e-9)


def test_em_of_a_normal_ends_where_no_slope_of_the_likelihood_is_left():
    x, model = with_gaps(TABLE), STORIES["plain_normal"].model
    fit = em(Pair(model), x, tol=0, max_iters=400)
    loc, factor = fit.params["loc"].requires_grad_(), torch.linalg.cholesky(fit.params["covariance"]).requires_grad_()
    value = torch.zeros(())
    for row in x:
        seen = ~row.isnan()
        if seen.any():
            matrix = (factor @ factor.mT)[seen][:, seen]
            value = value + torch.distributions.MultivariateNormal(loc[seen], matrix).log_prob(row[seen])
    for slope in torch.autograd.grad(value, [loc, factor]):
        assert slope.tril().abs().max() < 1e-6 if slope.dim() > 1 else slope.abs().max() < 1e-6
    assert value.item() == pytest.approx(fit.log_likelihood, rel=1e-10)


# --- imputation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_gaussians_impute_the_conditional_mean(covariance):
    x = with_gaps(TABLE)
    fit = em(zoo.create("gaussian_mixture", num_components=2, covariance=covariance), x, max_iters=5, tol=0)
    matrices, expected = fit.params["covariance"].expand(2, 3, 3), x.clone()
    for n, row in enumerate(x):
        seen = ~row.isnan()
        means = []
        for loc, matrix in zip(fit.params["loc"], matrices, strict=True):
            across = matrix[~seen][:, seen] @ torch.linalg.inv(matrix[seen][:, seen])
            means.append(loc[~seen] + across @ (row[seen] - loc[seen]))
        expected[n, ~seen] = fit.latents()["z"][n] @ torch.stack(means)
    torch.testing.assert_close(fit.impute(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "example", "table"),
    [
        ("gaussian_mixture", {"num_components": 2, "covariance": "diagonal"}, "loc"),
        ("poisson_mixture", {"num_components": 2}, "rate"),
    ],
)
def test_columns_that_are_independent_given_the_component_impute_its_mean(name, example, table):
    x = with_gaps(TABLES[name])
    fit = em(zoo.create(name, **example), x, max_iters=5, tol=0)
    expected = torch.where(x.isnan(), fit.latents()["z"] @ fit.params[table], x)
    torch.testing.assert_close(fit.impute(), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fit.reconstruct(), fit.latents()["z"] @ fit.params[table], rtol=1e-10, atol=1e-10)


def test_categories_are_imputed_by_the_most_probable():
    x = with_gaps(TABLES["latent_class"])
    fit = em(zoo.create("latent_class"), x, max_iters=5, tol=0)
    guess = torch.stack([(fit.latents()["z"] @ fit.params[f"probs_{j}"]).argmax(-1) for j in range(3)], 1)
    assert torch.equal(fit.impute(), torch.where(x.isnan(), guess.double(), x))


def test_a_distribution_without_a_rule_for_part_of_an_event_says_so():
    model, data = STORIES["multinomial"]
    with pytest.raises(ModelError, match="only some cells missing"):
        em(Pair(model), with_gaps(data), start=random_values(model, data, 0))


def test_stories_with_gaps_cover_every_kind():
    assert set(NORMALS) >= {"mvn_full", "mvn_tied", "mvn_tril", "mvn_precision"}
    assert len(set(GAPPED) & SMOOTH) >= 10
    assert set(GAPPED) & PRIORS
