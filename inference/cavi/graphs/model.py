"""Models of graphs: what a model says of the pairs of its nodes, given a discrete latent of each node.

The sites of pairs gather what nodes share by the labels of two rows, as in ``probs[z[first], z[second]]``. So rows are
no longer independent, and exact sums over their latents are out of reach: the mean field is over rows too. All that it
needs is one table (K, K) of the site's arguments. A run of the model gives it: labels that are gathered by an end of
pairs enter as an enumerated dim, one for each end, and the arguments are then read as those of any site are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor

from ...base.errors import DataError, ModelError, NotConjugate
from ...data.graph import Graph
from ...data.schema import Schema
from ...families.expected import Expected, ExpectedPoisson, observed_family
from ...families.factors import FactorFamily, Point
from ...program.checks import expected_words, fits_support
from ...program.sites import Argument, Params, Site
from ...trace.handlers import Bind, base_of, double, run, sample_sites
from ...trace.polynomials import Form
from ...trace.provenance import plain
from ..derivation import add_terms, argument_form, check_uses, family_of, prior_of
from ..mean_field import DrawnPrior, MeanField, Moment, Prior
from ..moments import WAY_OUT as OTHER_WAY_OUT
from .pair_sums import Edges, Ties, edges_of, exposures

WAY_OUT = (
    "write the model with one discrete latent of each node, and one site of pairs that gathers by two of them, as in "
    "table[z[graph.first], z[graph.second]]"
)
GRAPH = "relation"  # the name of such a guide in a fit
OUT, INTO = "graph/out_degree", "graph/in_degree"  # beside a fit's factors: new nodes have the degrees of these
CHECKED = 500  # pairs at random, on which arguments are read
SAME = 1e-8
HERE = torch.tensor([0]), torch.tensor([1])  # a pair of any graph


@dataclass(frozen=True)
class Relation:
    """A model of one discrete latent of each node and one site of pairs, in expectation.

    Attributes
    ----------
    field : MeanField
        The factors of what nodes share.
    ties : Ties
        The data as the sums over pairs need them.
    probe : Probe
        Runs of the model.
    moves : dict
        Shared latent -> its cells by label, (K,) or (K, K) each: they move as labels change places.
    """

    field: MeanField
    ties: Ties
    probe: Probe
    moves: dict[str, list[Tensor]]

    @property
    def latent(self) -> str:
        return self.probe.latent

    @property
    def site(self) -> str:
        return self.probe.site

    @property
    def size(self) -> int:
        """K, how many values the latent has."""
        return self.probe.size

    def tables(self, means: Params) -> tuple[Tensor, Tensor, Tensor]:
        """E log p(z = k), (K,), E eta (K, K, T) and E A (K, K)."""
        moments = self.field.moments(means, (self.latent, self.site))
        of_node, of_pair = (self.field.terms[name] for name in (self.latent, self.site))
        eta, log_normalizer = of_node.natural(of_node.arguments(moments))
        log = torch.cat([torch.zeros(1, 1), eta], 1) - log_normalizer.reshape(1, 1)
        eta, log_normalizer = of_pair.natural(of_pair.arguments(moments))
        return log[0], eta[0], log_normalizer[0]

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


# --- runs of the model ------------------------------------------------------------------------------------------------


class Ends(Tensor):
    """Labels of the nodes of which only those at the ends of pairs are asked for: `first` gathers (K, 1), every label
    along one enumerated dim, and `second` (K, 1, 1), along another.
    """

    graph: Graph
    cardinality: int

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        labels, *rest = args
        with torch._C.DisableTorchFunctionSubclass():
            asked = [one for one in (*rest, *(kwargs or {}).values()) if isinstance(one, Tensor)]
            if isinstance(labels, Ends) and len(asked) == 1:
                for dim, end in ((-2, labels.graph.first), (-3, labels.graph.second)):
                    if torch.equal(asked[0], end):
                        return torch.arange(labels.cardinality).reshape(-1, *(1,) * (-1 - dim))
            out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            name = getattr(func, "__name__", str(func))
            raise ModelError(f"cavi: the model of a graph takes the labels of its nodes to '{name}': {WAY_OUT}")
        return out


class Probe(NamedTuple):
    """A model that is run on some pairs of a graph, the labels of its nodes held."""

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

    def run(self, first: Tensor, second: Tensor, values: Params, symbols: bool = False) -> tuple[Any, Bind]:
        """What the model does on some pairs, and what it declares; labels are drawn, unless `values` has them."""
        bind = Bind({**self.params, **values}, symbols=symbols)
        return run(self.model, self.graph(first, second), bind, 1, enumerated=False), bind

    def of_pairs(self, first: Tensor, second: Tensor, values: Params | None = None, symbols: bool = False) -> Any:
        """The distribution of some pairs, (K, K, P) by the labels of the second node and of the first; (P,) where
        `values` hold the labels.
        """
        ends = torch.zeros(self.num_nodes, dtype=torch.long).as_subclass(Ends)
        ends.graph, ends.cardinality = self.graph(first, second), self.size
        found, _ = self.run(first, second, {self.latent: ends, **(values or {})}, symbols)
        return base_of(found.nodes[self.site]["fn"])

    def some_pairs(self) -> tuple[Tensor, Tensor]:
        """Pairs at random."""
        pairs = torch.randint(self.num_nodes, (2, CHECKED), generator=torch.Generator().manual_seed(0))
        pairs = pairs[:, pairs[0] != pairs[1]]
        first, second = pairs if self.directed else pairs.sort(0).values
        return first, second

    def rates(self, first: Tensor, second: Tensor) -> Tensor:
        """The constant (P,) that a pair's rate is multiplied by, of Poisson edges; 1 of others."""
        fn = self.of_pairs(first, second, symbols=True)
        kind = observed_family(fn)
        if isinstance(kind, ExpectedPoisson):
            term = argument_form(self.site, "rate", kind.raw(fn)["rate"]).monomial
            if term is not None:
                return term.coef.double().expand(self.size, self.size, len(first))[0, 0]
        return torch.ones(len(first), dtype=torch.float64)

    def expected(self, params: Params) -> tuple[Tensor, bool]:
        """What a pair of each labels is expected to have, per unit of its exposure, (K, K); and whether pairs have
        exposures of their own.
        """
        first, second = self.some_pairs()
        rates = self.rates(first, second)
        place = int(rates.argmax())
        mean = plain(self.of_pairs(first, second, params).mean).expand(self.size, self.size, len(first))
        return mean[..., place].mT / rates[place], bool((rates != 1).any())


def probe_of(model: Any, directed: bool, out_degree: Tensor, in_degree: Tensor, given: Params) -> Probe:
    """A model on nodes of some degrees: the names of its sites, from a run on one pair."""
    empty = Probe(model, "", "", 0, directed, out_degree, in_degree, given)
    trace, bind = empty.run(*HERE, {})
    sites = sample_sites(trace)
    latents = [n for n, one in sites.items() if not one["is_observed"] and n not in bind.declared]
    observed = [n for n, one in sites.items() if one["is_observed"]]
    if len(latents) != 1 or len(observed) != 1:
        met = f"latents {latents} and observed sites {observed}"
        raise ModelError(f"cavi: the model of a graph has {met}, expected one of each: {WAY_OUT}")
    (latent,), (site,) = latents, observed
    plates = {frame.name: int(frame.size) for frame in sites[latent]["cond_indep_stack"]}
    fn = sites[latent]["fn"]
    if not fn.has_enumerate_support or plates != {"data": empty.num_nodes}:
        raise ModelError(
            f"cavi: latent '{latent}' of the model of a graph is a {type(base_of(fn)).__name__} in plates {plates}, "
            f'expected a discrete one in pyro.plate("data", graph.num_nodes): {WAY_OUT}'
        )
    plates = {frame.name: int(frame.size) for frame in sites[site]["cond_indep_stack"]}
    observed_fn = sites[site]["fn"]
    if "data" in plates or torch.Size((*observed_fn.batch_shape, *observed_fn.event_shape)).numel() != 1:
        raise ModelError(
            f"cavi: site '{site}' of the model of a graph lies in plates {plates}, expected one plate of "
            f"len(graph.edges) pairs beside that of the nodes: {WAY_OUT}"
        )
    size = len(fn.enumerate_support(expand=False))
    params = {name: double(param.value) for name, param in bind.declared.items()}
    return empty._replace(latent=latent, site=site, size=size, params={**params, **given})


# --- reading ----------------------------------------------------------------------------------------------------------


def read_relation(model: Any, values: Any, kind: str, schema: Schema, given: Params | None = None) -> Relation:
    """What a model says of a graph (the values of `graph.adapt_graph`). Call inside `engine_state`.

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
    probe = probe_of(model, kind == "directed", edges.out_degree, edges.in_degree, given or {})
    labels = torch.zeros(probe.num_nodes, dtype=torch.long)
    trace, bind = probe.run(*HERE, {probe.latent: labels}, symbols=True)
    priors_of = {name: param.prior for name, param in bind.declared.items() if param.prior is not None}
    families: dict[str, FactorFamily] = {name: family_of(name, node) for name, node in priors_of.items()}
    families |= {name: Point() for name, param in bind.declared.items() if param.prior is None}
    start = {name: double(param.value).unsqueeze(0) for name, param in bind.declared.items()}
    wanted: dict[str, Moment] = {}
    moves: dict[str, list[Tensor]] = {}
    _check_edges(probe.site, base_of(trace.nodes[probe.site]["fn"]), edges, schema)
    of_node, of_pair = _of_nodes(trace.nodes[probe.latent], probe), _of_pairs(probe, edges)
    terms: dict[str, Site] = {}
    for name, (family, forms) in ((probe.latent, of_node), (probe.site, of_pair)):
        args: dict[str, Argument] = {}
        for key, form in forms.items():
            event = form.offset.shape if family.events.get(key, 0) else torch.Size(())
            add_terms(args, wanted, name, key, form, event, family, start)
            _note(moves, form)
        shape = (probe.size, probe.size) if name == probe.site else ()
        terms[name] = Site(name, family, args, shape, 0, edges.value, len(shape))
    priors: dict[str, Prior | DrawnPrior] = {n: prior_of(n, node, start, wanted) for n, node in priors_of.items()}
    field = MeanField(bind.declared, terms, families, priors, wanted, {})
    check_uses(field)
    field.moments(field.starts(start))  # each must exist
    rates = exposures(probe.rates, edges)
    _check_rates(probe, rates, edges)
    return Relation(field, edges.measured(of_pair[0], rates), probe, moves)


def _of_nodes(node: Any, probe: Probe) -> tuple[Expected, dict[str, Form]]:
    """The family of the latent, and its probabilities (K,)."""
    fn, name = base_of(node["fn"]), probe.latent
    kind = observed_family(fn)
    if kind is None or kind.events.get("probs") != 1 or node["mask"] is not None:
        raise ModelError(f"cavi: latent '{name}' has a {type(fn).__name__} prior, expected Categorical(probs)")

    def of_all(tensor: Tensor) -> Tensor:
        whole = tensor.expand(probe.num_nodes, probe.size)
        if bool((whole != whole[:1]).any()):
            raise ModelError(f"cavi: the prior of latent '{name}' differs from node to node, expected one for all")
        return whole[0]

    return kind, {"probs": _unsummed(argument_form(name, "probs", kind.raw(fn)["probs"])).map(of_all)}


def _of_pairs(probe: Probe, edges: Edges) -> tuple[Expected, dict[str, Form]]:
    """The family of the site of pairs, and its arguments by both labels, (K, K), which depend on these alone."""
    first, second = probe.some_pairs()
    first, second = torch.cat([first, edges.first[:1]]), torch.cat([second, edges.second[:1]])
    rates = probe.rates(first, second)
    known = rates != 0
    first, second, rates = first[known], second[known], rates[known]
    fn = probe.of_pairs(first, second, symbols=True)
    kind = observed_family(fn)
    if kind is None or kind.fixed or kind.event_dim:
        raise ModelError(
            f"cavi: site '{probe.site}' has a {type(fn).__name__}, which has no conjugate form here: use Bernoulli, "
            f"Poisson, Geometric or Normal edges"
        )

    def by_labels(key: str, tensor: Tensor) -> Tensor:
        whole = tensor.expand(probe.size, probe.size, len(first))
        if not torch.allclose(whole.double(), whole[..., :1].double(), rtol=SAME):
            raise ModelError(
                f"cavi: site '{probe.site}' takes its {key} from more than the labels of both nodes: {WAY_OUT}"
            )
        table = whole[..., 0].mT.contiguous()
        if not probe.directed and not torch.equal(table, table.mT):
            raise ModelError(
                f"cavi: site '{probe.site}' tells the labels (k, l) of a pair from (l, k), in an undirected graph: "
                f"gather its {key} by a symmetric index, or use a directed graph"
            )
        return table

    forms = {key: _unsummed(argument_form(probe.site, key, raw)) for key, raw in kind.raw(fn).items()}
    if isinstance(kind, ExpectedPoisson):
        forms["rate"] = forms["rate"].scaled(1 / rates)
    return kind, {key: form.map(partial(by_labels, key)) for key, form in forms.items()}


def _unsummed(form: Form) -> Form:
    if any(term.summed for term in form.terms):
        raise ModelError(f"cavi: a model of a graph multiplies matrices in an argument: {WAY_OUT}")
    return form


def _check_rates(probe: Probe, rates: tuple[Tensor, Tensor], edges: Edges) -> None:
    first, second = probe.some_pairs()
    found = probe.rates(first, second)
    if not torch.allclose(found, rates[0][first] * rates[1][second], rtol=SAME, atol=1e-300):
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
