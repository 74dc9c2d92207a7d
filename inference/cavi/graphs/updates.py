"""Coordinate ascent on a graph: each node's factor in turn, then those of what the nodes share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...base.errors import DataError
from ...program.estep import Expectations
from ...program.sites import Params
from ..sweeps import Sweeps
from .model import Relation
from .pair_sums import Part, entropy, sweep

STAGES = ((5, 3), (15, 1))  # sweeps of the candidates of a start, and how many of these go on
ROWS = 200  # sweeps of the nodes at most, where what they share is held


@dataclass(frozen=True)
class Relating:
    """Coordinate ascent as `runner.Steps`. A state holds natural parameters of the shared factors (params as they are)
    and, under the latent's name, q (1, N, K).
    """

    relation: Relation
    m_steps: int = 20

    @property
    def together(self) -> bool:
        return False

    @cached_property
    def parts(self) -> list[Part]:
        return self.relation.ties.parts()

    @cached_property
    def shared(self) -> Sweeps:
        return Sweeps(self.relation.field, None, self.m_steps, 1)

    def expect(self, q: np.ndarray) -> Expectations:
        """What the shared factors need of the nodes."""
        relation = self.relation
        s1, s0 = (torch.from_numpy(part).unsqueeze(0) for part in relation.ties.sums(q))
        totals = torch.from_numpy(q.sum(0))
        nodes = totals[1:].unsqueeze(0), totals.sum().reshape(1)
        return Expectations(torch.zeros(1, dtype=torch.float64), {relation.latent: nodes, relation.site: (s1, s0)}, {})

    def bounds(self, state: Params) -> tuple[list[float], Any]:
        relation, field = self.relation, self.relation.field
        with torch.no_grad():
            q = state[relation.latent][0].numpy()
            shared = self.of_shared(state)
            means = field.means(shared)
            stats = self.expect(q)
            bound = field.log_prob(means, stats, (relation.latent, relation.site)) - field.cost(shared, means)
            return [float(bound) + relation.ties.total + entropy(q)], stats

    def improve(self, state: Params, expected: Any) -> Params:
        field = self.relation.field
        with torch.no_grad():
            shared = self.shared.sweep(field.means(self.of_shared(state)), expected)
            return {**shared, self.relation.latent: self.rows(shared, state[self.relation.latent])}

    def degenerate(self, state: Params) -> bool:
        return False

    def of_shared(self, state: Params) -> Params:
        """The factors of what nodes share."""
        return {name: value for name, value in state.items() if name != self.relation.latent}

    def rows(self, shared: Params, q: Tensor) -> Tensor:
        """Every node's factor, once, (1, N, K)."""
        with torch.no_grad():
            tables = self.relation.tables(self.relation.field.means(shared))
        found = sweep(self.relation.ties, self.parts, q[0].numpy(), *(one.numpy() for one in tables))
        return torch.from_numpy(found).unsqueeze(0)

    def begin(self, q: Tensor) -> Params:
        """The state in which the shared factors suit the nodes' q (N, K)."""
        relation, field = self.relation, self.relation.field
        values = {name: param.value.unsqueeze(0) for name, param in field.program.structure.params.items()}
        with torch.no_grad():
            shared = self.shared.sweep(field.starts(values), self.expect(q.numpy()))
        return {**shared, relation.latent: q.unsqueeze(0)}

    def best(self, candidates: list[Tensor]) -> Params:
        """The start that leads highest, as it was: all go a few sweeps, the better ones of these further."""
        starts = [self.begin(q) for q in candidates]
        reached = [(number, state) for number, state in enumerate(starts)]
        for sweeps, kept in STAGES:
            if len(reached) == 1:
                break
            bounds = []
            for place, (number, state) in enumerate(reached):
                bound, stats = self.bounds(state)
                for _ in range(sweeps):
                    state = self.improve(state, stats)
                    bound, stats = self.bounds(state)
                reached[place] = (number, state)
                bounds.append(bound[0])
            order = sorted(range(len(bounds)), key=lambda place: -bounds[place])
            reached = [reached[place] for place in order[:kept]]
        return starts[reached[0][0]]


def settled(steps: Relating, tables: Any, q: Tensor) -> Tensor:
    """q (N, K) once the nodes stand still, what they share held."""
    now, held = q.numpy(), [one.detach().numpy() for one in tables]
    for _ in range(ROWS):
        before, now = now, sweep(steps.relation.ties, steps.parts, now, *held)
        if abs(now - before).max() <= 1e-10:
            break
    return torch.from_numpy(now)


def candidates_of(relation: Relation, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """For each restart in turn, labels to start from as q (N, K).

    First the leading eigenvectors of the graph, seen in several ways (Qin and Rohe 2013), and its degrees; then, again
    and again, random ones.
    """
    size, ties = relation.size, relation.ties
    nodes = len(ties.out)
    graph = ties.stats[0] if not ties.directed else ties.stats[0] + ties.stats[0].T
    found = [_one_hot(labels, size) for labels in _spectral(abs(graph), size, generator)]
    degrees = np.asarray(graph.sum(1)).ravel()
    found.append(_one_hot(np.argsort(np.argsort(degrees, kind="stable")) * size // nodes, size))
    found += [_random(nodes, size, generator) for _ in range(2)]
    yield found
    while True:
        yield [_random(nodes, size, generator) for _ in range(3)]


def _random(nodes: int, size: int, generator: torch.Generator) -> Tensor:
    labels = torch.randperm(nodes, generator=generator) % size
    return _one_hot(labels.numpy(), size)


def _one_hot(labels: np.ndarray, size: int) -> Tensor:
    """Nearly certain labels."""
    hot = torch.nn.functional.one_hot(torch.from_numpy(np.asarray(labels)).long(), size).double()
    return 0.9 * hot + 0.1 / size


def _spectral(graph: Any, size: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    """k-means on leading eigenvectors: of the graph, and of the graph over its degrees, rows at unit length or not."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    nodes = graph.shape[0]
    if size == 1 or nodes <= size:
        yield np.arange(nodes) % size
        return
    degrees = np.asarray(graph.sum(1)).ravel()
    scale = 1 / np.sqrt(degrees + max(degrees.mean(), 1e-12))
    normalized = graph.multiply(scale[:, None]).multiply(scale[None, :]).tocsr()
    for matrix, ways in ((normalized, (True, False)), (graph, (False,))):
        values, vectors = _leading(matrix, size)
        for unit in ways:
            rows = vectors * np.sqrt(np.abs(values)) if not unit else vectors
            if unit:
                rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            seed = int(torch.randint(2**31 - 1, (), generator=generator))
            with warnings.catch_warnings():  # of a graph as regular as a clique all rows are one
                warnings.simplefilter("ignore", ConvergenceWarning)
                yield KMeans(size, n_init=5, random_state=seed).fit_predict(rows)


def _leading(matrix: Any, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of largest size and their vectors: the groups of a graph may seek or shun each other."""
    nodes = matrix.shape[0]
    if nodes <= 400:
        values, vectors = np.linalg.eigh(matrix.toarray())
    else:
        from scipy.sparse.linalg import ArpackNoConvergence, eigsh

        try:
            values, vectors = eigsh(matrix, k=min(size, nodes - 2), which="LM", v0=np.ones(nodes))
        except ArpackNoConvergence as partly:
            values, vectors = partly.eigenvalues, partly.eigenvectors
        if not len(values):
            return np.ones(1), np.ones((nodes, 1))
    order = np.argsort(-np.abs(values))[:size]
    return values[order], vectors[:, order]


def given_start(relation: Relation, value: Any, source: str) -> Tensor:
    """q (N, K) from labels (N,) or probabilities (N, K)."""
    nodes, size, name = len(relation.ties.out), relation.size, relation.latent
    found = torch.as_tensor(value).detach().cpu()
    if found.shape == (nodes,):
        whole = found.double()
        if bool(((whole < 0) | (whole >= size) | (whole != whole.floor())).any()):
            raise DataError(f"{source}: '{name}' holds labels outside 0 to {size - 1}")
        return _one_hot(found.long().numpy(), size)
    if found.shape == (nodes, size) and bool((found >= 0).all()) and bool((found.sum(1) > 0).all()):
        q = found.double()
        return q / q.sum(1, keepdim=True)
    raise DataError(
        f"{source}: '{name}' has shape {tuple(found.shape)}, expected labels ({nodes},) or probabilities "
        f"({nodes}, {size})"
    )
