"""The sets of shingles of many documents in a file, and the Jaccard similarity of pairs of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gristmill.data.decisions import values
from gristmill.data.duplicates.bands import Rows
from gristmill.data.text.segment import extension


@dataclass(frozen=True, slots=True)
class Shingles:
    """The sorted hashes of the documents, end to end; document i has flat[offsets[i]:offsets[i + 1]]."""

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def write(cls, rows: Rows, directory: Path) -> Shingles:
        """In a file of `directory`, which stays as long as this is used."""
        lengths = [np.empty(0, np.int64)]
        path = directory / "shingles.bin"
        with open(path, "wb") as file:
            for _, table in rows("shingles"):
                column = table["shingles"].combine_chunks()
                lengths.append(np.diff(values(column.offsets)))
                file.write(np.ascontiguousarray(values(column.flatten())).tobytes())
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        if not offsets[-1]:  # an empty file cannot be mapped
            return cls(np.empty(0, np.uint64), offsets)
        return cls(np.memmap(path, np.uint64, mode="r", shape=(int(offsets[-1]),)), offsets)

    def jaccard(self, pairs: np.ndarray) -> np.ndarray:
        return jaccard_pairs(self.flat, self.offsets, pairs)


def jaccard_pairs(flat: np.ndarray, offsets: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """|A ∩ B| / |A ∪ B| of each pair, float64 [m]; 0 for two empty sets, of which nothing is known.

    flat: uint64, the sorted elements of the sets end to end; set i is flat[offsets[i]:offsets[i + 1]].
    """
    if len(pairs) and not 0 <= pairs.min() <= pairs.max() < len(offsets) - 1:
        raise IndexError(f"pairs of {len(offsets) - 1} sets go from {pairs.min()} to {pairs.max()}")
    native = extension()
    if native is None:
        return jaccard_pairs_plain(flat, offsets, pairs)
    flat = np.ascontiguousarray(flat, np.uint64)
    offsets = np.ascontiguousarray(offsets, np.int64)
    pairs = np.ascontiguousarray(pairs, np.int64)
    out = np.empty(len(pairs))
    native.jaccard_pairs(*(part.ctypes.data for part in (flat, offsets, pairs, out)), len(pairs))
    return out


def jaccard_pairs_plain(flat: np.ndarray, offsets: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The same without the native extension, 9 times as slow."""
    out = np.zeros(len(pairs))
    for at, pair in enumerate(pairs):
        a, b = pair.tolist()
        one, two = flat[offsets[a] : offsets[a + 1]], flat[offsets[b] : offsets[b + 1]]
        both = _common(one, two)
        if both:
            out[at] = both / (len(one) + len(two) - both)
    return out


def _common(one: np.ndarray, two: np.ndarray) -> int:
    """How many elements two sorted sets share."""
    short, long = (one, two) if len(one) <= len(two) else (two, one)
    if not len(short):
        return 0
    at = np.searchsorted(long, short)
    return int(np.count_nonzero(long[np.minimum(at, len(long) - 1)] == short))
