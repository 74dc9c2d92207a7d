# %% [markdown]
# # 6. What do the five law-school items measure?
#
# In the 1960s a thousand people answered five questions of section 6 of the Law School Admission Test. Each answer is
# right or wrong. Some people got more right than others, and some questions were easier than others. Is there *one*
# ability behind the answers, how well do five questions measure it, and for whom?
#
# Item response theory makes a latent variable model of these questions. A person has an ability $\theta_n$, which no
# one sees; a question, an *item*, has a difficulty $b_j$ and a slope $a_j$:
#
# $$\theta_n \sim \mathcal{N}(0, 1), \qquad
#   P(x_{nj} = 1 \mid \theta_n) = \sigma\big(a_j (\theta_n - b_j)\big), \quad \sigma(u) = \frac{1}{1 + e^{-u}}.$$
#
# Ability is continuous, yet EM is exact here as good as: the integral over one normal number is a sum over a few dozen
# Gauss-Hermite nodes, and over nodes the latent can be enumerated like a class (Bock and Aitkin 1981).
#
# Sources: Bock and Lieberman (1970), *Fitting a response model for n dichotomously scored items*, which has the data;
# Bock and Aitkin (1981), *Marginal maximum likelihood estimation of item parameters*; Rizopoulos (2006), *ltm: an R
# package for latent variable modelling and item response theory analyses*.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import chi2

from latentzoo import zoo
from latentzoo.inference.data import load_bundled

FIGURES = Path("figures")  # where the pictures go, relative to the working folder
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"


def save(figure, name):
    """Write a figure to the folder of figures. A notebook shows what the last line of a cell returns."""
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return figure


# %% [markdown]
# ## The answers
#
# With five items there are 32 patterns of answers; 30 were met. Most people got most items right.

# %%
answers = load_bundled("lsat6")
right = (answers == "right").to_numpy().astype(float)  # (1000, 5)
patterns, counts = np.unique(right, axis=0, return_counts=True)
print(f"{len(right)} people, {len(patterns)} patterns of answers; the most frequent:")
for n in counts.argsort()[::-1][:5]:
    print(f"  {patterns[n].astype(int)}  {counts[n]} people")
print("share of right answers by item:", right.mean(0))
assert len(patterns) == 30
assert right.mean(0).argmin() == 2  # the third is the hardest

# %% [markdown]
# ## Three models, each within the next
#
# - **rasch**: all slopes are 1. Items differ in difficulty only.
# - **common_slope**: one slope for all items, learned.
# - **two_parameter**: each item has its own slope: some tell the able from the less able better than others.
#
# A larger model always fits at least as well. Whether by more than chance would is what the likelihood-ratio test
# asks: twice the gain in log-likelihood is about $\chi^2$ distributed, with the number of added params as its degrees
# of freedom, if the smaller model is true.

# %%
fits = {model: zoo.fit("item_response", answers, model=model) for model in ("rasch", "common_slope", "two_parameter")}
for model, fit in fits.items():
    print(f"{model:14} log-likelihood {fit.log_likelihood:10.3f}   params {fit.num_parameters:2}   BIC {fit.bic:8.2f}")


def p_value(small, large):
    """Of the likelihood-ratio test of one model within another."""
    gain = 2 * (fits[large].log_likelihood - fits[small].log_likelihood)
    p = chi2.sf(gain, fits[large].num_parameters - fits[small].num_parameters)
    print(f"{small} within {large}: likelihood ratio {gain:.2f}, p = {p:.2g}")
    return p


slope_is_one = p_value("rasch", "common_slope")
slopes_are_equal = p_value("common_slope", "two_parameter")

# the log-likelihoods of Rizopoulos (2006)
published = {"rasch": -2473.054, "common_slope": -2466.938, "two_parameter": -2466.653}
assert all(abs(fits[model].log_likelihood - value) < 1e-3 for model, value in published.items())
assert slope_is_one < 0.001
assert slopes_are_equal > 0.9
assert min(fits, key=lambda model: fits[model].bic) == "common_slope"

# %% [markdown]
# The slope is not 1, and one slope for all items is enough: the gain of four more is what chance gives. Why is the
# slope less than 1? Ability has variance 1 in all three models, so a slope of 0.76 says how strongly answers depend on
# it: weakly.
#
# Does the winner fit at all, or is it only the best of three? Its 32 expected counts stand beside the observed ones.
# $G^2$ sums their disagreement; it has $32 - 1 - 6 = 25$ degrees of freedom.

# %%
fit = fits["common_slope"]
every = np.stack(np.meshgrid(*[[0.0, 1.0]] * 5, indexing="ij"), -1).reshape(-1, 5)  # all 32 patterns
expected = len(right) * fit.score(every).exp().numpy()
observed = np.array([(right == pattern).all(1).sum() for pattern in every])
g2 = 2 * (observed[observed > 0] * np.log(observed[observed > 0] / expected[observed > 0])).sum()
print(f"expected counts sum to {expected.sum():.6f}; G2 = {g2:.2f}, p = {chi2.sf(g2, 25):.2f}")
assert abs(expected.sum() - 1000) < 1e-6
assert chi2.sf(g2, 25) > 0.3

figure, axes = plt.subplots(figsize=(7.5, 4.5))
axes.plot([0.1, 400], [0.1, 400], color=GREY, linewidth=1)
axes.vlines(
    expected, np.maximum(expected - 2 * expected**0.5, 0.1), expected + 2 * expected**0.5, color=BLUE, alpha=0.4
)
axes.plot(expected, np.maximum(observed, 0.1), "o", color=BLUE)
axes.set(xscale="log", yscale="log", xlabel="expected people", ylabel="people met (0 drawn at 0.1)")
axes.set_title("32 patterns of answers, and two standard deviations of chance", loc="left")
save(figure, "06_patterns")

# %% [markdown]
# ## The items
#
# `fit.plot()` draws what was learned of the items: the probability of a right answer along ability. A curve crosses one
# half at the item's difficulty. Four of the five difficulties lie far to the left: these are easy items. Below stand
# the abilities of the thousand people, as far as five answers tell them.

# %%
two = fits["two_parameter"]
for j, (slope, difficulty) in enumerate(zip(two.params["slope"], two.params["difficulty"], strict=True), 1):
    print(f"item {j}: slope {slope:.3f}, difficulty {difficulty:6.3f}")
assert (two.params["difficulty"] < 0).all()
save(two.plot(), "06_curves")

# %% [markdown]
# ## For whom it measures
#
# An item tells most of a person for whom it is neither easy nor hard. The Fisher information of item $j$ is
# $a_j^2\, p\, (1 - p)$, largest at its difficulty; those of the items add up to that of the test, and one over the root
# of the sum is the standard error of an ability estimated from the answers alone.

# %%
ability = np.linspace(-4, 4, 161)
slope, difficulty = (two.params[name].numpy() for name in ("slope", "difficulty"))
p = 1 / (1 + np.exp(-slope * (ability[:, None] - difficulty)))
information = (slope**2 * p * (1 - p)).sum(1)
best = ability[information.argmax()]
print(f"the test tells most of people at ability {best:.2f}: standard error {information.max() ** -0.5:.2f}")
print(f"of people at +2 it tells {information[ability == 2][0] / information.max():.0%} of that")
assert -2.5 < best < -1
assert information.max() ** -0.5 > 1  # more than the spread of ability itself
assert information[ability == 2][0] < 0.4 * information.max()
save(two.plot("information"), "06_information")

# %% [markdown]
# This is the answer to the question of the title. The five items measure one thing, since one ability explains all 32
# counts. But they measure it roughly: even at its best the standard error is larger than 1, the standard deviation of
# ability among people. And they measure it among the weakest, who are the few that get easy items wrong.
#
# ## Abilities, with their uncertainty
#
# `fit.latents` gives the posterior of what is unknown in each row: `z`, the node, and `ability`, which the model
# computes from it, by its mean and standard deviation.

# %%
few = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1.0]])
found = two.latents(few)["ability"]
for row, mean, sd in zip(few.astype(int), found.mean, found.sd, strict=True):
    print(f"answers {row}: ability {mean:5.2f} +- {sd:.2f}")
assert (found.sd > 0.75).all()  # five answers leave most of the prior's spread of 1

# %% [markdown]
# In models with one slope the *number* of right answers says all that there is to know of ability: it is a sufficient
# statistic, which is why Rasch's model is the theory behind tests that count points. With slopes of their own, a
# right answer to an item of large slope says more: `[0 0 1 0 0]` ranks above `[1 0 0 0 0]` for that reason, not because
# item 3 is harder.

# %%
points = every.sum(1)
spread = {}
for model in ("rasch", "two_parameter"):
    mean = fits[model].latents(every)["ability"].mean.numpy()
    spread[model] = max(np.ptp(mean[points == total]) for total in range(6))
    print(f"{model:14} abilities of people with equal points differ by up to {spread[model]:.6f}")
assert spread["rasch"] < 1e-9
assert spread["two_parameter"] > 0.05
assert found.mean[2] > found.mean[1]

# %% [markdown]
# Who skipped an item is scored by the answers that are there. An answer that is missing (NaN) is integrated out, so
# the posterior is a little wider, and neither punished nor rewarded.

# %%
whole, skipped = np.ones((1, 5)), np.array([[1, 1, np.nan, 1, 1]])
for row in (whole, skipped):
    one = two.latents(row)["ability"]
    text = " ".join("-" if np.isnan(value) else f"{value:.0f}" for value in row[0])
    print(f"answers {text}: ability {one.mean[0]:.3f} +- {one.sd[0]:.3f}")
assert two.latents(skipped)["ability"].sd > two.latents(whole)["ability"].sd

# %% [markdown]
# ## In ArviZ
#
# The abilities above treat the items as known. With draws of the params (here by Laplace's approximation around the
# maximum), each draw of an ability comes with items of its own, so its spread holds the uncertainty of both.
# `to_arviz` gives all of it as ArviZ opens it: posterior, predictions, and the log-likelihood of each person.

# %%
opened = two.to_arviz(draws="laplace", num_draws=400)
posterior = opened.posterior
print("in the posterior:", ", ".join(posterior.data_vars), "| ability has dims", posterior["ability"].dims)
difficulties = posterior["difficulty"].values[0]  # (400, 5)
low, high = np.quantile(difficulties, [0.025, 0.975], axis=0)
for j in range(5):
    print(f"item {j + 1}: difficulty in [{low[j]:.2f}, {high[j]:.2f}] with probability 95 %")
order = np.argsort(difficulties, 1)
print(f"item 3 is the hardest in {(order[:, -1] == 2).mean():.0%} of the draws")
assert (order[:, -1] == 2).mean() > 0.99
draws = posterior["ability"].values[0]  # (400, 1000)
sds = {"all wrong": draws[:, 0].std(), "all right": draws[:, -1].std()}
assert all(0.6 < sd < 1.2 for sd in sds.values())

figure, (left, right_side) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.hlines(np.arange(5), low, high, color=BLUE, linewidth=3, alpha=0.5)
left.plot(difficulty, np.arange(5), "o", color=BLUE)
left.set(yticks=range(5), yticklabels=answers.columns, xlabel="difficulty, 95 % interval")
left.invert_yaxis()
for person, color, text in ((0, ORANGE, "all five wrong"), (-1, BLUE, "all five right")):
    nodes, times = np.unique(draws[:, person], return_counts=True)  # a draw of ability is one of the nodes
    right_side.bar(nodes, times, width=0.3, color=color, alpha=0.6, label=text)
right_side.set(xlabel="ability of one person", ylabel="draws")
right_side.legend(frameon=False)
save(figure, "06_uncertainty")

# %% [markdown]
# ## Are 41 nodes enough?
#
# The integral over ability was a sum over nodes. More nodes change nothing that could be seen; a handful would have.

# %%
reached = {Q: zoo.fit("item_response", answers, num_nodes=Q).log_likelihood for Q in (3, 7, 15, 41, 61)}
for Q, value in reached.items():
    print(f"{Q:2} nodes: log-likelihood {value:.6f}")
assert abs(reached[41] - reached[61]) < 1e-6
assert abs(reached[3] - reached[61]) > 1e-3

# %% [markdown]
# ## What to take away
#
# - A continuous latent of one dimension is a sum over nodes, so exact EM serves it.
# - Five easy items: one ability explains the answers, and it is measured best among the weakest.
# - A score without its standard deviation hides the most important fact about these five items.
