"""Models of graphs: what a model says of the pairs of its nodes, given a discrete latent of each node.

The sites of pairs gather what nodes share by the labels of two rows, as in ``probs[z[first], z[second]]``. So rows are
no longer independent, and exact sums over their latents are out of reach: the mean field is over rows too. All that it
needs is one table (K, K) of the site's arguments, which is read by running the model on pairs whose labels are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...families.expected import Expected
from ...program.sites import Argument, Params
from ...trace.structure import Structure
from ..mean_field import MeanField
from .pair_sums import Ties
from .probe import Probe


class Table(NamedTuple):
    """A site in expectation: as a `sites.Site` to the mean field."""

    family: Expected
    args: dict[str, Argument]

    def arguments(self, moments: Params) -> Params:
        return {name: argument.of(moments) for name, argument in self.args.items()}

    def natural(self, args: Params) -> tuple[Tensor, Tensor]:
        return self.family.natural(args)


class Tables(NamedTuple):
    """The sites of a model of a graph: as a `program.Program` to the mean field."""

    structure: Structure
    latents: dict[str, Table]
    products: dict[str, Table]
    scored: dict[str, str]  # none


@dataclass(frozen=True)
class Relation:
    """A model of one discrete latent of each node and one site of pairs, in expectation.

    Attributes
    ----------
    latent, site : str
    size : int
        K, how many values the latent has.
    field : MeanField
        The factors of what nodes share.
    ties : Ties
        The data as the sums over pairs need them.
    probe : Probe
        Runs of the model.
    moves : dict
        Shared latent -> its cells by label, (K,) or (K, K) each: they move as labels change places.
    """

    latent: str
    site: str
    size: int
    field: MeanField
    ties: Ties
    probe: Probe
    moves: dict[str, list[Tensor]]

    def tables(self, means: Params) -> tuple[Tensor, Tensor, Tensor]:
        """E log p(z = k), (K,), E eta (K, K, T) and E A (K, K)."""
        moments = self.field.moments(means, (self.latent, self.site))
        program = self.field.program
        first = program.latents[self.latent]
        eta, log_normalizer = first.natural(first.arguments(moments))
        log = torch.cat([torch.zeros(1, 1), eta], 1) - log_normalizer.reshape(1, 1)
        pairs = program.products[self.site]
        eta, log_normalizer = pairs.natural(pairs.arguments(moments))
        shape = (self.size, self.size)
        return log[0], eta[0].expand(*shape, -1), log_normalizer[0].expand(shape)

    def permuted(self, values: Params, order: Tensor) -> Params:
        """Shared values (*shape) with label k as label order[k] was."""
        out = dict(values)
        for name, tables in self.moves.items():
            flat = values[name].flatten().clone()
            for cells in tables:
                moved = cells[order] if cells.dim() == 1 else cells[order][:, order]
                flat[cells.flatten()] = values[name].flatten()[moved.flatten()]
            out[name] = flat.reshape(values[name].shape)
        return out


OUT, INTO = "graph/out_degree", "graph/in_degree"  # beside a fit's factors: new nodes have the degrees of these


GRAPH = "relation"  # the name of such a guide in a fit
