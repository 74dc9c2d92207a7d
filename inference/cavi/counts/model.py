"""Counts whose expected values are a matrix product of positive latents: ``theta @ topics``, theta a latent of rows.

A count x_nv is a sum of parts, one for each k, that theta_nk * beta_kv alone is answerable for. Given an allocation
phi_nvk of the counts to k, Gamma and Dirichlet latents are conjugate to Poisson and Multinomial counts; the optimal
allocation, phi ~ exp(E log theta_nk + E log beta_kv), is summed out in closed form and never stored (Blei, Ng and
Jordan 2003, section 5; Cemgil 2009, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...base.errors import DataError
from ...data.sparse import Bags
from ...families.factors import FactorFamily, GammaFactor, Point


class Side(NamedTuple):
    """One of the two latents that are multiplied."""

    name: str
    family: FactorFamily  # Gamma, Dirichlet over the last dim, or Point
    prior: Tensor | None  # natural parameters (rows or 1, size[, 2]); None of a Point
    simplex: bool  # a Point's constraint

    @property
    def rated(self) -> bool:
        """Whether its update counts exposure too."""
        return isinstance(self.family, GammaFactor) or (isinstance(self.family, Point) and not self.simplex)


@dataclass(frozen=True)
class Allocation:
    """A model of one site of counts x (N, V) whose rates or probabilities are ``c_n d_v (theta @ beta)_nv``.

    Attributes
    ----------
    rows, shared : Side
        theta (N, K) and beta (K, V).
    transposed : bool
        Whether the model's own shape of beta is (V, K).
    poisson : bool
        Poisson counts; otherwise multinomial.
    row_factor : Tensor (N,) or (1,)
        c, constants of the model such as an exposure.
    column_factor : Tensor (V,) or (1,)
        d
    """

    site: str
    rows: Side
    shared: Side
    transposed: bool
    poisson: bool
    row_factor: Tensor
    column_factor: Tensor
    counts: Bags
    size: int  # K
    shapes: dict[str, torch.Size]  # latent -> the model's own shape, of a row or of all

    def own_shape(self, value: Tensor) -> Tensor:
        """beta (*, K, V) as the model has it."""
        value = value.mT if self.transposed else value
        return value.reshape(*value.shape[:-2], *self.shapes[self.shared.name])


def check_margins(allocation: Allocation, columns: tuple[str, ...] | None) -> None:
    """A row or a column that counts nothing: in training an error, for nothing is to be learned of it."""
    counts = allocation.counts
    known = torch.bincount(counts.index, minlength=counts.width) > 0
    filled = counts.lengths > 0
    if counts.missing is not None:
        known[counts.missing[:, 1]] = True
        filled[counts.missing[:, 0]] = True
    for seen, names, kind, other in ((known, columns, "column", "row"), (filled, None, "row", "column")):
        if bool(seen.all()):
            continue
        place = int((~seen).nonzero()[0])
        label = f"{place} (the first is 0)" if names is None or len(names) != len(seen) else repr(names[place])
        raise DataError(
            f"data: {kind} {label} is 0 in every {other}, so the data say nothing of it: leave it out (there are "
            f"{int((~seen).sum())} such {kind}s)"
        )


COUNTS = "allocation"  # the name of such a guide in a fit
