"""Evaluation items in the corpus, by word n-grams: which item, in which document, where, and how much of it.

An item of 13 words or more is found by any of its 13-grams; a shorter one of 5 words or more as a whole; shorter
ones cannot be told from chance and are not looked for. Words are runs of letters, digits and "_", case folded,
on both sides. An n-gram that stands in many documents of the corpus (a licence, a date) says nothing and is ignored.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gristmill.data.duplicates.cuts import united
from gristmill.data.duplicates.items import EvalItem

WORDS, SHORTEST = 13, 5
COMMON = 50  # an n-gram in more documents than this is ignored
_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Hit:
    """An n-gram of the items in a document: its number in the index, and where it stands in UTF-8 bytes."""

    gram: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Match:
    """document: its number; spans: UTF-8 bytes [start, end) of it; share: of the item's words in n-grams found."""

    document: int
    item: EvalItem
    spans: tuple[tuple[int, int], ...]
    share: float


@dataclass(frozen=True)
class EvalIndex:
    """hashes: length -> sorted hashes of the n-grams of that length, numbered from `first[length]` on.

    places: n-gram number -> (item, word) where it stands. words: how many each item has.
    """

    items: Sequence[EvalItem]
    vocabulary: dict[str, int]
    hashes: dict[int, np.ndarray]
    first: dict[int, int]
    places: list[list[tuple[int, int]]]
    words: list[int]

    @property
    def too_short(self) -> list[EvalItem]:
        """The items that cannot be looked for."""
        return [item for item, n in zip(self.items, self.words, strict=True) if n < SHORTEST]


def index_items(items: Sequence[EvalItem], words: int = WORDS) -> EvalIndex:
    """words: the n of the n-grams."""
    vocabulary: dict[str, int] = {}
    found: dict[int, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    lengths = []
    for number, item in enumerate(items):
        said = _words(item.text)
        ids = np.array([vocabulary.setdefault(w, len(vocabulary) + 1) for w in said], np.uint64)
        lengths.append(len(ids))
        length = min(len(ids), words)
        if length >= SHORTEST:
            for at, gram in enumerate(_grams(ids, length).tolist()):
                found[length][gram].append((number, at))
    hashes, first, places = {}, {}, []
    for length in sorted(found):
        first[length] = len(places)
        hashes[length] = np.array(sorted(found[length]), np.uint64)
        places += [found[length][gram] for gram in hashes[length].tolist()]
    return EvalIndex(items, vocabulary, hashes, first, places, lengths)


def find(index: EvalIndex, text: str) -> list[Hit]:
    """The n-grams of the items that stand in `text`. A function of the text alone, for any process."""
    said = _words(text)
    known = np.fromiter((index.vocabulary.get(word, 0) for word in said), np.uint64, len(said))
    found: list[tuple[int, int, int]] = []
    run = np.cumsum(np.concatenate([[0], known == 0]))  # how many unknown words stand before
    for length, hashes in index.hashes.items():
        if len(known) < length:
            continue
        at = np.flatnonzero(run[length:] == run[:-length])  # all words of the window are known
        grams = _grams(known, length)[at]
        near = np.minimum(np.searchsorted(hashes, grams), len(hashes) - 1)
        same = hashes[near] == grams
        numbers = near[same] + index.first[length]
        found += [
            (gram, word, word + length)
            for gram, word in zip(numbers.tolist(), at[same].tolist(), strict=True)
        ]
    if not found:
        return []
    spans = [match.span() for match in _WORD.finditer(text)]
    return [
        Hit(gram, len(text[: spans[low][0]].encode()), len(text[: spans[high - 1][1]].encode()))
        for gram, low, high in found
    ]


def matches(
    index: EvalIndex, hits: Iterable[tuple[int, Sequence[Hit]]], common: int = COMMON
) -> Iterator[Match]:
    """Of all documents' hits, (document, hits): which items stand in which documents, in order.

    common: n-grams in more documents than this are ignored.
    """
    found = [(document, list(of)) for document, of in hits if of]
    seen = Counter(gram for _, of in found for gram in {hit.gram for hit in of})
    for document, of in sorted(found, key=lambda pair: pair[0]):
        covered: dict[int, set[int]] = defaultdict(set)
        spans: dict[int, set[tuple[int, int]]] = defaultdict(set)
        for hit in of:
            if seen[hit.gram] > common:
                continue
            for item, word in index.places[hit.gram]:
                covered[item].update(range(word, word + _length(index, hit.gram)))
                spans[item].add((hit.start, hit.end))
        for item in sorted(covered):
            share = len(covered[item]) / index.words[item]
            yield Match(document, index.items[item], tuple(united(spans[item])), share)


def _length(index: EvalIndex, gram: int) -> int:
    """How many words the n-gram has."""
    return max(length for length, first in index.first.items() if first <= gram)


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _grams(ids: np.ndarray, length: int) -> np.ndarray:
    """uint64 [n - length + 1]: hashes of the windows of `length` word numbers."""
    count = len(ids) - length + 1
    out = np.full(max(count, 0), length, np.uint64)
    for at in range(length):
        out = (out ^ ids[at : at + len(out)]) * _BASE
        out ^= out >> np.uint64(29)
    return out
