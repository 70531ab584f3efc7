"""Near duplicates: MinHash-LSH proposes, the true Jaccard similarity of word n-grams decides.

With b bands of r rows a pair of similarity s is proposed with probability 1 - (1 - s^r)^b: 22 bands of 5 rows miss
0.03% of the pairs at 0.8 (14 of 8, as others have it, 7.6%), and verification takes out what they propose too
much. Bands and shingles lie in files; in memory is one band at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gristmill.data.decisions import Labels
from gristmill.data.duplicates.bands import Rows, candidates, pairs_in, write_bands
from gristmill.data.duplicates.clusters import by_rank, components, leaders
from gristmill.data.duplicates.exact import KEY, firsts
from gristmill.data.duplicates.known import Known, sign
from gristmill.data.duplicates.similar import Shingles


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


@dataclass(frozen=True, slots=True)
class NearSummary:
    """What was found among the documents that no earlier corpus has.

    pairs: that are near duplicates. clusters: groups that they connect, directly or through others. largest: the
    documents of the largest. diameter_min: the lowest similarity of two documents of one cluster of three or more
    (of a cluster of more than 64, each is held against its first document and the 32 before it); None without
    such a cluster. known: documents that an earlier corpus has.
    """

    pairs: int = 0
    clusters: int = 0
    largest: int = 0
    diameter_min: float | None = None
    known: int = 0


def drop_near(
    labels: Labels,
    config: NearConfig,
    scratch: Path,
    against: Sequence[Path] = (),
    seed: int = 0,
) -> NearSummary:
    """Mark the near duplicates among the documents still kept. `scratch`: where files lie meanwhile.

    against: documents directories of earlier corpora; what is equal or near to one of theirs goes first, as
    "known_document", and its story names it. seed: of the signatures that `labels` have.
    Raises RequestError when a directory of `against` holds no documents.
    """
    documents = np.flatnonzero(labels.kept)
    if not len(documents):
        return NearSummary()
    with _fresh(scratch / "near") as directory:
        known = sign(against, directory, seed) if against else Known(directory, 0)
        total = known.count + len(documents)

        def rows(column: str) -> Iterator[tuple[np.ndarray, Any]]:
            own = ((at + known.count, table) for at, table in labels.rows(documents, column))
            return chain(known.rows(column), own)

        hashes = write_bands(rows, total, config.bands, config.rows, directory)
        shingles = Shingles.write(rows, directory)
        found = [np.empty((0, 2), np.int64)]
        alike = [np.empty(0)]
        for proposed in candidates(hashes, directory):
            new = proposed[proposed[:, 1] >= known.count]
            similarity = shingles.jaccard(new)
            near = similarity >= config.threshold
            found.append(new[near])
            alike.append(similarity[near])
        pairs, similarity = np.concatenate(found), np.concatenate(alike)
        if known.count:
            equal = _equal(rows, known.count)
            earlier = pairs[:, 0] < known.count
            old = np.concatenate([equal, pairs[earlier]])
            values = np.concatenate([np.ones(len(equal)), similarity[earlier]])
            _drop_known(labels, documents, known, old, values, config.threshold)
            pairs, similarity = pairs[~earlier] - known.count, similarity[~earlier]
        left = labels.kept[documents]
        both = left[pairs].all(axis=1)
        pairs, similarity = pairs[both], similarity[both]
        _choose(labels, documents, pairs, similarity, config)
        return _summary(pairs, len(documents), shingles, known.count, int((~left).sum()))


def _equal(rows: Rows, known: int) -> np.ndarray:
    """int64 [m, 2]: the first of the `known` first documents of equal text, and the number of a new one.

    Banding finds these, too, but not each in a bucket of hundreds.
    """
    key = np.concatenate(
        [np.frombuffer(b"".join(table["exact"].to_pylist()), KEY) for _, table in rows("exact")]
    )
    order = np.lexsort((key["low"], key["high"]))  # stable: the known ones first
    first = order[firsts(key[order])]
    same = (first < known) & (order >= known)
    return np.stack([first[same], order[same]], axis=1)


def _drop_known(
    labels: Labels,
    documents: np.ndarray,
    known: Known,
    pairs: np.ndarray,
    similarity: np.ndarray,
    threshold: float,
) -> None:
    """`pairs`: numbers of a known document and of one after them, similar. The most similar one is named."""
    best = np.lexsort((pairs[:, 0], -similarity, pairs[:, 1]))
    _, first = np.unique(pairs[best, 1], return_index=True)
    best = best[first]
    names = known.names(pairs[best, 0])
    labels.drop(documents[pairs[best, 1] - known.count], "known_document")
    for (old, new), value in zip(pairs[best].tolist(), similarity[best].tolist(), strict=True):
        decided = {"signal": "jaccard", "value": round(value, 4), "limit": f"< {threshold:g}"}
        story = labels.stories.setdefault(int(documents[new - known.count]), {})
        story |= {"known_as": names[old], "decided": decided}


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


def _summary(
    pairs: np.ndarray, count: int, shingles: Shingles, first: int, known: int
) -> NearSummary:
    """`pairs`: positions among `count` documents, of which `first` is the number of the first in `shingles`."""
    if not len(pairs):
        return NearSummary(known=known)
    root = components(pairs, count)
    sizes = np.bincount(root)
    inside = pairs_in(root.astype(np.uint64))
    inside = inside[sizes[root[inside[:, 0]]] > 2]
    lowest = float(shingles.jaccard(inside + first).min()) if len(inside) else None
    return NearSummary(len(pairs), int((sizes > 1).sum()), int(sizes.max()), lowest, known)


@contextmanager
def _fresh(directory: Path) -> Iterator[Path]:
    """An empty directory, gone at the end; what a killed process left in it goes first."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
