"""log p(x) = ELBO + KL(q || p(z | x)) at every half-step of EM, each of the three summed by brute force."""

import pytest
import torch
from oracle import expected_complete, joint, random_values
from stories import STORIES
from stories.base import COUNTS, TABLE

from latentzoo import Pair, em, zoo

NAMES = (
    "poisson mvn_full normal_tied categorical_columns two_latents chain markov inner_plate nested_plates raters "
    "conjugate_counts conjugate_flags regressions log_scales heavy_tailed_priors linkage penalty_and_earlier_data "
    "prior_of_a_prior"
).split()
ITERS = 3


def run(name, data=None, weights=None, seed=0, iters=ITERS, by_hand=True):
    """Half-steps of a fit, and the joint at its iterations 0, 1, ..., where fits of that many iterations end."""
    model, given = STORIES[name]
    data = given if data is None else data
    start = random_values(model, given, seed)
    options = dict(start=start, tol=0, weights=weights, collapse=False)
    fits = [em(Pair(model), data, max_iters=t, **options) for t in range(iters + 1)]
    return fits[-1].half_steps(iters), [joint(model, data, fit.params) if by_hand else None for fit in fits]


def three_numbers(before, now, weights=None):
    """log p(x), ELBO and KL with q the posterior of one joint and the model that of another."""
    q = before.posterior
    share = torch.ones(q.shape[1]).double() if weights is None else weights
    evidence = (now.log_evidence * share).sum() + now.log_prior
    elbo = expected_complete(q * share, now) - (torch.special.xlogy(q, q) * share).sum()
    gap = (torch.special.xlogy(q, q) - torch.where(q > 0, q * now.posterior.log(), 0.0)) * share
    return evidence.item(), elbo.item(), gap.sum().item()


@pytest.mark.parametrize("name", NAMES)
def test_the_three_numbers_are_those_of_brute_force(name):
    steps, joints = run(name)
    moments = [(step.iteration, step.moment) for step in steps]
    assert moments == [(t, m) for t in range(ITERS) for m in ("before E", "after E", "before M", "after M")]
    for step in steps:
        t = step.iteration
        before = joints[max(t - 1, 0)] if step.moment == "before E" else joints[t]
        now = joints[t + 1] if step.moment == "after M" else joints[t]
        evidence, elbo, gap = three_numbers(before, now)
        assert step.log_evidence == pytest.approx(evidence, rel=1e-9, abs=1e-8)
        assert step.elbo == pytest.approx(elbo, rel=1e-8, abs=1e-7)
        assert step.kl == pytest.approx(gap, rel=1e-5, abs=1e-6)
        assert step.elbo + step.kl == pytest.approx(step.log_evidence, rel=1e-12)


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "with gaps"])
@pytest.mark.parametrize("name", NAMES)
def test_the_gap_closes_after_each_e_step_and_the_bound_never_falls(name, gaps):
    data = STORIES[name].data
    if gaps:
        if not isinstance(data, torch.Tensor):
            data = data._replace(y=torch.where(torch.arange(len(data.y)) % 5 == 2, torch.nan, data.y))
        else:
            holes = torch.rand(data.shape, generator=torch.Generator().manual_seed(0)) < 0.2
            holes[:3] = False
            data = torch.where(holes, torch.nan, data.double())
    steps, _ = run(name, data, iters=4, by_hand=False)
    for step in steps:
        room = 1e-9 * (1 + abs(step.log_evidence))
        assert step.kl >= -room
        if step.moment in ("after E", "before M"):
            assert abs(step.kl) <= room
    elbos = torch.tensor([step.elbo for step in steps], dtype=torch.float64)
    assert (elbos.diff() >= -1e-9 * (1 + elbos[:-1].abs())).all()


def test_the_first_iteration_begins_without_a_gap_and_the_next_with_the_one_that_the_m_step_opened():
    steps, _ = run("poisson")
    first, second = steps[0], steps[4]
    assert first.kl == pytest.approx(0.0, abs=1e-9)
    assert second.kl > 1e-3
    assert second == steps[3]._replace(iteration=1, moment="before E")


def test_weights_count_rows():
    weights = torch.rand(len(COUNTS), generator=torch.Generator().manual_seed(0)).double()
    steps, joints = run("poisson", weights=weights)
    for t in range(ITERS):
        after = steps[4 * t + 3]
        expected = three_numbers(joints[t], joints[t + 1], weights)
        assert (after.log_evidence, after.elbo, after.kl) == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_the_history_of_a_fit_is_the_evidence_after_each_m_step():
    fit = em(zoo.create("gaussian_mixture", num_components=2), TABLE, seed=3)
    steps = fit.half_steps(4)
    found = [steps[0].log_evidence, *(step.log_evidence for step in steps if step.moment == "after M")]
    assert found == pytest.approx(fit.history[:5].tolist(), rel=1e-11)
