"""Exact and near duplicates, found while reading: a document is held against all that were kept before it.

Which copy stays: the first in reading order (sources as given; see build.py), so every dropped document is
at least `threshold` similar to the one that it names. Nothing is joined through a third: no chains.

Near means Jaccard similarity of word 5-grams. MinHash with 22 bands of 5 rows proposes (it misses 0.03% of the
pairs at 0.8: (1 - 0.8^5)^22), the signatures' agreement sorts out, the true similarity of the sets decides.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from gristmill.errors import missing_extra

SHINGLE_WORDS = 5
BANDS, ROWS = 22, 5
# A bucket remembers its last 32 to 64 documents. Rows filled from one template share bands by the thousand
# without being near duplicates; comparing each with all would take time that grows with their square.
BUCKET = 32
_WORD = re.compile(r"\w+")
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so multiplication permutes the 64-bit integers
_MASK = (1 << 64) - 1


def exact_key(text: str) -> bytes:
    """Equal for texts that differ in case and white space only."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


@lru_cache(maxsize=500_000)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def shingles(text: str) -> np.ndarray:
    """Sorted unique uint64 hashes of the text's word 5-grams; of all its words when there are fewer than 5."""
    words = _WORD.findall(text.lower())
    if len(words) < SHINGLE_WORDS:
        return np.array([_word_hash(" ".join(words))], dtype=np.uint64)
    hashes = np.array([_word_hash(word) for word in words], dtype=np.uint64)
    count = len(words) - SHINGLE_WORDS + 1
    grams = np.zeros(count, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        factor = np.uint64(pow(_MULTIPLIER, offset + 1, 1 << 64))
        grams = (grams ^ (grams >> np.uint64(29))) + hashes[offset : offset + count] * factor
    return np.unique(grams)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two sorted unique arrays."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def signatures(sets: list[np.ndarray], seed: int) -> list[bytes]:
    """MinHash signature of each set: BANDS x ROWS little-endian uint32 values."""
    try:
        from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        raise missing_extra("rensa", "data") from None
    if not sets:
        return []
    offsets = [0, *np.cumsum([len(s) for s in sets]).tolist()]
    flat = np.concatenate(sets)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, BANDS * ROWS, seed)
    return [np.array(row, dtype="<u4").tobytes() for row in matrix.to_rows()]


class Seen:
    """The documents kept so far, by number. `text_of(number)` must give the text of a kept one."""

    def __init__(self, threshold: float, text_of: Callable[[int], str]):
        self.threshold = threshold
        # Four standard errors of the estimate below the threshold: 3 in 100,000 true pairs are passed over.
        self._plausible = threshold - 4 * (threshold * (1 - threshold) / (BANDS * ROWS)) ** 0.5
        self._text_of = text_of
        self._exact: dict[bytes, int] = {}
        self._bands: list[dict[bytes, list[int]]] = [{} for _ in range(BANDS)]
        self._numbers: list[int] = []
        self._sizes: list[int] = []
        self._signatures = np.zeros((256, BANDS * ROWS), dtype=np.uint32)

    def duplicate_of(self, key: bytes, text: str, signature: bytes) -> tuple[int, float] | None:
        """(number, similarity) of the most similar kept document at or above the threshold, the first of equals.

        Equal texts give similarity 1 without looking further.
        """
        if key in self._exact:
            return self._exact[key], 1.0
        found: set[int] = set()
        for band, name in zip(self._bands, _band_names(signature), strict=True):
            found.update(band.get(name, ()))
        if not found:
            return None
        candidates = np.array(sorted(found))
        mine = np.frombuffer(signature, dtype="<u4")
        agreement = (self._signatures[candidates] == mine).mean(axis=1)
        candidates = candidates[agreement >= self._plausible]
        if not len(candidates):
            return None
        grams = shingles(text)
        best: tuple[float, int] | None = None
        for place in candidates.tolist():
            small, large = sorted((len(grams), self._sizes[place]))
            if small < self.threshold * large:  # the sizes alone forbid it
                continue
            number = self._numbers[place]
            similarity = jaccard(grams, shingles(self._text_of(number)))
            if similarity >= self.threshold and (best is None or similarity > best[0]):
                best = (similarity, number)
        return (best[1], best[0]) if best else None

    def add(self, number: int, key: bytes, signature: bytes, size: int) -> None:
        """Remember a kept document; `size` is how many shingles it has."""
        place = len(self._numbers)
        if place == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.zeros_like(self._signatures)])
        self._signatures[place] = np.frombuffer(signature, dtype="<u4")
        self._exact[key] = number
        self._numbers.append(number)
        self._sizes.append(size)
        for band, name in zip(self._bands, _band_names(signature), strict=True):
            bucket = band.setdefault(name, [])
            bucket.append(place)
            if len(bucket) > 2 * BUCKET:
                del bucket[:BUCKET]


def _band_names(signature: bytes) -> list[bytes]:
    width = ROWS * 4
    return [signature[at : at + width] for at in range(0, BANDS * width, width)]
