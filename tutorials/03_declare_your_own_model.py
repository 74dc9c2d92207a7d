# %% [markdown]
# # 3. Declare your own model
#
# A model of latentzoo is a plain Pyro function that tells how the data came about. Nothing about inference stands in
# it. You write the story as a book prints it; the engine reads it and does the E-step and the M-step.
#
# The rules of the contract are few:
#
# - `model(data)` takes the data and nothing else. Rows live in `pyro.plate("data", len(data))`.
# - What is learned by maximum likelihood is a `pyro.param`, with its constraint.
# - What is unknown for each row is a `pyro.sample` inside the plate. If it is discrete, it carries
#   `infer={"enumerate": "parallel"}`, so that its values are summed over.
# - What was measured is a `pyro.sample` with `obs=`.
#
# `Pair(model)` makes it ready for `zoo.fit`. A model of your own, never registered, has every right that a model of
# the zoo has.
#
# We write two. The first is the example with which Dempster, Laird and Rubin introduced EM in 1977, and we meet their
# published numbers. The second is a mixture of waiting times, with missing cells; in the end it becomes an entry of
# the zoo.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from latentzoo import Pair, register, zoo

FIGURES = Path("figures")  # where the pictures go, relative to the working folder
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


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
# ## Genetic linkage
#
# 197 animals fall into four categories, with counts 125, 18, 20 and 34. By the laws of heredity the categories have
# probabilities
#
# $$\Big(\tfrac12 + \tfrac{\pi}{4},\; \tfrac{1-\pi}{4},\; \tfrac{1-\pi}{4},\; \tfrac{\pi}{4}\Big),$$
#
# and $\pi$, which measures the linkage of two genes, is unknown. The trouble is the sum in the first place. If we
# could split the first category in two, of probabilities $\tfrac12$ and $\tfrac{\pi}{4}$, then $\pi$ would be a
# simple proportion. So the split is the latent variable (Dempster, Laird and Rubin 1977, section 1).
#
# By hand: the E-step splits the 125 animals in proportion to $\tfrac12$ and $\tfrac\pi4$. The M-step takes the share
# of those that speak for $\pi$.

# %%
counts = np.array([125, 18, 20, 34])
published = [0.608247423, 0.624321051, 0.626488879, 0.626777323, 0.626815632, 0.626820719, 0.626821395, 0.626821484]

by_hand = [0.5]
for _ in range(8):
    pi = by_hand[-1]
    split = counts[0] * (pi / 4) / (1 / 2 + pi / 4)  # E-step
    by_hand.append((split + counts[3]) / (split + counts[1] + counts[2] + counts[3]))  # M-step
for number, (value, printed) in enumerate(zip(by_hand[1:], published, strict=True), 1):
    print(f"iteration {number}: {value:.9f}   the paper prints {printed:.9f}")

assert np.allclose(by_hand[1:], published, rtol=0, atol=1e-9)

# %% [markdown]
# Now the model. Each animal belongs to one of *five* categories, of which the first two look alike. One row of data
# is one category, and `weights` says how many animals it stands for.

# %%
looks_like = torch.tensor([0, 0, 1, 2, 3])  # the category that we see, for each of the five


def linkage(x):
    pi = pyro.param("pi", torch.tensor(0.5), constraint=constraints.unit_interval)
    five = torch.stack([torch.tensor(0.5), pi / 4, (1 - pi) / 4, (1 - pi) / 4, pi / 4])
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(five), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Categorical(torch.eye(4)[looks_like[z]]), obs=x)


categories = torch.arange(4)
fit = zoo.fit(Pair(linkage), categories, inference="em", weights=counts)
print(fit.summary())

maximum = (15 + np.sqrt(53809)) / 394  # the root of the likelihood equation
share = fit.latents()["z"][0]  # where an animal of the first category belongs
print(f"\npi {fit.params['pi']:.7f}, exact {maximum:.7f}")
print(f"of the 125, {125 * share[0]:.2f} belong to the half without pi, and {125 * share[1]:.2f} to the other")

assert fit.converged
assert np.isclose(fit.params["pi"], maximum, rtol=0, atol=1e-5)
assert np.isclose(share[1], (maximum / 4) / (1 / 2 + maximum / 4), atol=1e-5)
probabilities = np.array([1 / 2 + maximum / 4, (1 - maximum) / 4, (1 - maximum) / 4, maximum / 4])
assert np.isclose(fit.log_likelihood, (counts * np.log(probabilities)).sum(), atol=1e-6)

# %% [markdown]
# ## Closed forms
#
# Here $\pi$ reaches the distribution through arithmetic, `(1 - pi) / 4`. The engine does not solve equations, so its
# M-step climbs the bound by gradient steps. That is a *generalised* EM, and it never lowers the likelihood either.
# Where a parameter **is** an argument of a distribution, or is gathered from one by an index as in `rate[z]`, the
# M-step is a closed form: faster, and exact.
#
# The story can be told in that way. A first coin, fair, says whether the animal is in the half where $\pi$ plays no
# part. If not, a second coin with chance $\pi$ is thrown. If it shows 1, the animal falls in the first or the last
# category; if 0, in the second or the third.
#
# Enumeration throws the second coin for every animal, also where nobody looks. So `pi` has two places: `pi[1]` is the
# paper's, and `pi[0]` belongs to the coin that nobody looks at. Nothing is learned of `pi[0]`. It stays where it
# started.

# %%
falls = torch.tensor(  # falls[first, second]: chances of the four categories
    [
        [[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]],
        [[0.0, 0.5, 0.5, 0.0], [0.5, 0.0, 0.0, 0.5]],
    ],
    dtype=torch.float64,
)


def linkage_of_coins(x):
    pi = pyro.param("pi", torch.tensor([0.5, 0.5]), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        first = pyro.sample("first", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
        second = pyro.sample("second", dist.Bernoulli(pi[first]), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Categorical(falls[first, second.long()]), obs=x)


iterates = [0.5]
for number, printed in enumerate(published, 1):
    fit = zoo.fit(Pair(linkage_of_coins), categories, inference="em", weights=counts, max_iters=number, tol=0)
    iterates.append(fit.params["pi"][1].item())
    print(f"iteration {number}: {iterates[-1]:.9f}   the paper prints {printed:.9f}")

assert np.allclose(iterates[1:], published, rtol=0, atol=1e-9)
assert np.isclose(fit.params["pi"][0], 0.5, rtol=0, atol=1e-9)

# %% [markdown]
# The paper also computes how fast this converges. The error shrinks by 0.1328 at each iteration, the fraction of
# missing information (see `02_expectation_maximization.py`).

# %%
grid = np.linspace(0.35, 0.85, 300)


def log_likelihood(pi):
    pi = np.asarray(pi)
    return 125 * np.log(1 / 2 + pi / 4) + 38 * np.log((1 - pi) / 4) + 34 * np.log(pi / 4)


errors = np.abs(np.array(iterates) - maximum)
factors = errors[1:] / errors[:-1]
complete = (125 * (maximum / (2 + maximum)) + 34) / maximum**2 + 38 / (1 - maximum) ** 2
observed = 125 / (2 + maximum) ** 2 + 34 / maximum**2 + 38 / (1 - maximum) ** 2
print("factors:", *(f"{factor:.4f}" for factor in factors), f"   predicted {1 - observed / complete:.4f}")
assert np.isclose(1 - observed / complete, 0.1328, atol=5e-5)
assert np.allclose(factors[3:6], 0.1328, atol=2e-4)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
left.plot(grid, log_likelihood(grid), color="black", linewidth=2)
left.plot(iterates[:4], log_likelihood(iterates[:4]), "o", color=ORANGE)
for number in range(2):
    spot = (iterates[number], log_likelihood(iterates[number]))
    note(left, f"iterate {number}", spot, (-10, 5), color=ORANGE, ha="right")
note(left, "2, 3, ...", (maximum, log_likelihood(maximum)), (4, 6), color=ORANGE)
left.set(xlabel=r"$\pi$", ylabel=r"$\log p(x \mid \pi)$", title="The likelihood, and the iterates", ylim=(-216, -204.5))
right.semilogy(errors, "o-", color=ORANGE)
right.set(xlabel="iteration", ylabel=r"$|\pi_t - \hat\pi|$", title="The error, by a steady factor of 0.1328")
save(figure, "03_linkage")

# %% [markdown]
# ## A mixture of waiting times
#
# 400 customers call a help desk in the morning, at noon and in the evening. Each customer is served by one of two
# offices, and it was not noted by which. Waiting times are exponential, with a rate that depends on the office and on
# the time of day:
#
# $$z_n \sim \mathrm{Categorical}(\pi), \qquad x_{nd} \mid z_n = k \sim \mathrm{Exponential}(\lambda_{kd}).$$
#
# The data are simulated here, so that we know the answer. A fifth of the calls was never made. Those cells are
# missing: NaN, in a DataFrame as in a tensor.

# %%
random = np.random.default_rng(7)
true_weights = np.array([0.35, 0.65])
true_means = np.array([[12.0, 8.0, 15.0], [2.0, 3.0, 1.5]])  # minutes; (offices, times of day)
office = random.choice(2, 400, p=true_weights)
minutes = random.exponential(true_means[office])
minutes[random.random(minutes.shape) < 0.2] = np.nan
called = ~np.isnan(minutes).all(1)  # customers who never called are not in the data
minutes, office = minutes[called], office[called]
calls = pd.DataFrame(minutes, columns=["morning", "noon", "evening"])
print(calls.head().round(2).to_string())

# %% [markdown]
# The model is the formula, line by line. Sizes that follow from the data are read from the data. The start of `rate`
# is a function, called when it is needed: one office quicker than average, one slower. (If both offices started
# alike, their posteriors would be alike, and EM could never tell them apart.)


# %%
def waiting_times(x):
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
    rate = pyro.param(
        "rate", lambda: torch.tensor([[0.5], [2.0]]) / x.nanmean(0), constraint=constraints.positive
    )  # (K, D)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Exponential(rate[z]).to_event(1), obs=x)


fit = zoo.fit(Pair(waiting_times), calls, seed=0)  # inference="auto" picks EM, and says why
print(fit.summary())

# %% [markdown]
# The estimates are near the truth: a rate estimated from $m$ waiting times has a relative standard error of about
# $1/\sqrt{m}$, and more where it is unsure who belongs where.

# %%
means = 1 / fit.params["rate"].numpy()
in_order = np.argsort(-means[:, 0])  # labels are arbitrary: put the slow office first
means, weights = means[in_order], fit.params["weights"].numpy()[in_order]
print("mean waits, estimated:", means.round(2).tolist())
print("mean waits, true:     ", true_means.tolist())
print("weights, estimated:   ", weights.round(3).tolist(), "  true:", true_weights.tolist())

per_rate = 0.8 * len(calls) * true_weights[:, None]
assert np.all(np.abs(np.log(means / true_means)) < 4 / np.sqrt(per_rate))
assert np.all(np.abs(weights - true_weights) < 0.1)
assert np.all(np.diff(fit.history) >= -1e-9 * (1 + abs(fit.log_likelihood)))  # the bound never fell

# %% [markdown]
# ## What a fit can do
#
# Every verb is written once, for every model.
#
# - `fit.score(x)` is $\log p(x_n)$ of each row, exact: latents are summed out, missing cells integrated out.
# - `fit.latents(x)` is the posterior of each latent.
# - `fit.generate(n, given={...})` draws new rows. Latents can be fixed by name.
# - `fit.impute(x)` fills missing cells with their conditional expectation.

# %%
slow, quick = in_order
new = pd.DataFrame({"morning": [14.0, 1.0, np.nan], "noon": [6.0, np.nan, 4.0], "evening": [20.0, 0.5, np.nan]})
beliefs = fit.latents(new)["z"].numpy()
filled = fit.impute(new)
for row in range(3):
    waits = ", ".join("?" if np.isnan(v) else f"{v:g}" for v in new.iloc[row])
    print(f"waits {waits:12s}  slow office: {beliefs[row, slow]:.3f}   log p(x) = {fit.score(new)[row]:.3f}")
print(filled.round(2).to_string())

assert beliefs[0, slow] > 0.99
assert beliefs[1, quick] > 0.95
rate = fit.params["rate"].numpy()
expected = (beliefs[2] / rate[:, 2]).sum()  # the mean of each office, weighed by the posterior
assert np.isclose(filled.loc[2, "evening"], expected)
assert filled.loc[0].equals(new.loc[0])  # what was seen stays

# %%
drawn = fit.generate(2000, given={"z": torch.full((2000,), int(slow))}, seed=1)
print(f"2000 customers of the slow office wait {drawn.mean().round(2).to_dict()} on average")
assert list(drawn.columns) == list(calls.columns)
assert np.allclose(drawn.mean(), means[0], rtol=0.1)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
belief = fit.latents()["z"][:, int(slow)].numpy()
average = calls.mean(axis=1).to_numpy()
for truth, color, label in [(0, ORANGE, "really the slow office"), (1, BLUE, "really the quick office")]:
    left.semilogx(
        average[office == truth], belief[office == truth], "o", color=color, markersize=4, alpha=0.5, label=label
    )
left.set(
    xlabel="mean wait of a customer (minutes)",
    ylabel="posterior of the slow office",
    title="Who was served by whom",
    xlim=(0.05, 60),
)
left.legend(loc="upper left", fontsize=9)
again = fit.generate(20_000, seed=2)
bins = np.linspace(0, 40, 41)
right.hist(calls["evening"].dropna(), bins=bins, density=True, color="#CCCCCC", label="observed")
right.hist(
    again["evening"], bins=bins, density=True, histtype="step", color=GREEN, linewidth=1.8, label="generated by the fit"
)
right.set(xlabel="wait in the evening (minutes)", ylabel="density", title="Does the fit generate such data?")
right.legend(frameon=False)
save(figure, "03_waiting_times")

# %%
right_office = np.mean((belief > 0.5) == (office == 0))
print(f"the likelier office is the right one for {right_office:.0%} of the customers")
assert right_office > 0.85

# %% [markdown]
# ## Errors are there to be read
#
# A model can be wrong in ways that Python does not see. The engine reads it before the first iteration, and says in
# one line what it met, where, and the way out. Three that everybody meets:

# %%


def forgot_the_mark(x):
    rate = pyro.param("rate", torch.tensor([[0.1], [1.0]]).expand(2, 3), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        pyro.sample("x", dist.Exponential(rate[z]).to_event(1), obs=x)


def forgot_the_plate(x):
    rate = pyro.param("rate", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("x", dist.Exponential(rate).expand(x.shape).to_event(2), obs=x)


def message(model, data):
    """What the engine says of a model that it cannot fit."""
    try:
        zoo.fit(Pair(model), data)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("the engine took it")


negative = calls.fillna(1.0)
negative.loc[5, "noon"] = -3.0
complaints = [message(forgot_the_mark, calls), message(forgot_the_plate, calls), message(waiting_times, negative)]
print(*complaints, sep="\n\n")

assert "'z'" in complaints[0]
assert 'infer={"enumerate": "parallel"}' in complaints[0]
assert 'pyro.plate("data", len(data))' in complaints[1]
assert "row 5" in complaints[2]
assert "-3" in complaints[2]

# %% [markdown]
# ## Tests
#
# Whoever writes a model should test it against something that knows nothing of the engine. Four tests find most
# mistakes.
#
# 1. **Brute force.** Sum over the values of the latent in plain NumPy, and compare the score of each row.
# 2. **The bound never falls**, at any iteration, from any of many starts.
# 3. **A missing cell is integrated out**: the score of a row with a hole is the log of the integral over the hole.
# 4. **The truth comes back**: data generated by the fit, fitted again, give nearly the same parameters.


# %%
def brute_force(fit, x):
    """log p(x_n) of complete rows, by the formula."""
    weights, rate = (fit.params[name].numpy() for name in ("weights", "rate"))
    per_office = [np.log(w) + (np.log(r) - r * x).sum(1) for w, r in zip(weights, rate, strict=True)]
    return np.logaddexp.reduce(per_office, axis=0)


def test_score_is_brute_force(fit):
    x = calls.dropna().to_numpy()
    assert np.allclose(fit.score(x), brute_force(fit, x), rtol=0, atol=1e-10)


def test_bound_never_falls(pair):
    for number in range(5):
        start = {"rate": torch.from_numpy(np.random.default_rng(number).gamma(1.0, 1.0, (2, 3)))}
        history = zoo.fit(pair, calls, start=start, seed=number).history.numpy()
        assert np.all(np.diff(history) >= -1e-9 * (1 + np.abs(history[1:])))


def test_hole_is_integrated_out(fit):
    waits = np.linspace(0, 400, 400_001)  # the hole, filled with every value that matters
    rows = np.stack([np.full_like(waits, 3.0), waits, np.full_like(waits, 5.0)], 1)
    integral = np.trapezoid(np.exp(brute_force(fit, rows)), waits)
    assert np.isclose(fit.score(np.array([[3.0, np.nan, 5.0]]))[0], np.log(integral), atol=1e-6)


def test_truth_comes_back(fit, pair):
    again = zoo.fit(pair, fit.generate(20_000, seed=3), start={"rate": fit.params["rate"]})
    assert torch.allclose(again.params["rate"], fit.params["rate"], rtol=0.1)


test_score_is_brute_force(fit)
test_bound_never_falls(Pair(waiting_times))
test_hole_is_integrated_out(fit)
test_truth_comes_back(fit, Pair(waiting_times))
print("four tests passed")

# %% [markdown]
# ## An entry of the zoo
#
# A model that others should find by name becomes an entry. An entry is a **factory**: hyper-parameters in, `Pair`
# out. Its docstring is the page that people read, and `@register` adds the facts of its card. Three things change:
#
# - the number of offices is a hyper-parameter;
# - `initialize(data, generator)` draws a start for each restart, with the generator that it is given;
# - the name of the function is the name of the entry.


# %%
@register(
    family="mixtures",
    summary="groups of rows of waiting times, exponential within a group",
    data="a table of positive numbers (N, D); NaN is missing",
    references=("McLachlan and Peel (2000), Finite Mixture Models",),
    size="num_components",
)
def waiting_time_mixture(num_components: int = 2) -> Pair:
    r"""Mixture of exponential distributions.

    .. math::

        z_n &\sim \mathrm{Categorical}(\pi) \\
        x_{nd} \mid z_n = k &\sim \mathrm{Exponential}(\lambda_{kd})

    ====================  ==========================================
    ``weights`` (K,)      :math:`\pi`, on the simplex
    ``rate`` (K, D)       :math:`\lambda_{kd}`, positive
    ``z`` (N,)            latent of each row, enumerated
    ``x`` (N, D)          observed
    ====================  ==========================================
    """
    K = num_components

    def model(x):
        weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
        rate = pyro.param("rate", lambda: torch.ones(K, x.shape[1]), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Exponential(rate[z]).to_event(1), obs=x)

    def initialize(x, generator):
        """Rates around those of the columns, a factor of two up or down."""
        return {"rate": torch.exp(0.7 * torch.randn(K, x.shape[1], generator=generator)) / x.nanmean(0)}

    return Pair(model, initialize=initialize)


print("waiting_time_mixture" in zoo.list_models(family="mixtures"))
print(zoo.card("waiting_time_mixture"))

# %%
registered = zoo.fit("waiting_time_mixture", calls, num_components=2, restarts=10, seed=0)
print(registered)
assert np.isclose(registered.log_likelihood, fit.log_likelihood, atol=1e-6)  # the same model, the same maximum
test_score_is_brute_force(registered)

table = zoo.compare(  # BIC moves by whole units, so a loose tolerance will do
    [zoo.fit("waiting_time_mixture", calls, num_components=k, restarts=3, tol=1e-6) for k in (1, 2, 3)], by="bic"
)
print(table[["log_likelihood", "parameters", "bic"]].round(2).to_string())
assert table["parameters"][0] == 7  # BIC finds two offices: one weight, six rates

# %% [markdown]
# ## Save and load
#
# `fit.save` writes a folder of plain tensors and JSON, without pickle. The data are not in it. `zoo.load` builds the
# pair from the registry; for a pair that was never registered, hand it over: `zoo.load(folder, pair=...)`.

# %%
with tempfile.TemporaryDirectory() as folder:
    registered.save(Path(folder) / "desk")
    fit.save(Path(folder) / "mine")
    print(sorted(path.name for path in (Path(folder) / "desk").iterdir()))
    loaded = zoo.load(Path(folder) / "desk")
    mine = zoo.load(Path(folder) / "mine", pair=Pair(waiting_times))
print(loaded)

assert torch.equal(loaded.score(calls), registered.score(calls))
assert torch.equal(mine.score(calls), fit.score(calls))

# %% [markdown]
# ## ArviZ
#
# `fit.to_arviz` gives an object that ArviZ opens, with named dimensions. A maximum has no spread, so ask for draws of
# the parameters: `draws="laplace"` takes the normal approximation at the maximum.

# %%
opened = registered.to_arviz(draws="laplace", num_draws=400)
rates = opened["posterior"]["rate"]
print("dims", rates.dims, " columns", rates["column"].values.tolist())
center, spread = rates.mean(("chain", "draw")), rates.std(("chain", "draw"))
print("rates:\n", center.round(3).values, "\nstandard errors:\n", spread.round(3).values)

assert rates.shape == (1, 400, 2, 3)
assert rates["column"].values.tolist() == ["morning", "noon", "evening"]
assert np.allclose(center, registered.params["rate"], rtol=0.15)
assert np.all(spread > 0)
assert opened["log_likelihood"]["x"].shape == (1, 400, len(calls))  # one per row, its latent summed out

# %% [markdown]
# The registry lives as long as the Python process, and a name can be taken once. In a package the decorator stands in
# a module that is imported once. In a notebook, take the entry out before you run the cell again:

# %%
from latentzoo.models.registry import ENTRIES

del ENTRIES["waiting_time_mixture"]
assert "waiting_time_mixture" not in zoo.list_models()

# %% [markdown]
# To give a model to everybody, put the factory in a file of its own under `models/`, in the folder of its family. The
# tests of the repository run over every entry. Add those that only this model has: the published numbers that it
# meets.
#
# ## Exercises
#
# 1. Write the zero-inflated Poisson model: $z_n \sim \mathrm{Bernoulli}(\pi)$, $x_n \mid z_n \sim
#    \mathrm{Poisson}(\lambda z_n)$. Fit the one column of the bundled `hasselblad_deaths`. Is it better than
#    `poisson_mixture` with two components, by BIC?
# 2. Give the rates of the help desk a prior: sample `rate` from a Gamma outside the plate, in place of the
#    `pyro.param`. What does `fit.history` hold then?
# 3. In `linkage_of_coins`, let both places of `pi` be one number. The maximum stays. What happens to the speed, and
#    why?
