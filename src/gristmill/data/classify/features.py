"""A text as hashed words and pairs of neighbouring words, in numpy: about 15 MB/s a core.

A word is a run of letters, digits and apostrophes in lower case; every Han or kana character is a word.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

U64 = np.uint64
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_PIECE_BYTES = 1 << 20  # hashed at once; keeps the tables of powers at 16 MB

# Of UTF-8 bytes: 1 for what belongs to words; 1 for what begins a word by itself (Han and kana: E3 to E9).
_WORD_BYTES = {*range(48, 58), *range(97, 123), 39, 95, *range(0x80, 0x100)}
_IN_WORD = bytes(c in _WORD_BYTES for c in range(256))
_ALONE = bytes(0xE3 <= c <= 0xE9 for c in range(256))


@cache
def _powers(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """base^i and base^-i modulo 2^64 for i < size."""
    inverse = pow(_BASE, -1, 1 << 64)
    up = np.full(size, _BASE, U64)
    down = np.full(size, inverse, U64)
    up[0] = down[0] = 1
    return np.multiply.accumulate(up), np.multiply.accumulate(down)


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64: every bit of the input reaches every bit of the output."""
    h = (h ^ (h >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> U64(27))) * U64(0x94D049BB133111EB)
    return h ^ (h >> U64(31))


def word_hashes(text: str) -> NDArray[np.uint64]:
    """One 64-bit hash a word, in order. A word longer than 1 MiB is cut."""
    raw = text.lower().encode("utf-8", "replace")
    parts = [_hashes(raw[a:b]) for a, b in _pieces(raw)]
    return np.concatenate(parts) if parts else np.empty(0, U64)


def _pieces(raw: bytes) -> list[tuple[int, int]]:
    pieces: list[tuple[int, int]] = []
    start = 0
    while start < len(raw):
        end = min(len(raw), start + _PIECE_BYTES)
        if end < len(raw):
            blank = max(raw.rfind(b" ", start, end), raw.rfind(b"\n", start, end))
            end = blank if blank > start else end
        pieces.append((start, end))
        start = end
    return pieces


def _hashes(raw: bytes) -> NDArray[np.uint64]:
    x = np.frombuffer(raw, np.uint8)
    # one byte of no word on either side, so that every word begins and ends where the mask turns
    inside = np.frombuffer(b"\0" + raw.translate(_IN_WORD) + b"\0", np.bool_)
    turns = inside[1:] != inside[:-1]
    if raw.isascii():
        edges = np.flatnonzero(turns)
        first, last = edges[0::2], edges[1::2]
    else:
        alone = np.frombuffer(raw.translate(_ALONE) + b"\0", np.bool_)
        first = np.flatnonzero((turns & inside[1:]) | alone)
        last = np.flatnonzero((turns | alone) & inside[:-1])
    if not len(first):
        return np.empty(0, U64)
    size = 1 << max(12, (len(x) - 1).bit_length())
    up, down = _powers(size)
    # prefix[i] = sum of x[j] * base^j for j < i, so that a word's polynomial is a difference of two
    prefix = np.zeros(len(x) + 1, U64)
    np.multiply(x, up[: len(x)], out=prefix[1:])
    np.cumsum(prefix, out=prefix)
    return _mix((prefix[last] - prefix[first]) * down[first])


def features(text: str, buckets: int) -> NDArray[np.uint32]:
    """The buckets (sorted, each once) of the words and word pairs of `text`; `buckets` is a power of two."""
    words = word_hashes(text)
    hashed = np.concatenate((words, _mix(words[:-1] * U64(3) + words[1:])))
    found = (hashed & U64(buckets - 1)).astype(np.uint32)
    found.sort()  # np.unique takes six times as long
    is_new = np.ones(len(found), bool)
    np.not_equal(found[1:], found[:-1], out=is_new[1:])
    return found[is_new]
