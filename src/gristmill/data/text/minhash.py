"""MinHash signatures over runs of words, for finding texts that are nearly the same.

A word is normed first: lower case, no accents, no punctuation, every number one "0"; words of which nothing is left
do not count. A shingle is 64 bits of `ngram` such words; a text of fewer words is one shingle as a whole, so short
texts are found too. A text without any word has no shingle, and its signature is all ones.
Function i of the shingle x is bits 32..63 of (a_i * (x xor x >> 32 mod 2^32) + b_i) mod 2^64.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gristmill.data.text.segment import Segments, extension, segment
from gristmill.data.text.shingles import minhash, runs_of_words

LANES = 16  # kLanes of src/native/types.h
Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Signature = np.ndarray[Any, np.dtype[np.uint32]]


def words_of(text: str) -> str | Segments:
    """`text` cut at white space, where the extension does it: for asking several things of it."""
    return text if extension() is None else segment(text, "whitespace")


def shingles(text: str | Segments, ngram: int = 5) -> Hashes:
    """Sorted and unique, uint64 [n]. A text is cut at white space."""
    if extension() is None:
        return np.unique(runs_of_words(_plain(text), ngram))
    return np.frombuffer(_segments(text).native.shingles(ngram), np.uint64)


def signature(
    text: str | Segments,
    permutations: int = 110,
    ngram: int = 5,
    seed: int = 1,
    *,
    isa: str = "best",
) -> Signature:
    """uint32 [permutations]; the share of equal places of two signatures estimates the texts' Jaccard similarity."""
    native = extension()
    a, b = functions(permutations, seed)
    if native is None:
        return minhash(runs_of_words(_plain(text), ngram), a, b)
    padding = bytes(-permutations % LANES * 8)
    runs = _segments(text).native.runs_of_words(
        ngram
    )  # unsorted, with repeats: the least is the same
    least = native.minhash(runs, a.tobytes() + padding, b.tobytes() + padding, isa)
    return np.frombuffer(least, np.uint32)[:permutations]


def _segments(text: str | Segments) -> Segments:
    return segment(text, "whitespace") if isinstance(text, str) else text


def _plain(text: str | Segments) -> str:
    return text if isinstance(text, str) else text.text


@cache
def functions(permutations: int, seed: int) -> tuple[Hashes, Hashes]:
    """a (odd) and b of each function: uint64 [permutations] each, from splitmix64 of the seed."""
    mixed = [_splitmix(seed * 0x2545F4914F6CDD1D + i) for i in range(2 * permutations)]
    a = np.array([value | 1 for value in mixed[::2]], np.uint64)
    return a, np.array(mixed[1::2], np.uint64)


def _splitmix(state: int) -> int:
    z = (state * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % (1 << 64)
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    z = (z ^ z >> 27) * 0x94D049BB133111EB % (1 << 64)
    return z ^ z >> 31
