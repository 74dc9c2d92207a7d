"""Graphs: factors of the nodes are found again from what they share; new graphs are runs of the model on new nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from scipy.sparse import coo_array
from torch import Tensor

from ..base.errors import DataError, OptionError
from ..base.options import check_seed
from ..cavi.graphs.ascent import Relating, settled
from ..cavi.graphs.model import HERE, INTO, OUT, Probe, Relation, probe_of, read_relation
from ..data.graph import every_pair
from ..data.schema import Dataset
from ..data.sparse import DENSE_BYTES, Bags, bags_of_sparse
from ..families.factors import Point as PointFactor
from ..families.factors import factor_family
from ..program.sites import Params
from ..trace.handlers import base_of, engine_state
from .base import Cells, Draws, Fitted, Latents, Posterior, Replicates
from .generate import check_given

DRAWS = 100  # of what nodes share and of their labels, that scores are averaged over
CHUNK = 1 << 22  # pairs simulated together
NOTE = (
    "mean field over the nodes, q = prod_n q(z_n): their latents meet in pairs and cannot be summed exactly, so the\n"
    "  bound lies below log p(data), and memberships look somewhat surer than they are"
)


class Related(NamedTuple):
    """A fit's model on a graph, the nodes' factors settled there."""

    relation: Relation
    state: Params  # of what nodes share, (1, ...)
    q: Tensor  # (N, K)


@dataclass(frozen=True)
class Graph(Posterior):
    """Factors of the labels of nodes, and of what all nodes share."""

    sparse = True
    noun = "nodes"
    score_kind = "pseudo-likelihood: each node's edges given the labels of the others, averaged over draws"

    fit: Fitted
    dataset: Dataset | None = None

    @cached_property
    def at(self) -> Related:
        fit, dataset = self.fit, self.data
        assert fit.pair.graph is not None
        relation = read_relation(fit.pair.model, dataset.values, fit.pair.graph, dataset.schema, fit.params)
        families = relation.field.families
        state = {
            name: (fit.params[name] if isinstance(families[name], PointFactor) else fit.guide_parts[name]).unsqueeze(0)
            for name in families
        }
        tables = relation.tables(relation.field.means(state))
        return Related(relation, state, settled(Relating(relation), tables, fit.guide_parts[relation.latent]))

    @property
    def latent(self) -> str:
        return next(n for n in self.fit.guide_parts if n not in (OUT, INTO, *self.fit.params))

    def log_evidence(self) -> Tensor:
        """log of the mean over draws of p(edges of node n | labels of the others, what is shared), (N,), its own label
        summed out: a pseudo-likelihood (Besag 1975), in which every edge speaks for both its nodes.
        """
        scores = self.draw(DRAWS, scored=True).log_prob
        assert scores is not None
        return scores.logsumexp(0) - math.log(DRAWS)

    def marginals(self) -> Latents:
        return {self.at.relation.latent: self.at.q}

    def factor(self, site: str) -> Any:
        families = self.at.relation.field.families
        if site not in families or isinstance(families[site], PointFactor):
            return None
        return families[site].distribution(self.at.state[site][0])

    def shared(self, num: int) -> Params:
        out = {}
        for name, family in self.at.relation.field.families.items():
            value = self.fit.params[name]
            if isinstance(family, PointFactor):
                out[name] = value.expand(num, *value.shape)
                continue
            drawn = family.placed(family.distribution(self.fit.guide_parts[name]).sample((num,)))
            out[name] = drawn.reshape(num, *value.shape)
        return out

    def draw(self, num: int, scored: bool = False) -> Draws:
        relation, shared = self.at.relation, self.shared(num)
        labels = dist.Categorical(self.at.q).sample((num,))
        scores = None
        if scored:
            each = ({n: v[s] for n, v in shared.items()} for s in range(num))
            scores = torch.stack([node_scores(relation, one, labels[s]) for s, one in enumerate(each)])
        return Draws(shared, {relation.latent: labels}, scores)

    def expected(self, everywhere: bool) -> Iterator[Cells]:
        relation, q = self.at.relation, self.at.q
        table = q @ relation.probe.expected(self.fit.params)[0] @ q.mT
        table = table * torch.from_numpy(np.outer(relation.ties.out, relation.ties.into))
        yield Cells(torch.arange(table.numel()), table.fill_diagonal_(0.0).flatten())

    def generate(self, num: Any, given: dict[str, Any], seed: int) -> Any:
        """A new graph of `num` nodes under one draw of what nodes share. Degrees that a model takes as given are those
        of the nodes of training, in their order and begun again from the first.
        """
        if isinstance(num, bool) or not isinstance(num, Integral) or num < 2:
            raise OptionError(f"num: met {num!r}, expected how many nodes the new graph has, at least 2")
        fit, latent = self.fit, self.latent
        with engine_state(check_seed(seed)), torch.no_grad():
            fixed = {name: torch.as_tensor(value) for name, value in given.items()}
            check_given(fixed, {latent, *fit.params}, "latents")
            values = {name: _one_draw(fit, name) for name in fit.params}
            values.update({name: value for name, value in fixed.items() if name != latent})
            return fit.schema.decode(simulate(fit, values, int(num), fixed.get(latent)))

    def replicate(self, draws: Draws) -> Replicates:
        values, labels = self.data.values, draws.rows[self.at.relation.latent]
        num, size = labels.shape
        if size * size * 8 * num > DENSE_BYTES:
            raise DataError(
                f"to_arviz: {num} graphs of {size} nodes fill {size * size * 8 * num / 1e9:.1f} GB: ask for fewer draws"
            )
        each = ({name: value[s] for name, value in draws.shared.items()} for s in range(num))
        drawn = [simulate(self.fit, one, size, own) for one, own in zip(each, labels, strict=True)]
        new = torch.stack([one.dense() if isinstance(one, Bags) else one for one in drawn])
        return Replicates({"x": values.dense() if isinstance(values, Bags) else values}, {"x": new})

    def axes(self, draws: Draws) -> dict[str, list[str]]:
        label, count = f"{self.at.relation.latent}_label", self.at.relation.size
        names = {(count,): [label], (count, count): [label, f"{label}_other"]}
        return {"x": ["data", "data_other"]} | {
            n: names[tuple(v.shape[1:])] for n, v in draws.shared.items() if tuple(v.shape[1:]) in names
        }

    def notes(self) -> list[str]:
        """What the mean field is over, how large the blocks are and how tied."""
        q = self.fit.guide_parts[self.latent]
        sizes = q.argmax(-1).bincount(minlength=q.shape[1]).tolist()
        found, what = block_table(self.fit)
        table = ["    " + " ".join(f"{v:9.4f}" for v in row) for row in found.tolist()]
        head = [f"  {NOTE}", f"  nodes by {self.latent}: {', '.join(map(str, sizes))}", ""]
        return [*head, f"  {what}, by {self.latent} of both nodes", *table]


def node_scores(relation: Relation, values: Params, labels: Tensor) -> Tensor:
    """log p(edges of node n | labels of the others, shared values), (N,)."""
    means = relation.field.starts({name: value.unsqueeze(0) for name, value in values.items()})
    log, eta, log_normalizer = (one.numpy() for one in relation.tables(means))
    hot = np.eye(relation.size)[labels.numpy()]
    field = relation.ties.evidence(hot, eta, log_normalizer) + log
    return torch.from_numpy(field).logsumexp(1) + torch.from_numpy(relation.ties.base)


# --- new graphs -------------------------------------------------------------------------------------------------------


def _one_draw(fit: Fitted, name: str) -> Tensor:
    if name not in fit.guide_parts:
        value: Tensor = fit.params[name]
        return value
    site = _site(fit, name)
    family = factor_family(base_of(site["fn"]))
    assert family is not None
    drawn = family.distribution(fit.guide_parts[name].unsqueeze(0)).sample()
    return family.placed(drawn)[0].reshape(fit.params[name].shape)


def _site(fit: Fitted, name: str) -> Any:
    trace, _ = _probe(fit, len(fit.guide_parts[OUT])).run(*HERE, {})
    return trace.nodes[name]


def _probe(fit: Fitted, num: int) -> Probe:
    """A fit's model on `num` nodes."""
    place = torch.arange(num) % len(fit.guide_parts[OUT])
    degrees = fit.guide_parts[OUT][place], fit.guide_parts[INTO][place]
    return probe_of(fit.pair.model, fit.pair.graph == "directed", *degrees, fit.params)


def simulate(fit: Fitted, values: Params, num: int, labels: Tensor | None = None) -> Any:
    """An adjacency matrix of `num` nodes drawn under shared values: a table, or bags where it would be large."""
    probe = _probe(fit, num)
    if labels is None:
        trace, _ = probe.run(*HERE, values)
        labels = trace.nodes[probe.latent]["fn"].sample()
    if labels.shape != (num,):
        raise DataError(f"generate: '{probe.latent}' has shape {tuple(labels.shape)}, expected ({num},)")
    parts = []
    assert fit.pair.graph is not None
    for first, second in _chunks(num, fit.pair.graph):
        drawn = probe.of_pairs(first, second, {**values, probe.latent: labels}).sample().expand(len(first))
        kept = drawn != 0
        parts.append((first[kept], second[kept], drawn[kept].double()))
    first, second, value = (torch.cat(one) for one in zip(*parts, strict=True))
    if not probe.directed:
        first, second, value = torch.cat([first, second]), torch.cat([second, first]), torch.cat([value, value])
    if num * num * 8 > DENSE_BYTES:
        return bags_of_sparse(coo_array((value.numpy(), (first.numpy(), second.numpy())), shape=(num, num)))
    out = torch.zeros(num, num, dtype=torch.float64)
    out[first, second] = value
    return out


def _chunks(num: int, kind: str) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs, not too many at once."""
    if num * num <= CHUNK:
        yield every_pair(num, kind)
        return
    step = max(1, CHUNK // num)
    nodes = torch.arange(num)
    for begin in range(0, num, step):
        rows = nodes[begin : begin + step]
        first, second = rows.repeat_interleave(num), nodes.repeat(len(rows))
        keep = first < second if kind == "undirected" else first != second
        yield first[keep], second[keep]


def block_table(fit: Fitted) -> tuple[Tensor, str]:
    """What a pair is expected to have by the labels of its nodes, (K, K); and what that is, in words."""
    with engine_state(fit.seed), torch.no_grad():
        probe = _probe(fit, len(fit.guide_parts[OUT]))
        table, exposed = probe.expected(fit.params)
    return table, "edges over what is expected by chance" if exposed else "expected edges of a pair"
