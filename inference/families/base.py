r"""What an exponential family is to the engine: log p(x | a) = log h(x) + t(x) . eta(a) - A(a).

The engine never asks what a site is, only for its statistics t(x), its natural parameters eta and A, and for the
ratio of two sums that maximises the expected log density in one argument while the others stay as they are (Dempster,
Laird and Rubin 1977; Meng and Rubin 1993). The families themselves are in ``families_*.py``, by kind of value;
`families.family` finds one.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions.utils import clamp_probs

from ..trace.provenance import provenance

Args = dict[str, Tensor]
LOG_2PI = math.log(2 * math.pi)
ALTERNATIVES = ("logits", "probs", "scale_tril", "covariance_matrix", "precision_matrix")


class Ratio(NamedTuple):
    """A maximiser as a ratio of two sums, which add up over rows, sites, tied cells and conjugate priors."""

    kind: str  # the objective that num / den maximises; only ratios of one kind may be pooled (see `mstep.LINKS`)
    num: Tensor
    den: Tensor


class Family:
    """An exponential family.

    Shapes: values (*event, *batch) and statistics (T, *batch), batch last, so that rows lie contiguous; arguments
    (*batch, *event of the argument), eta (*batch, T) and A (*batch).
    """

    arguments: ClassVar[dict[str, int]] = {}  # name -> event dims of the argument; alternatives are resolved by `read`
    order: tuple[str, ...] = ()  # arguments with a closed-form maximiser, in the order of their updates
    event_dim = 0
    location: str | None = None  # the argument that moves with the data: the engine centres x by it
    spread: tuple[str, ...] = ()  # arguments that would collapse on a constant column
    fixed: tuple[str, ...] = ()  # arguments that log h(x) depends on
    augmented = False  # one only given a hidden factor: statistics are its expected ones under the current arguments

    def read(self, fn: Any) -> dict[str, tuple[Tensor, int]]:
        """The arguments a distribution was built with: name -> (tensor, its event dims)."""
        found = {name: (getattr(fn, name), dim) for name, dim in self.arguments.items() if name in fn.__dict__}
        rivals = [name for name in ALTERNATIVES if name in found]
        if len(rivals) > 1:  # torch computes one from the other when asked, and keeps it: what was given has its cells
            known = {name: provenance(found[name][0]) for name in rivals}
            given = [name for name, one in known.items() if one is not None and one.cells is not None]
            keep = (given or rivals)[0]
            found = {name: one for name, one in found.items() if name == keep or name not in rivals}
        return found

    def statistics(self, value: Tensor, args: Args) -> Tensor:
        raise NotImplementedError

    def natural(self, args: Args) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def statistics_last(self, value: Tensor, args: Args) -> Tensor:
        """Statistics (*batch, T) of values (*batch, *event)."""
        if self.event_dim:
            value = value.movedim(-1, 0)
        return self.statistics(value, args).movedim(0, -1)

    def total(self, value: Tensor, args: Args, weights: Tensor | None) -> Tensor:
        """Statistics summed over the last dim of the batch, the rows."""
        found = self.statistics(value, args)
        return found.sum(-1) if weights is None else found @ weights

    def base(self, value: Tensor, args: Args) -> Tensor | float:
        return 0.0

    def ratio(self, name: str, args: Args, s1: Tensor, s0: Tensor) -> Ratio:
        raise NotImplementedError


def log_probs(args: Args) -> Tensor:
    """Normalised log probabilities from whichever argument was given, clamped as torch clamps them."""
    if "logits" in args:
        return args["logits"] - args["logits"].logsumexp(-1, keepdim=True)
    probs = args["probs"]
    return clamp_probs(probs / probs.sum(-1, keepdim=True)).log()


def positive(value: Tensor) -> Tensor:
    """Keep a boundary estimate of exactly 0 finite in log space."""
    return value.clamp_min(torch.finfo(value.dtype).tiny)


def square(products: Tensor, size: int) -> Tensor:
    """The symmetric matrix (..., D, D) of its lower triangle (..., D(D+1)/2)."""
    rows, cols = torch.tril_indices(size, size, device=products.device)
    position = torch.zeros(size, size, dtype=torch.long, device=products.device)
    position[rows, cols] = position[cols, rows] = torch.arange(len(rows), device=products.device)
    return products[..., position]
