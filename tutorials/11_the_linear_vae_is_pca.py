# %% [markdown]
# # 11. The linear VAE is probabilistic PCA
#
# A VAE has many parts, and when it disappoints any of them may be to blame: the model, the bound, the encoder, the
# draws, the optimizer. So it is good to have one VAE of which everything is known. Let both networks be linear:
#
# $$z_n \sim \mathcal{N}(0, I_K), \qquad x_n \mid z_n \sim \mathcal{N}(W z_n + \mu, \; \sigma^2 I_D), \qquad
# q(z_n \mid x_n) = \mathcal{N}(V x_n + b, \; S).$$
#
# The model is probabilistic PCA (tutorial 9), whose maximum is known in closed form. And its posterior is
#
# $$p(z_n \mid x_n) = \mathcal{N}\big(M^{-1} W^\top (x_n - \mu), \; \sigma^2 M^{-1}\big), \qquad
# M = W^\top W + \sigma^2 I.$$
#
# Look at what this says: the mean is *linear* in $x_n$, and the covariance is *the same for all rows*. So the encoder
# above can be the posterior exactly, and then the bound is the likelihood. The maximum of the one is the maximum of the
# other, and exact algebra, EM, a factor for each row and an encoder should all come to one answer. This tutorial has
# them do it, on the thirteen measurements of 178 wines.
#
# Sources: Tipping and Bishop (1999), *Probabilistic principal component analysis*, JRSS B 61, 611-622. Lucas, Tucker,
# Grosse and Norouzi (2019), *Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse*, NeurIPS.

# %%
import math
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.linalg import subspace_angles
from scipy.stats import multivariate_normal

from latentzoo import Pair, zoo
from latentzoo.inference.amortized.encoder import Amortized
from latentzoo.inference.data import load_bundled
from latentzoo.inference.nn.networks import tril_of

FIGURES = Path("figures")  # where the pictures go, relative to the working folder
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#C4C8CC"


def save(figure, name):
    """Write a figure to the folder of figures. A notebook shows what the last line of a cell returns."""
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return figure


def degrees(one, other):
    """The largest principal angle between the spaces that the columns of two matrices span."""
    return math.degrees(subspace_angles(np.asarray(one), np.asarray(other)).max())


raw = load_bundled("wine")
wine = (raw - raw.mean()) / raw.std(ddof=0)  # every column with mean 0 and variance 1
x = wine.to_numpy()
(N, D), K = x.shape, 2

# %% [markdown]
# ## The answer
#
# With eigenvalues $\lambda_k$ and eigenvectors of the covariance matrix, the maximum of the likelihood is
# $\sigma^2 = \frac{1}{D - K} \sum_{k > K} \lambda_k$ and $W = V_K (\Lambda_K - \sigma^2 I)^{1/2} R$, with any rotation
# $R$.

# %%
eigenvalues, axes = (part[..., ::-1] for part in np.linalg.eigh(np.cov(x.T, bias=True)))
noise = eigenvalues[K:].mean()
W_best = axes[:, :K] * np.sqrt(eigenvalues[:K] - noise)


def log_likelihood(W, mu, noise):
    """log p(x) of all rows, z integrated out."""
    return multivariate_normal(mu, W @ W.T + noise * np.eye(D)).logpdf(x).sum()


best = log_likelihood(W_best, x.mean(0), noise)
print(f"log-likelihood {best:.4f}, noise {noise:.4f}")
assert abs(best - -2875.6363) < 1e-3  # the published closed form

# %% [markdown]
# ## The bound, without draws
#
# For a linear model with normal factors $\mathcal{N}(m_n, S_n)$ every expectation in the bound is that of a square. So
# it needs no draws, and what the ways below have reached can be compared to many digits, whatever noise they met:
#
# $$\sum_n -\frac{\lVert x_n - W m_n - \mu \rVert^2 + \mathrm{tr}(W S_n W^\top)}{2 \sigma^2}
#     - \frac{D}{2} \log 2 \pi \sigma^2 - \mathrm{KL}\big(\mathcal{N}(m_n, S_n) \,\|\, \mathcal{N}(0, I)\big).$$
#
# Put in the true posterior, and it is the likelihood.


# %%
def bound(W, mu, noise, mean, covariance):
    """The ELBO of all rows; `mean` (N, K), and `covariance` (K, K) or one for each row."""
    covariance = np.broadcast_to(covariance, (N, W.shape[1], W.shape[1]))
    square = ((x - mean @ W.T - mu) ** 2).sum(1) + np.trace(W @ covariance @ W.T, axis1=1, axis2=2)
    kl = np.trace(covariance, axis1=1, axis2=2) + (mean**2).sum(1) - W.shape[1] - np.linalg.slogdet(covariance)[1]
    return (-square / (2 * noise) - D / 2 * math.log(2 * math.pi * noise) - kl / 2).sum()


def posterior(W, mu, noise):
    """Mean (N, K) and covariance (K, K) by Bayes' rule."""
    M = W.T @ W + noise * np.eye(W.shape[1])
    return (x - mu) @ W @ np.linalg.inv(M), noise * np.linalg.inv(M)


touching = bound(W_best, x.mean(0), noise, *posterior(W_best, x.mean(0), noise))
print(f"bound under the true posterior {touching:.4f}")
assert abs(touching - best) < 1e-6

# %% [markdown]
# ## Six ways to it
#
# - **closed form**, as above;
# - **EM**: the engine finds that $z$ is linear and normal, and sums it out;
# - **SVI**: each row has two means and two standard deviations of its own, 712 numbers in all, climbed to by draws;
# - **SVI, amortized**: the same model, which has no network in it; `guide=Amortized(...)` has a linear encoder derived;
# - **linear VAE**, whose $S$ is a full matrix, or a diagonal one.
#
# The first two know that the model is linear. The others do not: they take steps along gradients that come from
# draws, as a deep model would.

# %%
climb = {"learning_rate": 0.03, "num_particles": 10, "patience": 2}  # ten draws a step, and an early fall of the rate
linear = Amortized("full", hidden=())  # no hidden layer, and a full covariance
runs = {
    "EM": ("probabilistic_pca", {"num_factors": K, "inference": "em"}),
    "SVI, a factor for each row": (
        "probabilistic_pca",
        {"num_factors": K, "inference": "svi", "num_particles": 10, "tol": 1e-6},
    ),
    "SVI, amortized": ("probabilistic_pca", {"num_factors": K, "inference": "svi", "guide": linear, **climb}),
    "linear VAE, full S": ("linear_vae", {"latent_dim": K, **climb}),
    "linear VAE, diagonal S": ("linear_vae", {"latent_dim": K, "posterior": "diagonal", **climb}),
}


def reached(fit):
    """W, mu, sigma^2 of a fit, under whichever names they go."""
    value = {name: tensor.double().numpy() for name, tensor in fit.params.items()}
    if "load" in value:
        return value["load"], value["loc"], float(value["scale"]) ** 2
    return value["decoder$$$0.weight"], value["decoder$$$0.bias"], float(value["scale"]) ** 2


def factors(fit):
    """Means (N, K) and covariances of the fit's q(z): a matrix where it has one, otherwise standard deviations."""
    (name,) = fit.latents()
    q, moments = fit.posterior(name), fit.latents()[name]
    covariance = q.covariance_matrix if hasattr(q, "covariance_matrix") else torch.diag_embed(moments.sd**2)
    return moments.mean.numpy(), covariance.detach().double().numpy()


fits, table = {}, {"closed form": (touching, best, 0.0, noise, 0.0)}
for name, (model, options) in runs.items():
    began = time.perf_counter()
    fits[name] = fit = zoo.fit(model, wine, **options)
    seconds = time.perf_counter() - began
    W, mu, own = reached(fit)
    table[name] = (bound(W, mu, own, *factors(fit)), log_likelihood(W, mu, own), degrees(W, axes[:, :K]), own, seconds)

print(f"{'':28}{'bound':>11}{'log p(x)':>12}{'angle':>9}{'noise':>9}{'seconds':>9}")
for name, (level, evidence, angle, own, seconds) in table.items():
    print(f"{name:28}{level:11.3f}{evidence:12.3f}{angle:9.3f}{own:9.4f}{seconds:9.1f}")
print("principal angles in degrees:")
for name, fit in fits.items():
    both = np.degrees(subspace_angles(reached(fit)[0], axes[:, :K]))
    print(f"{name:28}", "  ".join(f"{angle:.4f}" for angle in both))
for name, (level, evidence, angle, _, _) in table.items():
    assert best - (3 if name == "SVI, a factor for each row" else 0.5) < level <= evidence + 1e-6 <= best + 2e-6, name
    assert best - 0.1 < evidence, name
    assert angle < 0.5, name

# %% [markdown]
# The table on one line. Whatever the way, the likelihood that was reached is the maximum within a tenth of a nat, of
# 178 wines together, and the subspace that of PCA within half a degree. A bound never lies above the likelihood at the
# same parameters, and no likelihood above the maximum.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", sharey=True, width_ratios=(2, 1))
place = np.arange(len(table))
levels, evidences, angles = (np.array([row[k] for row in table.values()]) for k in range(3))
left.axvline(0, color="black", linewidth=1, zorder=0)
left.hlines(place, levels - best, evidences - best, color=GREY, linewidth=3, zorder=1)
left.plot(evidences - best, place, "o", color=BLUE, markersize=10, label=r"$\log p(x)$ at the parameters reached")
left.plot(levels - best, place, "o", color=ORANGE, markersize=6, label="bound there")
for row, level in zip(place, levels - best, strict=True):
    left.annotate(f"{min(level, 0):.3f}", (level, row), (-9, 0), textcoords="offset points", ha="right", va="center")
left.set(xlim=(-2.6, 0.08), xlabel="nats from the maximum of the likelihood, all 178 wines together")
left.set_yticks(place, table)
left.invert_yaxis()
left.set_title("One maximum", loc="left")
left.legend(frameon=False, loc="lower left")
right.hlines(place, 0, angles, color=GREY, linewidth=3)
right.plot(angles, place, "o", color=GREEN, markersize=8)
right.set(xlim=(-0.01, 0.2), xticks=(0, 0.1, 0.2), xlabel="degrees to the subspace of PCA")
right.set_title("One subspace", loc="left")
for panel in (left, right):
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
save(figure, "11_one_line")

# %% [markdown]
# The one bound that stays behind is that of SVI with a factor for each row. It could be as good as the others, but each
# of its 712 numbers is learned from one wine, and a little noise in each adds up. An encoder learns its few weights
# from all wines at once. That is the other gain of amortization, beside speed. (Nor is speed what a linear VAE is for:
# EM has summed $z$ out before the others have drawn their first.)
#
# ## The encoder has learned Bayes' rule
#
# Nobody told the encoder about $M^{-1} W^\top$. Yet its 26 weights and its matrix $S$ should come to be those of the
# posterior of the decoder beside it.

# %%
vae = fits["linear VAE, full S"]
W, mu, own = reached(vae)
guide = {name.removeprefix("value/"): value.double() for name, value in vae.guide_parts.items()}
V, b = guide["encoder$$$0.weight"].numpy(), guide["encoder$$$0.bias"].numpy()
tril = tril_of(guide["spread"], K).numpy()
by_rule = np.linalg.inv(W.T @ W + own * np.eye(K)) @ W.T
_, wanted = posterior(W, mu, own)
print("S of the encoder ", (tril @ tril.T).round(4).tolist())
print("S by Bayes' rule ", wanted.round(4).tolist())
print("largest difference of a weight:", np.abs(V - by_rule).max().round(4))
assert np.abs(V - by_rule).max() < 0.05
assert np.abs(tril @ tril.T - wanted).max() < 0.02
assert np.corrcoef(V.ravel(), by_rule.ravel())[0, 1] > 0.99


def circle(center, covariance):
    """The outline (2, 60) of one standard deviation."""
    turn = np.linspace(0, 2 * np.pi, 60)
    return center[:, None] + np.linalg.cholesky(covariance) @ np.stack([np.cos(turn), np.sin(turn)])


figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.8), layout="constrained")
span = np.array([-1, 1]) * 1.15 * np.abs(by_rule).max()
left.plot(span, span, color=GREY, linewidth=2, zorder=0)
for k, shade in enumerate((BLUE, ORANGE)):
    left.plot(by_rule[k], V[k], "o", color=shade, markersize=7, alpha=0.85, label=f"of $z_{k + 1}$")
left.set(xlabel=r"Bayes' rule, $M^{-1} W^\top$", ylabel="encoder, $V$", xlim=span, ylim=span, aspect="equal")
left.set_title("26 weights, two ways", loc="left")
left.legend(frameon=False)
exact, _ = posterior(W, mu, own)
right.plot(*exact.T, ".", color=GREY, markersize=5, zorder=0)
for n in range(0, N, 22):
    right.plot(*circle(exact[n], wanted), color=GREY, linewidth=5, label="Bayes' rule" if n == 0 else None)
    right.plot(*circle(V @ x[n] + b, tril @ tril.T), color=BLUE, linewidth=1.2, label="encoder" if n == 0 else None)
right.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
right.set_title("Posteriors of nine wines, one standard deviation", loc="left")
right.legend(frameon=False)
save(figure, "11_bayes_rule")

# %% [markdown]
# ## What a diagonal posterior chooses
#
# The likelihood knows the subspace, but no axes in it: $W$ and $W R$ give the same $W W^\top$. EM and the VAE with a
# full $S$ stop at whatever rotation they came by. But turn $W$, and the posterior covariance $\sigma^2 (W^\top W +
# \sigma^2 I)^{-1}$ turns with it. It is diagonal only where the columns of $W$ are orthogonal, and then they are the
# principal axes themselves. So the VAE that is restricted to a diagonal $S$ loses nothing of the bound, if it takes
# that one rotation. The restriction costs nothing here and buys axes with a meaning. That VAEs with diagonal posteriors
# tend to find such axes is no accident.

# %%
figure, panels = plt.subplots(1, 2, figsize=(10.5, 5), layout="constrained", sharex=True, sharey=True)
off = {}
for panel, name in zip(panels, ("linear VAE, full S", "linear VAE, diagonal S"), strict=True):
    W = reached(fits[name])[0]
    mean, _ = factors(fits[name])
    unit = W / np.linalg.norm(W, axis=0)
    cosines = np.abs(axes[:, :K].T @ unit)
    off[name] = math.degrees(math.acos(min(1.0, cosines.max(0).min())))
    print(f"{name:24} columns of W lie up to {off[name]:5.2f} degrees from principal axes")
    print(f"{'':24} cosine of the two columns {unit[:, 0] @ unit[:, 1]:.4f}")
    panel.plot(*mean.T, "o", color=GREY, markersize=4)
    direction = np.linalg.pinv(W) @ axes[:, :K]  # where a step along each principal axis leads among the codes
    for k, shade in enumerate((BLUE, ORANGE)):
        step = 2.2 * direction[:, k] / np.linalg.norm(direction[:, k])
        panel.annotate("", step, -step, arrowprops={"arrowstyle": "<->", "color": shade, "linewidth": 2.5})
        panel.plot([], [], color=shade, linewidth=2.5, label=f"principal axis {k + 1}")
    panel.set(xlabel="$z_1$", aspect="equal", xlim=(-2.8, 2.8), ylim=(-2.8, 2.8))
    panel.set_title(name, loc="left")
panels[0].set_ylabel("$z_2$")
panels[1].legend(frameon=False, loc="upper right")
assert off["linear VAE, full S"] > 5
assert off["linear VAE, diagonal S"] < 3
save(figure, "11_axes")

# %% [markdown]
# ## Collapse is in the likelihood
#
# VAEs are known to leave latents idle: their posterior stays at the prior, whatever the row. The bound is often blamed
# for this *posterior collapse*. The linear VAE says who it is. Fix $\sigma^2$. Then the maximum of the *likelihood* is
# $W = V_K (\Lambda_K - \sigma^2 I)_+^{1/2}$: a direction whose variance is below the noise gets a column of zeros. With
# posterior variance $\sigma^2 / \lambda_k$, the divergence that latent $k$ is worth is, on average over the rows,
#
# $$\mathrm{KL}_k = \tfrac12 \log \frac{\lambda_k}{\sigma^2} \;\; \text{where } \lambda_k > \sigma^2, \qquad
#     \text{otherwise } 0 \text{ nats}.$$
#
# A model with six latents and a noise that is given is a few lines. The encoder follows from it.

# %%
LATENTS, NOISES = 6, (0.3, 1.0, 2.0)


def with_noise(noise):
    """Probabilistic PCA with six factors and a variance that is not learned."""

    def model(x):
        load = pyro.param("load", 0.1 * torch.eye(D)[:, :LATENTS])
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ load.mT, math.sqrt(noise)).to_event(1), obs=x)

    return Pair(model)


print("nats of each latent, the largest first")
worth = {}
for value in NOISES:
    fit = zoo.fit(with_noise(value), x, inference="svi", guide=Amortized(hidden=()), **climb, tol=1e-6)
    found = fit.latents()["z"]
    mean, sd = found.mean.numpy(), found.sd.numpy()
    each = (0.5 * (sd**2 + mean**2 - 1) - np.log(sd)).mean(0)
    theory = 0.5 * np.log(eigenvalues[:LATENTS] / value).clip(0)
    worth[value] = (np.sort(each)[::-1], theory)
    print(f"noise {value:3}  learned:", worth[value][0].round(2), "  closed form:", theory.round(2))
    assert (each > 0.05).sum() == (eigenvalues[:LATENTS] > value).sum()
    assert abs(each.sum() - theory.sum()) < 0.25

figure, panels = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained", sharey=True)
place = np.arange(1, LATENTS + 1)
for panel, (value, (each, theory)) in zip(panels, worth.items(), strict=True):
    panel.bar(place, theory, color=GREY, width=0.75, label=r"closed form, $\frac{1}{2} \log \lambda_k / \sigma^2$")
    panel.plot(place, each, "o", color=BLUE, markersize=8, label="learned by encoder and decoder")
    alive = int((each > 0.05).sum())
    panel.set(xlabel="latent, most informative first", xticks=place)
    panel.set_title(rf"$\sigma^2 = {value}$: {alive} of {LATENTS} in use", loc="left")
    panel.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("KL of the posterior from the prior, nats")
panels[2].legend(frameon=False, loc="upper right")
save(figure, "11_collapse")

# %% [markdown]
# More noise, fewer latents in use, as the closed form has it: no encoder and no optimizer is to blame. A VAE whose
# decoder has a fixed variance has made this choice without saying so. Learn the noise (`covariance="learned"`, the
# default of `vae`), and the data make it.
#
# ## What to take away
#
# - Where a model is linear and normal its encoder can be exact, and then bound and likelihood have one maximum. A deep
#   VAE driver that does not find it has a defect, and this is how to see it.
# - A diagonal posterior turns the latents to the principal axes; a full one leaves them as they come.
# - A latent is in use where it explains more than noise does. What noise there is decides on how many are.
