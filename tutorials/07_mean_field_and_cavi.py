# %% [markdown]
# # 7. Mean field and coordinate ascent
#
# EM learns parameters as points. A Bayesian wants their posterior too: how sure are the means, and how many clusters
# are there at all? The exact posterior $p(z, \theta \mid x)$ of a mixture is out of reach, since it sums over all
# assignments of all rows. The *mean field* takes the best approximation that factorises,
#
# $$q(z, \theta) = q(z) \, q(\theta_1) \cdots q(\theta_M),$$
#
# best being that of the highest evidence lower bound $L(q) = E_q[\log p(x, z, \theta)] - E_q[\log q(z, \theta)]$. As in
# tutorial 1, $\log p(x) = L(q) + \mathrm{KL}(q \,\|\, p(z, \theta \mid x))$, so raising $L$ is coming closer.
#
# Sources: Bishop (2006), *Pattern Recognition and Machine Learning*, chapter 10. Blei, Kucukelbir and McAuliffe (2017),
# *Variational Inference: A Review for Statisticians*, JASA 112, 859-877.

# %%
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.patches import Ellipse
from scipy.special import digamma, gammaln, logsumexp

from latentzoo import Pair, zoo
from latentzoo.inference.data import load_bundled

FIGURES = Path("figures")  # where the pictures go, relative to the working folder
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#C4C8CC"


def save(figure, name):
    """Write a figure to the folder of figures. A notebook shows what the last line of a cell returns."""
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return figure


# %% [markdown]
# ## The update
#
# Hold all factors but one, $q_j$. Then the bound depends on $q_j$ by two terms,
#
# $$L = E_{q_j}\big[ E_{-j} \log p(x, z, \theta) \big] - E_{q_j}[\log q_j] + \text{const}
#     = -\mathrm{KL}\big(q_j \,\|\, \exp E_{-j} \log p \,/\, Z\big) + \text{const},$$
#
# and a KL divergence is least, and 0, where both sides are the same:
#
# $$q_j^* \propto \exp E_{-j} [\log p(x, z, \theta)].$$
#
# That is all. Algorithm 1 of Blei et al. sets each factor in turn to this; no step can lower the bound.
#
# ## A Gaussian in two dimensions
#
# Let the posterior be known: $\mathcal{N}(\mu, \Lambda^{-1})$ of two correlated numbers. The expectation of its log
# density over one of them is quadratic in the other, so each optimal factor is a Gaussian (Bishop, eq. 10.13 to 10.15):
#
# $$q_1^* = \mathcal{N}\big(m_1, \Lambda_{11}^{-1}\big), \qquad
# m_1 = \mu_1 - \Lambda_{11}^{-1} \Lambda_{12} (m_2 - \mu_2).$$
#
# The variances never change. The means run to the truth in steps along the axes.

# %%
mean = np.array([1.0, 2.0])
covariance = np.array([[1.0, 0.85], [0.85, 1.0]])
precision = np.linalg.inv(covariance)
m = np.array([-0.6, 3.4])  # where the two factors start
path = [m.copy()]
for _ in range(40):  # sweeps
    for j, other in ((0, 1), (1, 0)):
        m[j] = mean[j] - precision[j, other] / precision[j, j] * (m[other] - mean[other])
        path.append(m.copy())
path = np.array(path)
variances = 1 / precision.diagonal()
print("means", m, " variances", variances, " true variances", covariance.diagonal())
assert np.allclose(m, mean, atol=1e-5)
assert np.allclose(variances, [1 - 0.85**2] * 2)
assert (variances < covariance.diagonal()).all()


# %% [markdown]
# The picture is the lesson of the mean field: right means, and ellipses along the axes that are too small. A factor
# $1 / \Lambda_{jj}$ is the variance of one number *given* the other, which is less than its variance. What a mean field
# says of uncertainty is an understatement where numbers depend on each other.


# %%
def ellipse(center, matrix, **options):
    """The ellipse of 2 standard deviations."""
    values, vectors = np.linalg.eigh(matrix)
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
    high, wide = 4 * np.sqrt(values)
    return Ellipse(center, wide, high, angle=angle, fill=False, linewidth=2, **options)


figure, panel = plt.subplots(figsize=(8, 5))
panel.add_patch(ellipse(mean, covariance, color=GREEN, label="true posterior"))
panel.add_patch(ellipse(mean, np.diag(variances), color=BLUE, label="mean field"))
panel.plot(*path.T, color=ORANGE, marker="o", markersize=3, linewidth=1.2, label="means, update by update")
panel.set(xlim=(-1.5, 6.5), ylim=(-0.5, 4.5), xlabel=r"$\theta_1$", ylabel=r"$\theta_2$", aspect="equal")
panel.legend(loc="lower right", frameon=False)
save(figure, "07_two_dimensions")

# %% [markdown]
# ## A mixture by hand
#
# Eighty-two galaxies, and how fast they run from us, in 1000 km/s. A mixture of normals with priors:
#
# $$\pi \sim \mathrm{Dirichlet}(1, \dots, 1), \quad \mu_k \sim \mathcal{N}(20, 5^2), \quad
# \tau_k \sim \mathrm{Gamma}(2, 2), \quad z_n \sim \mathrm{Categorical}(\pi), \quad
# x_n \mid z_n = k \sim \mathcal{N}(\mu_k, 1 / \tau_k).$$
#
# In every update the expected log density is linear in what the prior's family calls its statistics, so each factor is
# of its prior's family. With $r_{nk} = q(z_n = k)$ and $N_k = \sum_n r_{nk}$:
#
# $$\begin{aligned}
# q(\pi) &= \mathrm{Dirichlet}(1 + N_k) \\
# q(\mu_k) &= \mathcal{N}(m_k, s_k^2), & s_k^{-2} &= 1/25 + N_k E[\tau_k], &
#     m_k &= s_k^2 \big(20/25 + E[\tau_k] \textstyle\sum_n r_{nk} x_n\big) \\
# q(\tau_k) &= \mathrm{Gamma}(a_k, b_k), & a_k &= 2 + N_k / 2, &
#     b_k &= 2 + \tfrac12 \textstyle\sum_n r_{nk} \big((x_n - m_k)^2 + s_k^2\big) \\
# r_{nk} &\propto \exp\big(E \log \pi_k + \tfrac12 E \log \tau_k - \tfrac12 E[\tau_k] ((x_n - m_k)^2 + s_k^2)\big)
# \end{aligned}$$
#
# It is EM with two changes: the M-step leaves distributions in place of points, and the E-step takes expectations of
# logarithms under them.

# %%
x = load_bundled("galaxies")["velocity"].to_numpy()
K, SWEEPS = 4, 60
START = np.array([10.0, 19.0, 23.0, 33.0])


def responsibilities(log_pi, m, s2, tau, log_tau):
    """E-step: r (N, K), and the sum over rows of the logs of their normalisers."""
    log_rho = log_pi + 0.5 * (log_tau - math.log(2 * math.pi) - tau * ((x[:, None] - m) ** 2 + s2))
    return np.exp(log_rho - logsumexp(log_rho, axis=1, keepdims=True)), logsumexp(log_rho, axis=1).sum()


def divergences(alpha, m, s2, a, b):
    """KL of each factor from its prior, summed."""
    of_pi = gammaln(alpha.sum()) - gammaln(alpha).sum() - gammaln(K)
    of_pi += ((alpha - 1) * (digamma(alpha) - digamma(alpha.sum()))).sum()
    of_mu = 0.5 * ((s2 + (m - 20) ** 2) / 25 - 1 + np.log(25 / s2)).sum()
    of_tau = ((a - 2) * digamma(a) - gammaln(a) + gammaln(2) + 2 * np.log(b / 2) + a * (2 - b) / b).sum()
    return of_pi + of_mu + of_tau


def sweeps():
    """The factors and the bound after each sweep, from points."""
    r, _ = responsibilities(np.log(np.full(K, 1 / K)), START, 0.0, np.ones(K), np.zeros(K))
    tau = np.ones(K)
    for _ in range(SWEEPS):
        count = r.sum(0)
        alpha = 1 + count
        s2 = 1 / (1 / 25 + count * tau)
        m = s2 * (20 / 25 + tau * (r.T @ x))
        a = 2 + count / 2
        b = 2 + 0.5 * (r * ((x[:, None] - m) ** 2 + s2)).sum(0)
        tau = a / b
        r, evidence = responsibilities(digamma(alpha) - digamma(alpha.sum()), m, s2, tau, digamma(a) - np.log(b))
        yield (alpha, m, s2, a, b), evidence - divergences(alpha, m, s2, a, b)


by_hand = list(sweeps())
elbo = np.array([bound for _, bound in by_hand])
for sweep in (1, 2, 3, 6, 11, SWEEPS):
    print(f"ELBO after sweep {sweep:2}: {elbo[sweep - 1]:.4f}")
assert (np.diff(elbo) >= -1e-9).all()

# %% [markdown]
# ## The same from the model
#
# Nobody should have to derive this twice. The engine reads the plain Pyro model and finds the updates itself: log p is
# linear in the statistics of each latent that rows share, so the natural parameter of the optimal factor is the
# gradient of $E \log p$ with respect to the expected statistics of that latent. The model says no more than the story.


# %%
def galaxies(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K)))
    loc = pyro.sample("loc", dist.Normal(20.0, 5.0).expand([K]).to_event(1))
    tau = pyro.sample("tau", dist.Gamma(2.0, 2.0).expand([K]).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], tau[z] ** -0.5), obs=x)


start = {"loc": torch.from_numpy(START), "tau": torch.ones(K), "weights": torch.full((K,), 1 / K)}
fit = zoo.fit(Pair(galaxies), x, inference="cavi", start=start, max_iters=SWEEPS - 1, tol=0)
alpha, m, s2, a, b = by_hand[-1][0]
print(fit.summary())
print("\nmean and sd of each mu    by hand            derived")
for k in range(K):
    factor = fit.posterior("loc")
    print(f"  component {k}         {m[k]:8.4f} {s2[k] ** 0.5:7.4f}   {factor.mean[k]:8.4f} {factor.stddev[k]:7.4f}")
assert np.allclose(fit.history, elbo, rtol=1e-10)
assert np.allclose(fit.posterior("weights").concentration, alpha, rtol=1e-8)
assert np.allclose(fit.posterior("loc").mean, m, rtol=1e-8)
assert np.allclose(fit.posterior("loc").variance, s2, rtol=1e-8)
assert np.allclose(fit.posterior("tau").concentration, a, rtol=1e-8)
assert np.allclose(fit.posterior("tau").rate, b, rtol=1e-8)

# %% [markdown]
# Each factor is a distribution, which knows its intervals. The means of the two small groups are less sure than those
# of the large ones, as they should be.

# %%
grid = np.linspace(8, 36, 500)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
left.plot(np.arange(1, SWEEPS + 1), elbo, color=GREY, linewidth=6, label="by hand")
left.plot(np.arange(1, SWEEPS + 1), fit.history, color=BLUE, linewidth=1.5, label="derived from the model")
left.set(xlabel="sweep", ylabel="evidence lower bound")
left.legend(frameon=False)
right.hist(x, bins=30, density=True, color=GREY)
for k, shade in enumerate((BLUE, ORANGE, GREEN, "#CC79A7")):
    factor = fit.posterior("loc")
    center, width = factor.mean[k].item(), 2 * factor.stddev[k].item()
    share, sd = fit.params["weights"][k].item(), fit.params["tau"][k].item() ** -0.5
    right.plot(grid, share * np.exp(-0.5 * ((grid - center) / sd) ** 2) / sd / math.sqrt(2 * math.pi), color=shade)
    right.plot([center - width, center + width], [-0.006 - 0.006 * (k % 2)] * 2, color=shade, linewidth=4)
right.set(xlabel="velocity, 1000 km/s", ylabel="density; bars: 2 sd of each mean")
save(figure, "07_galaxies")

# %%
widths = fit.posterior("loc").stddev
assert widths[[0, 3]].min() > widths[[1, 2]].max()

# %% [markdown]
# ## How many components?
#
# Maximum likelihood uses whatever components it is given. A prior does not: a component costs its divergence from the
# prior, and where the data do not pay for that, the bound is higher without it. So give it more than enough, with a
# prior that likes few: $\pi \sim \mathrm{Dirichlet}(\alpha / K, \dots)$, or the Dirichlet process, whose sticks break
# off what is left,
#
# $$v_k \sim \mathrm{Beta}(1, \alpha), \qquad \pi_k = v_k \prod_{i < k} (1 - v_i).$$
#
# `bayesian_gaussian_mixture` knows both. EM with ten full covariances fills all ten with the iris flowers.

# %%
options = {"num_components": 10, "covariance": "full", "restarts": 10}
process = zoo.fit("bayesian_gaussian_mixture", "iris", prior="dirichlet_process", **options)
greedy = zoo.fit("gaussian_mixture", "iris", **options)
used = process.latents()["z"].sum(0).sort(descending=True).values.numpy()
filled = greedy.latents()["z"].sum(0).sort(descending=True).values.numpy()
print("rows in each component, Dirichlet process:", used.round(1))
print("rows in each component, EM:               ", filled.round(1))
assert (used > 1).sum() < 4
assert (filled > 1).sum() == 10

figure, panel = plt.subplots(figsize=(7, 3.4))
panel.bar(np.arange(10) - 0.2, filled, 0.4, color=GREY, label="EM")
panel.bar(np.arange(10) + 0.2, used, 0.4, color=BLUE, label="Dirichlet process, CAVI")
panel.set(xlabel="component, largest first", ylabel="rows of 150", xticks=range(10))
panel.legend(frameon=False)
save(figure, "07_components")

# %% [markdown]
# `fit.plot("weights")` shows the same with the uncertainty of each share, and `fit.plot()` the clusters.

# %%
save(process.plot("weights"), "07_weights")

# %% [markdown]
# What the mean field cannot say: how the bound lies below $\log p(x)$ is not known from the fit itself, and its
# variances are too small where latents depend on each other. Where that matters, `inference="svi"` with
# `guide="full_rank"` keeps the correlations between what all rows share, at the price of many more steps.
