"""Probabilities whose logarithm is linear in log v and log(1 - v) of Beta latents, such as stick-breaking weights.

They are found by asking the model, whatever way it computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..program.sites import Params
from .moments import Families, Means

SPARE = 4  # points more than there are coefficients: they must lie on the same plane
TOLERANCE = 1e-8


class LogLinear(NamedTuple):
    """log p = constant + matrix @ (log v, log(1 - v)) of some latents."""

    where: str
    event: tuple[int, ...]
    latents: tuple[str, ...]
    matrix: Tensor  # (E, M): for each latent the coefficients of log v, then those of log(1 - v)
    constant: Tensor  # (E,)

    @property
    def names(self) -> frozenset[str]:
        """Every latent in it."""
        return frozenset(self.latents)

    @property
    def uses(self) -> list[str]:
        """Every latent in it, once."""
        return list(self.latents)

    def log(self, means: Means, families: Families) -> Tensor:
        """E log p, (R, 1, E)."""
        parts = []
        for name in self.latents:
            for found in (families[name].log(means[name]), families[name].log1m(means[name])):
                assert found is not None
                parts.append(found.reshape(len(found), -1))
        return (torch.cat(parts, 1) @ self.matrix.mT + self.constant).unsqueeze(1)


def loglinear(
    where: str, probs: Callable[[Params], Tensor], latents: tuple[str, ...], values: Params
) -> LogLinear | None:
    """The coefficients of probabilities (E,) as a function of latents in (0, 1); None where they are not log-linear."""
    generator = torch.Generator().manual_seed(0)
    width = 1 + 2 * sum(values[name].numel() for name in latents)
    points, found = [], []
    for _ in range(width + SPARE):
        drawn = {n: 0.1 + 0.8 * torch.rand(values[n].shape, generator=generator, dtype=torch.float64) for n in latents}
        stats = [part.flatten() for name in latents for part in (drawn[name].log(), (-drawn[name]).log1p())]
        points.append(torch.cat([*stats, torch.ones(1, dtype=torch.float64)]))
        found.append(probs(drawn).log().flatten())
    design, target = torch.stack(points), torch.stack(found)
    solved = torch.linalg.lstsq(design, target).solution
    solved = torch.where((solved - solved.round()).abs() < TOLERANCE, solved.round(), solved)
    if not bool(torch.isfinite(solved).all()) or float((design @ solved - target).abs().max()) > TOLERANCE:
        return None
    return LogLinear(where, (target.shape[1],), latents, solved[:-1].mT.contiguous(), solved[-1])
