"""Side-by-side benchmarks: one table of ratios, each job alternating with its peer in this one process.

Equal threads, equal starts, the same float64 answer (checked); medians over several rounds. ``--only WORD`` picks jobs,
``--rounds N`` sets the rounds. The time of one iteration is the difference between a long and a short run, so that
what is done once (checks, reading the model, allocation) is in neither.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date
from typing import NamedTuple

import numpy as np
import torch

from latentzoo import zoo

warnings.simplefilter("ignore")  # both sides are stopped before they converge
THREADS = len(os.sched_getaffinity(0))


class Row(NamedTuple):
    """One line of the table."""

    job: str
    peer: str
    ours: str
    theirs: str
    ratio: float
    target: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


def alternate(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Medians of what both return, turn by turn."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def per_iteration(run: Callable[[int], object], few: int = 1, many: int = 6) -> float:
    """Seconds per iteration, from the difference of two runs."""
    times = []
    for count in (few, many):
        start = time.perf_counter()
        run(count)
        times.append(time.perf_counter() - start)
    return (times[1] - times[0]) / (many - few)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def timed(
    job: str, peer: str, ours: Callable[[], float], theirs: Callable[[], float], rounds: int, target: float
) -> Row:
    mine, other = alternate(ours, theirs, rounds)
    return Row(job, peer, f"{mine * 1e3:.1f} ms", f"{other * 1e3:.1f} ms", other / mine, target)


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
    "restarts": restarts,
    "start-up": start_up,
    "memory-diagonal": lambda r: memory("diagonal"),
    "memory-full": lambda r: memory("full"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the jobs whose name holds this word")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    names = ("torch", "pyro-ppl", "numpy", "scikit-learn", "stepmix")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"{date.today()}, {THREADS} threads, Python {sys.version.split()[0]}, {versions}\n")
    print("| job | against | latentzoo | peer | ratio | target | met |\n|---|---|---|---|---|---|---|")
    for name, job in JOBS.items():
        if args.only in name:
            row = job(args.rounds)
            sign = "at most" if row.at_most else "at least"
            met = "yes" if row.met else "**no**"
            cells = (row.job, row.peer, row.ours, row.theirs, f"{row.ratio:.2f}", f"{sign} {row.target:g}", met)
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
