"""CAVI of a graph whose nodes have a discrete latent each: every node in turn, then what the nodes share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...base.errors import DataError, ModelError, OptionError
from ...data.devices import device_of
from ...data.schema import Dataset
from ...data.sparse import densified
from ...families.factors import Point
from ...optimize.modes import Outcome, Reached
from ...optimize.starts import each_start
from ...pair import Pair
from ...program.against_pyro import Witness
from ...program.estep import Expectations, one_thread
from ...program.sites import Params
from ..climb import CAVIOptions, climb
from ..sweeps import Sweeps
from .model import GRAPH, INTO, OUT, Relation, read_relation
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

    def at_points(self, values: Params) -> float:
        """log p(x) and the log density of all latents at one value of each."""
        relation, field = self.relation, self.relation.field
        q = torch.nn.functional.one_hot(values[relation.latent].long(), relation.size).double().numpy()
        means = field.starts({name: v.unsqueeze(0) for name, v in values.items() if name != relation.latent})
        pairs = field.log_prob(means, self.expect(q), (relation.latent, relation.site)).sum()
        moments = field.moments(means)
        priors = [field.log_prior(name, prior, moments, means).sum() for name, prior in field.priors.items()]
        return float(pairs + sum(priors)) + relation.ties.total

    def rows(self, shared: Params, q: Tensor) -> Tensor:
        """Every node's factor, once, (1, N, K)."""
        with torch.no_grad():
            tables = self.relation.tables(self.relation.field.means(shared))
        found = sweep(self.relation.ties, self.parts, q[0].numpy(), *(one.numpy() for one in tables))
        return torch.from_numpy(found).unsqueeze(0)

    def begin(self, q: Tensor) -> Params:
        """The state in which the shared factors suit the nodes' q (N, K)."""
        relation, field = self.relation, self.relation.field
        values = {name: param.value.unsqueeze(0) for name, param in field.params.items()}
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


def fit_relation(
    pair: Pair,
    dataset: Dataset,
    options: CAVIOptions,
) -> Reached:
    """Raise the bound from each start in turn. Call inside `engine_state`."""
    for name, value in (("batch_size", options.batch_size), ("fallback", options.fallback)):
        if value is not None:
            raise OptionError(f"{name}: not taken by models of graphs, whose nodes meet in pairs: leave it out")
    device = device_of(dataset.values)
    if device.type != "cpu":
        raise OptionError(f"device: met '{device}', expected 'cpu', where models of graphs are fitted: leave it out")
    assert pair.graph is not None
    relation = read_relation(pair.model, dataset.values, pair.graph, dataset.schema)
    steps = Relating(relation, options.m_steps)
    with one_thread():
        begun = _starts(pair, dataset, steps, options)
        declared = {name: param.value for name, param in relation.field.params.items()}
        nodes, table = relation.probe.num_nodes, densified(dataset.values)
        proof = Witness("cavi", pair.model, table, lambda _, values: steps.at_points(values), nodes, whole=True)
        proof.compare("start", {**declared, relation.latent: begun[0][relation.latent][0].argmax(-1)})
        return climb(
            steps,
            {name: torch.cat([one[name] for one in begun]) for name in begun[0]},
            options,
            lambda found: [_aligned(relation, one, max(found, key=lambda each: each.bound)) for one in found],
            nodes,
            lambda best, q: proof.compare("end", {**best.params, relation.latent: q[relation.latent].argmax(-1)}),
            relation.field.params,
            GRAPH,
            lambda state: {
                **{n: v for n, v in state.items() if n == relation.latent or n in relation.field.priors},
                OUT: relation.probe.out_degree,
                INTO: relation.probe.in_degree,
            },
        )


def _starts(pair: Pair, dataset: Dataset, steps: Relating, options: CAVIOptions) -> list[Params]:
    """A state of each restart: `initialize` and `start` may give the latent of the nodes."""
    relation, start = steps.relation, options.start
    generator = torch.Generator().manual_seed(options.seed)
    candidates = candidates_of(relation, generator)
    drawn = each_start(pair.initialize, dataset.values, generator, {relation.latent: relation.size})
    out = []
    for number in range(options.restarts):
        found = next(drawn, None)
        given = start if number == 0 and start else dict(found) if found else None
        out.append(_given(steps, given, next(candidates)) if given else steps.best(next(candidates)))
    return out


def _given(steps: Relating, given: Params, candidates: list[Tensor]) -> Params:
    relation = steps.relation
    declared = relation.field.params
    unknown = sorted(set(given) - {relation.latent, *declared})
    if unknown:
        raise ModelError(
            f"start: a value for '{unknown[0]}', which the model does not declare: it has "
            f"{sorted((relation.latent, *declared))}"
        )
    if relation.latent in given:
        return steps.begin(given_start(relation, given[relation.latent], "start"))
    values = {name: param.value for name, param in declared.items()}
    for name, value in given.items():
        value = torch.as_tensor(value).double()
        if value.shape != values[name].shape:
            raise ModelError(
                f"start: '{name}' has shape {tuple(value.shape)}; the model declares {tuple(values[name].shape)}"
            )
        values[name] = value
    tables = relation.tables(relation.field.starts({n: v.unsqueeze(0) for n, v in values.items()}))
    q = settled(steps, tables, best_match(steps, tables, candidates))
    return steps.begin(q)


def best_match(steps: Relating, tables: Any, candidates: list[Tensor]) -> Tensor:
    """Of all candidates and of each change of places of two labels, the highest under shared values that are held."""
    return max((_matched(steps, tables, q) for q in candidates), key=lambda one: one[0])[1]


def _matched(steps: Relating, tables: Any, q: Tensor) -> tuple[float, Tensor]:
    """Labels change places two by two while that is a gain."""
    log, eta, log_normalizer = tables
    s1, s0 = (torch.from_numpy(part) for part in steps.relation.ties.sums(q.numpy()))
    totals = q.sum(0)

    def value(order: list[int]) -> float:
        at = torch.tensor(order)
        pairs = (s1 * eta[at][:, at]).sum() - (s0 * log_normalizer[at][:, at]).sum()
        return float(pairs + (totals * log[at]).sum())

    order = list(range(len(totals)))
    best = value(order)
    gained = True
    while gained:
        gained = False
        for k in range(len(order)):
            for other in range(k):
                tried = list(order)
                tried[k], tried[other] = tried[other], tried[k]
                if value(tried) > best + 1e-12 * abs(best):
                    order, best, gained = tried, value(tried), True
    moved = torch.empty_like(q)
    moved[:, torch.tensor(order)] = q
    return best, moved


def _aligned(relation: Relation, one: Outcome, best: Outcome) -> Outcome:
    """An outcome by the means of its factors, its labels as near those of the best as can be."""
    from scipy.optimize import linear_sum_assignment

    field, name = relation.field, relation.latent
    shared = {n: v for n, v in one.params.items() if n != name}
    params = {
        n: value if isinstance(field.families[n], Point) else field.families[n].center(value.unsqueeze(0))[0]
        for n, value in shared.items()
    }
    _, order = linear_sum_assignment(best.params[name].mT @ one.params[name], maximize=True)
    params = relation.permuted(params, torch.from_numpy(order))
    begun = {name: one.start[name].argmax(-1).double()}
    return replace(one, params=params, start=begun)
