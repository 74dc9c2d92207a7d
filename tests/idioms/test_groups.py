"""Effects of groups summed out of normal data: against the dense normal density of all rows and its maximum, found by
another optimiser.
"""

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints

from latentzoo import Pair, em, zoo
from latentzoo.inference.base.errors import ModelError, OptionError

POSITIVE = {"constraint": constraints.positive}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(y, mean, covariance):
    seen = ~y.isnan()
    return dist.MultivariateNormal(mean[seen], covariance[seen][:, seen]).log_prob(y[seen])


def maximum(log_prob, start):
    """The largest log p by L-BFGS from a start (count,)."""
    free = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    climb = torch.optim.LBFGS(
        [free], max_iter=2000, max_eval=5000, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss():
        climb.zero_grad()
        total = -log_prob(free)
        total.backward()
        return total

    climb.step(loss)
    return -loss().item()


def one_hot(group, count):
    return torch.nn.functional.one_hot(group, count).double()


# --- one grouping: 18 subjects over 10 days ---------------------------------------------------------------------------


class Study(NamedTuple):
    y: torch.Tensor
    day: torch.Tensor
    subject: torch.Tensor


SUBJECT, DAY = torch.arange(180) // 10, (torch.arange(180) % 10).double()
EACH = drawn(18, 2) * torch.tensor([24.0, 6.0])
STUDY = Study(251 + EACH[SUBJECT, 0] + (10.5 + EACH[SUBJECT, 1]) * DAY + 25 * drawn(180, seed=1), DAY, SUBJECT)


def study_density(b, root, s, y=STUDY.y):
    z = torch.cat([one_hot(SUBJECT, 18), one_hot(SUBJECT, 18) * DAY.unsqueeze(1)], 1)
    spread = torch.kron(root @ root.mT, torch.eye(18, dtype=torch.float64))
    return dense(y, b[0] + b[1] * DAY, z @ spread @ z.mT + s**2 * torch.eye(180, dtype=torch.float64))


def together(d):
    """Intercept and slope of each subject, correlated."""
    b = pyro.param("b", torch.tensor([200.0, 0.0]))
    root = pyro.param("root", torch.diag(torch.tensor([10.0, 5.0])), constraint=constraints.lower_cholesky)
    s = pyro.param("s", torch.tensor(20.0), **POSITIVE)
    with pyro.plate("subjects", 18):
        u = pyro.sample("u", dist.MultivariateNormal(torch.zeros(2), scale_tril=root))
    with pyro.plate("data", len(d.y)):
        pyro.sample("y", dist.Normal(b[0] + u[d.subject, 0] + (b[1] + u[d.subject, 1]) * d.day, s), obs=d.y)


def apart(d):
    """The same, independent, in two sites, the means in the priors."""
    b = pyro.param("b", torch.tensor([200.0, 0.0]))
    t = pyro.param("t", torch.tensor([10.0, 5.0]), **POSITIVE)
    s = pyro.param("s", torch.tensor(20.0), **POSITIVE)
    with pyro.plate("subjects", 18):
        level = pyro.sample("level", dist.Normal(b[0], t[0]))
        slope = pyro.sample("slope", dist.Normal(b[1], t[1]))
    with pyro.plate("data", len(d.y)):
        pyro.sample("y", dist.Normal(level[d.subject] + slope[d.subject] * d.day, s), obs=d.y)


def scaled(d):
    """The same, not centred: the prior's spread is fixed."""
    b = pyro.param("b", torch.tensor([200.0, 0.0]))
    t = pyro.param("t", torch.tensor([10.0, 5.0]), **POSITIVE)
    s = pyro.param("s", torch.tensor(20.0), **POSITIVE)
    with pyro.plate("effects", 2, dim=-2), pyro.plate("subjects", 18, dim=-1):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(d.y)):
        effect = u[:, d.subject]
        pyro.sample("y", dist.Normal(b[0] + t[0] * effect[0] + (b[1] + t[1] * effect[1]) * d.day, s), obs=d.y)


def test_correlated_intercepts_and_slopes():
    fit = em(Pair(together), STUDY)

    def free_density(f):
        root = torch.stack([torch.stack([f[2].exp(), 0 * f[2]]), torch.stack([f[3], f[4].exp()])])
        return study_density(f[:2], root, f[5].exp())

    assert fit.log_likelihood == pytest.approx(maximum(free_density, [250.0, 10.0, 3.0, 0.0, 2.0, 3.0]), abs=1e-6)
    own = study_density(fit.params["b"], fit.params["root"], fit.params["s"])
    assert fit.log_likelihood == pytest.approx(own.item(), abs=1e-8)
    assert fit.converged
    assert fit.num_parameters == 6
    assert (fit.history.diff() >= -1e-9 * (1 + fit.history.abs()[1:])).all()


@pytest.mark.parametrize("model", [apart, scaled])
def test_independent_intercepts_and_slopes(model):
    fit = em(Pair(model), STUDY)

    def free_density(f):
        return study_density(f[:2], torch.diag(f[2:4].exp()), f[4].exp())

    assert fit.log_likelihood == pytest.approx(maximum(free_density, [250.0, 10.0, 3.0, 2.0, 3.0]), abs=1e-6)
    assert fit.num_parameters == 5


def test_effects_stand_at_their_posterior_means():
    fit = em(Pair(apart), STUDY)
    b, t, s = (fit.params[name] for name in ("b", "t", "s"))
    z = torch.cat([one_hot(SUBJECT, 18), one_hot(SUBJECT, 18) * DAY.unsqueeze(1)], 1)
    spread = torch.kron(torch.diag(t**2), torch.eye(18, dtype=torch.float64))
    left = STUDY.y - b[0] - b[1] * DAY
    wanted = spread @ z.mT @ torch.linalg.solve(z @ spread @ z.mT + s**2 * torch.eye(180, dtype=torch.float64), left)
    torch.testing.assert_close(fit.params["level"], b[0] + wanted[:18])
    torch.testing.assert_close(fit.params["slope"], b[1] + wanted[18:])


def test_what_is_known_of_effects_is_a_normal(tmp_path):
    fit = em(Pair(apart), STUDY)
    t, s = fit.params["t"], fit.params["s"]
    z = torch.cat([one_hot(SUBJECT, 18), one_hot(SUBJECT, 18) * DAY.unsqueeze(1)], 1)
    spread = torch.kron(torch.diag(t**2), torch.eye(18, dtype=torch.float64))
    gain = spread @ z.mT @ torch.linalg.inv(z @ spread @ z.mT + s**2 * torch.eye(180, dtype=torch.float64))
    left = spread - gain @ z @ spread
    found = [fit.posterior(name) for name in ("level", "slope")]
    torch.testing.assert_close(torch.cat([one.stddev for one in found]), left.diagonal().sqrt())
    torch.testing.assert_close(found[1].mean, fit.params["slope"])
    roots = torch.cat([fit.guide_parts["level"], fit.guide_parts["slope"]])
    torch.testing.assert_close(roots @ roots.mT, left, atol=1e-8, rtol=1e-8)
    drawn = fit.sample_posterior(4000, seed=1)
    both = torch.stack([drawn["level"][:, 0], drawn["slope"][:, 0]])
    correlation = left[0, 18] / (left[0, 0] * left[18, 18]).sqrt()
    assert torch.corrcoef(both)[0, 1].item() == pytest.approx(correlation.item(), abs=0.05)
    page = fit.summary()
    assert "MAP" not in page
    assert "'level', 'slope', which rows share, summed out" in page
    fit.save(tmp_path / "run")
    again = zoo.load(tmp_path / "run", Pair(apart))
    torch.testing.assert_close(again.posterior("level").stddev, found[0].stddev)


def test_several_groupings_are_known_with_their_covariance():
    first, second = torch.arange(48) // 6, torch.arange(48) % 6
    y = drawn(8, seed=1)[first] + 2 * drawn(6, seed=2)[second] + 0.5 * drawn(48, seed=3)
    fit = em(two_groupings((8, 6)), Assay(y, first, second))
    t, s = fit.params["t"], fit.params["s"]
    z = torch.cat([one_hot(first, 8), one_hot(second, 6)], 1)
    precision = torch.diag(torch.cat([t[0].expand(8), t[1].expand(6)]) ** -2) + z.mT @ z / s**2
    roots = torch.cat([fit.guide_parts["u"], fit.guide_parts["v"]])
    torch.testing.assert_close(roots @ roots.mT, torch.linalg.inv(precision))


def test_auto_sums_effects_out():
    fit = zoo.fit(Pair(apart), STUDY)
    assert fit.inference == "em"
    assert "'level', 'slope' shared by rows are normal" in fit.reason
    with pytest.raises(ModelError, match="draws: 'level', 'slope' are summed out"):
        fit.param_draws(3)


def test_missing_values_and_weights_of_rows():
    y = torch.where(drawn(180, seed=3) > 1, torch.nan, STUDY.y)
    fit = em(Pair(apart), STUDY._replace(y=y))
    own = study_density(fit.params["b"], torch.diag(fit.params["t"]), fit.params["s"], y)
    assert fit.log_likelihood == pytest.approx(own.item(), abs=1e-8)
    weights = torch.arange(180) % 3
    repeated = Study(*(part.repeat_interleave(weights, 0) for part in STUDY))
    one, two = em(Pair(apart), STUDY, weights=weights), em(Pair(apart), repeated)
    assert one.log_likelihood == pytest.approx(two.log_likelihood, abs=1e-6)


def test_masked_rows_say_nothing():
    mask = drawn(180, seed=3) < 1

    def model(d):
        with poutine.mask(mask=mask):
            apart(d)

    def inner(d):
        b = pyro.param("b", torch.tensor([200.0, 0.0]))
        t = pyro.param("t", torch.tensor([10.0, 5.0]), **POSITIVE)
        s = pyro.param("s", torch.tensor(20.0), **POSITIVE)
        with pyro.plate("subjects", 18):
            level = pyro.sample("level", dist.Normal(b[0], t[0]))
            slope = pyro.sample("slope", dist.Normal(b[1], t[1]))
        with pyro.plate("data", len(d.y)), poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(level[d.subject] + slope[d.subject] * d.day, s), obs=d.y)

    holes = STUDY._replace(y=torch.where(mask, STUDY.y, torch.nan))
    assert em(Pair(inner), STUDY).log_likelihood == pytest.approx(em(Pair(apart), holes).log_likelihood, abs=1e-6)


# --- several groupings ------------------------------------------------------------------------------------------------


class Assay(NamedTuple):
    y: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor


def two_groupings(counts):
    def model(d):
        b = pyro.param("b", torch.tensor(0.0))
        t = pyro.param("t", torch.ones(2), **POSITIVE)
        s = pyro.param("s", torch.tensor(1.0), **POSITIVE)
        with pyro.plate("one", counts[0], dim=-1):
            u = pyro.sample("u", dist.Normal(0.0, t[0]))
        with pyro.plate("other", counts[1], dim=-1):
            v = pyro.sample("v", dist.Normal(0.0, t[1]))
        with pyro.plate("data", len(d.y), dim=-2):
            mean = b + u[d.first] + v[d.second]
            pyro.sample("y", dist.Normal(mean.unsqueeze(-1), s), obs=d.y.unsqueeze(-1))

    return Pair(model)


@pytest.mark.parametrize("crossed", [True, False])
def test_crossed_and_nested_groups(crossed):
    rows = 144 if crossed else 60
    first = torch.arange(rows) // 6
    second = torch.arange(rows) % 6 if crossed else torch.arange(rows) // 20
    if not crossed:
        first = torch.arange(rows) // 2
    counts = (int(first.max()) + 1, int(second.max()) + 1)
    y = 20 + drawn(counts[0], seed=1)[first] + 2 * drawn(counts[1], seed=2)[second] + 0.5 * drawn(rows, seed=3)
    fit = em(two_groupings(counts), Assay(y, first, second))

    def density(f):
        covariance = f[3].exp() ** 2 * torch.eye(rows, dtype=torch.float64)
        for n, (group, count) in enumerate(zip((first, second), counts, strict=True)):
            z = one_hot(group, count)
            covariance = covariance + f[1 + n].exp() ** 2 * z @ z.mT
        return dense(y, f[0].expand(rows), covariance)

    assert fit.log_likelihood == pytest.approx(maximum(density, [20.0, 0.0, 0.0, 0.0]), abs=1e-6)
    free = torch.cat([fit.params["b"].reshape(1), fit.params["t"].log(), fit.params["s"].log().reshape(1)])
    assert fit.log_likelihood == pytest.approx(density(free).item(), abs=1e-8)


def test_groups_within_groups_centred():
    school, pupil = torch.arange(40) // 8, torch.arange(200) // 5
    y = drawn(5, seed=1)[school[pupil]] + drawn(40, seed=2)[pupil] + drawn(200, seed=3)

    class Rows(NamedTuple):
        y: torch.Tensor
        pupil: torch.Tensor

    def model(d):
        t = pyro.param("t", torch.ones(2), **POSITIVE)
        s = pyro.param("s", torch.tensor(1.0), **POSITIVE)
        with pyro.plate("schools", 5):
            v = pyro.sample("v", dist.Normal(0.0, t[0]))
        with pyro.plate("pupils", 40):
            u = pyro.sample("u", dist.Normal(v[school], t[1]))
        with pyro.plate("data", len(d.y)):
            pyro.sample("y", dist.Normal(u[d.pupil], s), obs=d.y)

    def density(f):
        a, b = one_hot(school[pupil], 5), one_hot(pupil, 40)
        covariance = (
            f[0].exp() ** 2 * a @ a.mT
            + f[1].exp() ** 2 * b @ b.mT
            + f[2].exp() ** 2 * torch.eye(200, dtype=torch.float64)
        )
        return dense(y, torch.zeros(200).double(), covariance)

    fit = em(Pair(model), Rows(y, pupil))
    assert fit.log_likelihood == pytest.approx(maximum(density, [0.0, 0.0, 0.0]), abs=1e-6)


def test_many_groups_cost_no_table_of_all_pairs():
    group = torch.arange(20_000) // 2
    y = drawn(10_000)[group] + drawn(20_000, seed=1)

    class Rows(NamedTuple):
        y: torch.Tensor
        group: torch.Tensor

    def model(d):
        t = pyro.param("t", torch.tensor(0.5), **POSITIVE)
        s = pyro.param("s", torch.tensor(0.5), **POSITIVE)
        with pyro.plate("groups", 10_000):
            u = pyro.sample("u", dist.Normal(0.0, t))
        with pyro.plate("data", len(d.y)):
            pyro.sample("y", dist.Normal(u[d.group], s), obs=d.y)

    fit = em(Pair(model), Rows(y, group))
    t, s = fit.params["t"], fit.params["s"]
    pair = t**2 * torch.ones(2, 2).double() + s**2 * torch.eye(2, dtype=torch.float64)
    own = dist.MultivariateNormal(torch.zeros(2).double(), pair).log_prob(y.reshape(-1, 2)).sum()
    assert fit.log_likelihood == pytest.approx(own.item(), rel=1e-10)
    pairs = y.reshape(-1, 2)
    within, between = (pairs[:, 0] - pairs[:, 1]).square().mean() / 2, pairs.mean(1).square().mean()
    assert s.item() == pytest.approx(within.sqrt().item(), rel=1e-4)  # the closed form of a balanced design
    assert t.item() == pytest.approx((between - within / 2).sqrt().item(), rel=1e-4)


# --- beside other latents ---------------------------------------------------------------------------------------------


def test_a_latent_of_the_row_beside_a_group():
    """Three columns share a factor of their row; each row has the level of its group too."""
    group = torch.arange(60) // 6
    x = (
        drawn(60, 1) * torch.tensor([1.0, 0.8, 0.6])
        + drawn(10, seed=2)[group].unsqueeze(1)
        + 0.5 * drawn(60, 3, seed=3)
    )

    class Rows(NamedTuple):
        x: torch.Tensor
        group: torch.Tensor

    def model(d):
        load = pyro.param("load", torch.ones(3) / 2)
        t = pyro.param("t", torch.tensor(1.0), **POSITIVE)
        s = pyro.param("s", torch.tensor(1.0), **POSITIVE)
        with pyro.plate("groups", 10):
            v = pyro.sample("v", dist.Normal(0.0, t))
        with pyro.plate("data", len(d.x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            mean = u.unsqueeze(-1) * load + v[d.group].unsqueeze(-1)
            pyro.sample("x", dist.Normal(mean, s).to_event(1), obs=d.x)

    def density(f):
        load, t, s = f[:3], f[3].exp(), f[4].exp()
        z = one_hot(group, 10)
        own = torch.outer(load, load) + s**2 * torch.eye(3, dtype=torch.float64)
        covariance = torch.kron(torch.eye(60, dtype=torch.float64), own) + t**2 * torch.kron(
            z @ z.mT, torch.ones(3, 3).double()
        )
        return dense(x.flatten(), torch.zeros(180).double(), covariance)

    fit = em(Pair(model), Rows(x, group))
    assert fit.log_likelihood == pytest.approx(maximum(density, [0.5, 0.5, 0.5, 0.0, 0.0]), abs=1e-6)


def test_slopes_of_a_ridge_whose_spread_is_learned():
    x = drawn(40, 8)
    y = x @ drawn(8, seed=1) + drawn(40, seed=2)

    class Rows(NamedTuple):
        x: torch.Tensor
        y: torch.Tensor

    def model(d):
        t = pyro.param("t", torch.tensor(0.5), **POSITIVE)
        s = pyro.param("s", torch.tensor(0.5), **POSITIVE)
        w = pyro.sample("w", dist.Normal(torch.zeros(8), t).to_event(1))
        with pyro.plate("data", len(d.y)):
            pyro.sample("y", dist.Normal(d.x @ w, s), obs=d.y)

    def density(f):
        return dense(
            y,
            torch.zeros(40).double(),
            f[0].exp() ** 2 * x @ x.mT + f[1].exp() ** 2 * torch.eye(40, dtype=torch.float64),
        )

    fit = em(Pair(model), Rows(x, y))
    assert fit.log_likelihood == pytest.approx(maximum(density, [0.0, 0.0]), abs=1e-6)


def test_a_random_walk_that_all_rows_share():
    """One step a row, as `cumsum` of its steps."""
    y = drawn(50).cumsum(0) + drawn(50, seed=1)

    def model(y):
        t = pyro.param("t", torch.tensor(0.5), **POSITIVE)
        s = pyro.param("s", torch.tensor(0.5), **POSITIVE)
        steps = pyro.sample("steps", dist.Normal(torch.zeros(50), t).to_event(1))
        with pyro.plate("data", 50):
            pyro.sample("y", dist.Normal(steps.cumsum(0), s), obs=y)

    def density(f):
        time = torch.arange(1.0, 51).double()
        walk = torch.minimum(time, time.unsqueeze(1))
        return dense(
            y, torch.zeros(50).double(), f[0].exp() ** 2 * walk + f[1].exp() ** 2 * torch.eye(50, dtype=torch.float64)
        )

    fit = em(Pair(model), y)
    assert fit.log_likelihood == pytest.approx(maximum(density, [0.0, 0.0]), abs=1e-6)


EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]).double()
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]).double()


def test_eight_schools_are_at_the_mode_of_what_is_not_summed_out():
    def schools(y):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
        tau = pyro.sample("tau", dist.LogNormal(torch.tensor(2.0), 0.5))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
        with pyro.plate("data", 8):
            pyro.sample("y", dist.Normal(theta, ERRORS), obs=y)

    def density(f):
        given = dist.Normal(f[0], (f[1].exp() ** 2 + ERRORS**2).sqrt()).log_prob(EFFECTS).sum()
        return given + dist.Normal(0.0, 5.0).log_prob(f[0]) + dist.LogNormal(2.0, 0.5).log_prob(f[1].exp())

    fit = em(Pair(schools), EFFECTS)
    assert float(fit.history[-1]) == pytest.approx(maximum(density, [0.0, 1.0]), abs=1e-6)
    mu, tau = fit.params["mu"], fit.params["tau"]
    given = dist.Normal(mu, (tau**2 + ERRORS**2).sqrt()).log_prob(EFFECTS).sum()
    assert fit.log_likelihood == pytest.approx(given.item(), abs=1e-8)
    share = tau**2 / (tau**2 + ERRORS**2)
    torch.testing.assert_close(fit.params["theta"], mu + share * (EFFECTS - mu))


# --- refused ----------------------------------------------------------------------------------------------------------


def with_site(site, prior=lambda t: dist.Normal(0.0, t)):
    def model(d):
        t = pyro.param("t", torch.tensor(1.0), **POSITIVE)
        with pyro.plate("subjects", 18):
            u = pyro.sample("u", prior(t))
        with pyro.plate("data", len(d.y)):
            pyro.sample("y", site(u[d.subject]), obs=d.y)

    return Pair(model)


@pytest.mark.parametrize(
    ("pair", "y"),
    [
        (with_site(lambda u: dist.Bernoulli(logits=u)), (STUDY.y > 300).double()),
        (with_site(lambda u: dist.Normal(u**2, 1.0)), STUDY.y),
        (with_site(lambda u: dist.Normal(0.0, u.exp())), STUDY.y),
        (with_site(lambda u: dist.Normal(u, 1.0), lambda t: dist.Gamma(2.0, t)), STUDY.y),
    ],
    ids=["Bernoulli", "square", "spread", "Gamma"],
)
def test_a_learned_spread_is_never_learned_beside_its_latent_at_a_point(pair, y):
    with pytest.raises(ModelError) as caught:
        em(pair, STUDY._replace(y=y))
    assert all(word in str(caught.value) for word in ("'u'", "'t'", "cannot be summed out", 'inference="svi"'))
    assert "\n" not in str(caught.value)


def test_no_batches_of_rows_that_share_effects():
    with pytest.raises(OptionError, match="'level', 'slope' are summed out of all rows together"):
        em(Pair(apart), STUDY, batch_size=20)


def test_a_fixed_spread_of_what_all_rows_share_is_still_a_mode():
    """Columns' means with a prior are no groups of rows: they are learned at a point, as ever."""
    x = drawn(30, 3) + 2

    def model(x):
        s = pyro.param("s", torch.tensor(1.0), **POSITIVE)
        with pyro.plate("columns", 3):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, s).to_event(1), obs=x)

    fit = em(Pair(model), x)
    s = fit.params["s"]
    torch.testing.assert_close(fit.params["m"], x.sum(0) / (30 + s**2))
    assert s.item() == pytest.approx((x - fit.params["m"]).square().mean().sqrt().item(), rel=1e-6)


def test_rows_are_told_what_is_known_of_their_group():
    fit = zoo.fit(Pair(apart), STUDY, inference="em")
    mean = fit.params["level"][SUBJECT] + fit.params["slope"][SUBJECT] * DAY
    torch.testing.assert_close(fit.score(), dist.Normal(mean, fit.params["s"]).log_prob(STUDY.y))
