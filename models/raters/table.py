"""Tables of ratings: columns rater and label as the models of raters take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ...inference.base.errors import DataError
from ...inference.data.columns import num_categories
from ...inference.data.schema import Schema

COLUMNS = ("rater", "label")


def ratings(table: Tensor, schema: Schema) -> Tensor:
    """The columns named rater and label, or, where none is named so, the first two: (N, M, 2)."""
    columns = schema.columns or ()
    if table.dim() != 3 or table.shape[-1] < 2:
        raise DataError(
            f"data: met shape {tuple(table.shape)}, expected a rating a row, of three columns: item, rater, label "
            f"(or a tensor (N, M, 2) of raters and labels, padded with NaN)"
        )
    places = [columns.index(name) for name in COLUMNS] if set(COLUMNS) <= set(columns) else [0, 1]
    x = table[..., places]
    for place, column in zip(places, range(2), strict=True):
        name = columns[place] if columns else COLUMNS[column]
        found = x[..., column]
        wrong = (found < 0) | (found != found.floor()) & ~found.isnan()
        if bool(wrong.any()):
            raise DataError(
                f"column '{name}' holds {found[wrong][0].item():g}: expected codes 0, 1, ..., or text for names"
            )
    alone = x[..., 0].isnan() & ~x[..., 1].isnan()
    if bool(alone.any()):
        name = columns[places[0]] if columns else COLUMNS[0]
        raise DataError(f"column '{name}' is missing beside a label: say whose it is, or drop the row")
    return x


def require_known(codes: Tensor, known: int, what: str) -> None:
    """Refuse codes beyond those of training."""
    largest = int(codes.nan_to_num(nan=0.0).max())
    if largest >= known:
        raise DataError(f"met {what} {largest}: in training they were 0 to {known - 1}")


def require_comparable(x: Tensor) -> None:
    """Refuse ratings among which no item has two: nothing would tell a rater's errors from the items' classes."""
    if int((~x[..., 1].isnan()).sum(1).max()) < 2:
        raise DataError(
            "no item has two labels, so the errors of raters cannot be told from the classes of items: have items "
            "rated by several raters, or several times"
        )


def votes(x: Tensor, labels: int) -> Tensor:
    """How often each item was given each label, (N, K)."""
    seen = ~x[..., 1].isnan()
    item = seen.nonzero()[:, 0]
    cell = item * labels + x[..., 1][seen].long()
    return torch.bincount(cell, minlength=len(x) * labels).reshape(len(x), labels).to(x.dtype)


def confusion_counts(x: Tensor, classes: Tensor, raters: int) -> Tensor:
    """How often each rater gave each label to items of each class, (J, K, K), of class shares (N, K) of the items."""
    seen, labels = ~x[..., 1].isnan(), classes.shape[1]
    item = seen.nonzero()[:, 0]
    cell = x[..., 0][seen].long() * labels + x[..., 1][seen].long()
    counts = torch.zeros(raters * labels, labels, dtype=classes.dtype, device=x.device)
    return counts.index_add(0, cell, classes[item]).reshape(raters, labels, labels).mT


def one_coin(accuracy: Tensor, labels: int) -> Tensor:
    """Error matrices (..., K, K) of raters who are right with one probability (..., 1, 1), and wrong in all ways
    alike.
    """
    right = torch.eye(labels)
    return accuracy * right + (1 - accuracy) / max(labels - 1, 1) * (1 - right)


def around_votes(x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """The votes (N, K); then votes drawn anew around them, without end."""
    vote = votes(x, num_categories(x[..., 1]))
    yield vote
    while True:
        yield torch._standard_gamma(vote + 0.5, generator=generator)


def shares(vote: Tensor) -> Tensor:
    """Each item's share of every class (N, K); all alike where it has no vote."""
    classes = torch.where(vote.sum(1, keepdim=True) > 0, vote, 1.0)
    return classes / classes.sum(1, keepdim=True)


def confusion_start(x: Tensor, vote: Tensor, prior: Tensor | float) -> Mapping[str, Tensor]:
    """Class weights (K,) and error matrices (J, K, K) as votes have them, beside counts of a prior."""
    classes = shares(vote)
    counts = confusion_counts(x, classes, num_categories(x[..., 0])) + prior
    counts = torch.where(counts.sum(-1, keepdim=True) > 0, counts, 1.0)  # who met no item of a class may say any
    return {"weights": classes.mean(0), "confusion": counts / counts.sum(-1, keepdim=True)}
