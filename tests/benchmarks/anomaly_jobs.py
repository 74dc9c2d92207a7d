"""What codes of digits are good for, in two tables: finding a digit that was never seen, and telling digits apart.

Mean (standard deviation) over seeds, each of which splits the images anew and starts the networks anew. Nobody tuned
anything on the images that count: 128 hidden units, 60 epochs, a learning rate of 0.003, whatever the digit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from latentzoo import zoo
from latentzoo.inference.posterior.anomaly import roc

DIGITS = load_digits()
GREY, INK, LABEL = DIGITS.data, (DIGITS.data > 8).astype(float), DIGITS.target
LEARNED, SEEDS = 1200, 5
LATENTS = (2, 10, 32)
OPTIONS = {"hidden": (128,), "epochs": 60, "learning_rate": 3e-3, "tol": 0, "progress": False}

Scores = dict[str, float]


def auc_of(digit: int, seed: int) -> Scores:
    """Area under the ROC curve of each score, that digit being left out of what is learned from."""
    usual = np.random.default_rng(seed).permutation(np.flatnonzero(digit != LABEL))
    known, new = usual[:LEARNED], np.concatenate([usual[LEARNED:], np.flatnonzero(digit == LABEL)])
    strange = digit == LABEL[new]
    found = {}
    for K in LATENTS[:2]:
        fit = zoo.fit("vae", INK[known], latent_dim=K, seed=seed, **OPTIONS)
        for by in ("density", "reconstruction"):
            found[f"VAE {K}, {by}"] = fit.anomaly(INK[new], by=by).to_numpy()
    for name, x in (("ink", INK), ("grey", GREY)):
        forest = IsolationForest(n_estimators=300, random_state=seed).fit(x[known])
        found[f"IsolationForest, {name}"] = -forest.score_samples(x[new])
        for K in LATENTS[:2]:
            pca = PCA(K).fit(x[known])
            found[f"PCA {K}, {name}"] = ((x[new] - pca.inverse_transform(pca.transform(x[new]))) ** 2).sum(1)
    return {name: roc(scores, strange).auc for name, scores in found.items()}


def accuracy_of(seed: int) -> Scores:
    """Share of held-out digits that a linear classifier reads right, from pixels or from codes."""
    order = np.random.default_rng(seed).permutation(len(LABEL))
    known, new = order[:LEARNED], order[LEARNED:]

    def accuracy(x: np.ndarray) -> float:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        return float(classifier.fit(x[known], LABEL[known]).score(x[new], LABEL[new]))

    found = {"pixels, ink": accuracy(INK), "pixels, grey": accuracy(GREY)}
    for K in LATENTS:
        fit = zoo.fit("vae", INK[known], latent_dim=K, seed=seed, **OPTIONS)
        found[f"VAE {K}, ink"] = accuracy(fit.embeddings(INK).to_numpy())
        found[f"PCA {K}, ink"] = accuracy(PCA(K).fit(INK[known]).transform(INK))
    return found


def told(values: Iterable[float]) -> str:
    """Mean (standard deviation)."""
    many = np.array(list(values))
    return f"{many.mean():.3f} ({many.std(ddof=1):.3f})"


def anomalies(seeds: int = SEEDS) -> None:
    print(f"AUC of finding a digit that was never seen, {seeds} seeds; in the last line the spread is over digits\n")
    means: dict[str, list[float]] = {}
    for digit in range(10):
        runs = [auc_of(digit, seed) for seed in range(seeds)]
        if not means:
            print(f"| never seen | {' | '.join(runs[0])} |\n|{'---|' * (len(runs[0]) + 1)}")
        print(f"| {digit} | {' | '.join(told(one[name] for one in runs) for name in runs[0])} |", flush=True)
        for name in runs[0]:
            means.setdefault(name, []).append(float(np.mean([one[name] for one in runs])))
    print(f"| all | {' | '.join(map(told, means.values()))} |\n", flush=True)


def codes(seeds: int = SEEDS) -> None:
    runs = [accuracy_of(seed) for seed in range(seeds)]
    print(f"Accuracy of logistic regression on {len(LABEL) - LEARNED} held-out digits, {seeds} seeds\n")
    print("| from | accuracy |\n|---|---|")
    for name in runs[0]:
        print(f"| {name} | {told(one[name] for one in runs)} |", flush=True)
    print(flush=True)


DIGITS: dict[str, Callable[..., None]] = {"digits-anomalies": anomalies, "digits-codes": codes}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="make the tables whose name holds this word")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    for name, table in DIGITS.items():
        if args.only in name:
            table(args.seeds)
