"""Runs of words as hashes, in NumPy: the twin of the native kernel, equal to it bit for bit.

Norms and hashes are those of src/native/text_words.cpp and text_chars.cpp.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

import numpy as np

from gristmill.data.text.twin import SYMBOLS
from gristmill.data.text.words import whitespace_words

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
_K0, _K1, _K2 = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0x8BB84B93962EACC9
_MASK = (1 << 64) - 1
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def runs_of_words(text: str, ngram: int) -> Hashes:
    """uint64 [n]: one for each run of `ngram` whitespace words, or one of all words of a shorter text."""
    norms = [norm for word in whitespace_words(text) if (norm := _norm(word))]
    if not norms:
        return np.empty(0, np.uint64)
    length = min(ngram, len(norms))
    values = np.array(norms, np.uint64)
    count = len(values) - length + 1
    out = np.full(count, _K0, np.uint64)
    for at in range(length):
        out = _folded(out ^ values[at : at + count])
    return out


def minhash(runs: Hashes, a: Hashes, b: Hashes) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """uint32 [functions]: the least value of each function over the runs; all ones where there is none."""
    least = np.full(len(a), 0xFFFFFFFF, np.uint64)
    folded = (runs ^ (runs >> _HALF)) & _LOW
    for piece in np.array_split(folded, max(1, len(folded) // 4096)):
        if len(piece):
            values = (a[:, None] * piece[None, :] + b[:, None]) >> _HALF
            np.minimum(least, values.min(axis=1), out=least)
    return least.astype(np.uint32)


@lru_cache(maxsize=500_000)
def _norm(word: str) -> int:
    """Hash of a word in lower case without accents and punctuation, every number one "0"; 0 where nothing is left."""
    from gristmill.data.text.segment import fold

    kept: list[int] = []
    in_number = False
    for c in word:
        category = unicodedata.category(c)
        if category[0] == "P" or category == "Mn" or c in SYMBOLS:
            continue
        digit = c.isdecimal()
        if not (digit and in_number):
            kept.append(ord("0") if digit else ord(fold(c)))
        in_number = digit
    return _hash(b"".join(c.to_bytes(4, "little") for c in kept)) | 1 if kept else 0


def _hash(data: bytes) -> int:
    h = _K0 ^ len(data)
    while len(data) >= 8:
        h = _product(h ^ int.from_bytes(data[:8], "little"), _K1)
        data = data[8:]
    return _product(h ^ int.from_bytes(data, "little") ^ _K2, _K1 ^ (h << 1 & _MASK))


def _product(a: int, b: int) -> int:
    r = a * b
    return (r & _MASK) ^ (r >> 64)


def _folded(a: Hashes) -> Hashes:
    """The two halves of the 128-bit product of each with _K1, xored."""
    low, high = a & _LOW, a >> _HALF
    k_low, k_high = np.uint64(_K1 & 0xFFFFFFFF), np.uint64(_K1 >> 32)
    first, second, third = low * k_low, high * k_low, low * k_high
    middle = (first >> _HALF) + (second & _LOW) + (third & _LOW)
    upper = high * k_high + (second >> _HALF) + (third >> _HALF) + (middle >> _HALF)
    return (a * np.uint64(_K1)) ^ upper
