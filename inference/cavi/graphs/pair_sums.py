"""A graph as the sums over pairs need it: what is not 0 as sparse matrices, all other pairs as products of sums.

With q (N, K) the probabilities of the nodes' labels, every sum over the pairs of a graph is a sum over its E edges plus
one over all pairs of c_i d_j q_ik q_jl, which is a product of two column sums, less the diagonal and the pairs that are
not known. So nothing here costs more than E K^2 + N K^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from ...base.errors import ModelError
from ...data.graph import of_bags, of_table
from ...data.sparse import Bags
from ...families.expected import Expected

Rates = Callable[[Tensor, Tensor], Tensor]
Matrix = Any  # (n, N), an array or a sparse one
SEQUENTIAL = 512  # nodes: up to here rows are updated one by one, of larger graphs in that many parts
HALVINGS = 6


class Edges(NamedTuple):
    """Every pair that has something, once."""

    first: Tensor  # (E,)
    second: Tensor
    value: Tensor
    gaps: tuple[Tensor, Tensor]  # pairs that are not known
    out_degree: Tensor  # (N,)
    in_degree: Tensor
    directed: bool

    def measured(self, kind: Expected, rates: tuple[Tensor, Tensor]) -> Ties:
        """With statistics and exposures."""
        zero = torch.zeros(1, dtype=torch.float64)
        value = self.value.double()
        # a family's base measure and statistics may be read off its values alone (`Expected.fixed` is empty)
        log_base = torch.as_tensor(kind.base(value, {})).expand(len(value))
        at_zero = torch.as_tensor(kind.base(zero, {})).abs().sum() + kind.statistics(zero, {}).abs().sum()
        if float(at_zero) != 0:
            raise ModelError("cavi: pairs without an edge have a statistic that is not 0: no sums are derived for them")
        c, d = rates
        exposure = c[self.first] * d[self.second]
        stats = [self._matrix(self.first, self.second, one) for one in kind.statistics(value, {})]
        # a Poisson count brings its own exposure's logarithm: A (log rate + log exposure) - exposure * rate
        log_base = log_base + value * exposure.log() if bool((exposure != 1).any()) else log_base
        missing = None
        if len(self.gaps[0]):
            missing = self._matrix(*self.gaps, c[self.gaps[0]] * d[self.gaps[1]])
        of_node = self._matrix(self.first, self.second, log_base)
        base = np.asarray(of_node.sum(1)).ravel()
        if self.directed:
            base = base + np.asarray(of_node.sum(0)).ravel()
        return Ties(stats, c.numpy(), d.numpy(), missing, base, float(log_base.sum()), self.directed)

    def _matrix(self, first: Tensor, second: Tensor, value: Tensor) -> csr_array:
        size = len(self.out_degree)
        i, j, x = first.numpy(), second.numpy(), value.numpy()
        if not self.directed:
            i, j, x = np.concatenate([i, j]), np.concatenate([j, i]), np.concatenate([x, x])
        return csr_array((x, (i, j)), shape=(size, size))


def edges_of(values: Any, directed: bool) -> Edges:
    """The edges of an adjacency matrix, a table or bags."""
    cells = of_bags(values) if isinstance(values, Bags) else of_table(values.detach().cpu().double().numpy())
    keep = cells.first != cells.second if directed else cells.first < cells.second
    both = cells.first != cells.second
    gap = np.isnan(cells.value)

    def degree(side: np.ndarray) -> Tensor:
        known, lost = both & ~gap, both & gap
        total = np.bincount(side[known], cells.value[known], minlength=cells.size)
        seen = cells.size - 1 - np.bincount(side[lost], minlength=cells.size)
        return torch.from_numpy(total / np.maximum(seen, 1) * (cells.size - 1))

    first, second, value = (torch.from_numpy(part[keep & ~gap]) for part in cells[:3])
    i, j = (torch.from_numpy(part[keep & gap]) for part in cells[:2])
    gaps = i.long(), j.long()
    return Edges(first.long(), second.long(), value, gaps, degree(cells.first), degree(cells.second), directed)


def exposures(rates: Rates, edges: Edges) -> tuple[Tensor, Tensor]:
    """c and d (N,) of exposures c_i d_j, each found from N pairs; of an undirected graph they are one."""
    size = len(edges.out_degree)
    nodes = torch.arange(size)
    a, b = (int(edges.first[0]), int(edges.second[0])) if len(edges.first) else (0, 1)

    def at(first: Tensor, second: Tensor) -> Tensor:
        """Of any pairs; those of one node are 0."""
        out = torch.zeros(len(first), dtype=torch.float64)
        keep = first != second
        i, j = first[keep], second[keep]
        if not edges.directed:
            i, j = torch.minimum(i, j), torch.maximum(i, j)
        out[keep] = rates(i, j)
        return out

    to_b, from_a = at(nodes, torch.full_like(nodes, b)), at(torch.full_like(nodes, a), nodes)
    whole = float(from_a[b])
    if whole <= 0:
        raise ModelError("cavi: the model gives a pair that has an edge the rate 0")
    if not edges.directed:
        others = from_a * to_b
        others[[a, b]] = 0.0
        t = int(others.argmax())
        square = whole * float(from_a[t]) / float(to_b[t]) if float(others[t]) > 0 else whole
        c = from_a / square**0.5
        c[a] = square**0.5
        return c, c
    c, d = to_b.clone(), from_a / whole  # where d_b is 1
    d[b] = 1.0
    from_b, to_a = at(torch.full_like(nodes, b), nodes), at(nodes, torch.full_like(nodes, a))
    away = torch.ones(size, dtype=torch.float64)
    away[[a, b]] = 0.0
    s, t = int((c * away).argmax()), int((d * away).argmax())  # what other nodes say of c_b and d_a, if there are any
    c_known, d_known = float(d[t] * away[t]) > 0, float(c[s] * away[s]) > 0
    if c_known:
        c[b] = from_b[t] / d[t]
    if d_known:
        d[a] = to_a[s] / c[s]
    elif c_known and float(c[b]) > 0:
        d[a] = from_b[a] / c[b]
    else:
        d[a] = 1.0
    if not c_known:
        c[b] = from_b[a] / d[a] if float(d[a]) > 0 else 0.0
    return c, d


@dataclass(frozen=True)
class Ties:
    """The data of all pairs.

    Attributes
    ----------
    stats : list of sparse (N, N)
        Each statistic of the pairs, in both triangles where the graph is undirected.
    out, into : array (N,)
        c and d of a pair's exposure c_i d_j.
    missing : sparse (N, N), optional
        The exposures of pairs that are not known.
    base : array (N,)
        Sum of log h over the pairs of each node.
    total : float
        The same over all pairs.
    """

    stats: list[csr_array]
    out: np.ndarray
    into: np.ndarray
    missing: csr_array | None
    base: np.ndarray
    total: float
    directed: bool

    @property
    def share(self) -> float:
        """Of what is summed over both orders of a pair."""
        return 1.0 if self.directed else 0.5

    def sums(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected statistics S1 (K, K, T) and exposures S0 (K, K) of pairs by both labels."""
        s1 = np.stack([q.T @ (one @ q) for one in self.stats], -1)
        s0 = np.outer(self.out @ q, self.into @ q) - q.T @ (q * (self.out * self.into)[:, None])
        if self.missing is not None:
            s0 = s0 - q.T @ (self.missing @ q)
        return self.share * s1, self.share * s0

    def evidence(self, q: np.ndarray, eta: np.ndarray, log_normalizer: np.ndarray) -> np.ndarray:
        """E log p of each node's pairs for each of its labels, the others' under q, log h left out, (N, K)."""
        whole = Part(np.arange(len(q)), self.stats, [one.T for one in self.stats], *_both(self.missing))
        return self.local(whole, q, self.out @ q, self.into @ q, eta, log_normalizer)

    def local(
        self, part: Part, q: np.ndarray, out: np.ndarray, into: np.ndarray, eta: np.ndarray, log_normalizer: np.ndarray
    ) -> np.ndarray:
        """The same of some nodes (n, K); `out` and `into` (K,) are c @ q and d @ q."""
        own, c, d = q[part.nodes], self.out[part.nodes, None], self.into[part.nodes, None]
        field = -(c * (into - d * own)) @ log_normalizer.T
        for t, one in enumerate(part.rows):
            field += (one @ q) @ eta[:, :, t].T
        if part.missing is not None:
            field += (part.missing @ q) @ log_normalizer.T
        if self.directed:
            field -= (d * (out - c * own)) @ log_normalizer
            for t, one in enumerate(part.columns):
                field += (one @ q) @ eta[:, :, t]
            if part.missing_columns is not None:
                field += (part.missing_columns @ q) @ log_normalizer
        return field

    def parts(self) -> list[Part]:
        """The nodes one by one; those of a large graph in parts, by chance: neighbours in order are often linked."""
        size = len(self.out)
        if size <= SEQUENTIAL:
            places = [np.array([i]) for i in range(size)]
            stats = [one.toarray() for one in self.stats]
            missing = None if self.missing is None else self.missing.toarray()
        else:
            order = np.random.default_rng(0).permutation(size)
            places = [np.sort(one) for one in np.array_split(order, SEQUENTIAL)]
            stats, missing = self.stats, self.missing
        columns = [one.T.tocsr() if size > SEQUENTIAL else one.T for one in stats] if self.directed else []
        gaps = missing.T if self.directed and missing is not None else None
        gaps = gaps.tocsr() if gaps is not None and size > SEQUENTIAL else gaps
        return [
            Part(
                place,
                [one[place] for one in stats],
                [one[place] for one in columns],
                None if missing is None else missing[place],
                None if gaps is None else gaps[place],
            )
            for place in places
        ]


class Part(NamedTuple):
    """Some nodes, with their rows of the matrices of `Ties`, and their columns where the graph is directed."""

    nodes: np.ndarray
    rows: list[Matrix]
    columns: list[Matrix]
    missing: Matrix | None
    missing_columns: Matrix | None


def _both(missing: csr_array | None) -> tuple[Matrix | None, Matrix | None]:
    return (None, None) if missing is None else (missing, missing.T)


def sweep(
    ties: Ties, parts: list[Part], q: np.ndarray, log_prior: np.ndarray, eta: np.ndarray, log_normalizer: np.ndarray
) -> np.ndarray:
    """Every node's factor in turn to its optimum given the others, (N, K).

    Of a part of several nodes all move at once, and no further than the bound gains by it: with delta the move,
    f the expected log density and H its change with delta, the gain is delta . f + delta . H / 2, and that of the
    entropy.
    """
    q = q.copy()
    out, into = ties.out @ q, ties.into @ q
    for part in parts:
        index = part.nodes
        before = q[index]
        field = log_prior + ties.local(part, q, out, into, eta, log_normalizer)
        step, after = 1.0, softmax(field)
        sums = _moved(ties, index, before, after, out, into)
        if len(index) > 1:
            log = np.log(np.maximum(before, 1e-300))
            for _ in range(HALVINGS):
                q[index] = after
                change = log_prior + ties.local(part, q, *sums, eta, log_normalizer) - field
                delta = after - before
                gain = (delta * (field + 0.5 * change)).sum() + entropy(after) - entropy(before)
                if gain >= 0:
                    break
                step *= 0.5
                after = softmax((1 - step) * log + step * field)
                sums = _moved(ties, index, before, after, out, into)
            else:
                after, sums = before, (out, into)
        q[index] = after
        out, into = sums
    return q


def _moved(
    ties: Ties, index: np.ndarray, before: np.ndarray, after: np.ndarray, out: np.ndarray, into: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    delta = after - before
    return out + ties.out[index] @ delta, into + ties.into[index] @ delta


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last dim."""
    out: np.ndarray = np.exp(logits - logits.max(-1, keepdims=True))
    return out / out.sum(-1, keepdims=True)


def entropy(q: np.ndarray) -> float:
    """Of all rows together, in nats."""
    return -float((q * np.log(np.maximum(q, 1e-300))).sum())
