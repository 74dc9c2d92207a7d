"""Coordinate ascent beside scikit-learn's variational mixtures, beside EM on the same rows, and beside SVI."""

from __future__ import annotations

import numpy as np
import torch
from measure import Row, per_iteration, seconds, timed
from sklearn.datasets import load_iris

from latentzoo import zoo

MOST = 4_000  # steps of SVI
NEAR = 0.001  # nats by row within which two bounds are the same: 0.1 for each 100 rows


def clusters(N: int, D: int, K: int, apart: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, D)) + apart * rng.normal(size=(K, D))[rng.integers(0, K, N)]


def precisions(covariance: str, K: int, D: int) -> torch.Tensor:
    return torch.eye(D).expand(K, D, D) if covariance == "full" else torch.ones(K, D)


def sweep(covariance: str, N: int, D: int, K: int, target: float, rounds: int) -> Row:
    """One sweep, priors as each has them by default; both start from centres at rows of the data."""
    from sklearn.mixture import BayesianGaussianMixture

    x = clusters(N, D, K)
    start = {"loc": torch.from_numpy(x[:K]), "precision": precisions(covariance, K, D)}
    pair = zoo.create("bayesian_gaussian_mixture", num_components=K, covariance=covariance)

    def ours(iterations: int):
        return zoo.fit(pair, x, inference="cavi", start=start, max_iters=iterations, tol=0, progress=False)

    def theirs(iterations: int):
        return BayesianGaussianMixture(
            n_components=K,
            covariance_type="full" if covariance == "full" else "diag",
            weight_concentration_prior_type="dirichlet_distribution",
            reg_covar=0,
            tol=0,
            max_iter=iterations,
            init_params="random_from_data",
            random_state=0,
        ).fit(x)

    return timed(
        f"Bayesian Gaussian mixture, {covariance}, N={N // 1000}k D={D} K={K}, per sweep",
        "scikit-learn",
        lambda: per_iteration(ours, many=41),
        lambda: per_iteration(theirs, many=6),
        rounds,
        target,
    )


def against_em(covariance: str, N: int, D: int, K: int, rounds: int) -> Row:
    x = clusters(N, D, K)
    loc, precision = torch.from_numpy(x[:K]), precisions(covariance, K, D)
    bayesian = zoo.create("bayesian_gaussian_mixture", num_components=K, covariance=covariance)
    plain = zoo.create("gaussian_mixture", num_components=K, covariance=covariance)
    spread = "covariance" if covariance == "full" else "scale"  # of 1, as the precisions are

    def cavi(iterations: int):
        start = {"loc": loc, "precision": precision}
        return zoo.fit(bayesian, x, inference="cavi", start=start, max_iters=iterations, tol=0, progress=False)

    def em(iterations: int):
        start = {"loc": loc, spread: precision}
        return zoo.fit(plain, x, inference="em", start=start, max_iters=iterations, tol=0, progress=False)

    found = timed(
        f"CAVI sweep against an EM iteration, {covariance}, N={N // 1000}k D={D} K={K}",
        "EM of latentzoo",
        lambda: per_iteration(cavi, many=41),
        lambda: per_iteration(em, many=41),
        rounds,
        1.5,
    )
    return found._replace(ratio=1 / found.ratio, at_most=True)  # time over time: a factor, not a gain


def against_svi(x: np.ndarray, K: int, what: str, rounds: int) -> Row:
    """Time until the bound is within `NEAR` by row of where CAVI ends, from the same start; whole fits."""
    pair = zoo.create("bayesian_gaussian_mixture", num_components=K)
    begun = zoo.fit(pair, x, inference="cavi", max_iters=0, tol=0, seed=1).params
    best = zoo.fit(pair, x, inference="cavi", start=begun).history
    room = NEAR * len(x)
    enough = int((best >= best[-1] - room).nonzero()[0])

    def svi(steps: int):
        return zoo.fit(
            pair, x, inference="svi", guide="mean_field", start=begun, num_steps=steps, tol=0, progress=False
        )

    steps = 125
    while (short := bool(svi(steps).history[-1] < best[-1] - room)) and steps < MOST:
        steps *= 2
    told = f"{steps} steps" + (", which do not get there" if short else "")  # then the ratio is a lower bound

    def cavi():
        return zoo.fit(pair, x, inference="cavi", start=begun, max_iters=enough, tol=0, progress=False)

    return timed(
        f"CAVI ({enough + 1} sweeps) to within 0.1 nat per 100 rows of its bound, {what}, whole fit",
        f"SVI of latentzoo, mean field, {told}",
        lambda: seconds(cavi),
        lambda: seconds(lambda: svi(steps)),
        rounds,
        50.0,
    )


CAVI_JOBS = {
    "cavi-sweep-diagonal": lambda r: sweep("diagonal", 200_000, 16, 32, 3.0, r),
    "cavi-sweep-full": lambda r: sweep("full", 200_000, 16, 32, 3.0, r),
    "cavi-em-diagonal": lambda r: against_em("diagonal", 200_000, 16, 32, r),
    "cavi-em-full": lambda r: against_em("full", 200_000, 16, 32, r),
    "cavi-svi-iris": lambda r: against_svi(load_iris().data, 3, "iris K=3", r),
    "cavi-svi-5k": lambda r: against_svi(clusters(5_000, 8, 6), 6, "N=5k D=8 K=6", r),
    "cavi-svi-20k": lambda r: against_svi(clusters(20_000, 8, 6, 1.0), 6, "N=20k D=8 K=6, overlapping", min(r, 1)),
}
