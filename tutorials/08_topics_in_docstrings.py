# %% [markdown]
# # 8. What are these functions about? Topics in real text
#
# A library has hundreds of functions, and each tells in its docstring what it does. Nobody labelled these texts. Can
# the subjects of the library be read off the words alone?
#
# Latent Dirichlet allocation (LDA) says that a document mixes a few *topics*, each a distribution over the words:
#
# $$\beta_k \sim \mathrm{Dirichlet}(\eta, \dots, \eta), \quad \theta_n \sim \mathrm{Dirichlet}(\alpha, \dots, \alpha),$$
#
# and each word of document $n$ first draws a topic, $k$ with probability $\theta_{nk}$, and then itself, $v$ with
# probability $\beta_{kv}$. Small $\alpha$ and $\eta$ say that a document has few topics, and a topic few words. The
# order of words plays no part: a document is a bag of words, a row of counts.
#
# Sources: Blei, Ng and Jordan (2003), *Latent Dirichlet allocation*, JMLR 3, 993-1022. Hoffman, Blei, Wang and Paisley
# (2013), *Stochastic variational inference*, JMLR 14, 1303-1347. Wallach, Murray, Salakhutdinov and Mimno (2009),
# *Evaluation methods for topic models*, ICML. Lau, Newman and Baldwin (2014), *Machine reading tea leaves*, EACL.

# %%
import math
import re
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.special import digamma

from latentzoo import zoo
from latentzoo.inference.bags import bags_of
from latentzoo.inference.bundled import load_bundled
from latentzoo.inference.topics import coherence, halves, perplexity, top_words

FIGURES = Path("figures")  # where the pictures go, relative to the working folder
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#C4C8CC"


def save(figure, name):
    """Write a figure to the folder of figures. A notebook shows what the last line of a cell returns."""
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return figure


# %% [markdown]
# ## The documents
#
# The data set `docstrings` is made on your machine, of the SciPy that is installed: up to 40 functions of each of eight
# modules, without references and examples. Of the words, the 200 most frequent are kept that stand in at least five
# docstrings and in no more than half of them. Three of these are no words but markup of formulas and a floating-point
# value, and are dropped: text wants cleaning before it is counted. What is left is a small corpus, which is fitted in
# seconds; and with another version of SciPy the numbers below will be somewhat different ones.

# %%
MARKUP = ["math", "frac", "nan"]
counts = load_bundled("docstrings").drop(columns=MARKUP, errors="ignore")
counts = counts[counts.sum(axis=1) >= 10]
modules = np.array([name.rsplit(".", 1)[0] for name in counts.index])
print(f"{len(counts)} documents, {counts.shape[1]} words, {counts.to_numpy().sum()} tokens")
for name in counts.index[:: len(counts) // 5][:5]:
    words = counts.loc[name].nlargest(6)
    print(f"  {name:28}", ", ".join(f"{word} {number}" for word, number in words.items()))
assert len(counts) > 150
assert len(set(modules)) == 8

# %% [markdown]
# ## Twelve topics
#
# Of what the engine finds by itself: $\theta_n$ and the topics multiply to the probabilities of counts, so each factor
# of a mean field has a closed form (tutorial 7), and `zoo.fit` takes coordinate ascent. The bound has many maxima; the
# best of three starts is kept.

# %%
TOPICS = 12
fit = zoo.fit("lda", counts, num_topics=TOPICS, restarts=3)
print(fit.summary())
assert fit.converged
assert fit.bounded  # of topics p(x) is only bounded, and the summary says so

# %% [markdown]
# Each panel shows a topic by its most probable words, and the share of all tokens that it accounts for.

# %%
save(fit.plot(), "08_topics")

# %% [markdown]
# Nobody said that there is such a thing as a Fourier transform or a hypothesis test. Nobody said, either, what we care
# about. Recent docstrings of SciPy hold a table of the array libraries and devices that a function supports; its words
# go together more tightly than those of any subject, so they head a topic. In real text some topics are boilerplate.
#
# The model never saw which module a function is from. Average $\theta_n$ over the functions of each:

# %%
theta = fit.latents()["theta"].mean.numpy()  # (N, K), rows sum to 1
names = sorted(set(modules))
by_module = np.stack([theta[modules == name].mean(0) for name in names])  # (8, K)
order = np.argsort([by_module[:, k].argmax() - 0.5 * by_module[:, k].max() for k in range(TOPICS)])
labels = [f"{', '.join(words)}  ({k})" for k, words in enumerate(top_words(fit, 3))]

figure, panel = plt.subplots(figsize=(9.5, 4.6), layout="constrained")
image = panel.imshow(by_module[:, order], cmap="Blues", vmin=0, aspect="auto")
panel.set_xticks(range(TOPICS), [labels[k] for k in order], rotation=38, ha="right", rotation_mode="anchor")
panel.set_yticks(range(8), names)
panel.set_title("Mean share of each topic in the docstrings of each module", loc="left")
figure.colorbar(image, ax=panel, label="share")
save(figure, "08_modules")

# %% [markdown]
# How much do topics know of modules? Two functions are alike if their $\theta$ point in the same direction. Functions
# of one module are alike far more often than functions of two.

# %%
unit = theta / np.linalg.norm(theta, axis=1, keepdims=True)
alike = unit @ unit.T
same = modules[:, None] == modules
others = ~np.eye(len(theta), dtype=bool)
within, across = alike[same & others].mean(), alike[~same].mean()
nearest = np.where(others, alike, -1).argmax(1)
hits, chance = (modules[nearest] == modules).mean(), (same & others).sum() / others.sum()
print(f"mean cosine of two functions of one module {within:.2f}, of two modules {across:.2f}")
print(f"the most similar function is of the same module for {hits:.0%} of them; by chance it would be {chance:.0%}")
assert within > 1.5 * across
assert hits > 3 * chance

# %% [markdown]
# ## One document, word by word
#
# What the model says of a single document is which topic each of its words is from. Given the factors $q(\theta_n)$ and
# $q(\beta_k)$, the probabilities are (Blei et al., equation 6)
#
# $$\phi_{nvk} \propto \exp\big(E \log \theta_{nk} + E \log \beta_{kv}\big).$$
#
# `fit.posterior` gives both factors as distributions. Take the document that is most evenly split between two topics.

# %%
q_theta, q_topics = fit.posterior("theta").concentration.numpy(), fit.posterior("topics").concentration.numpy()
log_topics = digamma(q_topics) - digamma(q_topics.sum(1, keepdims=True))  # (K, V)


def assignment(n):
    """Probabilities (V, K) of the topics of each word, were it in document n."""
    log_phi = digamma(q_theta[n]) + log_topics.T
    phi = np.exp(log_phi - log_phi.max(1, keepdims=True))
    return phi / phi.sum(1, keepdims=True)


second = np.where(counts.sum(axis=1) >= 60, np.sort(theta, 1)[:, -2], 0)
n = int(second.argmax())
bag = counts.iloc[n].to_numpy()
phi = assignment(n)
a, b = theta[n].argsort()[::-1][:2]
print(f"{counts.index[n]}, {bag.sum()} tokens, mixes")
for k in (a, b):
    print(f"  {theta[n, k]:.0%} of topic {labels[k]}")
frequent = bag.argsort()[::-1][:14]
for v in frequent:
    print(f"  {counts.columns[v]:14} x{bag[v]:<3} topic {a}: {phi[v, a]:.2f}   topic {b}: {phi[v, b]:.2f}")
assert second[n] > 0.2

# %% [markdown]
# Two things can be checked. The probabilities add up to the shares: the factor of $\theta_n$ is
# $\mathrm{Dirichlet}(\alpha + \sum_v x_{nv} \phi_{nv})$, so counting words by topic gives its parameters back. And a
# word need not have the same topic everywhere, since $\theta_n$ bears on it: so are meanings told apart.

# %%
recovered = 0.1 + bag @ phi
print("parameters of q(theta):", q_theta[n].round(2))
print("alpha + words by topic:", recovered.round(2))
assert np.allclose(recovered, q_theta[n], atol=0.02)

everywhere = np.stack([assignment(m) * counts.iloc[m].to_numpy()[:, None] for m in range(len(counts))]).sum(0)  # (V, K)
share = everywhere / everywhere.sum(1, keepdims=True)
topics_of_word = np.exp(-(share * np.log(share.clip(1e-12))).sum(1))  # as many equal topics have its entropy
narrow, wide = topics_of_word.argsort()[:5], topics_of_word.argsort()[::-1][:5]
print("of one topic:    ", ", ".join(f"{counts.columns[v]} ({topics_of_word[v]:.1f})" for v in narrow))
print("of many topics:  ", ", ".join(f"{counts.columns[v]} ({topics_of_word[v]:.1f})" for v in wide))
assert topics_of_word[narrow].max() < 1.2
assert topics_of_word[wide].min() > 3

shown = sorted(frequent, key=lambda v: -phi[v, a])
figure, panel = plt.subplots(figsize=(8, 4.6), layout="constrained")
rest = 1 - phi[:, a] - phi[:, b]
left = np.zeros(len(shown))
for values, shade, label in (
    (phi[:, a], BLUE, labels[a]),
    (phi[:, b], ORANGE, labels[b]),
    (rest, GREY, "any other topic"),
):
    panel.barh(range(len(shown)), values[shown], left=left, color=shade, height=0.75, label=label)
    left = left + values[shown]
panel.set_yticks(range(len(shown)), [f"{counts.columns[v]} x{bag[v]}" for v in shown])
panel.invert_yaxis()
panel.set(xlabel="probability of the topic, given the document", xlim=(0, 1))
panel.set_title(f"Words of {counts.index[n]}, and where they are from", loc="left")
figure.legend(loc="outside lower center", ncols=3, frameon=False)
save(figure, "08_one_document")

# %% [markdown]
# New text is read in the same way. Words that the vocabulary lacks are left out.

# %%
text = """Test whether two samples come from the same distribution. The statistic of the test is computed from the
sample values; its distribution under the null hypothesis gives the probability of a value as large."""
known = [word for word in re.findall("[a-z]+", text.lower()) if word in counts.columns]
new = fit.latents([known])["theta"]
k = int(new.mean[0].argmax())
print("read:", ", ".join(known))
print(f"topic {labels[k]}: {new.mean[0, k]:.2f} +- {new.sd[0, k]:.2f}")
assert by_module[names.index("stats"), k] > by_module[:, k].mean()  # a topic that stats uses more than others do

# %% [markdown]
# ## How many topics?
#
# The fit to the documents at hand cannot tell, so hold out every fourth one. *Document completion* asks how well a
# model foretells text that it has not seen: half of the words of a held-out document, drawn at random, tell its
# $\theta$; the other half are scored. The *perplexity*, $\exp$ of minus the mean log probability of a word, is how many
# equally likely words would be as hard to guess. With one topic that is the frequency of the words, which can be worked
# out by hand.

# %%
held = np.arange(len(counts)) % 4 == 0
train, test = counts[~held], counts[held]
sizes = (1, 2, 4, 8, 12, 16, 24, 48)
tried = {K: [zoo.fit("lda", train, num_topics=K, tol=1e-5, seed=seed) for seed in range(3)] for K in sizes}
score = {K: [perplexity(one, test) for one in fits] for K, fits in tried.items()}
topics_hang = {K: [coherence(one, train).mean().item() for one in fits] for K, fits in tried.items()}
bound = {K: max(one.history[-1].item() for one in fits) for K, fits in tried.items()}

frequency = train.sum() + 0.05  # eta of the prior
log_frequency = np.log(frequency / frequency.sum()).to_numpy()
scored = halves(bags_of(torch.tensor(test.to_numpy(dtype=float)))).held.dense().numpy()
by_hand = math.exp(-(scored @ log_frequency).sum() / scored.sum())
print(f"perplexity with one topic {score[1][0]:.4f}, by hand {by_hand:.4f}, a uniform guess {counts.shape[1]}")
print("topics   perplexity of three starts   mean coherence   best bound")
for K in sizes:
    starts = " ".join(f"{value:7.1f}" for value in score[K])
    print(f"{K:6}   {starts:26}   {np.mean(topics_hang[K]):14.3f}   {bound[K]:10.0f}")
assert np.isclose(score[1][0], by_hand, rtol=1e-6)

# %% [markdown]
# There are two more witnesses. The bound, which pays for each topic by its divergence from the prior (tutorial 7), and
# the *coherence*, by which people's judgement of topics can be foretold: it looks at the ten first words of a topic and
# asks how much oftener than by chance two of them stand in one document (normalised pointwise mutual information; 0 is
# chance, 1 is always).

# %%
figure, panels = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
for panel, (title, values) in zip(
    panels,
    {
        "perplexity, held out (lower is better)": score,
        "coherence (higher is better)": topics_hang,
        "bound, best of three starts": {K: [value] for K, value in bound.items()},
    }.items(),
    strict=True,
):
    panel.plot(sizes, [np.mean(values[K]) for K in sizes], color=BLUE)
    for K in sizes:
        panel.plot([K] * len(values[K]), values[K], "o", color=BLUE, alpha=0.5, markersize=5)
    panel.set(xscale="log", xlabel="topics")
    panel.set_xticks(sizes, [str(K) for K in sizes])
    panel.minorticks_off()
    panel.set_title(title, loc="left", fontsize=11)
save(figure, "08_how_many")

# %% [markdown]
# Most of the gain comes early: a dozen topics about halve the perplexity. After that it falls slowly, as topics
# split into smaller ones, while their words go together no better, and the bound turns down. So there is no one number,
# but a range: less than eight is too coarse, more than two dozen gain nothing that one would want to read. Twelve is a
# fair choice within it. Note also the spread of the three starts: differences as small as that mean nothing.

# %%
mean = {K: np.mean(score[K]) for K in sizes}
assert mean[12] < 0.6 * mean[1]
assert mean[12] - mean[48] < 0.4 * (mean[1] - mean[12])
assert np.mean(topics_hang[12]) > np.mean(topics_hang[48])
assert np.mean(topics_hang[12]) > np.mean(topics_hang[2])
assert bound[48] < max(bound.values())
assert 8 <= max(bound, key=bound.get) <= 24

# %% [markdown]
# ## Three ways to fit one model
#
# - **coordinate ascent**: every document, then the topics, again and again;
# - **minibatches**: after each 30 documents the topics take a step towards what these ask for, of a size that
#   decreases. It is a step along the *natural* gradient (Hoffman et al. 2013), and still in closed form;
# - **plain SVI**: the same pair, and nothing used of what is known about it. Gradients of the bound are estimated from
#   draws, and Adam takes the steps. It serves any model; what does it cost here?
#
# Perplexity is measured in the same way for all three.

# %%
ways = {
    "coordinate ascent": {"inference": "cavi", "tol": 1e-5},
    "minibatches of 30, 15 passes": {"inference": "cavi", "batch_size": 30, "max_iters": 15, "tol": 0},
    "plain SVI, 500 steps": {"inference": "svi", "num_steps": 500, "learning_rate": 0.1, "tol": 0},
}
table = {}
print(f"{'':30} seconds   perplexity   coherence")
for name, options in ways.items():
    began = time.perf_counter()
    one = zoo.fit("lda", train, num_topics=TOPICS, **options)
    seconds = time.perf_counter() - began
    table[name] = (seconds, perplexity(one, test))
    print(f"{name:30} {seconds:7.2f}   {table[name][1]:10.1f}   {coherence(one, train).mean():9.3f}")
full, batches, gradient = table.values()
assert max(full[1], batches[1], gradient[1]) < 0.7 * by_hand  # all three have learned topics
assert min(batches[1], gradient[1]) > 0.9 * full[1]  # none is much better than coordinate ascent
assert gradient[0] > 3 * full[0]

# %% [markdown]
# Where updates are known in closed form they win by far. Minibatches gain nothing on a table this small; they are for
# corpora that are too large for many sweeps, where the topics are good before the first pass is over. And SVI gets
# there too, with no help: which is what one wants of a model that has no closed form.
#
# ## What to take away
#
# - A topic is a distribution over words, and a document a mixture of topics; both are read off counts alone.
# - Choose the number of topics by text that the model has not seen, look at coherence beside it, and expect a range.
# - Read the topics. Some are boilerplate, which is a fact about the text, not about its subjects.
