# %% [markdown]
# # 8. What are these functions about? Topics in real text
#
# The packages of scientific Python have thousands of functions, and each tells in its docstring what it does. Nobody
# labelled these texts. Can their subjects be read off the words alone?
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
from scipy.sparse import csr_array
from scipy.special import digamma

from latentzoo import zoo
from latentzoo.inference.data import load_bundled
from latentzoo.inference.data.sparse import bags_of_sparse
from latentzoo.inference.diagnose.topics import coherence, halves, perplexity, top_words

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
# The data set `documentation` is made on your machine, of the packages that are installed there: the docstrings of
# public functions and classes of NumPy, SciPy, scikit-learn, pandas, xarray, NetworkX and Matplotlib. Text wants
# cleaning before it is counted. Formulas, code, names in backticks, types of parameters, examples and references are
# taken out, and English words such as "the". Of the words that are left, the 800 most frequent are kept that stand in
# at least twenty docstrings and in no more than a quarter of them; a docstring with fewer than ten of them is left out.
# With other versions of the packages the numbers below will be somewhat different ones.

# %%
counts = load_bundled("documentation")
subjects = np.array([".".join(name.split(".")[:2]) for name in counts.index])  # numpy.fft, scipy.stats, ...
print(f"{len(counts)} documents, {counts.shape[1]} words, {counts.to_numpy().sum()} tokens")
print(f"{(counts.to_numpy() > 0).mean():.1%} of the cells of the table are not 0")
for name in counts.index[:: len(counts) // 6][:6]:
    words = counts.loc[name].nlargest(6)
    print(f"  {name:60}", ", ".join(f"{word} {number}" for word, number in words.items()))
assert len(counts) > 2000
assert counts.sum(axis=1).min() >= 10

# %% [markdown]
# ## Twenty topics
#
# Of what the engine finds by itself: $\theta_n$ and the topics multiply to the probabilities of counts, so each factor
# of a mean field has a closed form (tutorial 7), and `zoo.fit` takes coordinate ascent. The bound has many maxima, and
# another start finds other topics; how much that matters is looked at below.

# %%
TOPICS = 20
fit = zoo.fit("lda", counts, num_topics=TOPICS, tol=1e-4)
print(fit.summary())
assert fit.converged
assert fit.bounded  # of topics p(x) is only bounded, and the summary says so

# %% [markdown]
# Each panel shows a topic by its most probable words, and the share of all text that it accounts for: those twelve that
# account for most.

# %%
save(fit.plot(), "08_topics")

# %% [markdown]
# Nobody said that there is such a thing as a graph, a matrix or a file. Nobody said, either, what we care about: some
# topics are of the way in which docstrings are written (method, class, instance), not of what the functions do.
#
# The model never saw where a function is from. Average $\theta_n$ over the functions of each part of a package:

# %%
q_theta, q_topics = fit.posterior("theta").concentration.numpy(), fit.posterior("topics").concentration.numpy()
theta = q_theta / q_theta.sum(1, keepdims=True)  # (N, K), the mean of q
labels = [f"{', '.join(words)}  ({k})" for k, words in enumerate(top_words(fit, 3))]
found, number = np.unique(subjects, return_counts=True)
parts = found[np.sort(number.argsort()[::-1][:24])]  # the largest, by name
by_part = np.stack([theta[subjects == part].mean(0) for part in parts])  # (24, K)
order = np.argsort([by_part[:, k].argmax() - 0.5 * by_part[:, k].max() for k in range(TOPICS)])

figure, panel = plt.subplots(figsize=(11, 7.5), layout="constrained")
image = panel.imshow(by_part[:, order], cmap="Blues", vmin=0, aspect="auto")
panel.set_xticks(range(TOPICS), [labels[k] for k in order], rotation=45, ha="right", rotation_mode="anchor")
panel.set_yticks(range(len(parts)), parts)
panel.set_title("Mean share of each topic in the docstrings of 24 parts of packages", loc="left")
figure.colorbar(image, ax=panel, label="share", pad=0.02)
save(figure, "08_parts")

# %% [markdown]
# How much do topics know of where a function stands? Two functions are alike if their $\theta$ point in the same
# direction. Functions of one part of a package are alike far more often than functions of two.

# %%
unit = theta / np.linalg.norm(theta, axis=1, keepdims=True)
alike = unit @ unit.T
same = subjects[:, None] == subjects
others = ~np.eye(len(theta), dtype=bool)
within, across = alike[same & others].mean(), alike[~same].mean()
nearest = np.where(others, alike, -1).argmax(1)
hits, chance = (subjects[nearest] == subjects).mean(), (same & others).sum() / others.sum()
print(f"mean cosine of two functions of one part {within:.2f}, of two parts {across:.2f}")
print(f"the most similar function is of the same part for {hits:.0%} of them; by chance it would be {chance:.0%}")
assert within > 1.5 * across
assert hits > 4 * chance

# %% [markdown]
# ## One document, word by word
#
# What the model says of a single document is which topic each of its words is from. Given the factors $q(\theta_n)$ and
# $q(\beta_k)$, the probabilities are (Blei et al., equation 6)
#
# $$\phi_{nvk} \propto \exp\big(E \log \theta_{nk} + E \log \beta_{kv}\big).$$
#
# `fit.posterior` gave both factors as distributions. Take a document of sixty words or more that is evenly split
# between two topics which are unlike each other.

# %%
log_topics = digamma(q_topics) - digamma(q_topics.sum(1, keepdims=True))  # (K, V)


def assignment(n):
    """Probabilities (V, K) of the topics of each word, were it in document n."""
    log_phi = digamma(q_theta[n]) + log_topics.T
    phi = np.exp(log_phi - log_phi.max(1, keepdims=True))
    return phi / phi.sum(1, keepdims=True)


profile = q_topics / np.linalg.norm(q_topics, axis=1, keepdims=True)
pairs = theta.argsort(1)[:, :-3:-1]  # (N, 2), the two topics that a document holds most of
second = np.sort(theta, 1)[:, -2]
unlike = 1 - (profile[pairs[:, 0]] * profile[pairs[:, 1]]).sum(1)
n = int(np.where(counts.sum(axis=1) >= 60, second * unlike, 0).argmax())
bag = counts.iloc[n].to_numpy()
phi = assignment(n)
a, b = pairs[n]
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

a_k, b_k = np.exp(digamma(q_theta)), np.exp(log_topics)  # of all documents at once
everywhere = (b_k * (a_k.T @ (counts.to_numpy() / (a_k @ b_k)))).T  # (V, K), the sum over n of x_nv phi_nvk
share = everywhere / everywhere.sum(1, keepdims=True)
topics_of_word = np.exp(-(share * np.log(share.clip(1e-12))).sum(1))  # as many equal topics have its entropy
narrow, wide = topics_of_word.argsort()[:5], topics_of_word.argsort()[::-1][:5]
print("of one topic:    ", ", ".join(f"{counts.columns[v]} ({topics_of_word[v]:.1f})" for v in narrow))
print("of many topics:  ", ", ".join(f"{counts.columns[v]} ({topics_of_word[v]:.1f})" for v in wide))
assert topics_of_word[narrow].max() < 1.3
assert topics_of_word[wide].min() > 3

shown = sorted(frequent, key=lambda v: phi[v, b] - phi[v, a])
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
panel.set_title(f"Words of {counts.index[n].split('.')[-1]} ({subjects[n]}), and where they are from", loc="left")
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
here = theta[subjects == "scipy.stats", k].mean()
print(f"its share in scipy.stats is {here:.2f}, in all documents {theta[:, k].mean():.2f}")
assert here > 2 * theta[:, k].mean()

# %% [markdown]
# ## How many topics?
#
# The fit to the documents at hand cannot tell, so hold out every fourth one. *Document completion* asks how well a
# model foretells text that it has not seen: half of the words of a held-out document, drawn at random, tell its
# $\theta$; the other half are scored. The *perplexity*, $\exp$ of minus the mean log probability of a word, is how many
# equally likely words would be as hard to guess. With one topic that is the frequency of the words, which can be worked
# out by hand. The counts are given as a sparse matrix here, which is quicker to read where most cells are 0.

# %%
held = np.arange(len(counts)) % 4 == 0
train, test = (csr_array(counts[chosen].to_numpy(dtype=float)) for chosen in (~held, held))
SIZES = (1, 3, 8, 20, 50)
tried = {K: [zoo.fit("lda", train, num_topics=K, tol=1e-3)] for K in SIZES}
tried[8] += [zoo.fit("lda", train, num_topics=8, tol=1e-3, seed=seed) for seed in (1, 2)]  # the spread of starts
score = {K: [perplexity(one, test) for one in fits] for K, fits in tried.items()}
topics_hang = {K: [coherence(one, train).mean().item() for one in fits] for K, fits in tried.items()}
bound = {K: [one.history[-1].item() for one in fits] for K, fits in tried.items()}

frequency = train.sum(axis=0) + 0.05  # eta of the prior
log_frequency = np.log(frequency / frequency.sum())
scored = halves(bags_of_sparse(test)).held.dense().numpy()
by_hand = math.exp(-(scored @ log_frequency).sum() / scored.sum())
print(f"perplexity with one topic {score[1][0]:.4f}, by hand {by_hand:.4f}, a uniform guess {counts.shape[1]}")
print("topics   perplexity   mean coherence      bound")
for K in SIZES:
    for value, hang, level in zip(score[K], topics_hang[K], bound[K], strict=True):
        print(f"{K:6}   {value:10.1f}   {hang:14.3f}   {level:8.0f}")
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
        "bound, thousands of nats (higher is better)": {K: np.array(values) / 1000 for K, values in bound.items()},
    }.items(),
    strict=True,
):
    panel.plot(SIZES, [np.mean(values[K]) for K in SIZES], color=BLUE)
    for K in SIZES:
        panel.plot([K] * len(values[K]), values[K], "o", color=BLUE, alpha=0.5, markersize=5)
    panel.set(xscale="log", xlabel="topics")
    panel.set_xticks(SIZES, [str(K) for K in SIZES])
    panel.minorticks_off()
    panel.set_title(title, loc="left", fontsize=10)
save(figure, "08_how_many")

# %% [markdown]
# Most of the gain comes early: from one topic to eight the perplexity falls by more than from eight to fifty, and so it
# is with the bound. The words of a topic hang together hardly better with fifty topics than with twenty: what is gained
# there comes of topics that split into smaller ones. So there is no one number, but a range. Below eight is too coarse;
# fifty foretell words best, and are more than one would want to read. Twenty is a fair choice within it. Note also the
# spread of the three starts with eight topics: differences as small as that mean nothing.

# %%
mean = {K: np.mean(score[K]) for K in SIZES}
hang = {K: np.mean(topics_hang[K]) for K in SIZES}
level = {K: np.mean(bound[K]) for K in SIZES}
assert sorted(mean.values(), reverse=True) == list(mean.values())
assert mean[20] < 0.65 * mean[1]
assert mean[8] - mean[50] < 0.7 * (mean[1] - mean[8])
assert level[50] - level[8] < 0.7 * (level[8] - level[1])
assert hang[20] > 1.5 * hang[1]
assert hang[50] - hang[20] < 0.5 * (hang[20] - hang[1])

# %% [markdown]
# ## Three ways to fit one model
#
# - **coordinate ascent**: every document, then the topics, again and again;
# - **minibatches**: after each 50 documents the topics take a step towards what these ask for, of a size that
#   decreases. It is a step along the *natural* gradient (Hoffman et al. 2013), and still in closed form;
# - **plain SVI**: the same pair, and nothing used of what is known about it. Gradients of the bound are estimated from
#   draws, and Adam takes the steps. It serves any model; what does it cost here?
#
# So that nobody has to wait, all three learn eight topics, from a quarter of the documents that are not held out.
# Perplexity is measured in the same way for all, on those that are.

# %%
ways = {
    "coordinate ascent": {"inference": "cavi", "tol": 1e-5},
    "minibatches of 50, 15 passes": {"inference": "cavi", "batch_size": 50, "max_iters": 15, "tol": 0},
    "plain SVI, 300 steps": {"inference": "svi", "batch_size": 100, "num_steps": 300, "num_particles": 1, "tol": 0},
}
some = train[::4]
table = {}
print(f"{some.shape[0]} documents{'':16} seconds   perplexity   coherence")
for name, options in ways.items():
    began = time.perf_counter()
    one = zoo.fit("lda", some, num_topics=8, **options)
    seconds = time.perf_counter() - began
    table[name] = (seconds, perplexity(one, test))
    print(f"{name:30} {seconds:7.2f}   {table[name][1]:10.1f}   {coherence(one, train).mean():9.3f}")
full, batches, gradient = table.values()
assert max(full[1], batches[1], gradient[1]) < 0.85 * by_hand  # all three have learned topics
assert min(batches[1], gradient[1]) > 0.9 * full[1]  # none is much better than coordinate ascent
assert gradient[0] > 3 * full[0]

# %% [markdown]
# Where updates are known in closed form they win by far. Minibatches gain nothing on a table this small; they are for
# corpora that are too large for many sweeps, where the topics are good before the first pass is over. SVI comes near,
# with no help and at many times the cost: which is what one wants of a model that has no closed form.
#
# ## What to take away
#
# - A topic is a distribution over words, and a document a mixture of topics; both are read off counts alone.
# - Choose the number of topics by text that the model has not seen, look at coherence beside it, and expect a range.
# - Read the topics. Some are boilerplate, which is a fact about the text, not about its subjects.
