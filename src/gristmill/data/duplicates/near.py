"""Near duplicates: MinHash-LSH proposes, the true Jaccard similarity of word n-grams decides.

With b bands of r rows a pair of similarity s is proposed with probability 1 - (1 - s^r)^b: 22 bands of 5 rows miss
0.03% of the pairs at 0.8 (14 of 8, as others have it, 7.6%), and verification takes out what they propose too
much. Bands and shingles lie in files; in memory is one band at a time: about 40 bytes a document.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gristmill.data.decisions import Labels
from gristmill.data.duplicates.clusters import by_rank, components, leaders
from gristmill.data.duplicates.similar import jaccard_pairs

# In a bucket of more, each document is held against the first and the 32 before it: rows filled from one template
# share bands by the thousand, and all pairs of them would take time that grows with their square.
BUCKET = 64
_BEFORE = 32
_PAIRS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class NearConfig:
    """threshold: Jaccard similarity from which two documents are near duplicates.

    stays: "leaders": a document goes when a better one that stays is similar to it; "component": of everything
    that is connected, directly or through others, one stays (what other tools do; it also takes documents that
    are unlike the one that stays). Better is: higher quality, then longer, then first in reading order.
    """

    threshold: float = 0.8
    bands: int = 22
    rows: int = 5
    stays: Literal["leaders", "component"] = "leaders"


def drop_near(labels: Labels, config: NearConfig, scratch: Path) -> None:
    """Mark the near duplicates among the documents still kept. `scratch`: where the band files lie meanwhile."""
    documents = np.flatnonzero(labels.kept)
    if len(documents) < 2:
        return
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        bands = _Bands.write(labels, documents, config, Path(directory))
        shingles = _Shingles.write(labels, documents, Path(directory))
        found = [_verified(pairs, shingles, config.threshold) for pairs in bands.candidates()]
    pairs = np.concatenate([np.empty((0, 2), np.int64), *(pairs for pairs, _ in found)])
    similarity = np.concatenate([np.empty(0), *(values for _, values in found)])
    _choose(labels, documents, pairs, similarity, config)


def _choose(
    labels: Labels,
    documents: np.ndarray,
    pairs: np.ndarray,
    similarity: np.ndarray,
    config: NearConfig,
) -> None:
    """`pairs` are positions in `documents`."""
    order = np.lexsort(
        (-labels.size[documents], -labels.quality[documents])
    )  # stable: then reading order
    rank = np.empty(len(documents), np.int64)
    rank[order] = np.arange(len(documents))
    if config.stays == "leaders":
        goes = leaders(pairs, rank)
        better, worse = by_rank(pairs, rank)
        named = goes[worse] & ~goes[better]
        better, worse, alike = better[named], worse[named], similarity[named]
    else:
        root = components(rank[pairs], len(documents))  # over ranks: the root is the best
        best = order[root[rank]]
        worse = np.flatnonzero(best != np.arange(len(documents)))
        better, alike = best[worse], np.full(len(worse), np.nan)
        direct = {
            tuple(sorted(p)): s for p, s in zip(pairs.tolist(), similarity.tolist(), strict=True)
        }
        for at, pair in enumerate(zip(worse.tolist(), better.tolist(), strict=True)):
            alike[at] = direct.get(tuple(sorted(pair)), np.nan)
    # The most similar one is named, of equals the best.
    first = np.lexsort((rank[better], -alike, worse))
    _, at = np.unique(worse[first], return_index=True)
    chosen = first[at]
    labels.drop_copies(
        documents[worse[chosen]],
        documents[better[chosen]],
        alike[chosen],
        "near_duplicate",
        f"< {config.threshold:g}",
    )


def _verified(
    pairs: np.ndarray, shingles: _Shingles, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    similarity = jaccard_pairs(shingles.flat, shingles.offsets, pairs)
    alike = similarity >= threshold
    return pairs[alike], similarity[alike]


@dataclass(frozen=True, slots=True)
class _Bands:
    """uint64 [bands, documents] in a file: the hash of each band of each signature."""

    hashes: np.ndarray
    directory: Path

    @classmethod
    def write(
        cls, labels: Labels, documents: np.ndarray, config: NearConfig, directory: Path
    ) -> _Bands:
        shape = (config.bands, len(documents))
        hashes = np.lib.format.open_memmap(
            directory / "bands.npy", mode="w+", dtype=np.uint64, shape=shape
        )
        for where, table in _kept_rows(labels, documents, "signature"):
            signature = np.frombuffer(b"".join(table["signature"].to_pylist()), "<u4")
            signature = signature.reshape(len(where), -1)[:, : config.bands * config.rows]
            rows = signature.reshape(len(where), config.bands, config.rows)
            hashes[:, where] = _fold(rows).T
        return cls(hashes, directory)

    def candidates(self) -> Iterator[np.ndarray]:
        """int64 [m, 2] arrays of pairs (low, high) that share a band, each pair once in all."""
        count = self.hashes.shape[1]
        paths = []
        for band in self.hashes:
            pairs = _pairs_in(np.asarray(band))
            packed = np.unique(pairs[:, 0] * count + pairs[:, 1])
            paths.append(self.directory / f"pairs-{len(paths)}.npy")
            np.save(paths[-1], packed)
        runs = [np.load(path, mmap_mode="r") for path in paths]
        # Merged by ranges of the first document, each small enough for memory.
        total = sum(len(run) for run in runs)
        pieces = max(1, total // _PAIRS_AT_ONCE)
        bounds = np.linspace(0, count * count, pieces + 1).astype(np.int64)
        for low, high in pairwise(bounds.tolist()):
            piece = [run[np.searchsorted(run, low) : np.searchsorted(run, high)] for run in runs]
            packed = np.unique(np.concatenate(piece))
            yield np.stack([packed // count, packed % count], axis=1)


def _fold(rows: np.ndarray) -> np.ndarray:
    """uint64 hash of the last axis of uint32 values."""
    out = np.zeros(rows.shape[:-1], np.uint64)
    for at in range(rows.shape[-1]):
        out = (out ^ rows[..., at]) * np.uint64(0x9E3779B97F4A7C15)
        out ^= out >> np.uint64(29)
    return out


def _pairs_in(band: np.ndarray) -> np.ndarray:
    """Pairs of positions with equal hashes: all of a bucket of up to BUCKET, of a larger one those nearby."""
    order = np.argsort(band, kind="stable")
    values = band[order]
    begins = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
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


@dataclass(frozen=True, slots=True)
class _Shingles:
    """The sorted shingle hashes of the documents, end to end in a file; document i has [offsets[i], offsets[i+1])."""

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def write(cls, labels: Labels, documents: np.ndarray, directory: Path) -> _Shingles:
        lengths = []
        path = directory / "shingles.bin"
        with open(path, "wb") as file:
            for _, table in _kept_rows(labels, documents, "shingles"):
                column = table["shingles"].combine_chunks()
                lengths.append(np.diff(column.offsets.to_numpy()))
                file.write(np.ascontiguousarray(column.flatten().to_numpy()).tobytes())
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        return cls(np.memmap(path, np.uint64, mode="r", shape=(int(offsets[-1]),)), offsets)


def _kept_rows(
    labels: Labels, documents: np.ndarray, column: str
) -> Iterator[tuple[np.ndarray, Any]]:
    """(positions in `documents`, their rows of a column) of each part that has any."""
    for start, table in labels.columns(column):
        low, high = np.searchsorted(documents, [start, start + table.num_rows])
        if high > low:
            yield np.arange(low, high), table.take(documents[low:high] - start)
