"""Units of work: runs of items that one process curates at a time, and the part file that each leaves.

A part is named by a hash of everything it follows from: the curation's settings, and place, size and time of
each item. So a build that was killed goes on where it was, a changed setting makes what it touches anew, and a
part that is there is right. Parts are written under another name, synced and renamed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from gristmill.data.read import read
from gristmill.data.schema import arrow, document_id, part_schema, raw_batch
from gristmill.data.sources import Group, Item, Raw
from gristmill.data.stage import Stage
from gristmill.errors import GristmillError
from gristmill.files import hash_json, write_with

UNIT_ITEMS, UNIT_BYTES = 48, 600_000
BATCH_DOCUMENTS, BATCH_BYTES = 64, 4_000_000


@dataclass(frozen=True, slots=True)
class Unit:
    """The `number`-th run of items of a group."""

    group: str
    number: int
    items: tuple[Item, ...]

    @property
    def bytes(self) -> int:
        return sum(item.size for item in self.items if not item.refused)

    def key(self, settings: str) -> str:
        """The name of its part under `settings` (a hash of all that curation depends on)."""
        items = [
            {**asdict(item), "path": ""} for item in self.items
        ]  # url says it, in characters that JSON has
        return hash_json([settings, items])[:32]


@dataclass(frozen=True, slots=True)
class Part:
    """A part file and what its footer says: rows, rows and bytes of text still kept."""

    path: Path
    rows: int
    kept: int
    kept_bytes: int


def cut(group: Group) -> Iterator[Unit]:
    """The items of `group` in order. A cut follows from the items beside it alone, so that a file more or less
    moves the cuts near it and no others."""
    chunk: list[Item] = []
    size = number = 0
    for item in group.items():
        chunk.append(item)
        size += 0 if item.refused else item.size
        drawn = zlib.crc32(item.source.encode("utf-8", "replace")) % UNIT_ITEMS == 0
        if drawn or size >= UNIT_BYTES:
            yield Unit(group.name, number, tuple(chunk))
            chunk, size, number = [], 0, number + 1
    if chunk:
        yield Unit(group.name, number, tuple(chunk))


def make_part(unit: Unit, stage: Stage, directory: Path) -> Part:
    """The part of `unit`, made now unless it is there."""
    path = directory / f"{unit.key(stage.key)}.parquet"
    if (part := _read_footer(path)) is not None:
        return part
    parquet, schema = arrow().parquet, part_schema()
    rows = kept = kept_bytes = 0

    def write(temporary: Path) -> None:
        nonlocal rows, kept, kept_bytes
        with parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for batch in _batches(unit.items):
                curated = stage(batch)
                writer.write_batch(curated)
                rows += curated.num_rows
                for reason, size in zip(
                    curated["drop_reason"].to_pylist(), curated["size"].to_pylist(), strict=True
                ):
                    kept += not reason
                    kept_bytes += 0 if reason else size
            writer.add_key_value_metadata({"kept": str(kept), "kept_bytes": str(kept_bytes)})

    write_with(path, write)
    return Part(path, rows, kept, kept_bytes)


def _read_footer(path: Path) -> Part | None:
    if not path.is_file():
        return None
    try:
        footer = arrow().parquet.read_metadata(path)
        said = footer.metadata or {}
        return Part(path, footer.num_rows, int(said[b"kept"]), int(said[b"kept_bytes"]))
    except (OSError, ValueError, KeyError, arrow().ArrowInvalid):
        return None  # cut off by a full disk that lied, or not ours: made again


def _batches(items: Iterable[Item]) -> Iterator[Any]:
    """Record batches of raw documents, small enough that a batch of large pages fits in memory."""
    found = ((item, raw) for item in items for raw in _apart(item, _raws(item)))
    while rows := _some(found):
        yield raw_batch(rows)


def _some(found: Iterator[tuple[Item, Raw]]) -> list[tuple[Item, Raw]]:
    rows: list[tuple[Item, Raw]] = []
    size = 0
    for item, raw in islice(found, BATCH_DOCUMENTS):
        rows.append((item, raw))
        size += len(raw.html or b"") + len(raw.text)
        if size >= BATCH_BYTES:
            break
    return rows


def _raws(item: Item) -> Iterator[Raw]:
    """What a reader finds; a text that trips it must not end the build: it is listed, with the error."""
    if item.refused:
        yield Raw(item.source, reason=item.refused, detail=dict(item.detail))
        return
    found = item.offset > 0  # a later piece of a JSONL file may be all blank lines
    try:
        for raw in read(item):
            found = True
            yield raw
    except GristmillError:
        raise  # a missing extra: not this file's fault, and not to be remembered in a part
    except Exception as error:
        found = True
        detail = {"error": f"{type(error).__name__}: {error}"[:1000]}
        yield Raw(item.source, reason="failed", detail=detail)
    if not found:
        yield Raw(item.source, reason="no_text")


def _apart(item: Item, raws: Iterable[Raw]) -> Iterator[Raw]:
    """What one file calls the same (a page that was crawled twice) is numbered, since ids follow from it."""
    seen: dict[str, int] = {}
    for raw in raws:
        name = document_id(raw.url or item.url, raw.source)
        seen[name] = number = seen.get(name, 0) + 1
        yield raw if number == 1 else replace(raw, source=f"{raw.source}#{number}")
