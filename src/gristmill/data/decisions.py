"""The labels of all rows of all parts, as columns in reading order, and the decisions about them.

About 60 bytes of memory a document; texts stay in the part files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.data.schema import arrow
from gristmill.data.units import Part

_ROWS = 512  # read at once
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
        return known[values(encoded.indices)] if len(known) else np.empty(0, np.int32)


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
        """(first document, table of the columns `names`) of runs of documents, in order."""
        for part, start in zip(self.parts, self.starts.tolist(), strict=False):
            yield from batches(part.path, names, start)

    def rows(self, wanted: np.ndarray, *names: str) -> Iterator[tuple[np.ndarray, Any]]:
        """(positions in `wanted`, their rows of the columns `names`) of each run that has any.

        wanted: documents, sorted. Parts that have none of them are not opened.
        """
        bounds = np.searchsorted(wanted, self.starts).tolist()
        for part, start, low, high in zip(
            self.parts, self.starts.tolist(), bounds, bounds[1:], strict=False
        ):
            for first, table in batches(part.path, names, start) if high > low else ():
                here = slice(*np.searchsorted(wanted, [first, first + table.num_rows]))
                if here.stop > here.start:
                    yield np.arange(here.start, here.stop), take(table, wanted[here] - first)


def batches(path: Path, names: Sequence[str], start: int = 0) -> Iterator[tuple[int, Any]]:
    """(number of its first row, from `start` on, table of the columns `names`) of runs of rows of a Parquet file."""
    pyarrow = arrow()
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS, columns=list(names), use_threads=False):
            yield start, pyarrow.Table.from_batches([batch])
            start += batch.num_rows
    pyarrow.default_memory_pool().release_unused()  # else it keeps tens of megabytes


# The two below keep from pyarrow's own way between it and NumPy, which imports pandas where it is installed: 28 MB.


def values(column: Any) -> np.ndarray:
    """A pyarrow column of numbers."""
    if hasattr(column, "chunks"):
        column = column.combine_chunks()
    return np.from_dlpack(column) if len(column) else np.empty(0)


def take(table: Any, rows: np.ndarray) -> Any:
    """The given rows of a pyarrow table."""
    pyarrow = arrow()
    buffer = pyarrow.py_buffer(np.ascontiguousarray(rows, np.int64))
    return table.take(pyarrow.Array.from_buffers(pyarrow.int64(), len(rows), [None, buffer]))


def read_labels(parts: Sequence[Part]) -> Labels:
    groups, packages, reasons = Names(), Names(), Names()
    reasons.number("")  # kept
    types = {"group": "i4", "package": "i4", "reason": "i4", "size": "i8", "quality": "f4"}
    found = {name: [np.empty(0, kind)] for name, kind in types.items()}
    for part in parts:
        names = ("group", "package", "drop_reason", "size", "quality")
        for _, table in batches(part.path, names):
            found["group"].append(groups.encode(table["group"]))
            found["package"].append(packages.encode(table["package"]))
            found["reason"].append(reasons.encode(table["drop_reason"]))
            found["size"].append(values(table["size"]).copy())
            found["quality"].append(values(table["quality"]).copy())
    columns = {name: np.concatenate(arrays) for name, arrays in found.items()}
    count = len(columns["size"])
    return Labels(
        parts=parts,
        starts=np.cumsum([0, *(part.rows for part in parts)]),
        groups=groups,
        packages=packages,
        reasons=reasons,
        group=columns["group"],
        package=columns["package"],
        reason=columns["reason"],
        size=columns["size"],
        quality=columns["quality"],
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
