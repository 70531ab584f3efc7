"""Equal documents, by a 128-bit hash of their normalized text, and pages that were crawled twice, by their URL."""

from __future__ import annotations

import numpy as np

from gristmill.data.decisions import Labels

KEY = np.dtype([("high", "<u8"), ("low", "<u8")])  # 16 bytes of a hash


def drop_exact(labels: Labels) -> None:
    """Of equal texts the one of highest quality stays, of those the first in reading order."""
    documents, keys = _keys(labels, "exact")
    order = np.lexsort((documents, -labels.quality[documents], keys["low"], keys["high"]))
    _drop_repeats(labels, documents[order], keys[order], "duplicate", 1.0)


def drop_same_url(labels: Labels) -> None:
    """Of pages of one URL the one of highest quality stays, of those the last in reading order: the newest crawl."""
    documents, keys = _keys(labels, "url_key")
    order = np.lexsort((-documents, -labels.quality[documents], keys["low"], keys["high"]))
    _drop_repeats(labels, documents[order], keys[order], "duplicate_url", np.nan)


def firsts(keys: np.ndarray) -> np.ndarray:
    """int64 [n]: for each of n sorted keys the place of the first that equals it."""
    begins = np.flatnonzero(
        np.concatenate([np.ones(min(len(keys), 1), bool), keys[1:] != keys[:-1]])
    )
    return np.repeat(begins, np.diff(np.append(begins, len(keys))))


def _keys(labels: Labels, column: str) -> tuple[np.ndarray, np.ndarray]:
    """(documents still kept that have a key, their keys)."""
    kept = np.flatnonzero(labels.kept)
    documents, keys = [np.empty(0, np.int64)], [np.empty(0, KEY)]
    for where, table in labels.rows(kept, column):
        values = table[column].to_pylist()
        have = [at for at, value in enumerate(values) if value]
        documents.append(kept[where[have]])
        keys.append(np.frombuffer(b"".join(values[at] for at in have), KEY))
    return np.concatenate(documents), np.concatenate(keys)


def _drop_repeats(
    labels: Labels, documents: np.ndarray, keys: np.ndarray, reason: str, similarity: float
) -> None:
    """`documents` are sorted by key, the one that stays first."""
    first = firsts(keys)
    repeats = first != np.arange(len(keys))
    similarities = np.full(int(repeats.sum()), similarity, np.float32)
    labels.drop_copies(documents[repeats], documents[first[repeats]], similarities, reason, "< 1")
