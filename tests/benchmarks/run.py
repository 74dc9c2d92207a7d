"""Side-by-side benchmarks: one table of ratios, each job alternating with its peer in this one process; then tables of
what is reached.

Equal threads, equal starts, the same float64 answer (checked); medians over several rounds. ``--only WORD`` picks jobs,
``--rounds N`` sets the rounds. The time of one iteration is the difference between a long and a short run, so that
what is done once (checks, reading the model, allocation) is in neither.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import date

import numpy as np
import torch
from anomaly_jobs import DIGITS
from cavi_jobs import CAVI_JOBS
from deep_jobs import DEEP_JOBS
from digits_table import print_digits
from factor_jobs import factor_analysis
from measure import Row, alternate, per_iteration, seconds, timed
from svi_jobs import optimum, step_of_factors, step_of_mixture
from topic_jobs import race

from latentzoo import zoo

warnings.simplefilter("ignore")  # both sides are stopped before they converge
THREADS = len(os.sched_getaffinity(0))


# --- jobs -------------------------------------------------------------------------------------------------------------


def gaussian(covariance: str, N: int, D: int, K: int, target: float, rounds: int) -> Row:
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)) + 3 * rng.normal(size=(K, D))[rng.integers(0, K, N)]
    full = covariance == "full"
    start = {"loc": torch.from_numpy(x[:K]), "weights": torch.full((K,), 1 / K)}
    start["covariance" if full else "scale"] = torch.eye(D).expand(K, D, D) if full else torch.ones(K, D)
    pair = zoo.create("gaussian_mixture", num_components=K, covariance=covariance)

    def ours(iterations: int):
        return zoo.fit(
            pair, x, inference="em", start=start, max_iters=iterations, tol=0, variance_floor=0, progress=False
        )

    def theirs(iterations: int):
        return GaussianMixture(
            K,
            covariance_type="full" if full else "diag",
            reg_covar=0,
            tol=0,
            max_iter=iterations,
            means_init=x[:K],
            weights_init=np.full(K, 1 / K),
            precisions_init=np.stack([np.eye(D)] * K) if full else np.ones((K, D)),
            init_params="random",
        ).fit(x)

    mine, other = ours(3).log_likelihood, theirs(3).score(x) * N
    assert abs(mine - other) < 1e-8 * abs(other), (mine, other)
    job = f"Gaussian mixture EM, {covariance}, N={N // 1000}k D={D} K={K}, per iteration"
    many = 6 if N > 100_000 else 41  # enough iterations to stand out from what is done once
    return timed(
        job,
        "scikit-learn",
        lambda: per_iteration(ours, many=many),
        lambda: per_iteration(theirs, many=many),
        rounds,
        target,
    )


def classes(collapse: bool, target: float, rounds: int) -> Row:
    from stepmix.stepmix import StepMix

    rng = np.random.default_rng(0)
    N, J, K = 100_000, 10, 5
    x = (rng.random((N, J)) < rng.uniform(0.1, 0.9, (K, J))[rng.integers(0, K, N)]).astype(float)

    def theirs(iterations: int):
        options = {"abs_tol": 0, "rel_tol": 0, "progress_bar": 0, "random_state": 0}
        return StepMix(K, measurement="binary", n_init=1, max_iter=iterations, **options).fit(x)

    found = theirs(1).get_parameters()  # the peer draws its own start: ours begins where its first iteration ended
    pis = torch.from_numpy(found["measurement"]["pis"])
    start = {f"probs_{j}": torch.stack([1 - pis[:, j], pis[:, j]], -1) for j in range(J)}
    start["weights"] = torch.from_numpy(found["weights"])
    pair = zoo.create("latent_class", num_classes=K)

    def ours(iterations: int):
        options = {"max_iters": iterations, "tol": 0, "collapse": collapse, "progress": False}
        return zoo.fit(pair, x, inference="em", start=start, **options)

    mine, other = ours(3).log_likelihood, theirs(4).score(x) * N
    assert abs(mine - other) < 1e-8 * abs(other), (mine, other)
    job = f"latent class EM, N=100k, 10 binary items, K=5, {'repeated rows as weights' if collapse else 'row by row'}"
    many = 200 if collapse else 21
    return timed(
        f"{job}, per iteration",
        "StepMix",
        lambda: per_iteration(ours, many=many),
        lambda: per_iteration(theirs),
        rounds,
        target,
    )


def raters(target: float, rounds: int) -> Row:
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    rng = np.random.default_rng(0)
    N, M, J, K = 100_000, 5, 200, 4
    truth, rater = rng.integers(0, K, N), np.argpartition(rng.random((N, J)), M, axis=1)[:, :M]
    right = rng.random((N, M)) < rng.uniform(0.4, 0.95, J)[rater]
    label = np.where(right, truth[:, None], rng.integers(0, K, (N, M)))
    table = pd.DataFrame({"item": np.repeat(np.arange(N), M), "rater": rater.ravel(), "label": label.ravel()})
    theirs_table = table.rename(columns={"item": "task", "rater": "worker"})
    pair = zoo.create("dawid_skene")

    def ours(iterations: int, start: dict[str, torch.Tensor] | None = None):
        return zoo.fit(pair, table, inference="em", max_iters=iterations, start=start, tol=0, progress=False)

    def theirs(iterations: int):
        return DawidSkene(n_iter=iterations, tol=0).fit(theirs_table)

    found = theirs(3)  # from the majority vote too, and what it learned is scored as ours is
    errors = found.errors_.sort_index()[sorted(found.errors_)].to_numpy().reshape(J, K, K)  # worker, label, truth
    learned = {"weights": found.priors_.sort_index().to_numpy(), "confusion": errors.swapaxes(1, 2)}
    mine = ours(3).log_likelihood
    other = ours(0, {name: torch.from_numpy(value.copy()) for name, value in learned.items()}).log_likelihood
    assert abs(mine - other) < 1e-8 * abs(other), (mine, other)
    return timed(
        "Dawid-Skene EM, 100k items, 200 raters, 5 labels each, K=4, per iteration",
        "crowd-kit",
        lambda: per_iteration(ours, many=41),
        lambda: per_iteration(theirs, many=11),
        rounds,
        target,
    )


def restarts(rounds: int) -> Row:
    from sklearn.datasets import load_iris
    from sklearn.mixture import GaussianMixture

    x = load_iris().data
    pair = zoo.create("gaussian_mixture", num_components=3)

    def ours():
        return zoo.fit(pair, x, inference="em", restarts=64, progress=False)

    def theirs():
        options = {"n_init": 64, "init_params": "k-means++", "tol": 1e-9, "max_iter": 10_000}
        return GaussianMixture(3, random_state=0, **options).fit(x)

    best = theirs().score(x) * len(x)
    assert ours().log_likelihood >= best - 1e-3, best
    return timed(
        "64 restarts, iris K=3 full, to convergence",
        "scikit-learn",
        lambda: seconds(ours),
        lambda: seconds(theirs),
        rounds,
        1.0,
    )


def items(rounds: int) -> Row:
    from girth import twopl_mml
    from scipy.special import expit, logsumexp

    rng = np.random.default_rng(0)
    N, J = 10_000, 50
    slope, difficulty = rng.lognormal(0, 0.3, J), rng.normal(size=J)
    x = (rng.random((N, J)) < expit(slope * (rng.normal(size=(N, 1)) - difficulty))).astype(int)
    pair = zoo.create("item_response")

    def ours():
        return zoo.fit(pair, x, inference="em", progress=False)

    def theirs():
        return twopl_mml(x.T, {"quadrature_n": 41})

    def log_likelihood(slope: np.ndarray, difficulty: np.ndarray) -> float:
        """By an integral finer than that of either."""
        ability = np.linspace(-6, 6, 481)
        logits = slope * (ability[:, None] - difficulty)
        log_prior = -(ability**2) / 2 - logsumexp(-(ability**2) / 2)
        joint = x @ logits.T - np.logaddexp(0, logits).sum(1) + log_prior
        return logsumexp(joint, axis=1).sum()

    mine, other = ours().params, theirs()
    reached = log_likelihood(mine["slope"].numpy(), mine["difficulty"].numpy())
    best = log_likelihood(other["Discrimination"], other["Difficulty"])
    assert reached >= best, (reached, best)
    return timed(
        "item response, two parameters, N=10k, 50 items, 41 nodes, to convergence",
        "girth",
        lambda: seconds(ours),
        lambda: seconds(theirs),
        rounds,
        1.0,
    )


def start_up(rounds: int) -> Row:
    def run(*command: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL))

    mine, other = alternate(
        lambda: run("-m", "latentzoo", "fit", "gaussian_mixture", "iris"),
        lambda: run("-c", "import torch, pyro"),
        max(rounds, 5),
    )
    job = "whole process `latentzoo fit gaussian_mixture iris`, seconds more"
    return Row(job, "import torch, pyro", f"{mine:.2f} s", f"{other:.2f} s", mine - other, 3.0, at_most=True)


MEMORY = """
import re, sys
import numpy as np, torch
from latentzoo import zoo
def peak():  # of this program alone: getrusage would give that of the parent where it was larger
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
pair = zoo.create("gaussian_mixture", num_components=32, covariance=sys.argv[1])
zoo.fit(pair, np.random.default_rng(0).normal(size=(2000, 16)), max_iters=2, tol=0)
before = peak()
x = np.empty((5_000_000, 16))
np.random.default_rng(0).standard_normal(out=x)
zoo.fit(pair, x, max_iters=2, tol=0, progress=False)
print(peak() - before, x.nbytes, before)
"""


def memory(covariance: str) -> Row:
    out = subprocess.run([sys.executable, "-c", MEMORY, covariance], check=True, capture_output=True, text=True).stdout
    added, data, _ = map(int, out.split())
    job = f"peak memory of EM, {covariance}, N=5M D=16 K=32, above the process before"
    return Row(job, "the data", f"{added / 2**20:.0f} MiB", f"{data / 2**20:.0f} MiB", added / data, 1.5, at_most=True)


JOBS: dict[str, Callable[[int], Row]] = {
    "gaussian-diagonal-500k": lambda r: gaussian("diagonal", 500_000, 16, 32, 4.0, r),
    "gaussian-diagonal-100k": lambda r: gaussian("diagonal", 100_000, 10, 10, 4.0, r),
    "gaussian-full-500k": lambda r: gaussian("full", 500_000, 16, 32, 5.0, r),
    "gaussian-full-100k": lambda r: gaussian("full", 100_000, 10, 10, 5.0, r),
    "latent-class-rows": lambda r: classes(False, 4.0, r),
    "latent-class-weights": lambda r: classes(True, 20.0, r),
    "raters": lambda r: raters(3.0, r),
    "restarts": restarts,
    "item-response": items,
    "svi-step-mixture": step_of_mixture,
    "svi-step-factors": step_of_factors,
    "svi-optimum": optimum,
    **CAVI_JOBS,
    "factor-analysis": lambda r: factor_analysis(min(r, 1)),
    "lda-gensim": lambda r: race("gensim", 20_000, 5_000, 50, 1.0, min(r, 1)),
    "lda-online": lambda r: race("scikit-learn, online", 20_000, 5_000, 50, 1.0, min(r, 1)),
    "lda-batch": lambda r: race("scikit-learn, batch", 20_000, 5_000, 50, 2.0, min(r, 1)),
    **DEEP_JOBS,
    "start-up": start_up,
    "memory-diagonal": lambda r: memory("diagonal"),
    "memory-full": lambda r: memory("full"),
}
TABLES: dict[str, Callable[[], None]] = {"digits": print_digits, **DIGITS}  # what is reached, not how fast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the jobs whose name holds this word")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    names = ("torch", "pyro-ppl", "numpy", "scikit-learn", "stepmix", "girth", "crowd-kit", "gensim")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"{date.today()}, {THREADS} threads, Python {sys.version.split()[0]}, {versions}\n")
    jobs = {name: job for name, job in JOBS.items() if args.only in name}
    if jobs:
        print("| job | against | latentzoo | peer | ratio | target | met |\n|---|---|---|---|---|---|---|")
    for job in jobs.values():
        row = job(args.rounds)
        sign = "at most" if row.at_most else "at least"
        met = "yes" if row.met else "**no**"
        cells = (row.job, row.peer, row.ours, row.theirs, f"{row.ratio:.2f}", f"{sign} {row.target:g}", met)
        print(f"| {' | '.join(cells)} |", flush=True)
    for name, table in TABLES.items():
        if args.only in name:
            print()
            table()


if __name__ == "__main__":
    main()
