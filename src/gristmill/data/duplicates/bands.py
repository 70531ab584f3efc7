"""Locality-sensitive hashing: which documents share a band of their MinHash signatures, a band at a time.

The hashes lie in a file; in memory is one band, some 40 bytes a document, and the pairs of a range of documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

# In a bucket of more, each document is held against the first and the 32 before it: rows filled from one template
# share bands by the thousand, and all pairs of them would take time that grows with their square.
BUCKET = 64
_BEFORE = 32
_PAIRS_AT_ONCE = 1_000_000

# A column -> (numbers of documents, their rows of a table with the column), in the order of the numbers.
Rows = Callable[[str], Iterator[tuple[np.ndarray, Any]]]


def write_bands(rows: Rows, count: int, bands: int, height: int, directory: Path) -> np.ndarray:
    """uint64 [bands, count] in a file of `directory`: the hash of each band of `height` values of each signature."""
    hashes = np.lib.format.open_memmap(
        directory / "bands.npy", mode="w+", dtype=np.uint64, shape=(bands, count)
    )
    for where, table in rows("signature"):
        signature = np.frombuffer(b"".join(table["signature"].to_pylist()), "<u4")
        signature = signature.reshape(len(where), -1)[:, : bands * height]
        hashes[:, where] = _fold(signature.reshape(len(where), bands, height)).T
    return hashes


def candidates(hashes: np.ndarray, directory: Path) -> Iterator[np.ndarray]:
    """int64 [m, 2] arrays of pairs (low, high) that share a band, each pair once in all, in order."""
    count = hashes.shape[1]
    paths = []
    for band in hashes:
        pairs = pairs_in(np.asarray(band))
        paths.append(directory / f"pairs-{len(paths)}.npy")
        np.save(paths[-1], np.unique(pairs[:, 0] * count + pairs[:, 1]))
    runs = [np.load(path, mmap_mode="r") for path in paths]
    # Merged by ranges of the first document, each small enough for memory.
    pieces = max(1, sum(len(run) for run in runs) // _PAIRS_AT_ONCE)
    bounds = np.linspace(0, count * count, pieces + 1).astype(np.int64)
    for low, high in pairwise(bounds.tolist()):
        piece = [run[np.searchsorted(run, low) : np.searchsorted(run, high)] for run in runs]
        packed = np.unique(np.concatenate(piece))
        yield np.stack([packed // count, packed % count], axis=1)


def pairs_in(band: np.ndarray) -> np.ndarray:
    """int64 [m, 2] of positions with equal hashes: all of a bucket of up to BUCKET, of a larger one those nearby."""
    order = np.argsort(band, kind="stable")
    values = band[order]
    alike = np.zeros(len(values) + 1, bool)
    np.equal(values[1:], values[:-1], out=alike[1:-1])
    together = alike[1:] | alike[:-1]  # most documents are alone in their bucket
    order, values = order[together], values[together]
    begins = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    begins = begins[begins < len(values)]
    sizes = np.diff(np.append(begins, len(values)))
    place = np.arange(len(values)) - np.repeat(begins, sizes)  # within the bucket
    size = np.repeat(sizes, sizes)
    found = [np.empty((0, 2), np.int64)]
    for back in range(1, int(min(sizes.max(initial=1), BUCKET))):
        at = np.flatnonzero((place >= back) & ((size <= BUCKET) | (back <= _BEFORE)))
        if not len(at):
            break
        found.append(np.stack([order[at - back], order[at]], axis=1))
    large = np.flatnonzero((size > BUCKET) & (place > _BEFORE))
    found.append(np.stack([order[large - place[large]], order[large]], axis=1))
    return np.concatenate(found)


def _fold(rows: np.ndarray) -> np.ndarray:
    """uint64 hash of the last axis of uint32 values."""
    out = np.zeros(rows.shape[:-1], np.uint64)
    for at in range(rows.shape[-1]):
        out = (out ^ rows[..., at]) * np.uint64(0x9E3779B97F4A7C15)
        out ^= out >> np.uint64(29)
    return out
