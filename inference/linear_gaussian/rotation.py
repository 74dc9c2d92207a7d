"""Rotations of loadings: of equal likelihood, and easier to name."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 1000
STILL = 1e-15


class Rotated(NamedTuple):
    """Loadings after a rotation: ``loadings @ rotation`` of those before."""

    loadings: Tensor  # (D, K)
    rotation: Tensor  # (K, K) orthogonal


def varimax(loadings: Tensor, normalize: bool = True) -> Rotated:
    """Rotate loadings so that each factor loads strongly on few columns and hardly on the others (Kaiser 1958).

    Parameters
    ----------
    loadings : Tensor (D, K)
    normalize : bool
        Rows are first divided by their lengths (Kaiser's normalisation), so that columns of small loadings count as
        much as the others.

    Returns
    -------
    Rotated
        Factors in the order of their sums of squares, each with positive loadings in sum. Scores turn with it:
        ``latents["u"].mean @ rotation``.
    """
    loadings = loadings.to(torch.float64)
    count = loadings.shape[1]
    rotation = torch.eye(count, dtype=torch.float64)
    unit = loadings.norm(dim=1, keepdim=True).clamp_min(1e-300) if normalize else 1.0
    rows = loadings / unit
    before = 0.0
    for _ in range(STEPS if count > 1 else 0):
        turned = rows @ rotation
        slope = rows.mT @ (turned**3 - turned * turned.square().mean(0))
        left, values, right = torch.linalg.svd(slope)
        rotation = left @ right
        if values.sum() <= before * (1 + STILL):
            break
        before = float(values.sum())
    turned = loadings @ rotation
    order = turned.square().sum(0).argsort(descending=True)
    sign = torch.where(turned.sum(0) < 0, -1.0, 1.0).to(turned)
    rotation = (rotation * sign)[:, order]
    return Rotated(loadings @ rotation, rotation)
