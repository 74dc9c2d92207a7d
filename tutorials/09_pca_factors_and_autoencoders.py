# %% [markdown]
# # 9. From PCA to factor analysis to Bayesian PCA
#
# Thirteen measurements were made of each of 178 wines. They hang together: a wine with many phenols has many
# flavonoids. Perhaps a few numbers $u$ for each wine, which nobody measured, say most of what the thirteen say. The
# linear latent variable model puts that into one line,
#
# $$u_n \sim \mathcal{N}(0, I_K), \qquad x_n \mid u_n \sim \mathcal{N}(W u_n + \mu, \; \Psi),$$
#
# and integrating $u_n$ out leaves a normal distribution with a covariance of few numbers,
#
# $$x_n \sim \mathcal{N}(\mu, \; W W^\top + \Psi).$$
#
# Everything in this tutorial is this model. What changes is the noise covariance $\Psi$, and whether $W$ has a prior:
#
# | | noise $\Psi$ | $W$ |
# |---|---|---|
# | probabilistic PCA | $\sigma^2 I$, the same in every column | a point |
# | factor analysis | $\mathrm{diag}(\psi_1, \dots, \psi_D)$, each column its own | a point |
# | Bayesian PCA | $\tau^{-1} I$ | a posterior, with a prior that can switch off whole columns |
#
# At the end a neural network without any probabilities finds the same subspace.
#
# Sources: Tipping and Bishop (1999), *Probabilistic principal component analysis*, JRSS B 61, 611-622. Bishop (1999),
# *Variational principal components*, ICANN. Baldi and Hornik (1989), *Neural networks and principal component
# analysis: learning from examples without local minima*, Neural Networks 2, 53-58.

# %%
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.linalg import subspace_angles

from latentzoo import zoo
from latentzoo.inference.data import load_bundled
from latentzoo.inference.posterior.conjugate import predictions

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
N, D = x.shape

# %% [markdown]
# ## Probabilistic PCA is PCA
#
# PCA takes the first $K$ eigenvectors $v_k$ of the covariance matrix, those of its largest eigenvalues $\lambda_k$.
# Tipping and Bishop found that the maximum of the likelihood is built of the same pieces,
#
# $$\sigma^2 = \frac{1}{D - K} \sum_{k > K} \lambda_k, \qquad W = V_K (\Lambda_K - \sigma^2 I)^{1/2} R,$$
#
# with any rotation $R$: the noise is the mean variance of the directions left out, and $W$ spans the subspace of PCA.

# %%
K = 2
eigenvalues, eigenvectors = (part[..., ::-1] for part in np.linalg.eigh(np.cov(x.T, bias=True)))
components = eigenvectors[:, :K]
noise = eigenvalues[K:].mean()
log_likelihood = -N / 2 * (D * math.log(2 * math.pi) + np.log(eigenvalues[:K]).sum() + (D - K) * math.log(noise) + D)

ppca = zoo.fit("probabilistic_pca", wine, num_factors=K)
print(f"log-likelihood  by EM {ppca.log_likelihood:.6f}   closed form {log_likelihood:.6f}")
print(f"noise variance  by EM {ppca.params['scale'] ** 2:.6f}   closed form {noise:.6f}")
print(f"angle between the subspaces: {degrees(components, ppca.params['load']):.1e} degrees")
assert abs(ppca.log_likelihood - log_likelihood) < 1e-4
assert abs(ppca.params["scale"] ** 2 - noise) < 1e-6
assert degrees(components, ppca.params["load"]) < 0.01

# %% [markdown]
# `fit.plot()` draws the wines at the posterior means of their two factors. An arrow shows how a column goes with these
# factors: one tells wines with many phenols and flavonoids from those with few, the other is about alcohol, colour and
# ash. The wines lie in a horseshoe of three groups, and they do come from three growers.

# %%
save(ppca.plot(), "09_wines")

# %% [markdown]
# One thing does change. PCA puts a wine back at its projection $V_K V_K^\top x$. The posterior mean of $u_n$ is drawn
# towards its prior mean, 0, because part of what looks like signal is noise. So $E[W u_n + \mu \mid x_n]$ is shorter
# than the projection, along component $k$ by the factor $1 - \sigma^2 / \lambda_k$. Where noise is small, there is no
# difference.

# %%
projection = x @ components @ components.T
shrunk = x @ components @ np.diag(1 - noise / eigenvalues[:K]) @ components.T
pca_error = ((x - projection) ** 2).sum() / N  # of one wine
print("shrunk by", 1 - noise / eigenvalues[:K])
print(f"squared error of one wine: PCA {pca_error:.4f}, probabilistic PCA {((x - shrunk) ** 2).sum() / N:.4f}")
assert np.allclose(ppca.reconstruct(), shrunk, atol=1e-3)
assert np.isclose(pca_error, eigenvalues[K:].sum())

# %% [markdown]
# ## A linear autoencoder
#
# An autoencoder is a network that has to put out what was put in, through a layer too narrow for all of it. With $D$
# inputs, $K$ linear units and $D$ outputs it is $\hat{x} = B A x$, and the error it learns from is that of PCA. The
# best matrix $BA$ of rank $K$ is the projection onto the principal subspace, and all other points of rest are saddles
# (Baldi and Hornik 1989), so that any descent gets there. Nothing tells $B$ to have orthogonal columns, and it has not:
# the network finds the *subspace*, not the components.

# %%
STEPS = 500
with torch.random.fork_rng():  # what a layer starts at is random: leave the generator of others alone
    torch.manual_seed(0)
    encoder = torch.nn.Linear(D, K, bias=False, dtype=torch.float64)
    decoder = torch.nn.Linear(K, D, bias=False, dtype=torch.float64)
network = torch.nn.Sequential(encoder, decoder)
data = torch.tensor(x)
optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
errors, angles = [], []
for _ in range(STEPS):
    optimizer.zero_grad()
    error = ((network(data) - data) ** 2).sum() / N
    error.backward()
    optimizer.step()
    errors.append(error.item())
    angles.append(degrees(decoder.weight.detach(), components))

B = decoder.weight.detach().numpy()
between = math.degrees(math.acos(abs(B[:, 0] @ B[:, 1]) / np.linalg.norm(B[:, 0]) / np.linalg.norm(B[:, 1])))
print(f"squared error of one wine: network {errors[-1]:.6f}, PCA {pca_error:.6f}")
print(f"angle between the subspaces: {angles[-1]:.4f} degrees; between the columns of B: {between:.1f} degrees")
assert pca_error - 1e-9 <= errors[-1] < pca_error * 1.001  # equal within a thousandth, and never better
assert angles[-1] < 0.5
assert degrees(B, ppca.params["load"]) < 0.5
assert between < 89

figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
left.plot(np.arange(1, STEPS + 1), np.array(errors) - pca_error, color=BLUE)
left.set(yscale="log", xlabel="step", ylabel="squared error, less that of PCA")
left.set_title("The network's error falls to that of PCA", loc="left")
right.plot(np.arange(1, STEPS + 1), angles, color=ORANGE)
right.set(yscale="log", xlabel="step", ylabel="degrees")
right.set_title("Largest angle between the two subspaces", loc="left")
save(figure, "09_autoencoder")

# %% [markdown]
# ## What the noise covariance changes
#
# PCA explains *variance*, whatever it is made of. Factor analysis explains *covariance*: what belongs to one column
# alone goes to that column's $\psi_d$ and to no factor. To see the difference, add a column that is nothing but noise,
# of three times the standard deviation of the others.

# %%
noisy = wine.assign(pure_noise=3 * np.random.default_rng(0).normal(size=N))
loads = {name: zoo.fit(name, noisy, num_factors=K) for name in ("probabilistic_pca", "factor_analysis")}
share = {}
for name, fit in loads.items():
    squared = fit.params["load"].square()
    share[name] = (squared[-1] / squared.sum(0)).max().item()
    print(f"{name:18} of some factor's squared loadings {share[name]:.0%} belong to the column of noise")
uniqueness = loads["factor_analysis"].params["scale"].numpy() ** 2 / noisy.var(ddof=0).to_numpy()
print(f"factor analysis calls {uniqueness[-1]:.0%} of that column its own")
assert share["probabilistic_pca"] > 0.9
assert share["factor_analysis"] < 0.1
assert uniqueness[-1] > 0.9

figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.6), sharey=True, layout="constrained")
names = [name.replace("_", " ").replace("od280/od315 of diluted wines", "od280/od315") for name in noisy.columns]
place = np.arange(len(names))
for panel, (name, fit) in zip(panels, loads.items(), strict=True):
    load = fit.params["load"].numpy()
    load = load * np.sign(load[np.abs(load).argmax(0), np.arange(K)])  # the sign of a factor is free
    for k, shade in enumerate((BLUE, ORANGE)):
        panel.barh(place + 0.2 * (2 * k - 1), load[:, k], 0.4, color=shade, label=f"factor {k + 1}")
    panel.axvline(0, color="black", linewidth=0.8)
    panel.axhspan(D - 0.5, D + 0.5, color=GREY, alpha=0.4, zorder=0)
    panel.set(xlabel="loading", yticks=place, yticklabels=names)
    panel.set_title(name.replace("_", " ").replace("pca", "PCA"), loc="left")
panels[0].invert_yaxis()
panels[0].legend(frameon=False, loc="center right")
save(figure, "09_noise_column")

# %% [markdown]
# The first "component" of PCA is the noise. The same happens with units, and more quietly: in the raw table proline
# is counted in milligrams and runs to 1680, and PCA is about proline. Factor analysis does not mind. In other units
# the loadings and noises of a column are multiplied by one number, and the fit is the same.

# %%
sd = raw.std(ddof=0).to_numpy()[:, None]
turned = {}
for name in ("probabilistic_pca", "factor_analysis"):
    standard, own = (zoo.fit(name, table, num_factors=K).params["load"].numpy() for table in (wine, raw))
    turned[name] = degrees(standard, own / sd)
    print(f"{name:18} subspace from raw columns is {turned[name]:8.4f} degrees from that of standardised ones")
assert turned["probabilistic_pca"] > 30
assert turned["factor_analysis"] < 0.1

# %% [markdown]
# Which of them is right about wine? Each column has a noise of its own, for twelve more params. BIC says that these
# are worth it, at every number of factors, and by far.

# %%
bic = {
    name: [zoo.fit(name, wine, num_factors=k).bic for k in range(1, 6)]
    for name in ("probabilistic_pca", "factor_analysis")
}
for name, values in bic.items():
    print(f"{name:18} BIC of 1 to 5 factors:", " ".join(f"{value:.0f}" for value in values))
assert all(one > other + 50 for one, other in zip(*bic.values(), strict=True))
best = int(np.argmin(bic["factor_analysis"])) + 1
assert best == 4

# %% [markdown]
# BIC takes four factors. Loadings are told up to a rotation only, and `fit.summary()` turns them by varimax, so that
# each factor goes with few columns, and says in words what it found.

# %%
factors = zoo.fit("factor_analysis", wine, num_factors=best)
page = factors.summary()
print(page[page.index("  correlations") :])
assert re.search(r"factor 1 \(.*\): flavanoids 0\.[89]", page)
save(factors.plot("loadings"), "09_loadings")

# %% [markdown]
# Read it with care. Nothing of ash is its own: its noise has run to next to zero, and the fourth factor is
# ash under another name. This is a *Heywood case*, and a maximum of the likelihood all the same. With three
# factors it is gone.

# %%
for k in (3, best):
    own = zoo.fit("factor_analysis", wine, num_factors=k).params["scale"].min() ** 2
    print(f"{k} factors: the least noise of a column is {own:.5f} of its variance")
    assert own < 1e-3 if k == 4 else own > 0.02

# %% [markdown]
# ## How many dimensions? Let a prior decide
#
# Bayesian PCA gives each column of $W$ a precision of its own,
#
# $$\alpha_k \sim \mathrm{Gamma}(10^{-3}, 10^{-3}), \qquad w_{dk} \sim \mathcal{N}(0, \alpha_k^{-1}),$$
#
# and infers these too, by the updates of tutorial 7. If column $k$ explains nothing that is worth its cost, its
# loadings shrink, so $\alpha_k$ grows, so they shrink more: the column is switched off. This is called automatic
# relevance determination (ARD). First where the answer is known: eight columns made of three factors.

# %%
random = np.random.default_rng(1)
axes = np.linalg.qr(random.normal(size=(8, 3)))[0] * [3.0, 2.0, 1.5]
made = random.normal(size=(200, 3)) @ axes.T + 0.5 * random.normal(size=(200, 8))
known = zoo.fit("bayesian_pca", made, num_factors=6, tol=1e-5)
bayes = zoo.fit("bayesian_pca", wine, num_factors=10, tol=1e-5)

figure, panels = plt.subplots(1, 2, figsize=(10.5, 3.9), sharey=True, layout="constrained")
kept = {}
for panel, (title, fit) in zip(panels, {"made of 3 factors": known, "wine": bayes}.items(), strict=True):
    precision = fit.params["relevance"].sort().values.numpy()
    on = precision < 300
    kept[title] = int(on.sum())
    print(f"{title:18} precisions:", " ".join(f"{value:.1f}" for value in precision))
    where = np.arange(1, len(precision) + 1)
    panel.vlines(where, 0.5, precision, color=GREY, linewidth=3)
    panel.plot(where[on], precision[on], "o", color=BLUE, markersize=8, label="in use")
    panel.plot(where[~on], precision[~on], "o", color=ORANGE, markersize=8, label="switched off")
    panel.set(yscale="log", xticks=where, xlabel="dimension, largest loadings first")
    panel.set_title(f"{title}: {kept[title]} of {len(precision)} in use", loc="left")
panels[0].set_ylabel(r"precision of the loadings, $E\,\alpha_k$")
panels[1].legend(frameon=False, loc="upper left")
save(figure, "09_relevance")

# %% [markdown]
# There is no doubt which are on: the precisions of the two kinds lie a factor of ten and more apart. Three dimensions
# are found where there are three, and the subspace is the right one, as nearly as 200 rows tell.

# %%
used = known.params["relevance"].argsort()[:3]
print(f"angle to the true subspace: {degrees(known.params['loadings'][:, used], axes):.2f} degrees")
jumps = {}
for title, fit in (("made of 3 factors", known), ("wine", bayes)):
    precision = fit.params["relevance"].sort().values
    jumps[title] = (precision[kept[title]] / precision[kept[title] - 1]).item()
assert kept["made of 3 factors"] == 3
assert degrees(known.params["loadings"][:, used], axes) < 10
assert min(jumps.values()) > 10
assert best < kept["wine"] < 10

# %% [markdown]
# For wine it keeps more dimensions than the factors BIC chose for factor analysis. That is no contradiction: this
# model has one noise for all columns, so what one column has to itself takes a dimension. The right number depends on
# what the noise may be.
#
# ## Exact imputation
#
# A missing cell needs no repair before the fit. The likelihood of a row is that of the cells it has, and their
# conditional mean, $E[x_m \mid x_o] = \mu_m + \Sigma_{mo} \Sigma_{oo}^{-1} (x_o - \mu_o)$ with
# $\Sigma = W W^\top + \Psi$, fills the rest. Hide one cell in six.

# %%
hidden = np.random.default_rng(2).random(x.shape) < 1 / 6
with_gaps = wine.mask(hidden)
filled = {"column mean": with_gaps.fillna(with_gaps.mean()).to_numpy()}
fits = {
    "probabilistic PCA, 2": zoo.fit("probabilistic_pca", with_gaps, num_factors=2),
    "factor analysis, 2": zoo.fit("factor_analysis", with_gaps, num_factors=2),
    "Bayesian PCA, 10": zoo.fit("bayesian_pca", with_gaps, num_factors=10, tol=1e-5),
}
filled |= {name: fit.impute().to_numpy() for name, fit in fits.items()}
missed = {name: np.sqrt(((table - x)[hidden] ** 2).mean()) for name, table in filled.items()}
print(f"{hidden.sum()} cells hidden; root mean squared error of what was filled in, in standard deviations:")
for name, value in missed.items():
    print(f"  {name:22} {value:.3f}")
assert all(value < 0.9 * missed["column mean"] for name, value in missed.items() if name != "column mean")

# by hand, for the first wine with gaps
n = int(hidden.any(1).argmax())
learned = fits["factor analysis, 2"].params
mu, W, psi = (learned[name].numpy() for name in ("loc", "load", "scale"))
sigma = W @ W.T + np.diag(psi**2)
m, o = hidden[n], ~hidden[n]
by_hand = mu[m] + sigma[np.ix_(m, o)] @ np.linalg.solve(sigma[np.ix_(o, o)], x[n, o] - mu[o])
print(f"wine {n}: by hand {by_hand.round(4)}, from the fit {filled['factor analysis, 2'][n, m].round(4)}")
assert np.allclose(by_hand, filled["factor analysis, 2"][n, m], atol=1e-8)

# %% [markdown]
# How far off may a cell be? Bayesian PCA knows, for each: `predictions` gives the mean and the standard deviation of
# what is expected there, under the posterior of $W$, $\mu$ and $u_n$. The noise comes on top.

# %%
found = predictions(fits["Bayesian PCA, 10"])
spread = (found.sd**2 + 1 / fits["Bayesian PCA, 10"].params["precision"]).sqrt().numpy()[hidden]
distance = np.abs(filled["Bayesian PCA, 10"] - x)[hidden] / spread
inside = (distance < 1.96).mean()
print(f"{inside:.1%} of the hidden cells lie within 1.96 standard deviations of what was filled in")
print(f"sd of the expected value: seen cells {found.sd[~hidden].mean():.3f}, hidden ones {found.sd[hidden].mean():.3f}")
assert np.allclose(found.mean.numpy()[hidden], filled["Bayesian PCA, 10"][hidden])
assert 0.85 < inside < 0.99
assert found.sd[hidden].mean() > found.sd[~hidden].mean()

# %% [markdown]
# ## What to take away
#
# - PCA, probabilistic PCA and a linear autoencoder agree on the subspace. The probabilistic model also has a
#   likelihood, and so BIC, new data, and exact answers where cells are missing.
# - The noise covariance decides what a factor is. One noise for all columns: standardise first, and beware of loud
#   columns. One for each: units do not matter, and factors are what columns share.
# - With a prior on the loadings there is no number of dimensions to choose: those not needed are switched off.
