"""What a fit of a graph says: of its nodes, whose factors are found again from what they share, and of its pairs."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from ..base.errors import DataError
from ..base.options import check_counts, check_seed
from ..cavi.graphs.ascent import Relating, settled
from ..cavi.graphs.model import INTO, OUT, Relation, read_relation
from ..data.schema import Dataset
from ..data.sparse import DENSE_BYTES, Bags
from ..families.factors import Point
from ..program.sites import Params
from ..trace.handlers import engine_state
from . import summary as words
from .new_graphs import block_table, simulate

DRAWS = 100  # of what nodes share and of their labels, that scores are averaged over
NOTE = (
    "mean field over the nodes, q = prod_n q(z_n): their latents meet in pairs and cannot be summed exactly, so the\n"
    "  bound lies below log p(data), and memberships look somewhat surer than they are"
)


class Related(NamedTuple):
    """A fit's model on a graph, the nodes' factors settled there."""

    relation: Relation
    state: Params  # of what nodes share, (1, ...)
    q: Tensor  # (N, K)


def related_on(fit: Any, dataset: Dataset) -> Related:
    """Call inside `engine_state`."""
    relation = read_relation(fit.pair.model, dataset.values, fit.pair.graph, dataset.schema, fit.params)
    families = relation.field.families
    state = {
        name: (fit.params[name] if isinstance(families[name], Point) else fit.guide_parts[name]).unsqueeze(0)
        for name in families
    }
    with torch.no_grad():
        tables = relation.tables(relation.field.means(state))
        q = settled(Relating(relation), tables, fit.guide_parts[relation.latent])
    return Related(relation, state, q)


def latents(fit: Any, dataset: Dataset) -> dict[str, Tensor]:
    """Probabilities (N, K) of each node's label."""
    with engine_state(fit.seed):
        found = related_on(fit, dataset)
        return {found.relation.latent: found.q}


def factor(fit: Any, site: str, dataset: Dataset) -> Any:
    """The factor of a latent as a Pyro distribution; Delta of what was learned as a point."""
    with engine_state(fit.seed):
        found = related_on(fit, dataset)
        families = found.relation.field.families
    if site == found.relation.latent:
        return dist.Categorical(found.q)
    if site not in families:
        raise DataError(
            f"posterior: no latent named '{site}'; the model has {sorted((*families, found.relation.latent))}"
        )
    if isinstance(families[site], Point):
        return dist.Delta(fit.params[site])
    return families[site].distribution(found.state[site][0])


# --- draws ------------------------------------------------------------------------------------------------------------


def _shared(fit: Any, relation: Relation, num: int) -> Params:
    """Draws (num, *shape) of each factor; params as they are."""
    out = {}
    for name, family in relation.field.families.items():
        value = fit.params[name]
        if isinstance(family, Point):
            out[name] = value.expand(num, *value.shape)
            continue
        drawn = family.placed(family.distribution(fit.guide_parts[name]).sample((num,)))
        out[name] = drawn.reshape(num, *value.shape)
    return out


def shared_draws(fit: Any, dataset: Dataset, num: int, seed: int) -> Params:
    """Draws (num, *shape) of what nodes share; a param as it is."""
    check_counts(num=(num, 1))
    with engine_state(check_seed(seed)), torch.no_grad():
        return _shared(fit, related_on(fit, dataset).relation, num)


def sample_posterior(fit: Any, dataset: Dataset, num: int, seed: int) -> Params:
    """Draws of what nodes share (num, *shape), and of each node's label (num, N)."""
    check_counts(num=(num, 1))
    with engine_state(check_seed(seed)), torch.no_grad():
        found = related_on(fit, dataset)
        labels = dist.Categorical(found.q).sample((num,))
        return {**_shared(fit, found.relation, num), found.relation.latent: labels}


def score(fit: Any, dataset: Dataset) -> Tensor:
    """log of the mean over draws of p(edges of node n | labels of the others, what is shared), (N,), its own label
    summed out: a pseudo-likelihood (Besag 1975), in which every edge speaks for both its nodes.
    """
    with engine_state(fit.seed), torch.no_grad():
        found = related_on(fit, dataset)
        drawn = _shared(fit, found.relation, DRAWS)
        labels = dist.Categorical(found.q).sample((DRAWS,))
        each = [node_scores(found.relation, {n: v[s] for n, v in drawn.items()}, labels[s]) for s in range(DRAWS)]
        return torch.stack(each).logsumexp(0) - math.log(DRAWS)


def node_scores(relation: Relation, values: Params, labels: Tensor) -> Tensor:
    """log p(edges of node n | labels of the others, shared values), (N,)."""
    means = relation.field.starts({name: value.unsqueeze(0) for name, value in values.items()})
    log, eta, log_normalizer = (one.numpy() for one in relation.tables(means))
    hot = np.eye(relation.size)[labels.numpy()]
    field = relation.ties.evidence(hot, eta, log_normalizer) + log
    return torch.from_numpy(field).logsumexp(1) + torch.from_numpy(relation.ties.base)


# --- expected edges ---------------------------------------------------------------------------------------------------


def reconstruct(fit: Any, dataset: Dataset) -> Any:
    """What every pair is expected to have, given the graph."""
    return dataset.schema.decode(_expected(fit, dataset))


def impute(fit: Any, dataset: Dataset) -> Any:
    """The graph with pairs that are not known at what they are expected to have."""
    values = dataset.values
    table = values.dense() if isinstance(values, Bags) else values
    if not bool(table.isnan().any()):
        return dataset.schema.decode(values)
    return dataset.schema.decode(torch.where(table.isnan(), _expected(fit, dataset), table))


def _expected(fit: Any, dataset: Dataset) -> Tensor:
    size = len(dataset.values)
    if size * size * 8 > DENSE_BYTES:
        raise DataError(
            f"reconstruct: expected edges of {size} nodes fill a dense table of {size * size * 8 / 1e9:.1f} GB"
        )
    with engine_state(fit.seed), torch.no_grad():
        found = related_on(fit, dataset)
        relation, ties = found.relation, found.relation.ties
        table = found.q @ relation.probe.expected(fit.params)[0] @ found.q.mT
        table = table * torch.from_numpy(np.outer(ties.out, ties.into))
        return table.fill_diagonal_(0.0)


# --- words and ArviZ --------------------------------------------------------------------------------------------------


def summary(fit: Any) -> str:
    """`words.summary`, with what the mean field is over, how large the blocks are and how tied."""
    latent = next(n for n in fit.guide_parts if n not in (OUT, INTO, *fit.params))
    q = fit.guide_parts[latent]
    sizes = q.argmax(-1).bincount(minlength=q.shape[1]).tolist()
    lines = words.summary(fit).replace(" rows, by", " nodes, by", 1).splitlines()
    place = next(i for i, line in enumerate(lines) if "evidence lower bound" in line)
    lines[place] = lines[place].partition("   (")[0]
    found, what = block_table(fit)
    table = [" ".join(f"{v:9.4f}" for v in row) for row in found.tolist()]
    more = [f"  {NOTE}", f"  nodes by {latent}: {', '.join(map(str, sizes))}", ""]
    more += [f"  {what}, by {latent} of both nodes"]
    more += ["    " + line for line in table]
    return "\n".join([*lines[: place + 1], *more, *lines[place + 1 :]])


def arviz_groups(fit: Any, dataset: Dataset, num: int, seed: int) -> dict[str, Any]:
    """Arguments of `export.to_arviz`."""
    size = len(dataset.values)
    if size * size * 8 * num > DENSE_BYTES:
        raise DataError(
            f"to_arviz: {num} graphs of {size} nodes fill {size * size * 8 * num / 1e9:.1f} GB: ask for fewer draws"
        )
    with engine_state(check_seed(seed)), torch.no_grad():
        found = related_on(fit, dataset)
        relation = found.relation
        drawn = _shared(fit, relation, num)
        labels = dist.Categorical(found.q).sample((num,))
        each = [{name: value[s] for name, value in drawn.items()} for s in range(num)]
        scores = torch.stack([node_scores(relation, one, labels[s]) for s, one in enumerate(each)])
        predicted = torch.stack(list(map(partial(_replicate, fit, size), each, labels)))
    values = dataset.values.dense() if isinstance(dataset.values, Bags) else dataset.values
    names = list(dataset.schema.columns) if dataset.schema.columns else list(range(size))

    def chain(value: Tensor) -> Any:
        return value.detach().cpu().numpy()[None]

    label, count = f"{relation.latent}_label", relation.size
    dims: dict[str, list[str]] = {"x": ["data", "data_other"], relation.latent: ["data"]}
    for name, value in drawn.items():
        if tuple(value.shape[1:]) == (count,):
            dims[name] = [label]
        elif tuple(value.shape[1:]) == (count, count):
            dims[name] = [label, f"{label}_other"]
    return {
        "groups": {
            "posterior": {**{n: chain(v) for n, v in drawn.items()}, relation.latent: chain(labels)},
            "posterior_predictive": {"x": chain(predicted)},
            "log_likelihood": {"x": chain(scores)},
            "sample_stats": {"lp": chain(scores.sum(1))},
            "observed_data": {"x": values.cpu().numpy()},
        },
        "coords": {"data": names, "data_other": names, label: list(range(count)), f"{label}_other": list(range(count))},
        "dims": dims,
        "attrs": {"inference": fit.inference, "seed": fit.seed, "draws": "factors"},
    }


def _replicate(fit: Any, size: int, values: Params, labels: Tensor) -> Tensor:
    drawn = simulate(fit, values, size, labels)
    return drawn.dense() if isinstance(drawn, Bags) else drawn
