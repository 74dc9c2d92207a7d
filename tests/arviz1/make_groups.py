"""Write the groups of fits into a folder, for tests/arviz1/test_open.py to open with ArviZ 1.x where there is no torch.

Usage: python tests/arviz1/make_groups.py FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentzoo import zoo
from latentzoo.inference.base.errors import OptionError
from latentzoo.inference.io.groups import arviz_groups


def write_groups(
    folder: Path,
    name: str,
    groups: Mapping[str, Mapping[str, Any]],
    coords: Mapping[str, Sequence[Any]],
    dims: Mapping[str, Sequence[str]],
    attrs: Mapping[str, Any],
) -> None:
    """Write what `latentzoo.inference.io.arviz.to_arviz` takes: arrays to ``name.npz``, the rest to ``name.json``."""
    arrays = {
        f"{group}/{variable}": np.asarray(a) for group, variables in groups.items() for variable, a in variables.items()
    }
    np.savez(folder / f"{name}.npz", **arrays)
    rest = {
        "coords": {dim: np.asarray(labels).tolist() for dim, labels in coords.items()},
        "dims": {variable: list(names) for variable, names in dims.items()},
        "attrs": dict(attrs),
    }
    (folder / f"{name}.json").write_text(json.dumps(rest, indent=1))


def hand_built(chains: int, draws: int) -> dict[str, dict[str, np.ndarray]]:
    """Exact posterior draws of the mean of N(mean, I) under a flat prior, with integer and boolean bystanders."""
    generator = np.random.default_rng(chains * 1000 + draws)
    n, d = 40, 2
    x = generator.normal(size=(n, d))
    mean = x.mean(0) + generator.normal(size=(chains, draws, d)) / np.sqrt(n)
    errors = x - mean[:, :, None, :]
    return {
        "posterior": {
            "loc": mean,
            "z": generator.integers(0, 3, size=(chains, draws, n)),
            "switch": generator.random(size=(chains, draws)) < 0.5,
        },
        "posterior_predictive": {"x": mean[:, :, None, :] + generator.normal(size=(chains, draws, n, d))},
        "log_likelihood": {"x": (-0.5 * errors**2 - 0.5 * np.log(2 * np.pi)).sum(-1)},
        "sample_stats": {"diverging": np.zeros((chains, draws), bool)},
        "observed_data": {"x": x},
        "constant_data": {"count": np.array(n)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)

    coords = {"data": range(40), "feature": ["height", "width"]}
    dims = {"loc": ["feature"], "z": ["data"], "x": ["data", "feature"]}
    attrs = {"model": "normal", "seed": 0, "converged": True, "weights": None}
    for name, chains, draws in (("draws", 1, 1000), ("chains", 4, 250), ("point", 1, 1)):
        write_groups(folder, name, hand_built(chains, draws), coords, dims, {**attrs, "inference": name})
    for name in zoo.list_models():
        short = {"num_steps": 200, "tol": 0} if zoo.card(name).inference == ("svi",) else {"restarts": 3}
        fit = zoo.fit(name, zoo.card(name).example, **short)
        for draws in (None,) if fit.guide else (None, "laplace"):
            try:
                groups = arviz_groups(fit, fit.adapted(None), draws, 300, seed=0)
            except OptionError as error:  # params too uncertain for draws around them
                print(f"{name}: {error}")
                continue
            write_groups(folder, f"{name}-{draws or fit.guide or 'point'}", **groups)


if __name__ == "__main__":
    main()
