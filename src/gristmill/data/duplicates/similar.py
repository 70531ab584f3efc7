"""Jaccard similarity of many pairs of sets."""

from __future__ import annotations

import numpy as np


def jaccard_pairs(flat: np.ndarray, offsets: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """|A ∩ B| / |A ∪ B| of each pair, float64 [m].

    flat: uint64, the sorted elements of the sets end to end; set i is flat[offsets[i]:offsets[i + 1]].
    """
    out = np.empty(len(pairs))
    for at, (a, b) in enumerate(pairs.tolist()):
        one, two = flat[offsets[a] : offsets[a + 1]], flat[offsets[b] : offsets[b + 1]]
        both = _common(one, two)
        out[at] = both / (len(one) + len(two) - both)
    return out


def _common(one: np.ndarray, two: np.ndarray) -> int:
    """How many elements two sorted sets share."""
    short, long = (one, two) if len(one) <= len(two) else (two, one)
    at = np.searchsorted(long, short)
    return int(np.count_nonzero(long[np.minimum(at, len(long) - 1)] == short))
