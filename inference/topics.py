"""Looking at topics: their words, whether these go together, and how well unseen words of a document are foretold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .allocated import Allocated, allocated_on, mixes_profiles
from .allocating import mean_of
from .bags import Bags, bags_of
from .checks import check_counts, check_seed
from .data import DataError, Dataset
from .errors import OptionError
from .structure import engine_state


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


def perplexity(fit: Any, docs: Any, seed: int = 0) -> float:
    """Perplexity per word by document completion: theta of each document is fitted to half of its words, and the other
    half scored, word by word, by E theta E topics (Wallach, Murray, Salakhutdinov and Mimno 2009, section 5; Hoffman et
    al. 2013, section 4). Lower is better; a uniform guess has V.

    Parameters
    ----------
    fit : Fit
        Of a model of counts whose rows mix what they share; of a fit by SVI the topics' centre is taken.
    docs : counts (N, V), as `fit` takes them
        Held out from the fit.
    seed : int
        Of the parting.
    """
    dataset = _allocated(fit, docs)
    both = halves(_bags(dataset), seed)
    with engine_state(fit.seed), torch.no_grad():
        found = allocated_on(fit, replace(dataset, values=both.seen))
        theta = mean_of(found.allocation.rows, found.eta)
        return completion(theta, mean_of(found.allocation.shared, found.state), both.held)


def completion(theta: Tensor, topics: Tensor, held: Bags) -> float:
    """Perplexity of held-out counts under ``theta @ topics`` (each row of it is normalised)."""
    norm = theta @ topics.sum(1)
    total = 0.0
    for rows in torch.arange(len(held)).split(2048):
        part = held.pick(rows)
        at = torch.linalg.vecdot(theta[rows][part.rows], topics.mT[part.index]) / norm[rows][part.rows]
        total += float((part.count * at.log()).sum())
    return math.exp(-total / float(held.count.sum()))


def top_words(fit: Any, num: int = 10, vocabulary: Sequence[str] | None = None) -> list[list[str]]:
    """The `num` most probable words of each topic, in order; numbers of columns, where these have no names."""
    check_counts(num=(num, 1))
    topics = shared_matrix(fit)
    names = vocabulary if vocabulary is not None else fit.schema.columns
    if names is not None and len(names) != topics.shape[1]:
        raise OptionError(f"vocabulary: met {len(names)} words, expected one for each of {topics.shape[1]} columns")
    order = topics.argsort(1, descending=True)[:, :num].tolist()
    return [[str(names[v]) if names is not None else str(v) for v in row] for row in order]


def coherence(fit: Any, docs: Any = None, num: int = 10) -> Tensor:
    """NPMI coherence (K,) of the topics' `num` most probable words: the mean over their pairs of log p(u, v) / p(u)p(v)
    over -log p(u, v), with p the share of documents that hold a word, or both (Bouma 2009; Lau, Newman and Baldwin
    2014). Between -1, never together, and 1, never apart.
    """
    check_counts(num=(num, 2))
    counts = _bags(_allocated(fit, docs))
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


def shared_matrix(fit: Any) -> Tensor:
    """What the rows of a fit mix, (K, V)."""
    _require(fit)
    (value,) = fit.params.values()
    value = value.squeeze() if value.dim() > 2 else value
    width = fit.schema.width
    return value.mT if width is not None and value.shape[1] != width else value


def _require(fit: Any) -> None:
    if not mixes_profiles(fit):
        raise OptionError(
            'topics: met a fit whose rows mix no shared profiles of counts; fit such a model with inference="cavi" '
            '(or "svi", and while its data are in memory)'
        )


def _allocated(fit: Any, docs: Any) -> Dataset:
    _require(fit)
    found: Dataset = fit.adapted(docs)
    if not isinstance(found.values, Tensor | Bags):
        raise DataError("topics: the data are a structure, expected a table or a sparse matrix of counts")
    return found


def _bags(dataset: Dataset) -> Bags:
    return dataset.values if isinstance(dataset.values, Bags) else bags_of(dataset.values)


__all__ = ["Allocated", "Halves", "coherence", "completion", "halves", "perplexity", "shared_matrix", "top_words"]
