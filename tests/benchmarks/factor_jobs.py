"""Factor analysis beside scikit-learn's: the same data, and the same log-likelihood to reach."""

from __future__ import annotations

import time

import numpy as np
import torch
from measure import Row, timed
from sklearn.decomposition import FactorAnalysis

from latentzoo import zoo

GAP = 1e-3  # nats per row that either side may end below the other


def simulated(num_rows: int, width: int, factors: int) -> np.ndarray:
    """Rows of a factor model whose columns differ in their noise."""
    draw = np.random.default_rng(0)
    load = draw.standard_normal((width, factors))
    noise = draw.uniform(0.3, 3.0, width)
    latent = draw.standard_normal((num_rows, factors))
    return latent @ load.T + noise * draw.standard_normal((num_rows, width)) + draw.standard_normal(width)


def factor_analysis(rounds: int, num_rows: int = 100_000, width: int = 100, factors: int = 10) -> Row:
    """Both stop by themselves; ours may not end lower."""
    x = simulated(num_rows, width, factors)
    table = torch.from_numpy(x)

    def ours():
        return zoo.fit("factor_analysis", table, num_factors=factors, inference="em", progress=False)

    def theirs():
        return FactorAnalysis(factors, random_state=0).fit(x)

    reached: dict[str, float] = {}

    def ours_timed() -> float:
        begun = time.perf_counter()
        fit = ours()
        taken = time.perf_counter() - begun
        reached["ours"] = fit.log_likelihood / num_rows
        return taken

    def theirs_timed() -> float:
        begun = time.perf_counter()
        peer = theirs()
        taken = time.perf_counter() - begun
        reached["theirs"] = peer.score(x)
        return taken

    row = timed(
        f"factor analysis, N={num_rows // 1000}k D={width} k={factors}, to the same log-likelihood",
        "scikit-learn FactorAnalysis",
        ours_timed,
        theirs_timed,
        rounds,
        1.0,
    )
    assert reached["theirs"] - reached["ours"] < GAP, reached
    return row
