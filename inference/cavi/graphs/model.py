"""Models of graphs: what a model says of the pairs of its nodes, given a discrete latent of each node.

The sites of pairs gather what nodes share by the labels of two rows, as in ``probs[z[first], z[second]]``. So rows are
no longer independent, and exact sums over their latents are out of reach: the mean field is over rows too. All that it
needs is one table (K, K) of the site's arguments, which is read by running the model on pairs whose labels are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from pyro.distributions import constraints
from torch import Tensor

from ...base.errors import DataError, ModelError, NotConjugate
from ...data.graph import Graph
from ...data.schema import Schema
from ...families.expected import Expected, ExpectedPoisson, observed_family
from ...families.factors import FactorFamily, Point
from ...program.checks import expected_words, fits_support
from ...program.program import Program
from ...program.sites import Argument, Params
from ...trace.handlers import Bind, base_of, double, run, sample_sites
from ...trace.polynomials import Form
from ...trace.provenance import plain
from ...trace.structure import Latent, Structure
from ..derivation import add_terms, argument_form, check_uses, family_of, prior_of
from ..mean_field import DrawnPrior, MeanField, Moment, Prior
from ..moments import WAY_OUT as OTHER_WAY_OUT
from .pair_sums import Edges, Ties, edges_of, exposures

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


CHECKED = 500  # pairs at random, on which the exposures are checked


# --- reading ----------------------------------------------------------------------------------------------------------


def read_relation(model: Any, values: Any, kind: str, schema: Schema, given: Params | None = None) -> Relation:
    """What a model says of a graph (the values of `graphs.adapt_graph`). Call inside `engine_state`.

    Raises
    ------
    ModelError
        It is no model of pairs with a discrete latent of each node, or is not conjugate.
    DataError
        Edges that its distribution cannot take.
    """
    try:
        return _read(model, values, kind, schema, given)
    except NotConjugate as error:
        words = str(error).replace(OTHER_WAY_OUT, "choose another, for no other inference takes a graph")
        raise ModelError(words) from None


def _read(model: Any, values: Any, kind: str, schema: Schema, given: Params | None) -> Relation:
    edges = edges_of(values, kind == "directed")
    probe = _first(model, edges, kind == "directed", given or {})
    here = torch.tensor([0]), torch.tensor([1])
    nodes, bind = probe.run(*here, torch.zeros(probe.num_nodes, dtype=torch.long), symbols=True)
    structure = _structure(nodes, bind, probe)
    priors_of = {name: param.prior for name, param in structure.params.items() if param.prior is not None}
    families: dict[str, FactorFamily] = {name: family_of(name, node) for name, node in priors_of.items()}
    families |= {name: Point() for name, param in structure.params.items() if param.prior is None}
    start = {name: double(param.value).unsqueeze(0) for name, param in structure.params.items()}
    wanted: dict[str, Moment] = {}
    moves: dict[str, list[Tensor]] = {}
    latents = {probe.latent: _of_nodes(nodes[probe.latent], probe, wanted, start, moves)}
    products = {probe.site: _of_pairs(probe, wanted, start, moves)}
    priors: dict[str, Prior | DrawnPrior] = {n: prior_of(n, node, start, wanted) for n, node in priors_of.items()}
    tables = cast(Program, Tables(structure, latents, products, {}))
    field = MeanField(tables, families, priors, wanted, {})
    check_uses(field)
    field.moments(field.starts(start))  # each must exist
    fn = base_of(nodes[probe.site]["fn"])
    _check_edges(probe.site, fn, edges, schema)
    rates = exposures(lambda first, second: _rates(probe, first, second), edges)
    _check_rates(probe, rates, edges)
    statistics = products[probe.site].family
    return Relation(probe.latent, probe.site, probe.size, field, edges.measured(statistics, rates), probe, moves)


def _first(model: Any, edges: Edges, directed: bool, given: Params) -> Probe:
    """The names of the sites, from a run on one pair."""
    empty = Probe(model, "", "", 0, directed, edges.out_degree, edges.in_degree, {})
    bind = Bind(given)
    pair = torch.tensor([0]), torch.tensor([1])
    sites = sample_sites(run(model, empty.graph(*pair), bind, NESTING, enumerated=False))
    latents = [n for n, one in sites.items() if not one["is_observed"] and n not in bind.declared]
    observed = [n for n, one in sites.items() if one["is_observed"]]
    if len(latents) != 1 or len(observed) != 1:
        met = f"latents {latents} and observed sites {observed}"
        raise ModelError(f"cavi: the model of a graph has {met}, expected one of each: {WAY_OUT}")
    (latent,), (site,) = latents, observed
    plates = {frame.name: int(frame.size) for frame in sites[latent]["cond_indep_stack"]}
    fn = sites[latent]["fn"]
    if not fn.has_enumerate_support or plates != {"data": len(edges.out_degree)}:
        raise ModelError(
            f"cavi: latent '{latent}' of the model of a graph is a {type(base_of(fn)).__name__} in plates {plates}, "
            f'expected a discrete one in pyro.plate("data", graph.num_nodes): {WAY_OUT}'
        )
    plates = {frame.name: int(frame.size) for frame in sites[site]["cond_indep_stack"]}
    if "data" in plates or fn_size(sites[site]["fn"]) != 1:
        raise ModelError(
            f"cavi: site '{site}' of the model of a graph lies in plates {plates}, expected one plate of "
            f"len(graph.edges) pairs beside that of the nodes: {WAY_OUT}"
        )
    size = len(fn.enumerate_support(expand=False))
    params = {name: double(param.value) for name, param in bind.declared.items()}
    return empty._replace(latent=latent, site=site, size=size, params={**params, **given})


def fn_size(fn: Any) -> int:
    return torch.Size((*fn.batch_shape, *fn.event_shape)).numel()


def _structure(nodes: Any, bind: Bind, probe: Probe) -> Structure:
    latents = {probe.latent: Latent(probe.size, -2, ("data",))}
    plates = {"data": (-1, probe.num_nodes)}
    trace = type("Trace", (), {"nodes": nodes})()
    return Structure(bind.declared, latents, (), (probe.site,), (), plates, "data", probe.num_nodes, trace)


def _kind(name: str, fn: Any) -> Expected:
    kind = observed_family(fn)
    if kind is None or kind.fixed or kind.event_dim:
        raise ModelError(
            f"cavi: site '{name}' has a {type(fn).__name__}, which has no conjugate form here: use Bernoulli, Poisson, "
            f"Geometric or Normal edges"
        )
    return kind


def _of_nodes(node: Any, probe: Probe, wanted: dict[str, Moment], start: Params, moves: Any) -> Table:
    """The latent's own probabilities (K,)."""
    fn, name = base_of(node["fn"]), probe.latent
    kind = observed_family(fn)
    if kind is None or kind.events.get("probs") != 1 or node["mask"] is not None:
        raise ModelError(f"cavi: latent '{name}' has a {type(fn).__name__} prior, expected Categorical(probs)")
    form = argument_form(name, "probs", kind.raw(fn)["probs"])
    whole = expanded(form, (probe.num_nodes, probe.size))
    form = picked(whole, torch.tensor(0))
    if any(bool((one != one[:1]).any()) for one in parts_of(whole)):
        raise ModelError(f"cavi: the prior of latent '{name}' differs from node to node, expected one for all")
    args: dict[str, Argument] = {}
    add_terms(args, wanted, name, "probs", form, torch.Size((probe.size,)), kind, start)
    _note(moves, form)
    return Table(kind, args)


def _of_pairs(probe: Probe, wanted: dict[str, Moment], start: Params, moves: Any) -> Table:
    """The arguments of the site of pairs by both labels, (K, K), checked to depend on these alone."""
    args: dict[str, Argument] = {}
    found = [_arguments(probe, *where) for where in probe.covering()]
    kind = found[0][0]
    first, second, labels = probe.covering()[0]
    for key in kind.raw(probe.fn(first[:1], second[:1], labels, symbols=True)):
        forms = [one[1][key] for one in found]
        form = mapped(lambda *parts: probe.tabulated(list(parts)), forms)
        other = (probe.size - 1 - labels).clamp_min(0)  # other nodes bear each label now
        for at, own in ((labels, forms[0]), (other, _arguments(probe, first, second, other)[1][key])):
            if not same(picked(form, at[first], at[second]), own):
                raise ModelError(
                    f"cavi: site '{probe.site}' takes its {key} from more than the labels of both nodes: {WAY_OUT}"
                )
        if not probe.directed and not same(form, form.map(lambda tensor: tensor.mT)):
            raise ModelError(
                f"cavi: site '{probe.site}' tells the labels (k, l) of a pair from (l, k), in an undirected graph: "
                f"gather its {key} by a symmetric index, or use a directed graph"
            )
        add_terms(args, wanted, probe.site, key, form, torch.Size(()), kind, start)
        _note(moves, form)
    return Table(kind, args)


def _arguments(probe: Probe, first: Tensor, second: Tensor, labels: Tensor) -> tuple[Expected, dict[str, Form]]:
    """Arguments at some pairs, the exposure of a pair taken out."""
    fn = probe.fn(first, second, labels, symbols=True)
    kind = _kind(probe.site, fn)
    forms = {key: expanded(argument_form(probe.site, key, raw), (len(first),)) for key, raw in kind.raw(fn).items()}
    if isinstance(kind, ExpectedPoisson):
        term = forms["rate"].monomial
        if term is not None:
            forms["rate"] = forms["rate"]._replace(terms=(term._replace(coef=torch.ones_like(term.coef)),))
    return kind, forms


def _rates(probe: Probe, first: Tensor, second: Tensor) -> Tensor:
    labels = torch.zeros(probe.num_nodes, dtype=torch.long)
    return exposure_of(probe.site, probe.fn(first, second, labels, symbols=True), len(first))


def _check_rates(probe: Probe, rates: tuple[Tensor, Tensor], edges: Edges) -> None:
    generator = torch.Generator().manual_seed(0)
    size = probe.num_nodes
    pairs = torch.randint(size, (2, CHECKED), generator=generator)
    pairs = pairs[:, pairs[0] != pairs[1]]
    if not probe.directed:
        pairs = pairs.sort(0).values
    found = _rates(probe, pairs[0], pairs[1])
    if not torch.allclose(found, rates[0][pairs[0]] * rates[1][pairs[1]], rtol=SAME, atol=1e-300):
        raise ModelError(
            f"cavi: site '{probe.site}' multiplies its rate by a constant that is not one of the first node times one "
            f"of the second: {WAY_OUT}"
        )
    if not bool((found >= 0).all()) or not bool((rates[0] * rates[1] >= 0).all()):
        raise ModelError(f"cavi: site '{probe.site}' multiplies its rate by a negative constant")
    dead = (rates[0][edges.first] * rates[1][edges.second] <= 0).nonzero()
    if len(dead):
        raise ModelError(f"cavi: site '{probe.site}' gives a pair that has an edge the rate 0")


def _check_edges(site: str, fn: Any, edges: Edges, schema: Schema) -> None:
    wrong = (~fits_support(fn, fn.support, edges.value)).nonzero().flatten()
    if len(wrong):
        names = schema.columns
        i, j = int(edges.first[wrong[0]]), int(edges.second[wrong[0]])
        pair = f"{names[i]!r} and {names[j]!r}" if names else f"{i} and {j}"
        met = f"{edges.value[wrong[0]].item():g} between them"
        way = (
            "give 1 for each edge, or take a model of counts" if fn.support is constraints.boolean else "mend the data"
        )
        raise DataError(f"site '{site}': nodes {pair} have {met}, expected {expected_words(fn)}; {way}")


def _note(moves: dict[str, list[Tensor]], form: Form) -> None:
    for term in form.terms:
        for leaf in term.leaves:
            if leaf.cells.unique().numel() > 1:
                moves.setdefault(leaf.name, []).append(leaf.cells)
