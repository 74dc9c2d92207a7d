# %% [markdown]
# # 4. Stochastic variational inference
#
# EM needs the exact posterior of the latents. Where that is out of reach, the identity of the first tutorial still
# holds,
#
# $$\log p(x) = \mathrm{ELBO}(q) + \mathrm{KL}\big(q(\theta) \,\|\, p(\theta \mid x)\big), \qquad
# \mathrm{ELBO}(q) = \mathbb{E}_{q}[\log p(x, \theta) - \log q(\theta)],$$
#
# so one can choose a family of distributions $q$, the *guide*, and climb the ELBO by gradients. The gradient is an
# expectation too: it is estimated from a few draws of $q$ and a few rows of the data. This tutorial shows
#
# - why the way the draws are made decides how noisy the gradient is (reparameterised, enumerated),
# - how minibatches keep the answer the same, and the classic mistake that changes it,
# - when a noisy climb has arrived,
# - what a guide without correlations, *mean field*, costs,
# - and the same mixture by EM and by SVI, in one table of time and likelihood.
#
# Sources: Hoffman, Blei, Wang and Paisley (2013), *Stochastic variational inference*; Kingma and Welling (2014),
# *Auto-encoding variational Bayes*; Blei, Kucukelbir and McAuliffe (2017), *Variational inference: a review for
# statisticians*; Welandawe, Andersen, Vehtari and Huggins (2024), *A framework for improving the reliability of
# black-box variational inference*.

# %%
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch

from latentzoo import Pair, zoo

FIGURES = Path("figures")  # where the pictures go, relative to the working folder
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def save(figure, name):
    """Write a figure to the folder of figures. A notebook shows what the last line of a cell returns."""
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return figure


# %% [markdown]
# ## Two ways to differentiate an expectation
#
# Twenty measurements $x_n \sim \mathcal{N}(\mu, 1)$ of an unknown $\mu \sim \mathcal{N}(0, 10^2)$, and a guide
# $q = \mathcal{N}(m, s^2)$. What is the derivative of the ELBO with respect to $m$?
#
# - **Score function.** $\nabla_m \mathbb{E}_q[f(\mu)] = \mathbb{E}_q[f(\mu)\, \nabla_m \log q(\mu)]$. It asks nothing
#   of $f$, not even a derivative.
# - **Reparameterised.** Write $\mu = m + s\varepsilon$ with $\varepsilon \sim \mathcal{N}(0, 1)$, and differentiate
#   through the draw: $\mathbb{E}_\varepsilon[f'(m + s\varepsilon)]$.
# - **In antithetic pairs.** Use $\varepsilon$ and $-\varepsilon$ together: what is odd in $\varepsilon$ cancels.
#
# All three have the same mean. Their noise is not the same by far.

# %%
random = np.random.default_rng(0)
x = random.normal(2.0, 1.0, 20)
m, s = 1.5, 0.25


def log_joint(mu):
    """log p(x, mu) up to a constant, for an array of values."""
    return -0.5 * ((x - mu[:, None]) ** 2).sum(1) - 0.5 * mu**2 / 100


def slope(mu):
    return (x - mu[:, None]).sum(1) - mu / 100


noise = random.normal(size=20_000)
draws = m + s * noise
estimates = {
    "score function": (log_joint(draws) - (-0.5 * noise**2)) * noise / s,
    "reparameterised": slope(draws),
    "antithetic pairs": 0.5 * (slope(draws) + slope(m - s * noise)),
}
exact = (x - m).sum() - m / 100
for name, values in estimates.items():
    print(f"{name:17} mean {values.mean():8.3f}   standard deviation {values.std():9.4f}")
print(f"{'exact':17} mean {exact:8.3f}")
for values in estimates.values():
    assert abs(values.mean() - exact) < 5 * values.std() / 20_000**0.5 + 1e-9
assert estimates["score function"].std() > 5 * estimates["reparameterised"].std()
assert estimates["antithetic pairs"].std() < 1e-6  # this log density is a parabola: its slope is all odd

# %% [markdown]
# latentzoo draws continuous latents by reparameterisation, in pairs. Discrete latents have no derivative to go through;
# a guide for them would be left with the score function. There the engine does what EM does: it *sums them out*, row
# by row, exactly. That is the enumerated ELBO, and it adds no noise at all. So a mixture with point-estimated params
# has, under SVI, a bound without any noise, which is $\log p(x)$ itself.
#
# ## Minibatches
#
# The sum over $N$ rows is estimated from $B$ of them, scaled by $N / B$. A person who writes a training loop by hand
# forgets the factor easily, and nothing fails: the guide just fits a posterior of $B$ rows instead of $N$, too wide by
# $\sqrt{N / B}$. Here the driver scales; the model knows nothing of it.

# %%
column = torch.as_tensor(random.normal(3.0, 2.0, 500))


def mean_of_a_column(values):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(values)):
        pyro.sample("x", dist.Normal(mu, 2.0), obs=values)


precision = 1 / 100 + len(column) / 4
exact_sd = precision**-0.5
found = {}
for batch_size in (None, 100, 25):
    fit = zoo.fit(Pair(mean_of_a_column), column, inference="svi", batch_size=batch_size)
    found[batch_size] = fit.shared_draws(20_000)["mu"].std().item()
    print(f"batch of {batch_size or len(column):3}: sd {found[batch_size]:.4f}, exact {exact_sd:.4f}")
mistaken = zoo.fit(Pair(mean_of_a_column), column[:100], inference="svi").shared_draws(20_000)["mu"].std().item()
print(f"100 rows without the factor N / B: sd {mistaken:.4f}, {mistaken / exact_sd:.2f} times too wide")
assert all(abs(sd / exact_sd - 1) < 0.15 for sd in found.values())
assert 1.9 < mistaken / exact_sd < 2.6  # the square root of 500 / 100 is 2.24

# %% [markdown]
# ## When has it arrived?
#
# A noisy bound never stands still. At a fixed learning rate the iterates end up wandering around the optimum; a lower
# rate wanders closer and slower. So the driver watches the *iterates*: when two halves of their recent past agree
# (their $\hat R$ is below 1.1), the climb at this rate is over. It averages them, which is far better than taking the
# last one, lowers the rate, and goes on. It stops when a lower rate gains nothing more.

# %%
fit = zoo.fit(Pair(mean_of_a_column), column, inference="svi", batch_size=25, seed=1)
bounds = fit.history.numpy()
exact_mean = float(column.sum() / 4 / precision)
print(f"stopped by itself after {len(bounds) - 2} steps, converged: {fit.converged}")
print(f"mean of the guide {fit.params['mu']:.4f}, exact {exact_mean:.4f}, posterior sd {exact_sd:.4f}")
assert fit.converged
assert abs(fit.params["mu"].item() - exact_mean) < 0.3 * exact_sd

figure, panels = plt.subplots(1, 2, figsize=(11, 3.8))
panels[0].plot(bounds[:-1], color=GREY, linewidth=0.5, alpha=0.6, label="one estimate")
smooth = np.convolve(bounds[:-1], np.ones(100) / 100, "valid")
panels[0].plot(np.arange(len(smooth)) + 99, smooth, color=BLUE, linewidth=2, label="mean of 100")
panels[0].set(xlabel="step", ylabel="bound (nats)", title="The bound of every step, from 25 of 500 rows")
panels[0].legend(frameon=False)
grid = np.linspace(exact_mean - 4 * exact_sd, exact_mean + 4 * exact_sd, 300)


def density(mean, sd):
    return np.exp(-0.5 * ((grid - mean) / sd) ** 2) / sd / np.sqrt(2 * np.pi)


panels[1].plot(grid, density(exact_mean, exact_sd), color=ORANGE, linewidth=5, alpha=0.5, label="exact posterior")
guide = fit.posterior("mu").base_dist
panels[1].plot(grid, density(guide.mean.item(), guide.stddev.item()), color=BLUE, label="guide after it stopped")
panels[1].set(xlabel=r"$\mu$", ylabel="density", title="Where it stopped")
panels[1].legend(frameon=False, loc="upper left", fontsize=8)
save(figure, "04_arrival")

# %% [markdown]
# ## What mean field costs
#
# Regress on two predictors that are nearly the same. The posterior of their coefficients is a long thin ellipse: only
# their sum is well known. A mean-field guide, whose coefficients are independent, cannot lie along it. Minimising
# $\mathrm{KL}(q \| p)$ it must not put mass where $p$ has none, so it shrinks into the ellipse: for a normal target
# with precision $\Lambda$ its variances are $1 / \Lambda_{ii}$, those of one coefficient *given* the other, instead of
# $(\Lambda^{-1})_{ii}$. The means stay right.

# %%
first = random.normal(size=200)
table = np.stack([first, first + 0.3 * random.normal(size=200)], 1)
table = torch.as_tensor(np.column_stack([table, table @ [1.0, 2.0] + random.normal(size=200)]))


def regression(rows):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    with pyro.plate("data", len(rows)):
        pyro.sample("y", dist.Normal(rows[:, :2] @ w, 1.0), obs=rows[:, 2])


inputs = table[:, :2]
precision = inputs.T @ inputs + torch.eye(2) / 100
covariance = torch.linalg.inv(precision)
center = covariance @ inputs.T @ table[:, 2]
guides = {name: zoo.fit(Pair(regression), table, inference="svi", guide=name) for name in ("mean_field", "full_rank")}
spread = {name: fit.shared_draws(20_000)["w"].T.cov() for name, fit in guides.items()}
print("standard deviations of the two coefficients")
print("  exact     ", covariance.diagonal().sqrt().numpy().round(3))
for name, matrix in spread.items():
    print(f"  {name:10}", matrix.diagonal().sqrt().numpy().round(3), "mean", guides[name].params["w"].numpy().round(3))
print("  1 / sqrt of the precision's diagonal", precision.diagonal().rsqrt().numpy().round(3))
for fit in guides.values():
    assert ((fit.params["w"] - center).abs() < 0.2 * covariance.diagonal().sqrt()).all()
assert torch.allclose(spread["mean_field"].diagonal().sqrt(), precision.diagonal().rsqrt(), rtol=0.12)
assert torch.allclose(spread["full_rank"].diagonal().sqrt(), covariance.diagonal().sqrt(), rtol=0.15)
assert (spread["mean_field"].diagonal() < 0.4 * covariance.diagonal()).all()

# %%
circle = np.stack([np.cos(t := np.linspace(0, 2 * np.pi, 200)), np.sin(t)])
figure, panel = plt.subplots(figsize=(6.4, 5.4))
for name, matrix, color, width in (
    ("exact posterior", covariance, ORANGE, 6),
    ("full rank", spread["full_rank"], BLUE, 1.8),
    ("mean field", spread["mean_field"], GREEN, 1.8),
):
    outline = center.numpy()[:, None] + 2 * np.linalg.cholesky(matrix.numpy()) @ circle
    panel.plot(*outline, color=color, linewidth=width, alpha=0.45 if width > 2 else 1, label=name)
panel.plot(*center.numpy(), "+", color=GREY, markersize=12)
panel.set(xlabel="first coefficient", ylabel="second coefficient", title="Two standard deviations")
panel.set_aspect("equal", adjustable="datalim")
panel.legend(frameon=False)
save(figure, "04_mean_field")

# %% [markdown]
# The bound says which guide is better, without the exact answer at hand: it is higher by the divergence that the
# correlations are worth.

# %%
gap = guides["full_rank"].history[-1].item() - guides["mean_field"].history[-1].item()
exact_gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()
print(f"bound: full rank {guides['full_rank'].history[-1]:.3f}, mean field {guides['mean_field'].history[-1]:.3f}")
print(f"mean field costs {gap:.3f} nats; by the formula {exact_gap:.3f}")
assert abs(gap - exact_gap) < 0.15

# %% [markdown]
# ## The same mixture by EM and by SVI
#
# Three components, full covariances, iris. EM and SVI begin at the same params. Both know the same likelihood: SVI
# sums the components out as EM does. `zoo.fit(..., inference="auto")` prefers EM here, and says why.

# %%
pair = zoo.create("gaussian_mixture", num_components=3)
start = zoo.fit(pair, "iris", inference="em", max_iters=5, tol=0, seed=1).params
rows = []
for name, options in (
    ("EM", {"inference": "em"}),
    ("SVI, all rows", {"inference": "svi"}),
    ("SVI, batches of 50", {"inference": "svi", "batch_size": 50}),
):
    begun = time.perf_counter()
    fit = zoo.fit(pair, "iris", start=start, **options)
    rows.append((name, fit.log_likelihood, len(fit.history) - 1, time.perf_counter() - begun))
print(f"{'':20} {'log-likelihood':>14} {'steps':>7} {'seconds':>8}")
for name, log_likelihood, steps, seconds in rows:
    print(f"{name:20} {log_likelihood:14.4f} {steps:7} {seconds:8.2f}")
auto = zoo.fit(pair, "iris", seed=1)
print(f"auto: {auto.inference} ({auto.reason})")
best = rows[0][1]
assert abs(rows[1][1] - best) < 0.015  # 0.01 nat for every 100 rows
assert best - rows[2][1] < 1.5
assert rows[0][2] < rows[1][2] < rows[2][2]  # an EM step does far more
assert auto.inference == "em"

# %% [markdown]
# SVI reaches the same maximum, in more and cheaper steps, and minibatches make it noisier still. For a table that fits
# in memory and latents that can be summed out there is no reason to prefer it. Its time comes with what EM cannot do:
# a prior whose posterior is wanted rather than its mode, continuous latents in every row, data too large for one pass.
