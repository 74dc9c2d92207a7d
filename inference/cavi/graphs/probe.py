"""Runs of a model of a graph on pairs of nodes whose labels are known, and what arguments are by both labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...base.errors import ModelError
from ...data.graph import Graph
from ...families.expected import ExpectedPoisson, observed_family
from ...program.sites import Params
from ...trace.handlers import Bind, base_of, run
from ...trace.polynomials import Form
from ...trace.provenance import plain
from ..derivation import argument_form

WAY_OUT = "write the model with one discrete latent of each node, and one site of pairs that gathers by two of them"
NESTING = 1
SAME = 1e-8


class Probe(NamedTuple):
    """A model on some pairs of a graph, the labels of all nodes held."""

    model: Any
    latent: str
    site: str
    size: int
    directed: bool
    out_degree: Tensor
    in_degree: Tensor
    params: Params

    @property
    def num_nodes(self) -> int:
        return len(self.out_degree)

    def graph(self, first: Tensor, second: Tensor) -> Graph:
        blank = torch.zeros(len(first), dtype=torch.float64)
        return Graph(first, second, blank, self.out_degree, self.in_degree, self.num_nodes)

    def run(self, first: Tensor, second: Tensor, labels: Tensor, symbols: bool = False, params: Any = None) -> Any:
        bind = Bind({**(params or self.params), self.latent: labels}, symbols=symbols)
        return run(self.model, self.graph(first, second), bind, NESTING, enumerated=False).nodes, bind

    def fn(self, first: Tensor, second: Tensor, labels: Tensor, symbols: bool = False, params: Any = None) -> Any:
        return base_of(self.run(first, second, labels, symbols, params)[0][self.site]["fn"])

    def covering(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Pairs and labels of all nodes in which each of the K x K labels of a pair is met."""
        size, nodes = self.size, torch.arange(self.num_nodes)
        some = nodes[: 2 * size]
        first, second = some.repeat_interleave(len(some)), some.repeat(len(some))
        keep = first < second if not self.directed else first != second
        first, second = first[keep], second[keep]
        out = [(first, second, nodes % size)]
        if self.num_nodes < 2 * size:
            pair = torch.tensor([0]), torch.tensor([1])
            for k in range(size):
                for other in range(size):
                    labels = torch.zeros_like(nodes)
                    labels[0], labels[1] = k, other
                    out.append((*pair, labels))
        return out

    def tabulated(self, found: list[Tensor]) -> Tensor:
        """Values (K, K) from those at the pairs of `covering`."""
        out = torch.zeros(self.size, self.size, dtype=found[0].dtype)
        for (first, second, labels), value in zip(self.covering(), found, strict=True):
            out[labels[first], labels[second]] = value.expand(len(first))
        return out

    def expected(self, params: Params) -> tuple[Tensor, bool]:
        """What a pair of each labels is expected to have, per unit of its exposure, (K, K); and whether pairs have
        exposures of their own.
        """
        means, rates = [], []
        for where in self.covering():
            fn = self.fn(*where, symbols=True, params=params)
            means.append(plain(fn.mean))
            rates.append(exposure_of(self.site, fn, len(where[0])))
        return self.tabulated(means) / self.tabulated(rates), any(bool((one != 1).any()) for one in rates)


def exposure_of(site: str, fn: Any, count: int) -> Tensor:
    """The constant that a pair's rate is multiplied by, of Poisson edges; 1 of others."""
    kind = observed_family(fn)
    if isinstance(kind, ExpectedPoisson):
        term = argument_form(site, "rate", kind.raw(fn)["rate"]).monomial
        if term is not None:
            return term.coef.double().expand(count)
    return torch.ones(count, dtype=torch.float64)


# --- forms as tables --------------------------------------------------------------------------------------------------


def parts_of(form: Form) -> list[Tensor]:
    return [form.offset, *(part for t in form.terms for part in (t.coef, *(leaf.cells for leaf in t.leaves)))]


def expanded(form: Form, shape: tuple[int, ...]) -> Form:
    if any(term.summed for term in form.terms):
        raise ModelError(f"cavi: a model of a graph multiplies matrices in an argument: {WAY_OUT}")
    return form.map(lambda tensor: tensor.expand(shape))


def picked(form: Form, *place: Tensor) -> Form:
    return form.map(lambda tensor: tensor[place])


def mapped(change: Any, forms: list[Form]) -> Form:
    """One form of several of one kind, part by part."""
    if any(len(parts_of(form)) != len(parts_of(forms[0])) for form in forms):
        raise ModelError(f"cavi: an argument is made of other latents for other pairs: {WAY_OUT}")
    parts = iter([change(*tensors) for tensors in zip(*map(parts_of, forms), strict=True)])
    offset = next(parts)
    terms = []
    for term in forms[0].terms:
        coef = next(parts)
        terms.append(term._replace(coef=coef, leaves=tuple(leaf._replace(cells=next(parts)) for leaf in term.leaves)))
    return Form(offset, tuple(terms))


def same(one: Form, two: Form) -> bool:
    parts, others = parts_of(one), parts_of(two)
    if len(parts) != len(others):
        return False
    return all(torch.allclose(a.double(), b.double(), rtol=SAME) for a, b in zip(parts, others, strict=True))
