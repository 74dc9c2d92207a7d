"""Looking at topics: their words, whether these go together, and how well unseen words of a document are foretold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..base.errors import DataError, OptionError
from ..base.options import check_counts, check_seed
from ..cavi.counts.ascent import Allocated, allocated_on
from ..cavi.counts.passes import mean_of
from ..data.adapt import adapt
from ..data.schema import Dataset
from ..data.sparse import Bags, bags_of, densified
from ..data.streams import Rows
from ..posterior.base import Fitted
from ..posterior.counts import mixes_profiles
from ..posterior.summary import shares_of, topics_of
from ..trace.handlers import engine_state


class Halves(NamedTuple):
    """Rows of counts parted in two at random."""

    seen: Bags
    held: Bags


def halves(counts: Bags, seed: int = 0) -> Halves:
    """Part the counts of each row: every single one goes to one of the halves, of which neither has one more than the
    other (the held-out half has it). Rows of fewer than two counts stand in neither.
    """
    rng = np.random.default_rng(check_seed(seed))
    keep = counts.totals >= 2
    counts = counts if bool(keep.all()) else counts.pick(keep.nonzero().flatten())
    number = counts.count.long()
    tokens = torch.repeat_interleave(torch.arange(len(number)), number)  # the cell of each single count
    row = counts.rows[tokens]
    order = np.lexsort((rng.random(len(tokens)), row.numpy()))
    totals = counts.totals.long()
    within = torch.arange(len(tokens)) - torch.repeat_interleave(totals.cumsum(0) - totals, totals)
    first = within < torch.div(totals, 2, rounding_mode="floor")[row]
    chosen = tokens[torch.from_numpy(order)][first]
    seen = torch.bincount(chosen, minlength=len(number))
    return Halves(_with(counts, seen), _with(counts, number - seen))


def _with(counts: Bags, number: Tensor) -> Bags:
    kept = number > 0
    lengths = torch.bincount(counts.rows[kept], minlength=len(counts))
    return Bags(lengths, counts.index[kept], number[kept].double(), counts.width)


def perplexity(fit: Fitted, docs: Any, seed: int = 0) -> float:
    """Perplexity per word by document completion: theta of each document is fitted to half of its words, and the other
    half scored, word by word, by E theta E topics (Wallach, Murray, Salakhutdinov and Mimno 2009, section 5; Hoffman et
    al. 2013, section 4). Lower is better; a uniform guess has V.

    Parameters
    ----------
    fit : Fit
        Of a model of counts whose rows mix what they share; of a fit by SVI the topics' centre is taken. With networks
        a word's probability is its mean over draws of theta from the encoder.
    docs : counts (N, V), as `fit` takes them
        Held out from the fit.
    seed : int
        Of the parting.
    """
    dataset = _counted(fit, docs)
    both = halves(_bags(dataset), seed)
    if fit.kind.networks:
        words = _expected_words(fit, both.seen)
        return completion(words, torch.eye(words.shape[1], dtype=words.dtype), both.held)
    with engine_state(fit.seed), torch.no_grad():
        found = allocated_on(fit.pair.model, fit.params, fit.guide_parts, replace(dataset, values=both.seen))
        theta = mean_of(found.allocation.rows, found.eta)
        return completion(theta, mean_of(found.allocation.shared, found.state), both.held)


def bound_perplexity(fit: Fitted, docs: Any = None) -> float:
    """Perplexity per word by ``fit.score``: exp of minus the bound of log p(words), in their order, over their number
    (Blei et al. 2003, section 7.1). It lies above the perplexity by what the bound of each row lacks.
    """
    dataset = _counted(fit, docs)
    counts = _bags(dataset)
    cells = counts.count.new_zeros(len(counts)).index_add(0, counts.rows, (counts.count + 1).lgamma())
    orders = (counts.totals + 1).lgamma() - cells  # log of in how many orders the words of a row can stand
    return math.exp(-float((fit.score(docs) - orders).sum()) / float(counts.totals.sum()))


def topic_shares(fit: Fitted, docs: Any = None) -> Tensor:
    """Shares (N, K) of the topics in each row, expected: of rates, by what each adds to the row's expected total."""
    dataset = _counted(fit, docs)
    if fit.kind.networks:
        return shares_of(fit, replace(dataset, values=densified(dataset.values)))
    (found,) = fit.latents(docs).values()
    theta = found.mean.reshape(len(found.mean), -1) * shared_matrix(fit).sum(1)
    return theta / theta.sum(1, keepdim=True)


def _expected_words(fit: Fitted, seen: Bags) -> Tensor:
    """Probabilities (N, V) of a further word of each row, of a fit with networks."""
    rows = torch.as_tensor(adapt(fit.reconstruct(fit.schema.decode(seen.dense())), fit.schema).values).double()
    return rows / rows.sum(1, keepdim=True)


def completion(theta: Tensor, topics: Tensor, held: Bags) -> float:
    """Perplexity of held-out counts under ``theta @ topics`` (each row of it is normalised)."""
    norm = theta @ topics.sum(1)
    total = 0.0
    for rows in torch.arange(len(held)).split(2048):
        part = held.pick(rows)
        at = torch.linalg.vecdot(theta[rows][part.rows], topics.mT[part.index]) / norm[rows][part.rows]
        total += float((part.count * at.log()).sum())
    return math.exp(-total / float(held.count.sum()))


def top_words(fit: Fitted, num: int = 10, vocabulary: Sequence[str] | None = None) -> list[list[str]]:
    """The `num` most probable words of each topic, in order; numbers of columns, where these have no names."""
    check_counts(num=(num, 1))
    topics = shared_matrix(fit)
    names = vocabulary if vocabulary is not None else fit.schema.columns
    if names is not None and len(names) != topics.shape[1]:
        raise OptionError(f"vocabulary: met {len(names)} words, expected one for each of {topics.shape[1]} columns")
    order = topics.argsort(1, descending=True)[:, :num].tolist()
    return [[str(names[v]) if names is not None else str(v) for v in row] for row in order]


def coherence(fit: Fitted, docs: Any = None, num: int = 10) -> Tensor:
    """NPMI coherence (K,) of the topics' `num` most probable words: the mean over their pairs of log p(u, v) / p(u)p(v)
    over -log p(u, v), with p the share of documents that hold a word, or both (Bouma 2009; Lau, Newman and Baldwin
    2014). Between -1, never together, and 1, never apart.
    """
    check_counts(num=(num, 2))
    counts = _bags(_counted(fit, docs))
    order = shared_matrix(fit).argsort(1, descending=True)[:, :num]
    words, place = order.unique(return_inverse=True)
    where = torch.full((counts.width,), -1)
    where[words] = torch.arange(len(words))
    seen = torch.zeros(len(counts), len(words), dtype=torch.float64)
    column = where[counts.index]
    seen[counts.rows[column >= 0], column[column >= 0]] = 1.0
    joint = seen.mT @ seen / len(seen)
    alone = joint.diagonal()
    pointwise = torch.where(joint > 0, (joint / (alone.unsqueeze(0) * alone.unsqueeze(1))).log() / -joint.log(), -1.0)
    pointwise = torch.where(joint >= 1, 1.0, pointwise)
    first, second = torch.triu_indices(order.shape[1], order.shape[1], offset=1)
    return pointwise[place[:, first], place[:, second]].mean(1)


def shared_matrix(fit: Fitted) -> Tensor:
    """What the rows of a fit mix, (K, V): with networks, the shares of the words in rows wholly of one topic."""
    if fit.kind.networks:
        found = topics_of(fit)
        if found is not None:
            return found
    _require(fit)
    (value,) = fit.params.values()
    value = value.squeeze() if value.dim() > 2 else value
    width = fit.schema.width
    return value.mT if width is not None and value.shape[1] != width else value


def mixes_topics(fit: Fitted) -> bool:
    """Whether rows of a fit mix topics, or other shared profiles of counts."""
    return topics_of(fit) is not None if fit.kind.networks else mixes_profiles(fit)


def _require(fit: Fitted) -> None:
    if not mixes_topics(fit):
        raise OptionError(
            'topics: met a fit whose rows mix no shared profiles of counts; fit such a model with inference="cavi" '
            '(or "svi", and while its data are in memory), or with networks that mix topics'
        )


def _counted(fit: Fitted, docs: Any) -> Dataset:
    _require(fit)
    found: Dataset = fit.adapted(docs)
    if isinstance(found.values, Rows):
        found = replace(found, values=found.values.whole())
    if not isinstance(found.values, Tensor | Bags):
        raise DataError("topics: the data are a structure, expected a table or a sparse matrix of counts")
    return found


def _bags(dataset: Dataset) -> Bags:
    return dataset.values if isinstance(dataset.values, Bags) else bags_of(dataset.values)


__all__ = [
    "Allocated",
    "Halves",
    "bound_perplexity",
    "coherence",
    "completion",
    "halves",
    "mixes_topics",
    "perplexity",
    "shared_matrix",
    "top_words",
    "topic_shares",
]
