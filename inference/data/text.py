"""Texts and lists of words as counts of words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..base.errors import DataError
from .sparse import Bags


def is_texts(data: object) -> bool:
    """Whether the data are documents: lists of words."""
    if not isinstance(data, list | tuple) or not data:
        return False
    lists = all(isinstance(one, list | tuple) for one in data)
    return lists and any(len(one) for one in data) and all(isinstance(word, str) for one in data for word in one)


def bag_of_words(
    documents: Iterable[Sequence[str] | Sequence[int]], vocabulary: Sequence[str] | int | None = None
) -> tuple[Bags, tuple[str, ...] | None]:
    """Documents as counts of their words.

    Parameters
    ----------
    documents : lists of words, or of numbers of words 0, 1, ...
    vocabulary : sequence of str or int, optional
        The words that columns stand for, in order, or their number. Default: the words met, sorted; for numbers, as
        many as the largest needs.

    Returns
    -------
    bags : Bags
        (N, V)
    words : tuple of str or None
        Names of the columns.

    Raises
    ------
    DataError
        A document is empty, or holds a word that is not in the vocabulary.
    """
    documents = list(documents)
    if not documents:
        raise DataError("data: met no documents, expected at least one list of words")
    for place, one in enumerate(documents):
        if not len(one):
            raise DataError(f"data: document {place} (the first is 0) holds no word: leave it out")
    words: tuple[str, ...] | None = None
    if isinstance(documents[0][0], str):
        given = None if vocabulary is None or isinstance(vocabulary, int) else tuple(map(str, vocabulary))
        words = tuple(sorted({str(word) for one in documents for word in one})) if given is None else given
        place_of = {word: place for place, word in enumerate(words)}
        numbers = [[_place(place_of, str(word), number) for word in one] for number, one in enumerate(documents)]
        width = len(words)
    else:
        numbers = [[int(word) for word in one] for one in documents]
        words = None if vocabulary is None or isinstance(vocabulary, int) else tuple(map(str, vocabulary))
        most = max(max(one) for one in numbers)
        width = vocabulary if isinstance(vocabulary, int) else most + 1 if words is None else len(words)
        for number, ids in enumerate(numbers):
            if min(ids) < 0 or max(ids) >= width:
                wrong = next(word for word in ids if not 0 <= word < width)
                raise DataError(
                    f"data: document {number} (the first is 0) holds the word number {wrong}, expected 0 to {width - 1}"
                )
    flat = torch.tensor([word for one in numbers for word in one])
    row = torch.repeat_interleave(torch.arange(len(numbers)), torch.tensor([len(one) for one in numbers]))
    cells, count = torch.unique(row * width + flat, return_counts=True)
    lengths = torch.bincount(torch.div(cells, width, rounding_mode="floor"), minlength=len(numbers))
    return Bags(lengths, cells % width, count.double(), width), words


def _place(place_of: dict[str, int], word: str, number: int) -> int:
    if word not in place_of:
        raise DataError(
            f"data: document {number} (the first is 0) holds {word!r}, which is not in the vocabulary of "
            f"{len(place_of)} words: leave it out, or fit again with it"
        )
    return place_of[word]
