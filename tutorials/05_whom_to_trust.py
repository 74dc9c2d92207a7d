# %% [markdown]
# # 5. Whom to trust: the anaesthetists of 1979
#
# Before an operation somebody judges whether the patient is fit for anaesthesia. Five people looked at 45 patients and
# graded each of them from 1 (fit) to 4 (unfit). They did not agree. What is each patient's true grade, and which of the
# five should be believed?
#
# Nobody knows the true grades, so nobody can count the errors. Yet both questions have an answer. If the true grades
# were known, the errors of each observer could be counted. If the errors were known, the true grades could be worked
# out by Bayes' rule. Each is the other's missing half, which is a case for EM.
#
# Source: Dawid and Skene (1979), *Maximum likelihood estimation of observer error-rates using the EM algorithm*,
# Applied Statistics 28, 20-28. The same model today weighs the labels that crowds of people give to pictures and texts.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from latentzoo import zoo
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
# ## The data
#
# A long table: one row for each grade that was given. The first observer graded every patient three times.

# %%
table = load_bundled("anesthesia")
print(table.head(8).to_string(index=False))
print(len(table), "grades")

grades = np.array(table["label"].astype(int)).reshape(45, 7)  # patients down, gradings across
agreed = (grades == grades[:, :1]).all(1)
twice = (grades[:, :3] == grades[:, :1]).all(1)
print(f"all seven gradings agree on {agreed.sum()} patients of 45")
print(f"the first observer agrees with himself on {twice.sum()} patients of 45")
assert len(table) == 315
assert agreed.sum() == 16
assert twice.sum() == 32

# %% [markdown]
# The picture shows all of it. Columns are patients, in order of their mean grade; rows are gradings. Even the first
# three rows, which are one person, differ.

# %%
order = np.argsort(grades.mean(1), kind="stable")
names = ["observer 1", "again", "and again", "observer 2", "observer 3", "observer 4", "observer 5"]
figure, panel = plt.subplots(figsize=(11, 3.6))
image = panel.imshow(grades[order].T, cmap=plt.get_cmap("Blues", 4), vmin=0.5, vmax=4.5, aspect="auto")
panel.set_yticks(range(7), names)
panel.set_xticks([])
panel.set_xlabel("45 patients, in order of their mean grade")
panel.hlines(np.arange(6) + 0.5, -0.5, 44.5, color="white", linewidth=2)
figure.colorbar(image, ticks=[1, 2, 3, 4], label="grade")
save(figure, "05_grades")

# %% [markdown]
# ## The majority vote
#
# The plain answer is to count. But a count has two faults. It believes all observers alike, and the first one speaks
# three times. And where the votes are split it still names a winner, with nothing to say how sure that is.

# %%
votes = np.stack([(grades == grade).sum(1) for grade in (1, 2, 3, 4)], 1)  # (45, 4)
majority = votes.argmax(1) + 1
tied = (votes == votes.max(1, keepdims=True)).sum(1) > 1
narrow = votes.max(1) <= 4
print("patients by majority:", dict(zip([1, 2, 3, 4], np.bincount(majority)[1:].tolist(), strict=True)))
print(f"at most 4 of 7 votes for the winner: {narrow.sum()} patients, of which {tied.sum()} are tied")
assert narrow.sum() >= 5

# %% [markdown]
# ## The model
#
# Patient $i$ has a true grade $z_i$. Observer $j$ who looks at a patient of true grade $k$ says $l$ with probability
# $\theta_{jkl}$:
#
# $$z_i \sim \mathrm{Categorical}(\pi), \qquad
# x_{im} \mid z_i = k, \text{observer } j \sim \mathrm{Categorical}(\theta_{jk}).$$
#
# So each observer has a table of errors of his own, the *confusion matrix* $\theta_j$. Given the true grades the
# gradings are independent. Both steps of EM are short. The E-step is Bayes' rule,
#
# $$p(z_i = k \mid x_i) \propto \pi_k \prod_m \theta_{j_m k x_{im}},$$
#
# and the M-step counts, each patient by these probabilities. The paper begins with the shares of the votes in place of
# the probabilities. So does `dawid_skene` in its first start.

# %%
fit = zoo.fit("dawid_skene", table)
print(fit.summary())
assert fit.converged
assert np.all(np.diff(fit.history) >= -1e-9 * (1 + abs(fit.log_likelihood)))

# %% [markdown]
# ## As published
#
# The paper's tables 2 and 3 give the shares of the grades and the five matrices, to two decimals. Here are the shares
# and the matrix of the first observer. The tests of latentzoo compare all five.

# %%
published_shares = [0.40, 0.42, 0.11, 0.07]
published_first = [[0.89, 0.11, 0, 0], [0.07, 0.88, 0.05, 0], [0, 0.34, 0.66, 0], [0, 0, 0.56, 0.44]]
shares, confusion = fit.params["weights"].numpy(), fit.params["confusion"].numpy()  # (4,), (5, 4, 4)
print("shares:   ", shares.round(3), " published:", published_shares)
print("observer 1:\n", confusion[0].round(3))
assert np.abs(shares - published_shares).max() < 0.01
assert np.abs(confusion[0] - published_first).max() < 0.01
assert np.isclose(fit.log_likelihood, -192.890881, atol=1e-5)

# %% [markdown]
# The E-step says how sure each grade is, which the vote could not. Nearly all patients are certain, and for some of
# them the model overrules the majority.

# %%
chance = fit.latents()["z"].numpy()  # (45, 4)
judged = chance.argmax(1) + 1
sure = chance.max(1)
print(f"surer than 99 %: {(sure > 0.99).sum()} patients of 45")
for patient in np.flatnonzero(judged != majority):
    seen = ", ".join(f"{count} times {grade}" for grade, count in enumerate(votes[patient], 1) if count)
    print(f"patient {patient + 1}: {seen}; the vote says {majority[patient]}, the model {judged[patient]}")
assert (sure > 0.99).sum() >= 38
assert 0 < (judged != majority).sum() < 8

# %%
figure, panel = plt.subplots(figsize=(9, 4.2))
share = votes.max(1) / 7
jitter = np.random.default_rng(0).uniform(-0.012, 0.012, 45)
same = judged == majority
panel.scatter(share[same] + jitter[same], sure[same], color=BLUE, s=45, alpha=0.7, label="the model agrees")
panel.scatter(share[~same] + jitter[~same], sure[~same], color=ORANGE, s=60, marker="D", label="the model disagrees")
panel.plot([0.4, 1], [0.4, 1], color=GREY, linewidth=1.5, zorder=0)
panel.set(xlabel="share of the votes for the winner", ylabel="probability of the model's grade")
panel.set_title("A narrow vote may still be a sure case", loc="left")
panel.legend(frameon=False, loc="lower right")
save(figure, "05_votes_and_probabilities")

# %% [markdown]
# ## A better optimum
#
# EM climbs the hill on which it starts (tutorial 2). Is the published one the highest? The majority vote is one start.
# Further restarts draw the shares of the votes at random around it, and the *mode map* lists where they ended.

# %%
many = zoo.fit("dawid_skene", table, restarts=200, seed=0)
print(many.mode_map)
bounds = [mode.bound for mode in many.mode_map]
published = min(range(len(bounds)), key=lambda m: abs(bounds[m] - fit.log_likelihood))
gain = bounds[0] - fit.log_likelihood
print(f"the best is {gain:.2f} nats above the published one, which is number {published + 1} of the list")
assert np.isclose(bounds[0], -191.5689, atol=1e-3)
assert abs(bounds[published] - fit.log_likelihood) < 1e-4
assert gain > 1
assert many.mode_map[0].count > 1  # found again and again, so it is no accident of one start

# %% [markdown]
# So the published estimate is a local maximum; several optima lie above the vote's. Do they differ in what matters? We
# compare the shares, the matrices, and the grades of the patients.

# %%
best = many.latents()["z"].numpy()
moved = np.flatnonzero(best.argmax(1) != chance.argmax(1))
print("shares, published:", shares.round(3), "  best:", many.params["weights"].numpy().round(3))
for patient in moved:
    print(f"patient {patient + 1}: {chance[patient].round(2)} -> {best[patient].round(2)}, votes {votes[patient]}")
change = np.abs(many.params["confusion"].numpy() - confusion)  # (5, 4, 4)
print("largest change in a row of a matrix, by true grade:", change.max((0, 2)).round(2))
assert len(moved) == 1
assert chance[moved].max() > 0.99
assert best[moved].max() > 0.99
assert change.max((0, 2))[0] < 0.05
assert change.max((0, 2))[2] > 0.15

# %% [markdown]
# One patient changes his grade, and what was certain at the one optimum is the contrary, as certainly, at the other:
# a probability given the matrices knows nothing of how sure the matrices are. The row of grade 1, which rests on 18
# patients, stays. What changes are the rows of grade 3: about five patients have it, and five observers times three
# free numbers are to be learned from them. That is the lesson of the mode map here: *whom* to trust on common grades is
# settled by the data; what an observer does with a rare grade is not, and to quote it to two decimals says too much.

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(3, 2))
counts = [mode.count for mode in many.mode_map]
colors = [GREEN if m == 0 else ORANGE if m == published else GREY for m in range(len(bounds))]
panels[0].bar(range(len(bounds)), counts, color=colors)
panels[0].set_xticks(range(len(bounds)), [f"{bound:.2f}" for bound in bounds], rotation=40, ha="right")
panels[0].set(xlabel="log-likelihood of the optimum", ylabel="restarts of 200")
panels[0].set_title("Where the restarts ended (orange: as published)", loc="left")
panels[1].bar(range(1, 5), change.max((0, 2)), color=BLUE)
panels[1].set(xlabel="true grade", ylabel="largest change", xticks=range(1, 5))
panels[1].set_title("Published and best: rows of the matrices", loc="left")
figure.tight_layout()
save(figure, "05_mode_map")

# %% [markdown]
# ## Whom to trust
#
# The picture of the fit: a matrix for each observer, true grade down, grade given across. An observer who is always
# right has ones on the diagonal. All five are good on grade 1. The second calls many a patient of grade 2 a 3: he is
# strict. The third is sure of grade 1, and all but guesses at grade 3. Over all grades these two are right the least
# often. The rows of grades 3 and 4 rest on few patients.

# %%
save(fit.plot(), "05_confusion")

# %%
right = (shares[None, :, None] * confusion * np.eye(4)).sum((1, 2))  # of a patient drawn by the shares
for number, value in enumerate(right, 1):
    print(f"observer {number}: a grade is right with probability {value:.3f}")
assert set(right.argsort()[:2]) == {1, 2}  # the second and the third
assert right.min() > 0.7
assert (confusion[:, 0, 0] > 0.8).all()
assert confusion[2, 0, 0] > 0.99
assert confusion[2, 2].max() < 0.45
assert confusion[1, 1, 2] > 0.25
strict = np.triu(confusion[1], 1).sum() - np.tril(confusion[1], -1).sum()
assert strict > 0

# %% [markdown]
# Little data asks for fewer numbers. `one_coin` gives each observer a single one, the probability to be right;
# `hierarchical` keeps the matrices and shrinks them to those of a population. By BIC, which charges for each number,
# 45 patients pay for the coin's 8 and not for the 63 of the matrices, although errors are plainly not alike: a 2 is
# taken for a 3, and hardly ever for a 4. With more patients the matrices would be worth their price.

# %%
coin = zoo.fit("dawid_skene", table, variant="one_coin", restarts=5)
shrunk = zoo.fit("dawid_skene", table, variant="hierarchical", restarts=5)
accuracy = coin.params["accuracy"].numpy()
print("one_coin, accuracy:", accuracy.round(2))
for name, one in {"full": many, "one_coin": coin}.items():
    print(f"{name:9s} log-likelihood {one.log_likelihood:9.2f}  numbers {one.num_parameters:3d}  BIC {one.bic:.1f}")
assert accuracy.argmin() == 1  # the strict one
assert coin.bic < many.bic - 50
assert accuracy.min() > 0.6
agree = (shrunk.latents()["z"].argmax(-1).numpy() == chance.argmax(1)).mean()
print(f"hierarchical gives {agree:.0%} of the patients the same grade, and no probability of 0: ", end="")
print(f"the smallest is {shrunk.params['confusion'].min():.3f}")
assert agree > 0.9
assert shrunk.params["confusion"].min() > 0.001

# %% [markdown]
# ## What to remember
#
# - Truth and errors can be learned together, without anybody who knows the truth, as long as several people look at
#   the same things.
# - The vote is a start, not an end: it cannot tell the strict from the careless, nor a sure case from a close one.
# - A published optimum may be a local one. Restarts cost little, and the mode map tells what they agree on.
