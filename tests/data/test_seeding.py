"""Rows to start from: those that scikit-learn picks."""

import numpy as np
import pytest
from sklearn.cluster import kmeans_plusplus
from sklearn.datasets import load_digits, load_iris

from latentzoo.inference.data.seeding import greedy_seeds

TABLES = {
    "iris": load_iris().data,
    "digits": load_digits().data,
    "many": np.random.default_rng(0).normal(size=(3000, 3)),
    "counts, most of them repeated": np.random.default_rng(1).poisson(2.0, (500, 1)).astype(float),
    "few": np.random.default_rng(2).normal(size=(5, 2)),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("num_centers", [1, 2, 3, 5])
def test_seeds_are_those_of_scikit_learn(name: str, num_centers: int) -> None:
    x = TABLES[name]
    for seed in range(20):
        _, expected = kmeans_plusplus(x, num_centers, random_state=seed)
        np.testing.assert_array_equal(greedy_seeds(x, num_centers, seed), expected)
