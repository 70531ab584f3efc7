"""The labels of all rows of all parts, as columns in reading order, and the decisions about them.

About 60 bytes of memory a document; texts stay in the part files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gristmill.data.schema import arrow
from gristmill.data.units import Part

# What deduplication calls a document that is like another one.
COPIES = ("duplicate", "near_duplicate", "duplicate_url")


@dataclass(slots=True)
class Names:
    """Strings as small integers, numbered as they come."""

    names: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> int:
        if name not in self.numbers:
            self.numbers[name] = len(self.names)
            self.names.append(name)
        return self.numbers[name]

    def encode(self, column: Any) -> np.ndarray:
        """int32 numbers of a pyarrow string column."""
        encoded = column.combine_chunks().dictionary_encode()
        known = np.array([self.number(name) for name in encoded.dictionary.to_pylist()], np.int32)
        return (
            known[encoded.indices.to_numpy(zero_copy_only=False)]
            if len(known)
            else np.empty(0, np.int32)
        )


@dataclass(slots=True)
class Labels:
    """One entry a document, over all parts in reading order; `starts[p]` is where part p begins.

    reason: 0 where the document is kept, else a number of `reasons`. of: the document that it is a copy of, or
    -1, with their similarity. limits: reason -> the similarity that would have been kept. stories: what is added
    to a document's own story. cuts: spans of UTF-8 bytes to take out of its text.
    """

    parts: Sequence[Part]
    starts: np.ndarray
    groups: Names
    packages: Names
    reasons: Names
    group: np.ndarray
    package: np.ndarray
    reason: np.ndarray
    size: np.ndarray
    quality: np.ndarray
    of: np.ndarray
    similarity: np.ndarray
    limits: dict[str, str] = field(default_factory=dict)
    stories: dict[int, dict[str, Any]] = field(default_factory=dict)
    cuts: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.size)

    @property
    def kept(self) -> np.ndarray:
        """bool per document."""
        return self.reason == 0

    def drop(self, which: np.ndarray, reason: str) -> None:
        self.reason[which] = self.reasons.number(reason)

    def drop_copies(
        self, which: np.ndarray, of: np.ndarray, similarity: np.ndarray, reason: str, limit: str
    ) -> None:
        """`limit` tells in words which similarity would have been kept."""
        self.drop(which, reason)
        self.of[which] = of
        self.similarity[which] = similarity
        self.limits[reason] = limit

    def columns(self, *names: str) -> Iterator[tuple[int, Any]]:
        """(first document, table of the columns `names`) of each part."""
        for part, start in zip(self.parts, self.starts.tolist(), strict=False):
            yield start, arrow().parquet.read_table(part.path, columns=list(names))


def read_labels(parts: Sequence[Part]) -> Labels:
    groups, packages, reasons = Names(), Names(), Names()
    reasons.number("")  # kept
    found: dict[str, list[np.ndarray]] = {
        name: [] for name in ("group", "package", "reason", "size", "quality")
    }
    for part in parts:
        table = arrow().parquet.read_table(
            part.path, columns=["group", "package", "drop_reason", "size", "quality"]
        )
        found["group"].append(groups.encode(table["group"]))
        found["package"].append(packages.encode(table["package"]))
        found["reason"].append(reasons.encode(table["drop_reason"]))
        found["size"].append(table["size"].to_numpy())
        found["quality"].append(table["quality"].to_numpy())
    columns = {name: np.concatenate([np.empty(0), *arrays]) for name, arrays in found.items()}
    count = len(columns["size"])
    return Labels(
        parts=parts,
        starts=np.cumsum([0, *(part.rows for part in parts)]),
        groups=groups,
        packages=packages,
        reasons=reasons,
        group=columns["group"].astype(np.int32),
        package=columns["package"].astype(np.int32),
        reason=columns["reason"].astype(np.int32),
        size=columns["size"].astype(np.int64),
        quality=columns["quality"].astype(np.float32),
        of=np.full(count, -1, np.int64),
        similarity=np.zeros(count, np.float32),
    )


def keep_within(labels: Labels, rows: slice, share: float) -> None:
    """Drop the kept documents of `rows` from the first on that does not fit into `share` bytes."""
    kept = np.flatnonzero(labels.kept[rows]) + rows.start
    until = np.cumsum(labels.size[kept])
    over = kept[until > share]
    labels.drop(over, "over_max_bytes")
    for at in over.tolist():
        labels.stories[at] = {"limit_bytes": int(share)}
