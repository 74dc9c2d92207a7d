"""Loadings of rows on their normal latents, at one value of what rows share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .factor_normal import FactorNormal
from .normals import arguments_by_row
from .program import Program
from .sites import Params


class Loadings(NamedTuple):
    """x = loc + load e + noise, under each of C configurations of the enumerated latents."""

    loc: Tensor  # (C, D)
    load: Tensor  # (C, D, E)
    noise: Tensor  # (C, D) variances


def loadings_of(program: Program, params: Params) -> Loadings | None:
    """Of the one site whose normal latents were summed out; None where there is none, or it varies from row to row."""
    sites = [n for n in program.structure.observed if isinstance(program.structure.trace.nodes[n]["fn"], FactorNormal)]
    if not sites:
        return None
    with torch.no_grad():
        args = arguments_by_row(program.trace(params).nodes[sites[0]]["fn"], program.layout)
    if any(value.shape[1] > 1 for value in args.values()) or "scale" not in args:
        return None
    loc, load, scale = (args[name].squeeze(1) for name in ("loc", "factor", "scale"))
    return Loadings(loc, load, scale**2)
