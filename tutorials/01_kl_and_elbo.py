# %% [markdown]
# # 1. The KL divergence and the evidence lower bound
#
# Every inference in this library rests on one identity,
#
# $$\log p(x) = \mathrm{ELBO}(q) + \mathrm{KL}\big(q(z) \,\|\, p(z \mid x)\big).$$
#
# This tutorial says what each of the three terms is, and computes all of them on tables small enough to check with
# pencil and paper. Then the same table is written as a Pyro model, and latentzoo gives the same numbers.
#
# You need to know what a probability, a conditional probability and an expectation are. Logarithms are natural, so
# information is measured in nats.
#
# Sources: Kullback and Leibler (1951), *On information and sufficiency*; MacKay (2003), *Information Theory,
# Inference, and Learning Algorithms*, chapters 2 and 33; Bishop (2006), *Pattern Recognition and Machine Learning*,
# sections 1.6, 9.4 and 10.1; Neal and Hinton (1998), *A view of the EM algorithm that justifies incremental, sparse,
# and other variants*.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

FIGURES = Path("figures")  # where the pictures go, relative to the working folder
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"


def save(figure, name):
    """Write a figure to the folder of figures. A notebook shows what the last line of a cell returns."""
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return figure


def note(panel, text, at, offset, **style):
    """Write beside a point of a picture, so many printer's points away."""
    panel.annotate(text, at, offset, textcoords="offset points", **style)


# %% [markdown]
# ## The divergence
#
# Let $p$ and $q$ be two distributions over the same states. A state $i$ that was drawn from $p$ speaks for $p$ and
# against $q$ by the log likelihood ratio $\log (p_i / q_i)$. Its expectation under $p$ is the Kullback-Leibler
# divergence:
#
# $$\mathrm{KL}(p \,\|\, q) = \sum_i p_i \log \frac{p_i}{q_i}.$$
#
# It is the mean information per draw for telling $p$ from $q$ when $p$ is true. A state with $p_i = 0$ adds nothing.
# A state with $p_i > 0$ and $q_i = 0$ makes the divergence infinite: one such draw rules $q$ out.


# %%
def kl(p, q):
    """KL(p || q) of tables that sum to 1 over their last axis, in nats."""
    p, q = np.broadcast_arrays(p, q)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / q), 0.0)
    return terms.sum(-1)


p = np.array([0.5, 0.3, 0.2])
q = np.array([0.2, 0.3, 0.5])
for i in range(3):
    print(f"state {i}:  p = {p[i]:.1f}   q = {q[i]:.1f}   p log(p/q) = {p[i] * np.log(p[i] / q[i]):+.4f}")
print(f"KL(p || q) = {kl(p, q):.4f} nats")

assert np.isclose(kl(p, q), 0.3 * np.log(2.5))  # 0.5 log 2.5 + 0 - 0.2 log 2.5
assert kl(p, p) == 0.0
assert kl(p, [0.5, 0.5, 0.0]) == np.inf  # q rules out a state that p draws
assert np.isclose(kl([0.5, 0.5, 0.0], p), 0.5 * np.log(5 / 3))  # the other way round it is finite

# %% [markdown]
# One term of the sum may be negative. The sum never is. This is Gibbs' inequality: since $\log u \le u - 1$,
#
# $$-\mathrm{KL}(p \,\|\, q) = \sum_i p_i \log \frac{q_i}{p_i} \le \sum_i p_i \Big(\frac{q_i}{p_i} - 1\Big) \le 0,$$
#
# with equality only where $q_i = p_i$ for every $i$. We try it on 100,000 random pairs of tables. The divergence is
# not a distance: exchanging $p$ and $q$ changes it.

# %%
random = np.random.default_rng(0)
many_p, many_q = random.dirichlet(np.ones(3), (2, 100_000))
forward, backward = kl(many_p, many_q), kl(many_q, many_p)
share = np.mean(np.abs(forward - backward) > 0.1)
print(f"smallest KL over {len(forward)} random pairs: {forward.min():.2e}")
print(f"pairs whose two divergences differ by more than 0.1 nat: {share:.0%}")

assert forward.min() > 0
assert share > 0.4

skewed = np.array([0.9, 0.08, 0.02])
flat = np.ones(3) / 3
print(f"KL(skewed || flat) = {kl(skewed, flat):.4f}    KL(flat || skewed) = {kl(flat, skewed):.4f}")
assert kl(flat, skewed) > 1.4 * kl(skewed, flat)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
states = np.arange(3)
left.bar(states - 0.18, p, 0.36, color=BLUE, label="$p$")
left.bar(states + 0.18, q, 0.36, color=ORANGE, label="$q$")
left.set(title="Two distributions over three states", xlabel="state", ylabel="probability", xticks=states)
left.legend(frameon=False)
terms = p * np.log(p / q)
right.bar(states, terms, 0.5, color=[GREEN if t >= 0 else "#CC79A7" for t in terms])
right.bar(3.2, terms.sum(), 0.5, color=GREY)
right.axhline(0, color="black", linewidth=0.8)
right.set(title=r"The terms $p_i \log(p_i/q_i)$, and their sum", ylabel="nats", ylim=(-0.26, 0.55))
right.set_xticks([0, 1, 2, 3.2], ["state 0", "state 1", "state 2", r"KL$(p\,\|\,q)$"])
for place, value in zip([0, 1, 2, 3.2], [*terms, terms.sum()], strict=True):
    note(right, f"{value:+.3f}", (place, value), (0, 4 if value >= 0 else -13), ha="center")
save(figure, "01_divergence_of_two_tables")

# %% [markdown]
# ## Which way round
#
# Let $p$ have two peaks, and let $q$ be one normal distribution. Which $q$ is nearest to $p$? The answer depends on
# the direction.
#
# - $\mathrm{KL}(p \,\|\, q)$ averages over $p$. It is large where $p$ has mass and $q$ has little, so the best $q$
#   covers both peaks. Among normal distributions it is the one with the mean and the variance of $p$.
# - $\mathrm{KL}(q \,\|\, p)$ averages over $q$. It is large where $q$ has mass and $p$ has little, so the best $q$
#   stays on one peak and ignores the other. There are two such $q$, one for each peak.
#
# Variational inference minimises the second, because it needs expectations under $q$ only (Bishop, section 10.1.2;
# MacKay, section 33.2). Here both are minimised by brute force: the axis is cut into cells, and every mean and
# standard deviation of a grid is tried.

# %%
axis = np.linspace(-12, 12, 1201)


def normal(mean, sd):
    """A normal distribution over the cells of the axis: a table that sums to 1."""
    density = np.exp(-0.5 * ((axis - mean) / sd) ** 2)
    return density / density.sum(-1, keepdims=True)


target = 0.5 * normal(-3, 0.8) + 0.5 * normal(3, 0.8)
means, sds = np.round(np.linspace(-4, 4, 81), 10), np.round(np.linspace(0.4, 4, 73), 10)
table = normal(means[:, None, None], sds[None, :, None])  # (means, sds, cells)
covering, seeking = kl(target, table), kl(table, target)  # (means, sds)


def best(divergence):
    """Mean, standard deviation and value of the smallest cell of a (means, sds) table."""
    i, j = np.unravel_index(divergence.argmin(), divergence.shape)
    return means[i], sds[j], divergence[i, j]


cover = best(covering)
seek_left = best(np.where(means[:, None] < 0, seeking, np.inf))
seek_right = best(np.where(means[:, None] > 0, seeking, np.inf))
for words, (mean, sd, value) in [
    ("KL(p || q)", cover),
    ("KL(q || p), left", seek_left),
    ("KL(q || p), right", seek_right),
]:
    print(f"{words:18s} smallest at mean {mean:+.2f}, sd {sd:.2f}: {value:.4f} nats")

assert cover[0] == 0
assert np.isclose(cover[1], np.sqrt(3**2 + 0.8**2), atol=0.05)
assert np.allclose(seek_left[:2], (-3, 0.8), atol=0.05)
assert np.allclose(seek_right[:2], (3, 0.8), atol=0.05)
assert np.isclose(seek_left[2], seek_right[2], rtol=1e-6)
assert np.isclose(seek_right[2], np.log(2), atol=1e-3)  # on its peak q = 2 p, so log(q/p) = log 2

# %%
figure, panels = plt.subplots(1, 3, figsize=(12, 3.4), sharey=True)
width = axis[1] - axis[0]
fits = [
    (r"smallest KL$(p\,\|\,q)$", cover),
    (r"smallest KL$(q\,\|\,p)$, left", seek_left),
    (r"smallest KL$(q\,\|\,p)$, right", seek_right),
]
for panel, (title, (mean, sd, value)) in zip(panels, fits, strict=True):
    panel.fill_between(axis, target / width, color=BLUE, alpha=0.35, label="$p$, two peaks")
    panel.plot(axis, normal(mean, sd) / width, color=ORANGE, linewidth=2, label="$q$, one normal")
    panel.set(title=f"{title}\n{value:.2f} nats", xlabel="$z$", xlim=(-8, 8))
panels[0].set_ylabel("density")
panels[0].legend(frameon=False, loc="upper left", fontsize=9)
panels[0].set_ylim(0, 0.62)
save(figure, "01_which_way_round")

# %% [markdown]
# ## A model with a hidden variable
#
# Someone arrives with or without an umbrella, and we cannot see the sky. The sky $z$ is the *latent* variable: sunny,
# cloudy or rainy. The umbrella $x$ is what we observe. A model gives the joint distribution, as a *prior* times a
# *likelihood*:
#
# $$p(x, z) = p(z)\, p(x \mid z).$$
#
# | $z$ | $p(z)$ | $p(x = \text{umbrella} \mid z)$ |
# |---|---|---|
# | sunny | 0.5 | 0.1 |
# | cloudy | 0.3 | 0.4 |
# | rainy | 0.2 | 0.9 |
#
# The *evidence* is the probability of what was seen, whatever the sky: $p(x) = \sum_z p(x, z)$. The *posterior* is
# what is known of the sky after seeing it, by Bayes' rule: $p(z \mid x) = p(x, z) / p(x)$.

# %%
SKIES = ["sunny", "cloudy", "rainy"]
prior = np.array([0.5, 0.3, 0.2])
umbrella = np.array([0.1, 0.4, 0.9])

joint = prior * umbrella  # p(x = umbrella, z)
evidence = joint.sum()
posterior = joint / evidence
log_evidence = np.log(evidence)
print(f"{'z':8s} {'prior':>7s} {'joint':>7s} {'posterior':>10s}")
for sky, row in zip(SKIES, np.stack([prior, joint, posterior], 1), strict=True):
    print(f"{sky:8s} {row[0]:7.3f} {row[1]:7.3f} {row[2]:10.4f}")
print(f"p(x) = {evidence:.2f}, log p(x) = {log_evidence:.4f}")

assert np.isclose(evidence, 0.35)
assert np.allclose(posterior, [5 / 35, 12 / 35, 18 / 35])

# %% [markdown]
# ## Jensen's inequality and the bound
#
# With three states the sum over $z$ is easy. With many latent variables it has too many terms, and with continuous
# ones it is an integral that nobody can do. So we look for a bound.
#
# Take any distribution $q(z)$, multiply and divide by it, and read the sum as an expectation under $q$:
#
# $$\log p(x) = \log \sum_z q(z) \frac{p(x, z)}{q(z)} = \log \mathbb{E}_q\!\left[\frac{p(x, z)}{q(z)}\right]
# \;\ge\; \mathbb{E}_q\!\left[\log \frac{p(x, z)}{q(z)}\right] = \mathrm{ELBO}(q).$$
#
# The inequality is Jensen's: the logarithm is concave, so the log of a mean is at least the mean of the logs. The
# right side is the *evidence lower bound*. It asks for an average of logs of the joint, which is what a model can
# compute.
#
# In the picture each sky is a point on the log curve, as large as its $q$. The mean of the points lies inside their
# triangle, and so below the curve.


# %%
def elbo(q, joint=joint):
    """E_q[log p(x, z) - log q(z)] of tables q over their last axis."""
    q = np.asarray(q)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(q > 0, q * np.log(joint / q), 0.0)
    return terms.sum(-1)


hopeful = np.array([0.6, 0.2, 0.2])  # a q that expects sunshine
ratios = joint / hopeful
mean_ratio, mean_log = hopeful @ ratios, hopeful @ np.log(ratios)
print(f"the ratios p(x, z) / q(z): {ratios.round(4)}, weighed by q = {hopeful}")
print(f"log of their mean = {np.log(mean_ratio):.4f} = log p(x)    mean of their logs = {mean_log:.4f} = ELBO")

assert np.isclose(np.log(mean_ratio), log_evidence)
assert np.isclose(mean_log, elbo(hopeful))
assert mean_log < log_evidence - 0.5

# %%
figure, panel = plt.subplots(figsize=(8, 4.8))
line = np.linspace(0.06, 1.0, 300)
panel.plot(line, np.log(line), color=BLUE, linewidth=2)
panel.fill(ratios, np.log(ratios), color=BLUE, alpha=0.12)
panel.scatter(ratios, np.log(ratios), s=700 * hopeful, color=BLUE, zorder=3)
offsets = [(14, -8), (-60, 12), (-40, 12)]
for sky, weight, ratio, offset in zip(SKIES, hopeful, ratios, offsets, strict=True):
    note(panel, f"{sky}, $q$ = {weight:.1f}", (ratio, np.log(ratio)), offset)
panel.hlines([log_evidence, mean_log], 0, mean_ratio, color=GREY, linestyle=":")
panel.plot([mean_ratio, mean_ratio], [mean_log, log_evidence], color=ORANGE, linewidth=4)
panel.plot([mean_ratio] * 2, [mean_log, log_evidence], "o", color=ORANGE, markersize=7)
note(panel, f"ELBO = {mean_log:.3f}, the mean of the logs", (mean_ratio, mean_log), (10, -12))
note(panel, f"$\\log p(x)$ = {log_evidence:.3f},\nthe log of the mean", (0.012, log_evidence), (0, 6))
note(panel, "the gap", (mean_ratio, (mean_log + log_evidence) / 2), (8, -3), color="#A66F00")
panel.set(
    title="Jensen's inequality: the log curve lies above the mean of any of its points",
    xlim=(0, 1.0),
    ylim=(-2.8, 0.15),
)
panel.set(xlabel="$u = p(x, z)\\,/\\,q(z)$", ylabel=r"$\log u$")
save(figure, "01_jensen")

# %% [markdown]
# ## What the gap is
#
# The gap is a divergence. Put $p(x, z) = p(z \mid x)\, p(x)$ into the bound. Since $p(x)$ does not depend on $z$, it
# comes out of the expectation:
#
# $$\mathrm{ELBO}(q) = \mathbb{E}_q\!\left[\log \frac{p(z \mid x)\, p(x)}{q(z)}\right]
# = \log p(x) - \mathbb{E}_q\!\left[\log \frac{q(z)}{p(z \mid x)}\right]
# = \log p(x) - \mathrm{KL}\big(q \,\|\, p(z \mid x)\big).$$
#
# So $\log p(x) = \mathrm{ELBO}(q) + \mathrm{KL}(q \,\|\, p(z \mid x))$ for *every* $q$. Three things follow.
#
# - The bound holds, because the divergence is never negative.
# - The bound is tight where $q$ is the posterior, and nowhere else.
# - The left side does not contain $q$. So to raise the ELBO in $q$ is to lower the divergence, and we can find the
#   posterior without computing $p(x)$.

# %%
for words, table in [("hopeful", hopeful), ("prior", prior), ("posterior", posterior)]:
    low, gap = elbo(table), kl(table, posterior)
    print(f"q = {words:9s}  ELBO {low:+.4f}  +  KL {gap:.4f}  =  {low + gap:+.4f}")

every_q = random.dirichlet(np.ones(3), 100_000)
assert np.abs(elbo(every_q) + kl(every_q, posterior) - log_evidence).max() < 1e-12  # the identity, for 100,000 q
assert elbo(every_q).max() < log_evidence  # the bound
assert np.isclose(elbo(posterior), log_evidence, rtol=0, atol=1e-12)  # tight at the posterior

# %% [markdown]
# The picture walks with $q$ in two straight lines: from near certainty of sunshine to the posterior, and on to near
# certainty of rain. The two bars always reach the same line. Only their shares change. (The ELBO is negative, so its
# bar is drawn upwards from a floor at -3.2.)

# %%
sunny, rainy = np.array([0.96, 0.02, 0.02]), np.array([0.02, 0.02, 0.96])
steps = np.linspace(0, 1, 7)[:, None]
walk = np.concatenate([(1 - steps) * sunny + steps * posterior, (1 - steps[1:]) * posterior + steps[1:] * rainy])
bounds, gaps = elbo(walk), kl(walk, posterior)

figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 6), sharex=True, height_ratios=[2.2, 1])
place, floor = np.arange(len(walk)), -3.2
top.bar(place, bounds - floor, 0.7, bottom=floor, color=BLUE, label="ELBO$(q)$")
top.bar(place, gaps, 0.7, bottom=bounds, color=ORANGE, label=r"KL$(q\,\|\,p(z\mid x))$")
top.axhline(log_evidence, color="black", linewidth=1.5, label=rf"$\log p(x)$ = {log_evidence:.3f}")
top.set(ylabel="nats", ylim=(floor, -0.55), title=r"$\log p(x)$ = ELBO + KL, for thirteen $q$")
top.legend(frameon=False, ncol=3, loc="upper center")
for i, (sky, color) in enumerate(zip(SKIES, ["#F0E442", "#BBBBBB", "#56B4E9"], strict=True)):
    bottom.bar(place, walk[:, i], 0.7, bottom=walk[:, :i].sum(1), color=color, label=sky)
bottom.set(ylabel="$q(z)$", ylim=(0, 1))
bottom.set_xticks([0, 6, 12], ["nearly sure\nof sunshine", "the posterior:\nKL = 0", "nearly sure\nof rain"])
bottom.legend(frameon=True, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
save(figure, "01_elbo_plus_kl")

# %%
assert np.allclose(bounds + gaps, log_evidence)
assert bounds.argmax() == 6
assert gaps[6] < 1e-15

# %% [markdown]
# Three states make a triangle of all possible $q$: its corners are certainty, its inside is doubt. Over the whole
# triangle the ELBO is one hill, and its top is the posterior.

# %%
corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
grid = np.array([(i, j, 120 - i - j) for i in range(121) for j in range(121 - i)]) / 120
height = elbo(grid)
spots = grid @ corners

figure, panel = plt.subplots(figsize=(7.5, 5.4))
levels = log_evidence - np.array([2.4, 1.8, 1.2, 0.8, 0.5, 0.25, 0.1, 0.02, 0.0])
shades = plt.get_cmap("Blues")(np.linspace(0.05, 0.75, len(levels)))
filled = panel.tricontourf(*spots.T, height, levels=levels, colors=shades, extend="min")
panel.tricontour(*spots.T, height, levels=levels[:-1], colors="white", linewidths=0.8, linestyles="solid")
panel.plot(*np.append(corners, corners[:1], 0).T, color="black", linewidth=1)
for words, table, spot, color in [
    ("the posterior", posterior, (0.93, 0.62), ORANGE),
    ("the prior", prior, (-0.02, 0.5), GREEN),
]:
    arrow = {"arrowstyle": "-", "color": "black", "shrinkB": 7}
    panel.annotate(f"{words}\nELBO = {elbo(table):.3f}", table @ corners, spot, arrowprops=arrow, ha="center")
    panel.plot(*(table @ corners), "o", color=color, markersize=10, markeredgecolor="black")
for corner, sky in zip(corners, SKIES, strict=True):
    note(panel, f"surely {sky}", corner, (0, 8 if sky == "rainy" else -16), ha="center")
panel.set(
    aspect="equal", xlim=(-0.15, 1.15), ylim=(-0.1, 0.97), title="The ELBO of every $q$ over three states, in nats"
)
panel.axis("off")
figure.colorbar(filled, ax=panel, shrink=0.75, format="%.2f")
save(figure, "01_every_q")

# %%
top_of_grid = grid[height.argmax()]
print(f"highest of {len(grid)} grid points: q = {top_of_grid.round(3)}, posterior = {posterior.round(3)}")
assert np.abs(top_of_grid - posterior).max() < 1 / 120

# %% [markdown]
# ## Two readings of the same bound
#
# The bound can be split in two ways, and both are used throughout the library:
#
# $$\begin{aligned}
# \mathrm{ELBO}(q)
# &= \underbrace{\mathbb{E}_q[\log p(x, z)]}_{\text{expected complete log-likelihood}}
# {} + \underbrace{H(q)}_{\text{entropy}} \\
# &= \underbrace{\mathbb{E}_q[\log p(x \mid z)]}_{\text{fit to the data}}
# {} - \underbrace{\mathrm{KL}(q \,\|\, p(z))}_{\text{departure from the prior}}.
# \end{aligned}$$
#
# The first is the negative free energy of physics (Neal and Hinton 1998), and EM works with it. The second is what a
# variational autoencoder is trained with.

# %%
entropy = -(every_q * np.log(every_q)).sum(-1)
first = (every_q * np.log(joint)).sum(-1) + entropy
second = (every_q * np.log(umbrella)).sum(-1) - kl(every_q, prior)
errors = np.abs(np.stack([first, second]) - elbo(every_q))
print(f"largest difference of the two readings from the ELBO: {errors.max():.1e}")
assert np.allclose(first, elbo(every_q))
assert np.allclose(second, elbo(every_q))

# %% [markdown]
# ## The same model in Pyro
#
# A Pyro model is a function that tells how the data came about: `sample` the sky, then the umbrella. Rows of the data
# live in `pyro.plate("data", ...)`. What is to be learned is a `pyro.param`: here the climate, our prior over skies.
# The latent variable carries `infer={"enumerate": "parallel"}`, which asks that its states be summed over instead of
# drawn.
#
# A guide is $q$ as a function. Pyro's `TraceEnum_ELBO` computes the ELBO of the pair. The `scope()` keeps its
# parameters out of Pyro's global store.

# %%
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO

from latentzoo import Pair, zoo

chance = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)


def sky_and_umbrella(x):
    climate = pyro.param("climate", torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), constraint=constraints.simplex)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(climate), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Bernoulli(chance[z]), obs=x)


def guess(q):
    """A guide that believes the table q of every row, whatever was seen."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.as_tensor(q)), infer={"enumerate": "parallel"})

    return guide


seen = torch.ones(1, dtype=torch.float64)  # one arrival, with an umbrella
with pyro.get_param_store().scope():
    for words, table in [("hopeful", hopeful), ("prior", prior), ("posterior", posterior)]:
        by_pyro = -TraceEnum_ELBO(max_plate_nesting=1).loss(sky_and_umbrella, guess(table), seen)
        print(f"q = {words:9s}  Pyro's ELBO {by_pyro:+.6f}   by hand {elbo(table):+.6f}")
        assert np.isclose(by_pyro, elbo(table), rtol=0, atol=1e-9)

# %% [markdown]
# latentzoo takes the model as it stands. It sums the latent out exactly, so it needs no guide: the posterior itself
# is $q$. Thirty arrivals were watched, nine of them with an umbrella. With `max_iters=0` nothing is learned, and the
# fit only scores.

# %%
arrivals = torch.tensor([1.0] * 9 + [0.0] * 21, dtype=torch.float64)
before = zoo.fit(Pair(sky_and_umbrella), arrivals, inference="em", max_iters=0, tol=0)
scores, beliefs = before.score(), before.latents()["z"]
print(f"log p(umbrella)    = {scores[0]:.6f}   by hand {log_evidence:.6f}")
print(f"log p(no umbrella) = {scores[-1]:.6f}   by hand {np.log(1 - evidence):.6f}")
print(f"posterior given an umbrella: {beliefs[0].numpy().round(4)}   by hand {posterior.round(4)}")

assert np.isclose(scores[0], log_evidence, rtol=0, atol=1e-12)
assert np.isclose(scores[-1], np.log(0.65), rtol=0, atol=1e-12)
assert np.allclose(beliefs[0], posterior, rtol=0, atol=1e-12)

# %% [markdown]
# ## From the bound to learning
#
# The identity also holds for many rows, with one $q_n$ for each, and for every value of the parameters $\theta$:
#
# $$\sum_n \log p(x_n \mid \theta)
# = \sum_n \mathrm{ELBO}_n(q_n, \theta) + \sum_n \mathrm{KL}\big(q_n \,\|\, p(z_n \mid x_n, \theta)\big).$$
#
# EM raises the ELBO in turn: in $q$ with $\theta$ fixed, which closes the gap, and in $\theta$ with $q$ fixed, which
# raises the evidence at least as much. For the climate both steps can be done by hand: each row counts for a sky by
# its posterior probability, and the new climate is the mean of these counts.

# %%
likelihood = np.where(arrivals.numpy()[:, None] == 1, umbrella, 1 - umbrella)  # (N, 3)
weighed = prior * likelihood
responsibilities = weighed / weighed.sum(1, keepdims=True)  # E-step
new_climate = responsibilities.mean(0)  # M-step

after = zoo.fit(Pair(sky_and_umbrella), arrivals, inference="em", max_iters=1, tol=0)
print(f"climate after one iteration: {after.params['climate'].numpy().round(5)}   by hand {new_climate.round(5)}")
print(f"log p(x) before {after.history[0]:.5f}, after {after.history[1]:.5f}")

assert np.allclose(after.params["climate"], new_climate, rtol=0, atol=1e-12)
assert after.history[1] > after.history[0]

for step in after.half_steps(1):
    print(f"{step.moment:9s}  log p(x) {step.log_evidence:.5f}  =  ELBO {step.elbo:.5f}  +  KL {step.kl:.5f}")
    assert np.isclose(step.log_evidence, step.elbo + step.kl, rtol=0, atol=1e-10)

moments = {step.moment: step for step in after.half_steps(1)}
new_joint = new_climate * likelihood
assert np.isclose(moments["after M"].elbo, elbo(responsibilities, new_joint).sum(), rtol=0, atol=1e-9)
assert abs(moments["after E"].kl) < 1e-9
assert moments["after M"].kl > 1e-6

# %% [markdown]
# The last lines are EM in miniature: the E-step leaves no gap, and the M-step raises the bound and opens a small gap
# again. The next tutorial, `02_expectation_maximization.py`, shows the pictures and real data.
#
# ## Exercises
#
# 1. Show that $\mathrm{KL}(p \,\|\, q) = H(p, q) - H(p)$, with the cross-entropy $H(p, q) = -\sum_i p_i \log q_i$.
#    Which of the two terms does maximum likelihood minimise?
# 2. Replace the row of rain by $p(\text{umbrella} \mid \text{rainy}) = 1$. What is the ELBO of a $q$ that believes in
#    rain after seeing no umbrella?
# 3. Let $q$ be restricted to the line from "surely sunny" to "surely rainy". Where on it is the ELBO largest?
