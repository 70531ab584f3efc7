"""What deduplication compares of one text: a key of the whole, shingles, and their MinHash signature."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

import numpy as np

from gristmill.errors import missing_extra

SHINGLE_WORDS = 5
BANDS, ROWS = 22, 5
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
