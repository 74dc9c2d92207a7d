# %% [markdown]
# # 2. Expectation-maximisation
#
# The first tutorial ended with an identity that holds for every $q$ and every parameter $\theta$,
#
# $$\log p(x \mid \theta) = \mathrm{ELBO}(q, \theta) + \mathrm{KL}\big(q(z) \,\|\, p(z \mid x, \theta)\big).$$
#
# EM makes an algorithm of it. It raises the ELBO in turn in its two arguments:
#
# - **E-step.** Keep $\theta$, and set $q$ to the posterior $p(z \mid x, \theta)$. The divergence becomes 0, so the
#   bound touches the log-likelihood.
# - **M-step.** Keep $q$, and set $\theta$ to the maximum of $\mathrm{ELBO}(q, \theta)$. The bound rises, and the
#   log-likelihood, which lies above it, rises at least as much.
#
# So the log-likelihood never falls. This tutorial shows it: first in one parameter, where everything can be drawn,
# then on real data, with what goes wrong there: slow convergence, local optima, components that collapse, and the
# choice of their number.
#
# Sources: Dempster, Laird and Rubin (1977), *Maximum likelihood from incomplete data via the EM algorithm*; Neal and
# Hinton (1998), *A view of the EM algorithm that justifies incremental, sparse, and other variants*; Bishop (2006),
# *Pattern Recognition and Machine Learning*, chapter 9; McLachlan and Peel (2000), *Finite Mixture Models*.

# %%
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch

from latentzoo import Pair, zoo
from latentzoo.inference.data import load_bundled

FIGURES = Path("figures")  # where the pictures go, relative to the working folder
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"


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
# ## One parameter
#
# Half of the measurements come from a known source, $\mathcal{N}(0, 1)$. The other half come from a source
# $\mathcal{N}(\theta, 1)$ whose position $\theta$ we want. Which source a measurement came from was not noted: that
# is $z_n$.
#
# $$z_n \sim \mathrm{Bernoulli}(\tfrac12), \qquad x_n \mid z_n \sim \mathcal{N}(\theta z_n, 1).$$
#
# Both steps can be done by hand. The posterior probability that $x_n$ came from the second source, its
# *responsibility*, is
#
# $$r_n = \frac{\mathcal{N}(x_n \mid \theta, 1)}{\mathcal{N}(x_n \mid 0, 1) + \mathcal{N}(x_n \mid \theta, 1)}.$$
#
# As a function of $\theta$ the bound is a sum of squares, $-\tfrac12 \sum_n r_n (x_n - \theta)^2$ and terms without
# $\theta$. It is a parabola, and its top is the mean of the data weighed by $r_n$.

# %%
random = np.random.default_rng(1)
x = np.concatenate([random.normal(0, 1, 12), random.normal(3.5, 1, 10), random.normal(-3.5, 1, 6)]).round(1)
print("x =", *np.sort(x))


def log_normal(value, mean):
    return -0.5 * (value - mean) ** 2 - 0.5 * np.log(2 * np.pi)


def log_likelihood(theta):
    """log p(x | theta), of one theta or of an array of them."""
    theta = np.asarray(theta)[..., None]
    return np.logaddexp(log_normal(x, 0.0), log_normal(x, theta)).sum(-1) + len(x) * np.log(0.5)


def e_step(theta):
    """Responsibilities of the second source."""
    return 1 / (1 + np.exp(log_normal(x, 0.0) - log_normal(x, theta)))


def m_step(r):
    """The top of the parabola."""
    return (r * x).sum() / r.sum()


def bound(r, theta):
    """ELBO(q, theta), with q given by responsibilities."""
    theta = np.asarray(theta)[..., None]
    complete = r * log_normal(x, theta) + (1 - r) * log_normal(x, 0.0) + np.log(0.5)
    entropy = -(r * np.log(r) + (1 - r) * np.log1p(-r))
    return (complete + entropy).sum(-1)


def run_em(theta, iterations):
    """The values of theta, from a start on."""
    path = [theta]
    for _ in range(iterations):
        path.append(m_step(e_step(path[-1])))
    return np.array(path)


path = run_em(0.5, 12)
for iteration, theta in enumerate(path[:8]):
    print(f"iteration {iteration}: theta = {theta:.6f}   log-likelihood = {log_likelihood(theta):.6f}")
assert np.all(np.diff(log_likelihood(path)) >= 0)  # it never falls

# %% [markdown]
# Now the four pictures. The black curve is the log-likelihood, which does not change. The blue parabola is the bound
# for the current $q$.
#
# 1. After the E-step at $\theta_0$ the parabola touches the curve at $\theta_0$, with the same slope. Elsewhere it
#    lies below.
# 2. The M-step goes to the top of the parabola, $\theta_1$. The curve lies above the parabola there, and the gap
#    between them is the divergence of the old $q$ from the new posterior.
# 3. The E-step at $\theta_1$ closes the gap: a new parabola, which touches the curve at $\theta_1$. (The old one is
#    pale.)
# 4. The M-step goes to the top of the new parabola.

# %%
theta_0, theta_1, theta_2 = path[:3]
r_0, r_1 = e_step(theta_0), e_step(theta_1)
grid = np.linspace(-0.6, 4.6, 400)
curve = log_likelihood(grid)
scenes = [
    (r"1. E-step at $\theta_0$: the bound touches", r_0, theta_0, None),
    (r"2. M-step: to the top of the bound, $\theta_1$", r_0, theta_1, theta_0),
    (r"3. E-step at $\theta_1$: a new bound touches", r_1, theta_1, None),
    (r"4. M-step: to the top of the new bound, $\theta_2$", r_1, theta_2, theta_1),
]
figure, panels = plt.subplots(2, 2, figsize=(11, 7.6), sharex=True, sharey=True)
for panel, (title, r, theta, before) in zip(panels.flat, scenes, strict=True):
    panel.plot(grid, curve, color="black", linewidth=2, label=r"$\log p(x \mid \theta)$")
    if r is r_1:
        panel.plot(grid, bound(r_0, grid), color=BLUE, linewidth=1, alpha=0.35)
    panel.plot(grid, bound(r, grid), color=BLUE, linewidth=2, label=r"ELBO$(q, \theta)$")
    top, low = log_likelihood(theta), bound(r, theta)
    panel.vlines(theta, -147, low, color=GREY, linestyle=":")
    note(panel, f"{theta:.2f}", (theta, -146), (4, 0), color=GREY)
    note(panel, f"gap {abs(top - low):.2f}", (theta, top), (-10, 8), ha="right", color=ORANGE)
    if before is None:
        panel.plot(theta, top, "o", color=ORANGE, markersize=10)
    else:
        panel.plot([theta, theta], [low, top], color=ORANGE, linewidth=4, label="KL$(q\\,\\|\\,p(z \\mid x, \\theta))$")
        panel.annotate(
            "",
            (theta, low),
            (before, bound(r, before)),
            arrowprops={"arrowstyle": "->", "color": GREEN, "linewidth": 2},
        )
        panel.plot(before, bound(r, before), "o", color=GREEN, markersize=6)
    panel.set_title(title, loc="left")
    panel.set(ylim=(-147, -95), xlim=(-0.6, 4.6))
for panel in panels[1]:
    panel.set_xlabel(r"$\theta$")
for panel in panels[:, 0]:
    panel.set_ylabel("nats")
figure.legend(*panels[0, 1].get_legend_handles_labels(), frameon=False, loc="upper center", ncol=3)
save(figure, "02_four_pictures")

# %%
step = 1e-5


def slope(f, at):
    return (f(at + step) - f(at - step)) / (2 * step)


for r, here, there in [(r_0, theta_0, theta_1), (r_1, theta_1, theta_2)]:
    assert np.isclose(bound(r, here), log_likelihood(here))  # touching
    assert np.isclose(
        slope(lambda t, r=r: bound(r, t), here), slope(log_likelihood, here), atol=1e-4
    )  # with the same slope
    assert np.all(bound(r, grid) <= curve + 1e-9)  # below the curve everywhere
    assert np.argmax(bound(r, grid)) == np.argmin(np.abs(grid - there))  # the M-step is the top of the parabola
    posterior = e_step(there)
    divergence = (r * np.log(r / posterior) + (1 - r) * np.log((1 - r) / (1 - posterior))).sum()
    assert np.isclose(log_likelihood(there) - bound(r, there), divergence)  # the gap is the divergence
    gain = bound(r, there) - bound(r, here)
    print(f"theta {here:.4f} -> {there:.4f}: the bound gains {gain:.3f}, the gap opens to {divergence:.3f}")

# %% [markdown]
# ## The same model in latentzoo
#
# The model is the story above, and nothing else. latentzoo reads it, sums $z_n$ out for the E-step, and maximises the
# bound for the M-step. `fit.half_steps` gives the three numbers of the identity around each half-step.


# %%
def two_sources(x):
    theta = pyro.param("theta", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(theta * z, 1.0), obs=x)


for iterations in (1, 2, 3):
    fit = zoo.fit(Pair(two_sources), x, inference="em", max_iters=iterations, tol=0)
    print(f"after {iterations}: theta = {fit.params['theta']:.6f}, by hand {path[iterations]:.6f}")
    assert np.isclose(fit.params["theta"], path[iterations], rtol=0, atol=1e-5)
    assert np.allclose(fit.history, log_likelihood(path[: iterations + 1]), rtol=0, atol=1e-4)

for moment in fit.half_steps(2):
    print(
        f"iteration {moment.iteration}, {moment.moment:9s}  log p(x) {moment.log_evidence:9.4f}"
        f"  =  ELBO {moment.elbo:9.4f}  +  KL {moment.kl:.4f}"
    )
after_m = [moment for moment in fit.half_steps(2) if moment.moment == "after M"]
for moment, r, there in zip(after_m, (r_0, r_1), (theta_1, theta_2), strict=True):
    assert np.isclose(moment.elbo, bound(r, there), rtol=0, atol=1e-4)
    assert np.isclose(moment.log_evidence, log_likelihood(there), rtol=0, atol=1e-4)

# %% [markdown]
# ## How fast
#
# Near its end EM is slow or fast by a rule (Dempster, Laird and Rubin 1977, section 3). The error shrinks at every
# iteration by the factor
#
# $$\rho = 1 - \frac{I_\text{observed}}{I_\text{complete}},$$
#
# the *fraction of missing information*. $I_\text{observed}$ is the curvature of the log-likelihood at its top, and
# $I_\text{complete}$ is what the curvature would be if the labels $z_n$ were known. If the sources are far apart, the
# labels are almost known, and little is missing. If they overlap, almost everything is missing.
#
# We watch the simplest case. Both positions are known, 0 and $d$, and only the share $\pi$ of the second source is to
# be learned. The M-step sets $\pi$ to the mean responsibility, and $I_\text{complete} = N / (\pi (1 - \pi))$.

# %%
figure, panel = plt.subplots(figsize=(8.5, 4.6))
rates = []
for distance, color in [(4.0, BLUE), (2.0, GREEN), (1.0, ORANGE)]:
    y = np.concatenate([random.normal(0, 1, 1200), random.normal(distance, 1, 800)])
    known, other = np.exp(log_normal(y, 0.0)), np.exp(log_normal(y, distance))  # densities under the two sources
    shares = [0.9]
    for _ in range(400):
        r = shares[-1] * other / (shares[-1] * other + (1 - shares[-1]) * known)
        shares.append(r.mean())
    limit = shares[-1]
    observed = (((other - known) / (limit * other + (1 - limit) * known)) ** 2).sum()  # minus the second derivative
    rate = 1 - observed * limit * (1 - limit) / len(y)
    errors = np.abs(np.array(shares) - limit)
    needed = int(np.argmax(errors < 1e-6))
    measured = errors[needed] / errors[needed - 1]
    rates.append(rate)
    print(f"{distance:.0f} sd apart: factor predicted {rate:.4f}, measured {measured:.4f}; {needed} iterations to 1e-6")
    assert np.isclose(measured, rate, atol=1e-3)
    panel.semilogy(errors[: needed + 1], color=color, linewidth=2)
    label = f"{distance:.0f} sd apart\n" + rf"$\rho$ = {rate:.2f}"
    note(panel, label, (needed, 1e-6), (6, 2), color=color)
panel.set(xlabel="iteration", ylabel=r"$|\pi_t - \pi_\infty|$", title="The more the sources overlap, the slower EM")
panel.set_xlim(-1, 72)
save(figure, "02_how_fast")

# %%
assert rates == sorted(rates)
assert rates[0] < 0.2
assert rates[-1] > 0.7

# %% [markdown]
# ## Local optima
#
# EM climbs the hill on which it starts. The measurements have some mass on the left too, so the log-likelihood of the
# one-parameter model has two hills. A start at $-1$ ends on the lower one, and nothing in that run tells.

# %%
wide = np.linspace(-7, 6, 500)
starts = {-1.0: ORANGE, 0.5: GREEN}
ends = {start: run_em(start, 200)[-1] for start in starts}
figure, panel = plt.subplots(figsize=(8.5, 4.2))
panel.plot(wide, log_likelihood(wide), color="black", linewidth=2)
for start, color in starts.items():
    track = run_em(start, 8)
    panel.plot(track, log_likelihood(track), "o-", color=color, markersize=5)
    panel.plot(start, log_likelihood(start), "o", color=color, markersize=11)
    side = {"xytext": (12 * np.sign(start), -4), "textcoords": "offset points", "ha": "left" if start > 0 else "right"}
    panel.annotate(f"start at {start}", (start, log_likelihood(start)), color=color, **side)
    height = log_likelihood(ends[start])
    note(panel, f"end at {ends[start]:.2f}:\n{height:.1f} nats", (ends[start], height), (-30, 8), color=color)
panel.set(xlabel=r"$\theta$", ylabel=r"$\log p(x \mid \theta)$", ylim=(-142, -88), title="Two starts, two hills")
save(figure, "02_two_hills")

# %%
low, high = log_likelihood(ends[-1.0]), log_likelihood(ends[0.5])
print(f"from -1 to {ends[-1.0]:.3f} ({low:.3f} nats), from 0.5 to {ends[0.5]:.3f} ({high:.3f} nats)")
assert high > low + 4
assert ends[-1.0] < 0 < ends[0.5]
for end in ends.values():
    assert abs(slope(log_likelihood, end)) < 1e-4  # both are stationary

# %% [markdown]
# ## Real data
#
# The velocities of 82 galaxies, in 1000 km/s (Postman et al. 1986; Roeder 1990). Galaxies come in clusters, so a
# mixture of normal distributions is a natural model: `gaussian_mixture` in the zoo. Its E-step computes
# responsibilities, and its M-step weighted means and variances (Bishop, section 9.2.2).

# %%
velocity = load_bundled("galaxies")["velocity"]
fit = zoo.fit("gaussian_mixture", velocity, num_components=3, restarts=20, seed=0)
print(fit.summary())

assert fit.converged
assert np.isclose(fit.log_likelihood, -203.1792, atol=2e-3)  # published: mclust, three components of unequal variance
assert np.all(np.diff(fit.history) >= -1e-9 * (1 + abs(fit.log_likelihood)))  # the bound never falls

# %%
save(fit.plot("clusters"), "02_galaxies_three_components")

# %% [markdown]
# The decomposition shows the two half-steps of the first iterations. After each M-step there is a gap. The next
# E-step closes it.

# %%
save(fit.plot("decomposition"), "02_galaxies_decomposition")

# %%
half_steps = fit.half_steps(6)
for moment in half_steps:
    assert moment.kl >= -1e-8  # never negative
    assert np.isclose(moment.log_evidence, moment.elbo + moment.kl)
    if moment.moment == "after E":
        assert abs(moment.kl) < 1e-8  # the E-step closes the gap
    if moment.moment == "after M":
        assert moment.kl > 1e-4  # the M-step opens one
elbos = np.array([moment.elbo for moment in half_steps])
assert np.all(np.diff(elbos) >= -1e-8)  # neither half-step lowers the bound
print(f"over {len(half_steps)} half-steps the ELBO rose from {elbos[0]:.2f} to {elbos[-1]:.2f}")

# %% [markdown]
# ## The mode map
#
# The cure for local optima is to start many times. `restarts=50` runs EM from fifty starts (k-means++ seeds, drawn
# anew) and returns the best. `fit.mode_map` keeps the others: which optima were found, up to the order of the
# components, and how often.

# %%
four = zoo.fit("gaussian_mixture", velocity, num_components=4, restarts=50, seed=0)
print(four.mode_map)

assert len(four.mode_map) >= 2
assert four.log_likelihood == max(four.mode_map.bounds)
lower = four.mode_map[1]
assert lower.converged
assert not lower.degenerate
assert four.log_likelihood - lower.bound > 4
assert sum(mode.count for mode in four.mode_map) == 50

# %%
save(four.plot("bound"), "02_galaxies_four_components_bound")

# %% [markdown]
# The left and middle panels tell of slow convergence too. For thirty iterations the bound hardly moves; then it finds
# its way up again. A rule that stops when the gain falls below 0.02 nats would have stopped on the plateau. A small
# step is no proof of nearness: latentzoo extrapolates from the last two steps how far there is to go (Böhning et al.
# 1994), and its default tolerance is tight.

# %%
gains = np.diff(four.history.numpy())
early = int(np.argmax(gains < 0.02))  # the first gain that the rule would take for the last
to_come = (four.history[-1] - four.history[early]).item()
print(f"stopped at iteration {early} of {len(gains)}, with {to_come:.2f} nats still to come")
assert early < 50
assert to_come > 3

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
axis = np.linspace(8, 36, 700)
for panel, mode in zip(panels, four.mode_map, strict=False):
    panel.hist(velocity, bins=np.arange(8, 37, 1.0), density=True, color="#CCCCCC")
    total = 0
    for weight, loc, scale in zip(*(mode.params[name].numpy() for name in ("weights", "loc", "scale")), strict=True):
        part = weight * np.exp(-0.5 * ((axis - loc) / scale) ** 2) / (scale * np.sqrt(2 * np.pi))
        total = total + part
        panel.plot(axis, part, linewidth=1.5)
    panel.plot(axis, total, color="black", linestyle="--", linewidth=1.2, label="their sum")
    panel.set(title=f"log-likelihood {mode.bound:.2f}, {mode.count} of 50 starts", xlabel="velocity (1000 km/s)")
panels[0].set_ylabel("density")
panels[0].legend(frameon=False)
save(figure, "02_galaxies_two_optima")

# %% [markdown]
# The two optima tell different stories: a narrow cluster inside a wide one, or two clusters side by side.
#
# ## How many components
#
# More components fit better, always: a mixture of $K$ is a mixture of $K + 1$ with one weight at 0. So the
# log-likelihood cannot choose $K$. Schwarz's criterion charges for every free parameter,
#
# $$\mathrm{BIC} = -2 \log p(x \mid \hat\theta) + d \log N,$$
#
# and the smallest is best. (Some programs print it with the opposite sign.) `zoo.compare` makes the table.

# %%
fits = [zoo.fit("gaussian_mixture", velocity, num_components=k, restarts=50, seed=0) for k in range(1, 7)]
table = zoo.compare(fits, by="bic")
print(
    table.drop(columns="model")
    .round(3)
    .assign(K=[len(f.params["weights"]) for f in sorted(fits, key=lambda f: f.bic)])
    .to_string()
)

ks = np.arange(1, 7)
log_likelihoods, bics = np.array([f.log_likelihood for f in fits]), np.array([f.bic for f in fits])
assert np.all(np.diff(log_likelihoods) > 0)
assert ks[bics.argmin()] == 3
assert np.isclose(bics[2], -2 * log_likelihoods[2] + 8 * np.log(82))  # two weights, three means, three variances

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
left.plot(ks, log_likelihoods, "o-", color=BLUE)
left.set(title="The log-likelihood always rises", xlabel="components", ylabel="nats", xticks=ks)
right.plot(ks, bics, "o-", color=ORANGE)
right.plot(ks[bics.argmin()], bics.min(), "o", color=ORANGE, markersize=13)
note(right, "best", (ks[bics.argmin()], bics.min()), (0, -22), ha="center")
right.set(title="BIC has a minimum", xlabel="components", ylabel="BIC", xticks=ks, ylim=(432, 494))
save(figure, "02_galaxies_bic")

# %% [markdown]
# BIC counts what normal components are needed, which need not be what a biologist counts. Fisher's irises are of
# three species, and two of them overlap. With full covariances BIC prefers two components.

# %%
irises = [zoo.fit("gaussian_mixture", "iris", num_components=k, restarts=5, seed=0) for k in (2, 3)]
for f in irises:
    k = len(f.params["weights"])
    print(f"{k} components: log-likelihood {f.log_likelihood:.3f}, {f.num_parameters} parameters, BIC {f.bic:.3f}")
assert np.isclose(irises[0].bic, 574.0178, atol=2e-3)  # published: mclust
assert np.isclose(irises[1].bic, 580.839, atol=2e-3)

# %%
save(irises[1].plot("clusters"), "02_iris_three_components")

# %% [markdown]
# ## A component that collapses
#
# The likelihood of a normal mixture with free variances has no maximum. Put the mean of one component on one
# measurement, and let its standard deviation $\sigma$ go to 0: the density at that point grows without end, like
# $1/\sigma$, and the other components look after the rest (Bishop, section 9.2.1). It says nothing about the data.

# %%
values = velocity.to_numpy()


def spiked(sd):
    """Log-likelihood of a broad normal with a spike of this sd on one galaxy."""
    broad = np.exp(-0.5 * ((values - 20.8) / 4.5) ** 2) / (4.5 * np.sqrt(2 * np.pi))
    spike = np.exp(-0.5 * ((values - 26.995) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
    return np.log(0.98 * broad + 0.02 * spike).sum()


sds = 10.0 ** -np.arange(0, 13)
heights = np.array([spiked(sd) for sd in sds])
print(f"log-likelihood with a spike of sd 1e-3: {heights[3]:.2f}, of sd 1e-12: {heights[12]:.2f}")
assert np.allclose(np.diff(heights[4:]), np.log(10), atol=1e-3)  # ten times narrower is always log 10 better

# %% [markdown]
# latentzoo keeps every learned variance above a floor, a millionth of the variance of its column (`variance_floor`).
# A run that ends on the floor is marked `degenerate` in the mode map, and ranks behind every sound one. Here the
# first start is made to collapse.

# %%
doomed = {"loc": [10.0, 21.0, 26.995], "scale": [4.0, 4.0, 0.1]}
rescued = zoo.fit("gaussian_mixture", velocity, num_components=3, restarts=10, seed=0, start=doomed)
print(rescued.mode_map)
assert not rescued.mode_map[0].degenerate
assert np.isclose(rescued.log_likelihood, -203.1792, atol=2e-3)
assert rescued.mode_map[-1].degenerate

# %% [markdown]
# If *every* run collapses, the fit says so, with a warning.

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    collapsed = zoo.fit("gaussian_mixture", velocity, num_components=3, start=doomed)
print(f"{caught[0].category.__name__}: {caught[0].message}")
print(f"sds {collapsed.params['scale'].numpy().round(4)}; the floor is {1e-3 * values.std():.4f}")
assert "collapsed" in str(caught[0].message)
assert np.isclose(collapsed.params["scale"].min(), 1e-3 * values.std(), rtol=1e-4)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
left.semilogx(sds, heights, "o-", color=ORANGE)
left.invert_xaxis()
left.set(
    title="A spike on one galaxy: the narrower, the \u201cbetter\u201d",
    xlabel="sd of the spike",
    ylabel="log-likelihood",
)
right.hist(values, bins=np.arange(8, 37, 1.0), density=True, color="#CCCCCC")
fine = np.sort(np.concatenate([np.linspace(8, 36, 2000), 26.995 + np.linspace(-0.03, 0.03, 601)]))
density = sum(
    weight * np.exp(-0.5 * ((fine - loc) / scale) ** 2) / (scale * np.sqrt(2 * np.pi))
    for weight, loc, scale in zip(
        *(collapsed.params[name].numpy() for name in ("weights", "loc", "scale")), strict=True
    )
)
right.plot(fine, density, color=ORANGE, linewidth=1.5)
right.annotate(f"the spike\ngoes up\nto {density.max():.1f}", (27.0, 0.2), (28.0, 0.2))
right.set(
    title="The collapsed fit: one component on one galaxy",
    xlabel="velocity (1000 km/s)",
    ylabel="density",
    ylim=(0, 0.26),
)
save(figure, "02_collapse")

# %% [markdown]
# What helps: fewer components, restarts, a covariance with fewer free numbers (`covariance="tied"`, one for all
# components, cannot collapse on one point), or a prior on the scales. A prior turns maximum likelihood into the mode
# of the posterior, and EM climbs that in the same way.
#
# ## Exercises
#
# 1. Start the one-parameter model at $\theta = 0$ exactly. Why does the first M-step give the mean of the data?
# 2. Where must a start lie to end on the left hill? Find the watershed to three digits.
# 3. Fit the galaxies with `covariance="tied"` for $K = 1, \dots, 8$. Which $K$ does BIC choose now, and why is it
#    larger?
