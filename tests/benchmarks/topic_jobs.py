"""Latent Dirichlet allocation beside scikit-learn and gensim: time to a held-out perplexity, the same for both.

Documents are simulated. Perplexity is by document completion with each side's own topics, in one and the same way:
theta is fitted to half of each held-out document, the other half scored. The time that counts is the whole fit.
"""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse as sp
import torch
from measure import Row, seconds, timed

from latentzoo import zoo
from latentzoo.inference.data.sparse import Bags, bags_of_sparse
from latentzoo.inference.diagnose.topics import completion, halves
from latentzoo.inference.optimize.minibatches import Schedule

ALPHA, ETA, HELD = 0.1, 0.05, 1000


def simulate(num: int, words: int, topics: int, length: int = 125, seed: int = 0) -> sp.csr_array:
    """Counts (num, words) of documents of about `length` words each."""
    rng = np.random.default_rng(seed)
    beta = rng.dirichlet(np.full(words, 0.05), topics).cumsum(1)
    theta = rng.dirichlet(np.full(topics, 0.1), num)
    totals = rng.poisson(length, num).clip(5)
    z = np.concatenate([rng.choice(topics, n, p=t) for n, t in zip(totals, theta, strict=True)])
    word = np.empty(len(z), dtype=int)
    for k in range(topics):
        word[z == k] = np.searchsorted(beta[k], rng.random((z == k).sum())).clip(max=words - 1)
    return sp.coo_array((np.ones(len(z)), (np.repeat(np.arange(num), totals), word)), (num, words)).tocsr()


def perplexity(topics: np.ndarray, seen: Bags, held: Bags, updates: int = 200) -> float:
    """Of held-out halves under topics (K, V), by Blei's updates of theta written out here."""
    beta = torch.from_numpy(topics / topics.sum(1, keepdims=True)).double().clamp_min(1e-12)
    gamma = ALPHA + seen.totals.unsqueeze(1).expand(-1, len(beta)) / len(beta)
    at = beta.mT[seen.index]  # (cells, K)
    for _ in range(updates):
        weights = (gamma.digamma() - gamma.sum(1, keepdim=True).digamma()).exp()[seen.rows] * at
        share = weights / weights.sum(1, keepdim=True) * seen.count.unsqueeze(1)
        gamma = torch.full_like(gamma, ALPHA).index_add(0, seen.rows, share)
    return completion(gamma / gamma.sum(1, keepdim=True), beta, held)


def race(peer: str, num: int, words: int, topics: int, target: float, rounds: int) -> Row:
    """Seconds of a fit that reaches at least the peer's perplexity."""
    x = simulate(num + HELD, words, topics)
    x = x[:, np.asarray(x[:num].sum(0)).ravel() > 0]
    train = x[:num]
    seen, held = halves(bags_of_sparse(x[num:]))
    pair = zoo.create("lda", num_topics=topics, concentration=ALPHA, topic_concentration=ETA)
    batches = {"batch_size": 1024, "schedule": Schedule(delay=1.0, forgetting=0.7), "max_iters": 3}
    full = {"max_iters": 10}
    options = full if peer == "scikit-learn, batch" else batches

    def ours() -> np.ndarray:
        return zoo.fit(pair, train, inference="cavi", tol=0, progress=False, **options).params["topics"].numpy()

    def theirs() -> np.ndarray:
        if peer == "gensim":
            from gensim.matutils import Sparse2Corpus
            from gensim.models import LdaModel

            names = {v: str(v) for v in range(train.shape[1])}
            options = {"alpha": [ALPHA] * topics, "eta": ETA, "passes": 5, "random_state": 0, "eval_every": None}
            return LdaModel(Sparse2Corpus(train.T.tocsc()), num_topics=topics, id2word=names, **options).get_topics()
        from sklearn.decomposition import LatentDirichletAllocation

        kind, iterations = ("batch", 10) if peer.endswith("batch") else ("online", 5)
        options = {"doc_topic_prior": ALPHA, "topic_word_prior": ETA, "learning_method": kind}
        return (
            LatentDirichletAllocation(topics, max_iter=iterations, random_state=0, n_jobs=-1, **options)
            .fit(train)
            .components_
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine, other = perplexity(ours(), seen, held), perplexity(theirs(), seen, held)
    assert mine <= 1.01 * other, (mine, other)
    job = f"LDA to the peer's held-out perplexity or better ({mine:.0f}, {other:.0f}), N={num} V={words} K={topics}"
    return timed(job, peer, lambda: seconds(ours), lambda: seconds(theirs), rounds, target)
