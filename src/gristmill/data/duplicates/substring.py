"""Passages that stand in the corpus before: every window of `least` elements that occurred earlier is cut.

Windows are compared by a 64-bit rolling hash (Karp and Rabin 1987) and sorted, a range of hash values a pass, so
that memory is bounded whatever the size of the corpus; a suffix array would need 9 bytes of it for each byte.
Windows lie within one document, so no match goes across two. A wrong cut needs two windows of equal hash: with
10^9 windows in the corpus the chance of a single one is 3%, and it would cut `least` elements once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from gristmill.data.decisions import Labels
from gristmill.data.duplicates.cuts import Spans, add_cuts

BYTES, TOKENS = 200, 50  # the shortest passage: in UTF-8 bytes, in token ids

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)
_A_WINDOW = (
    48  # bytes of memory for each window of a pass: hash, position, and what sorting them takes
)
_BLOCK = 1 << 20
# Longer, the hash has structure that texts could meet (Thue-Morse words collide under any base modulo 2^64).
_LONGEST = 1000
_NOT_A_WORD_END = (
    40  # bytes that a cut may shrink to end at white space; scripts without it are cut anywhere
)


def repeats(
    read: Callable[[], Iterable[np.ndarray]],
    total: int,
    least: int,
    scratch: Path,
    memory_bytes: int = 1 << 30,
) -> Iterator[Spans]:
    """For each document its spans [start, end) of elements that stand earlier in the corpus, sorted, disjoint.

    read: called once a pass, gives the documents: 1-d arrays of uint8 (UTF-8 bytes) or of token ids. Their order
    says which copy stays: the first. total: the elements of all documents; passes = 48 * total / memory_bytes.
    A window that overlaps its first copy is none (in "aaaa…" the first `least` stay). One byte an element lies
    in a file in `scratch` meanwhile. Raises ValueError unless 1 <= least <= 1000.
    """
    if not 1 <= least <= _LONGEST:
        raise ValueError(f"passages of {least}: give 1 to {_LONGEST}")
    passes = max(1, -(-total * _A_WINDOW // memory_bytes))
    with tempfile.TemporaryFile(dir=scratch) as file:
        file.truncate(max(1, total))
        marks = np.memmap(file, np.bool_, mode="r+", shape=(max(1, total),))
        for number in range(passes):
            _mark(marks, read(), least, number, passes)
        start = 0
        for document in read():
            yield _spans(marks[start : start + len(document)], least)
            start += len(document)


def at_words(text: bytes, spans: Spans) -> Spans:
    """The spans shrunk to begin and end after white space, or, where none is near, to whole UTF-8 characters."""
    out = []
    for start, end in spans:
        start = _forward(text, start)
        end = _backward(text, end)
        if start < end:
            out.append((start, end))
    return out


def cut_passages(
    labels: Labels, scratch: Path, least: int = BYTES, memory_bytes: int = 1 << 30
) -> None:
    """Cut from the kept documents what stands in an earlier one, in reading order, from `least` bytes on.

    Cuts are added to those that a document has, and its `size` is what is left.
    """
    kept = np.flatnonzero(labels.kept)

    def texts() -> Iterator[np.ndarray]:
        for _, table in labels.rows(kept, "text"):
            for text in table["text"].to_pylist():
                yield np.frombuffer(text.encode(), np.uint8)

    gone = sum(end - start for at in labels.cuts for start, end in labels.cuts[at])
    total = int(labels.size[kept].sum()) + gone  # of the texts as they stand in the parts
    found = repeats(texts, total, least, scratch, memory_bytes)
    for at, text, spans in zip(kept.tolist(), texts(), found, strict=True):
        if spans and (cuts := at_words(text.tobytes(), spans)):
            add_cuts(labels, at, text.tobytes().decode(), cuts)


def window_hashes(document: np.ndarray, least: int) -> np.ndarray:
    """uint64 [n - least + 1]: equal for equal windows, wherever they lie."""
    count = len(document) - least + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    # sum over i < p of value[i] * base^i; a window is a difference of two, moved to the origin
    sums = np.zeros(len(document) + 1, np.uint64)
    np.cumsum(_spread(document) * _powers(_BASE, len(document)), out=sums[1:])
    return _spread((sums[least:] - sums[:-least]) * _powers(_INVERSE, count))


def _powers(base: int, count: int) -> np.ndarray:
    """uint64 [count]: base^0, base^1, … modulo 2^64; two tables, since a running product is slow for short ones."""
    low = np.full(min(count, _BLOCK), base, np.uint64)
    low[:1] = 1
    np.multiply.accumulate(low, out=low)
    if count <= _BLOCK:
        return low
    step = pow(base, _BLOCK, 1 << 64)
    rows = _powers(step, -(-count // _BLOCK))
    return (rows[:, None] * low).ravel()[:count]


def _spread(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit integers that leaves no pattern (the end of splitmix64, Steele et al. 2014)."""
    out = values.astype(np.uint64) + np.uint64(_BASE)
    out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return out ^ (out >> np.uint64(31))


def _mark(
    marks: np.ndarray, documents: Iterable[np.ndarray], least: int, number: int, passes: int
) -> None:
    """Mark the first element of each window of the pass's hash values that has an earlier copy."""
    hashes, places = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    start = 0
    for document in documents:
        found = window_hashes(document, least)
        at = np.flatnonzero(found % np.uint64(passes) == number) if passes > 1 else slice(None)
        hashes.append(found[at])
        places.append(np.arange(start, start + len(found))[at])
        start += len(document)
    flat, place = np.concatenate(hashes), np.concatenate(places)
    order = np.argsort(flat, kind="stable")  # so that in each run the first is the earliest
    flat, place = flat[order], place[order]
    begins = np.concatenate([[True], flat[1:] != flat[:-1]])[: len(flat)]
    first = place[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    marks[place[place - first >= least]] = True


def _spans(marks: np.ndarray, least: int) -> Spans:
    """The union of the windows that begin at the marks."""
    at = np.flatnonzero(marks)
    if not len(at):
        return []
    gap = np.flatnonzero(np.diff(at) > least)
    starts = at[np.concatenate([[0], gap + 1])]
    ends = at[np.concatenate([gap, [len(at) - 1]])] + least
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _forward(text: bytes, at: int) -> int:
    """The first place from `at` on where a word may begin; the end of a cut by the same rule, so none are glued."""
    for near in range(at, min(at + _NOT_A_WORD_END, len(text))):
        if near == 0 or text[near - 1 : near].isspace():
            return near
    while at < len(text) and text[at] & 0xC0 == 0x80:  # inside a character
        at += 1
    return at


def _backward(text: bytes, at: int) -> int:
    for near in range(at, max(at - _NOT_A_WORD_END, 0), -1):
        if near == len(text) or text[near - 1 : near].isspace():
            return near
    while 0 < at < len(text) and text[at] & 0xC0 == 0x80:
        at -= 1
    return at
