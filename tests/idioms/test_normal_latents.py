"""Normal latents of a row that feed several sites, and observed values that are handed on: against the dense normal
density of each row, its maximum found by another optimiser, and its conditional means.
"""

import math
import time
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints

from latentzoo import Pair, em, zoo
from latentzoo.inference.base.errors import ModelError

POSITIVE = {"constraint": constraints.positive}
N = 60


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_density(rows, mean, covariance):
    """log p of each row's observed cells."""
    out = []
    for n, row in enumerate(rows):
        seen = ~row.isnan()
        if not seen.any():
            out.append(torch.zeros((), dtype=torch.float64))
            continue
        center = mean[n] if mean.dim() > 1 else mean
        normal = dist.MultivariateNormal(center[seen], covariance[seen][:, seen])
        out.append(normal.log_prob(row[seen]))
    return torch.stack(out)


def maximum(rows, moments, count):
    """The largest log p by L-BFGS on `moments(free (count,)) -> mean, covariance`."""
    free = torch.full((count,), 0.1, dtype=torch.float64, requires_grad=True)
    climb = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        climb.zero_grad()
        total = -log_density(rows, *moments(free)).sum()
        total.backward()
        return total

    climb.step(loss)
    return -loss().item()


# --- local level ------------------------------------------------------------------------------------------------------


def local_level(steps):
    def model(x):
        s = pyro.param("s", torch.tensor(0.7), **POSITIVE)
        r = pyro.param("r", torch.tensor(0.6), **POSITIVE)
        with pyro.plate("data", len(x)):
            level = 0.0
            for t in range(steps):
                level = pyro.sample(f"u{t}", dist.Normal(level, s))
                pyro.sample(f"x{t}", dist.Normal(level, r), obs=x[:, t])

    return Pair(model)


def level_moments(steps, s, r):
    walk = torch.arange(1, steps + 1).double()
    return torch.zeros(steps).double(), s**2 * torch.minimum(walk, walk.unsqueeze(1)) + r**2 * torch.eye(
        steps, dtype=torch.float64
    )


def test_a_local_level_has_the_density_of_a_random_walk():
    x = drawn(N, 5).cumsum(1) + drawn(N, 5, seed=1)
    fit = em(local_level(5), x, max_iters=0, tol=0)
    torch.testing.assert_close(fit.score(), log_density(x, *level_moments(5, 0.7, 0.6)))
    fit = em(local_level(5), x)
    best = maximum(x, lambda free: level_moments(5, free[0].exp(), free[1].exp()), 2)
    assert fit.log_likelihood == pytest.approx(best, abs=1e-6)
    assert fit.converged
    covariance = level_moments(5, fit.params["s"], fit.params["r"])[1]
    signal = covariance - fit.params["r"] ** 2 * torch.eye(5, dtype=torch.float64)
    smooth = (signal @ torch.linalg.solve(covariance, x.mT)).mT
    spread = (signal - signal @ torch.linalg.solve(covariance, signal)).diagonal().sqrt()
    found = fit.latents()
    for t in range(5):
        torch.testing.assert_close(found[f"u{t}"].mean, smooth[:, t])
        torch.testing.assert_close(found[f"u{t}"].sd, spread[t].expand(N))


def test_forty_chained_latents_are_fitted_in_a_second():
    x = drawn(200, 40).cumsum(1) + drawn(200, 40, seed=1)
    start = time.process_time()
    fit = em(local_level(40), x)
    took = time.process_time() - start
    best = maximum(x, lambda free: level_moments(40, free[0].exp(), free[1].exp()), 2)
    assert fit.log_likelihood == pytest.approx(best, abs=1e-6)
    assert took < 3  # 0.7 where nothing else runs


def test_gaps_in_a_chain_are_integrated_out():
    x = drawn(N, 5).cumsum(1) + drawn(N, 5, seed=1)
    x[drawn(N, 5, seed=2) > 1] = torch.nan
    fit = em(local_level(5), x)
    torch.testing.assert_close(fit.score(), log_density(x, *level_moments(5, fit.params["s"], fit.params["r"])))
    best = maximum(x, lambda free: level_moments(5, free[0].exp(), free[1].exp()), 2)
    assert fit.log_likelihood == pytest.approx(best, abs=1e-5)


def test_auto_sums_them_out():
    fit = zoo.fit(local_level(3), drawn(N, 3), max_iters=2, tol=0)
    assert fit.inference == "em"


# --- autoregression, in two ways --------------------------------------------------------------------------------------


def ar_moments(phi, s, r, b):
    size = 4
    power = phi ** torch.arange(size)
    covariance = torch.zeros(size, size, dtype=torch.float64)
    rows = [torch.cat([power[: t + 1].flip(0), torch.zeros(size - t - 1)]) for t in range(size)]
    root = s * torch.stack(rows)
    return b.expand(size), covariance + root @ root.mT + r**2 * torch.eye(size, dtype=torch.float64)


def ar_by_sites(x):
    phi, b = pyro.param("phi", torch.tensor(0.3)), pyro.param("b", torch.tensor(0.0))
    s, r = pyro.param("s", torch.tensor(1.0), **POSITIVE), pyro.param("r", torch.tensor(1.0), **POSITIVE)
    with pyro.plate("data", len(x)):
        u = 0.0
        for t in range(4):
            u = pyro.sample(f"u{t}", dist.Normal(phi * u, s))
            pyro.sample(f"x{t}", dist.Normal(b + u, r), obs=x[:, t])


def ar_by_stack(x):
    phi, b = pyro.param("phi", torch.tensor(0.3)), pyro.param("b", torch.tensor(0.0))
    s, r = pyro.param("s", torch.tensor(1.0), **POSITIVE), pyro.param("r", torch.tensor(1.0), **POSITIVE)
    with pyro.plate("data", len(x)):
        e = pyro.sample("e", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        path = [s * e[:, 0]]
        for t in range(1, 4):
            path.append(phi * path[-1] + s * e[:, t])
        path = torch.stack([torch.zeros(len(x)), *path], 1)[:, 1:]
        pyro.sample("x", dist.Normal(b + path, r).to_event(1), obs=x)


@pytest.mark.parametrize("model", [ar_by_sites, ar_by_stack])
def test_an_autoregression_reaches_its_maximum(model):
    x = drawn(N, 4)
    for t in range(1, 4):
        x[:, t] += 0.8 * x[:, t - 1]
    x = x + 0.7 * drawn(N, 4, seed=1) + 1
    fit = em(Pair(model), x)
    p = fit.params
    torch.testing.assert_close(fit.score(), log_density(x, *ar_moments(p["phi"], p["s"], p["r"], p["b"])))
    best = maximum(x, lambda free: ar_moments(free[0], free[1].exp(), free[2].exp(), free[3]), 4)
    assert fit.log_likelihood == pytest.approx(best, abs=1e-6)


# --- equations of a SEM, a growth curve, measurement error ------------------------------------------------------------


def test_a_sem_written_site_by_site():
    """Two factors, one caused by the other, each seen by three columns."""
    eta = drawn(N)
    xi = 0.6 * eta + 0.5 * drawn(N, seed=3)
    x = torch.stack([eta, 0.8 * eta, 1.2 * eta, xi, 0.7 * xi, 1.1 * xi], 1) + 0.5 * drawn(N, 6, seed=4)

    def model(x):
        loc = pyro.param("loc", torch.zeros(6))
        load = pyro.param("load", torch.ones(4))
        beta = pyro.param("beta", torch.tensor(0.5))
        psi = pyro.param("psi", torch.ones(2), **POSITIVE)
        scale = pyro.param("scale", torch.ones(6), **POSITIVE)
        with pyro.plate("data", len(x)):
            eta = pyro.sample("eta", dist.Normal(0.0, psi[0]))
            xi = pyro.sample("xi", dist.Normal(beta * eta, psi[1]))
            means = [eta, load[0] * eta, load[1] * eta, xi, load[2] * xi, load[3] * xi]
            for d, mean in enumerate(means):
                pyro.sample(f"x{d}", dist.Normal(loc[d] + mean, scale[d]), obs=x[:, d])

    def moments(loc, load, beta, psi, scale):
        one, zero = torch.ones(()).double(), torch.zeros(()).double()
        of_eta = torch.stack([one, load[0], load[1], beta, load[2] * beta, load[3] * beta])
        of_xi = torch.stack([zero, zero, zero, one, load[2], load[3]])
        root = torch.stack([psi[0] * of_eta, psi[1] * of_xi], 1)
        return loc, root @ root.mT + torch.diag(scale**2)

    fit = em(Pair(model), x)
    p = fit.params
    torch.testing.assert_close(
        fit.score(), log_density(x, *moments(*(p[n] for n in ("loc", "load", "beta", "psi", "scale"))))
    )
    best = maximum(x, lambda f: moments(f[:6], f[6:10], f[10], f[11:13].exp(), f[13:19].exp()), 19)
    assert fit.log_likelihood == pytest.approx(best, abs=1e-5)
    assert fit.posterior("xi").batch_shape == (N,)
    columns = fit.impute(torch.where(torch.arange(6) == 2, torch.nan, x))
    mean, covariance = moments(*(p[n] for n in ("loc", "load", "beta", "psi", "scale")))
    rest = torch.tensor([0, 1, 3, 4, 5])
    wanted = mean[2] + torch.linalg.solve(covariance[rest][:, rest], covariance[rest, 2]) @ (x[:, rest] - mean[rest]).mT
    torch.testing.assert_close(columns[:, 2], wanted)


TIMES = torch.tensor([0.0, 1.0, 2.5, 4.0], dtype=torch.float64)


def growth_by_plate(x):
    a, b = pyro.param("a", torch.tensor(0.0)), pyro.param("b", torch.tensor(0.0))
    s = pyro.param("s", torch.ones(2), **POSITIVE)
    r = pyro.param("r", torch.tensor(1.0), **POSITIVE)
    with pyro.plate("data", len(x), dim=-1):
        level, slope = pyro.sample("level", dist.Normal(a, s[0])), pyro.sample("slope", dist.Normal(b, s[1]))
        with pyro.plate("times", 4, dim=-2):
            pyro.sample("x", dist.Normal(level + slope * TIMES.unsqueeze(1), r), obs=x.mT)


def growth_by_vector(x):
    a, b = pyro.param("a", torch.tensor(0.0)), pyro.param("b", torch.tensor(0.0))
    s = pyro.param("s", torch.ones(2), **POSITIVE)
    r = pyro.param("r", torch.tensor(1.0), **POSITIVE)
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.MultivariateNormal(torch.stack([a, b]), scale_tril=torch.diag(s)))
        pyro.sample("x", dist.Normal(u[:, [0]] + u[:, [1]] * TIMES, r).to_event(1), obs=x)


def growth_by_einsum(x):
    a, b = pyro.param("a", torch.tensor(0.0)), pyro.param("b", torch.tensor(0.0))
    s = pyro.param("s", torch.ones(2), **POSITIVE)
    r = pyro.param("r", torch.tensor(1.0), **POSITIVE)
    with pyro.plate("data", len(x)):
        level, slope = pyro.sample("level", dist.Normal(a, s[0])), pyro.sample("slope", dist.Normal(b, s[1]))
        both = torch.stack([level, slope], -1)
        design = torch.stack([torch.ones(4), TIMES], -1)
        pyro.sample("x", dist.Normal(torch.einsum("...k,tk->...t", both, design), r).to_event(1), obs=x)


@pytest.mark.parametrize("model", [growth_by_plate, growth_by_vector, growth_by_einsum])
def test_a_growth_curve(model):
    x = 1 + drawn(N, 1) + (0.5 + 0.3 * drawn(N, 1, seed=1)) * TIMES + 0.5 * drawn(N, 4, seed=2)

    def moments(a, b, s, r):
        design = torch.stack([torch.ones(4), TIMES], 1).double()
        root = design * s
        return a + b * TIMES, root @ root.mT + r**2 * torch.eye(4, dtype=torch.float64)

    fit = em(Pair(model), x)
    p = fit.params
    torch.testing.assert_close(fit.score(), log_density(x, *moments(p["a"], p["b"], p["s"], p["r"])))
    best = maximum(x, lambda f: moments(f[0], f[1], f[2:4].exp(), f[4].exp()), 5)
    assert fit.log_likelihood == pytest.approx(best, abs=1e-6)


def test_a_growth_curve_at_times_of_its_own():
    times = drawn(N, 4, seed=5)
    x = 1 + drawn(N, 1) + 0.3 * drawn(N, 1, seed=1) * times + 0.5 * drawn(N, 4, seed=2)

    def model(table):
        s = pyro.param("s", torch.ones(2), **POSITIVE)
        r = pyro.param("r", torch.tensor(1.0), **POSITIVE)
        with pyro.plate("data", len(table)):
            level, slope = pyro.sample("level", dist.Normal(0.0, s[0])), pyro.sample("slope", dist.Normal(0.0, s[1]))
            for t in range(4):
                pyro.sample(f"x{t}", dist.Normal(level + slope * table[:, 4 + t], r), obs=table[:, t])

    fit = em(Pair(model), torch.cat([x, times], 1))
    p = fit.params
    for n in range(0, N, 7):
        root = torch.stack([torch.ones(4).double(), times[n]], 1) * p["s"]
        wanted = log_density(
            x[n : n + 1], torch.zeros(4).double(), root @ root.mT + p["r"] ** 2 * torch.eye(4, dtype=torch.float64)
        )
        torch.testing.assert_close(fit.score()[n], wanted[0])


def test_measurement_error_in_a_mixture():
    """Under each component another slope; the density is the sum over both."""
    truth = drawn(N)
    table = torch.stack([truth + 0.3 * drawn(N, seed=1), 2 * truth + 0.5 * drawn(N, seed=2)], 1)

    def model(x):
        slope = pyro.param("slope", torch.tensor([1.0, -1.0]))
        r = pyro.param("r", torch.tensor(0.5), **POSITIVE)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(u, 0.3), obs=x[:, 0])
            pyro.sample("y", dist.Normal(slope[z] * u, r), obs=x[:, 1])

    fit = em(Pair(model), table, max_iters=5, tol=0)
    slope, r = fit.params["slope"], fit.params["r"]
    parts = []
    for k in range(2):
        root = torch.stack([torch.ones(()).double(), slope[k]])
        covariance = torch.outer(root, root) + torch.diag(torch.stack([torch.tensor(0.09).double(), r**2]))
        parts.append(math.log(0.5) + log_density(table, torch.zeros(2).double(), covariance))
    torch.testing.assert_close(fit.score(), torch.stack(parts).logsumexp(0))


def test_masked_sites_add_nothing():
    x = drawn(N, 3)
    mask = drawn(N, 3, seed=1) > -0.5

    class Table(NamedTuple):
        x: torch.Tensor
        mask: torch.Tensor

    def model(d):
        s = pyro.param("s", torch.tensor(0.8), **POSITIVE)
        with pyro.plate("data", len(d.x)):
            u = pyro.sample("u", dist.Normal(0.0, s))
            for t in range(3):
                with poutine.mask(mask=d.mask[:, t] > 0):
                    pyro.sample(f"x{t}", dist.Normal(u, 1.0), obs=d.x[:, t])

    fit = em(Pair(model), Table(x, mask.double()), max_iters=0, tol=0)
    covariance = 0.64 * torch.ones(3, 3).double() + torch.eye(3, dtype=torch.float64)
    holes = torch.where(mask, x, torch.nan)
    torch.testing.assert_close(fit.score(), log_density(holes, torch.zeros(3).double(), covariance))


def test_nested_deterministic_values_do_not_hinder():
    def model(x):
        s = pyro.param("s", torch.tensor(0.8), **POSITIVE)
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, s))
            both = pyro.deterministic("both", torch.stack([u, 2 * u], -1))
            pyro.sample("a", dist.Normal(both[..., 0], 1.0), obs=x[:, 0])
            pyro.sample("b", dist.Normal(both[..., 1], 1.0), obs=x[:, 1])

    x = drawn(N, 2)
    fit = em(Pair(model), x, max_iters=0, tol=0)
    root = torch.tensor([0.8, 1.6]).double()
    torch.testing.assert_close(
        fit.score(),
        log_density(x, torch.zeros(2).double(), torch.outer(root, root) + torch.eye(2, dtype=torch.float64)),
        rtol=1e-7,
        atol=0,
    )


# --- observed values that are handed on -------------------------------------------------------------------------------


class XY(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def regression(d):
    b = pyro.param("b", torch.zeros(2))
    s = pyro.param("s", torch.tensor(1.0), **POSITIVE)
    m = pyro.param("m", torch.tensor(0.0))
    t = pyro.param("t", torch.tensor(1.0), **POSITIVE)
    with pyro.plate("data", len(d.y)):
        x = pyro.sample("x", dist.Normal(m, t), obs=d.x)
        pyro.sample("y", dist.Normal(b[0] + b[1] * x, s), obs=d.y)


def regression_moments(b, s, m, t):
    root = torch.stack([torch.stack([t, 0 * t]), torch.stack([b[1] * t, s])])
    return torch.stack([m, b[0] + b[1] * m]), root @ root.mT


def test_a_gap_in_a_covariate_is_a_latent_of_its_row():
    x = drawn(100)
    y = 1 + 2 * x + 0.3 * drawn(100, seed=1)
    x = torch.where(torch.arange(100) < 30, torch.nan, x)
    rows = torch.stack([x, y], 1)
    fit = em(Pair(regression), XY(x, y))
    p = fit.params
    torch.testing.assert_close(fit.score(), log_density(rows, *regression_moments(p["b"], p["s"], p["m"], p["t"])))
    best = maximum(rows, lambda f: regression_moments(f[:2], f[2].exp(), f[3], f[4].exp()), 5)
    assert fit.log_likelihood == pytest.approx(best, abs=1e-5)
    assert p["b"][1].item() == pytest.approx(2, abs=0.15)


def test_a_gap_in_an_autoregression_of_observed_values():
    x = drawn(N, 4).cumsum(1)
    x[drawn(N, 4, seed=2) > 1] = torch.nan

    def model(x):
        phi = pyro.param("phi", torch.tensor(0.5))
        s = pyro.param("s", torch.tensor(1.0), **POSITIVE)
        with pyro.plate("data", len(x)):
            before = 0.0
            for t in range(4):
                before = pyro.sample(f"x{t}", dist.Normal(phi * before, s), obs=x[:, t])

    fit = em(Pair(model), x)
    zero = torch.zeros((), dtype=torch.float64)
    moments = ar_moments(fit.params["phi"], fit.params["s"], zero, zero)
    torch.testing.assert_close(fit.score(), log_density(x, *moments))
    best = maximum(x, lambda f: ar_moments(f[0], f[1].exp(), zero, zero), 2)
    assert fit.log_likelihood == pytest.approx(best, abs=1e-5)
    filled = fit.impute()
    row = int(x.isnan().any(1).nonzero()[0])
    gone = x[row].isnan()
    covariance = moments[1]
    wanted = covariance[gone][:, ~gone] @ torch.linalg.solve(covariance[~gone][:, ~gone], x[row][~gone])
    torch.testing.assert_close(filled[row][gone], wanted)


def test_a_gap_beside_a_latent_of_the_row():
    x = drawn(N, 2)
    x[:10, 0] = torch.nan

    def model(x):
        s = pyro.param("s", torch.tensor(0.8), **POSITIVE)
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, s))
            a = pyro.sample("a", dist.Normal(u, 1.0), obs=x[:, 0])
            pyro.sample("b", dist.Normal(u + 0.5 * a, 1.0), obs=x[:, 1])

    fit = em(Pair(model), x, max_iters=0, tol=0)
    root = torch.tensor([[0.8, 1.0, 0.0], [1.2, 0.5, 1.0]]).double()
    torch.testing.assert_close(fit.score(), log_density(x, torch.zeros(2).double(), root @ root.mT), rtol=1e-7, atol=0)
    found = fit.latents()["u"]
    covariance, cross = root @ root.mT, root @ torch.tensor([0.8, 0, 0]).double()
    wanted = torch.linalg.solve(covariance, cross) @ x[20]
    torch.testing.assert_close(found.mean[20], wanted, rtol=1e-6, atol=0)
    spread = 0.64 - cross @ torch.linalg.solve(covariance, cross)
    torch.testing.assert_close(found.sd[20], spread.sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.mean[3], cross[1] / covariance[1, 1] * x[3, 1], rtol=1e-6, atol=0)


# --- refused ----------------------------------------------------------------------------------------------------------


def gap_of(x_fn, y_fn):
    def model(d):
        b = pyro.param("b", torch.tensor(0.5))
        with pyro.plate("data", len(d.y)):
            x = pyro.sample("x", x_fn(), obs=d.x)
            pyro.sample("y", y_fn(b * x), obs=d.y)

    return Pair(model)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (gap_of(lambda: dist.Bernoulli(0.5), lambda m: dist.Normal(m, 1.0)), ("'x'", "Bernoulli", "missing cells")),
        (gap_of(lambda: dist.Normal(0.0, 1.0), lambda m: dist.Bernoulli(logits=m)), ("'x'", "'y'", "Bernoulli")),
        (gap_of(lambda: dist.Normal(0.0, 1.0), lambda m: dist.Normal(m**2, 1.0)), ("'x'", "'y'", "not affine")),
    ],
)
def test_gaps_that_cannot_be_integrated_are_refused(pair, words):
    d = XY(torch.tensor([1.0, 0.0, torch.nan, 1.0]), torch.tensor([0.0, 1.0, 1.0, 0.0]))
    with pytest.raises(ModelError) as caught:
        em(pair, d)
    assert all(word in str(caught.value) for word in words)


def test_other_inference_refuses_gaps_that_are_handed_on():
    x = torch.where(torch.arange(20) < 3, torch.nan, drawn(20))

    def model(d):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(d.y)):
            value = pyro.sample("x", dist.Normal(0.0, 1.0), obs=d.x)
            pyro.sample("y", dist.Normal(b * value, 1.0), obs=d.y)

    for inference in ("svi", "cavi"):
        with pytest.raises(ModelError, match=f"{inference}: site 'x' has missing cells, and site 'y'"):
            zoo.fit(Pair(model), XY(x, drawn(20, seed=1)), inference=inference)


def test_products_of_latents_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            v = pyro.sample("v", dist.Normal(u**2, 1.0))
            pyro.sample("a", dist.Normal(v, 1.0), obs=x[:, 0])
            pyro.sample("b", dist.Normal(u, 1.0), obs=x[:, 1])

    with pytest.raises(ModelError, match="mean of site 'a' is not affine"):
        em(Pair(model), drawn(N, 2))
