"""The data stage: sources to clean, deduplicated, split documents, with every drop and its reason kept.

Reading order is the order of the sources; "python" is read as stdlib, topics, packages. In a group the order is
the source's own (python_source.py, folder_source.py). The order decides which of two duplicates stays and what a
byte limit cuts off, and nothing else decides: not the number of workers, not the clock.

Reasons given here: "duplicate", "near_duplicate", "over_max_bytes"; others: quality.py, read.py, decode.py,
folder_source.py, python_source.py ("tests", "vendored", "licence_text", "installer_file",
"over_per_package_bytes"), process.py ("failed").
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from gristmill.data.dedup import Seen
from gristmill.data.folder_source import folder_group, group_name
from gristmill.data.process import Processed, process
from gristmill.data.python_source import python_groups
from gristmill.data.schema import FILES, arrow, arrow_schema, document_id
from gristmill.data.sources import Group, Item
from gristmill.data.split import held_out, united
from gristmill.data.summary import summarize
from gristmill.errors import RequestError, WorkError
from gristmill.files import hash_json, write_with
from gristmill.stage import Progress, Result, StageConfig, quiet

CHUNK_ITEMS, CHUNK_BYTES = 48, 600_000
ROW_GROUP = 512
COPIES = ("duplicate", "near_duplicate")


class BuildConfig(StageConfig):
    """What to read and how to choose.

    sources: "python" (the installed Python: standard library and site-packages) or paths of folders and files.
    path: one folder or file, instead of `sources`.
    max_bytes: cleaned bytes kept over everything; sources share it evenly, what one leaves the next may use.
    per_package_bytes: bytes read of one installed package, so that the largest does not take over.
    heldout_fraction: share of the kept bytes that is held out, by package or file; 0 holds out nothing.
    near_duplicate: Jaccard similarity of word 5-grams from which a document is a near duplicate.
    workers: processes that read; the result is the same for any number.
    """

    sources: tuple[str, ...] = ("python",)
    path: str = ""
    max_bytes: int = Field(24_000_000, gt=0)
    per_package_bytes: int = Field(1_000_000, gt=0)
    heldout_fraction: float = Field(0.05, ge=0, le=0.5)
    near_duplicate: float = Field(0.8, gt=0, le=1)
    workers: int = Field(2, ge=1, le=256)
    seed: int = Field(0, ge=0)


@dataclass(slots=True)
class _Row:
    """A document waiting to be written; its text lies in the spool at [offset, offset + length)."""

    item: Item
    source: str
    kind: str
    reason: str
    meta: dict[str, Any]
    offset: int = 0
    length: int = 0
    split: str = ""
    unit: str = ""

    @property
    def id(self) -> str:
        return document_id(self.item.url, self.source)

    def order(self) -> tuple[str, str, int, str]:
        """By group and source, JSONL rows by number."""
        tail = self.source.removeprefix(self.item.source)
        number = int(tail[1:]) if tail[1:].isdigit() else 0
        return (self.item.group, self.item.source, number, self.reason)

    def columns(self, spool: _Spool) -> dict[str, str]:
        item = self.item
        meta = {"bytes": item.size, **self.meta}
        if self.split:
            meta["split_by"] = self.unit
        return {
            "id": self.id,
            "text": spool.get(self),
            "source": self.source,
            "url": item.url,
            "license": item.license,
            "date": item.date,
            "meta": json.dumps(meta, ensure_ascii=False, default=str),
            "kind": self.kind,
            "group": item.group,
            "package": item.package,
            "drop_reason": self.reason,
            "split": self.split,
        }


@dataclass(slots=True)
class _Spool:
    """Texts on disk while the build decides about them; memory holds only labels and signatures."""

    file: IO[bytes]
    end: int = 0

    def put(self, text: str) -> tuple[int, int]:
        data = text.encode("utf-8")
        self.file.seek(self.end)
        self.file.write(data)
        self.end += len(data)
        return self.end - len(data), len(data)

    def get(self, row: _Row) -> str:
        self.file.seek(row.offset)
        return self.file.read(row.length).decode("utf-8")


def run(
    config: BuildConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """Build `out_dir`/documents/{train,heldout,dropped}.parquet. `inputs` is not used: this is the first stage.

    Raises RequestError when a source is missing, nothing usable is found, or nothing can be held out.
    """
    arrow()  # a missing extra is said before the work, not after
    out_dir = Path(out_dir)
    groups = resolve(config)
    directory = out_dir / "documents"
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out_dir) as file:
        spool = _Spool(file)
        rows = _Reader(config, spool, progress).read(groups)
        _split(rows, config)
        # train.parquet, by which readers know a documents directory, goes first and comes last: whoever
        # finds it finds three files of one build, also after a kill between them.
        (directory / "train.parquet").unlink(missing_ok=True)
        for name in reversed(FILES):
            _write(directory / f"{name}.parquet", rows, name, spool)
    return Result({"documents": directory}, summarize(directory))


def resolve(config: BuildConfig) -> list[Group]:
    """The groups that the configuration's sources stand for, listed but not read."""
    if config.path and config.sources not in ((), ("python",)):
        raise RequestError("give data.sources or data.path, not both")
    wanted = (config.path,) if config.path else config.sources
    if not wanted:
        raise RequestError('no source given: name folders or files, or "python"')
    groups: list[Group] = []
    taken = {"stdlib", "topics", "packages"}
    for source in dict.fromkeys(wanted):
        if source == "python":
            groups += python_groups(config.seed, config.per_package_bytes)
            continue
        name = base = Path(source).expanduser().resolve().name or "root"
        number = 2
        while group_name(name) in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(group_name(name))
        groups.append(folder_group(source, name))
    return groups


def source_fingerprint(config: BuildConfig) -> str:
    """Changes when a file of the sources is added, removed or touched: a listing hashed, nothing read.

    Raises RequestError when a source is missing, or nothing in the sources can be read.
    """
    listing = [
        (item.url, item.source, item.size, item.date, item.refused)
        for group in resolve(config)
        for item in group.items()
    ]
    reasons = [refused for *_, refused in listing]
    if all(reasons):
        raise RequestError(_nothing_usable(reasons, config))
    return hash_json(listing)


class _Reader:
    """Reads groups in order into rows, deciding on duplicates and byte limits as it goes."""

    def __init__(self, config: BuildConfig, spool: _Spool, progress: Progress):
        self.config = config
        self.spool = spool
        self.progress = progress
        self.rows: list[_Row] = []
        self.kept = self.kept_bytes = 0
        self._seen = Seen(config.near_duplicate, lambda number: spool.get(self.rows[number]))
        self._unread: set[str] = set()
        self._full = False

    def read(self, groups: list[Group]) -> list[_Row]:
        """All rows in reading order. Raises RequestError when none is kept."""
        shares = even_shares([group.bytes for group in groups], self.config.max_bytes)
        total = min(self.config.max_bytes, sum(group.bytes for group in groups))
        try:
            with _pool(self.config.workers) as pool:
                for number, group in enumerate(groups):
                    limit = self.config.max_bytes - sum(shares[number + 1 :])
                    self._read_group(group, limit, total, pool)
        except BrokenProcessPool as error:
            raise WorkError(
                f"a reading process ended unexpectedly ({error}). Out of memory is the usual cause: try "
                "data.workers=1. In a script of your own, call this under `if __name__ == '__main__':`."
            ) from None
        if not self.kept:
            raise RequestError(_nothing_usable([row.reason for row in self.rows], self.config))
        return self.rows

    def _read_group(
        self, group: Group, limit: int, total: int, pool: ProcessPoolExecutor | None
    ) -> None:
        self._full = False
        for item, texts in _processed(group.items(), self.config, pool, lambda: self._full):
            for found in texts:
                if self._full or not self._accept(item, found, limit):
                    self._full = True
                    break
            if self._full:
                self._list_unread(item, limit)
            self.progress(self.kept_bytes, total, "B", documents=self.kept)

    def _accept(self, item: Item, found: Processed, limit: int) -> bool:
        """File the text as kept or dropped; False, and nothing done, when it would go over `limit`."""
        reason, meta = found.reason, found.meta
        if not reason:
            match = self._seen.duplicate_of(found.key, found.text, found.signature)
            if match:
                other, similarity = match
                reason = COPIES[similarity < 1.0]
                first = self.rows[other]
                meta["duplicate_of"] = {"id": first.id, "source": first.source}
                meta["decided"] = {
                    "signal": "jaccard",
                    "value": round(similarity, 4),
                    "limit": f"< {self.config.near_duplicate:g}",
                }
        row = _Row(item, found.source, found.kind, reason, meta)
        size = len(found.text.encode("utf-8"))
        if not reason:
            if self.kept_bytes + size > limit:
                return False
            self._seen.add(len(self.rows), found.key, found.signature, found.shingle_count)
            self.kept += 1
            self.kept_bytes += size
        row.offset, row.length = self.spool.put(found.text)
        self.rows.append(row)
        return True

    def _list_unread(self, item: Item, limit: int) -> None:
        """A row for what the limit cut off: one a file, whether a worker had already read it or not."""
        if item.refused:
            self.rows.append(_Row(item, item.source, item.kind, item.refused, dict(item.detail)))
        elif item.path not in self._unread:
            self._unread.add(item.path)
            meta = {"limit_bytes": limit, "max_bytes": self.config.max_bytes}
            self.rows.append(_Row(item, item.source, item.kind, "over_max_bytes", meta))


def even_shares(sizes: list[int], total: int) -> list[int]:
    """`total` poured evenly over vessels of `sizes`: nobody gets more than it holds, the rest is shared."""
    shares = [0] * len(sizes)
    left = total
    order = sorted(range(len(sizes)), key=lambda number: sizes[number])
    for position, number in enumerate(order):
        shares[number] = min(sizes[number], left // (len(order) - position))
        left -= shares[number]
    return shares


def _pool(workers: int) -> AbstractContextManager[ProcessPoolExecutor | None]:
    """Processes are spawned: a fork of a process that runs threads (torch, pyarrow) may lock up."""
    if workers == 1:
        return nullcontext()
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_end_with_parent
    )


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _processed(
    items: Iterator[Item],
    config: BuildConfig,
    pool: ProcessPoolExecutor | None,
    stopped: Callable[[], bool],
) -> Iterator[tuple[Item, list[Processed]]]:
    """Each item with its texts, in order; once `stopped`, the items that remain come without texts."""
    chunks = _chunks(items)
    if pool is None:
        for chunk in chunks:
            yield from zip(chunk, process(chunk, config.seed), strict=True)
            if stopped():
                break
    else:
        running: deque[tuple[list[Item], Future[list[list[Processed]]]]] = deque()
        while not stopped():
            while len(running) < 2 * config.workers + 1 and (chunk := next(chunks, None)):
                running.append((chunk, pool.submit(process, chunk, config.seed)))
            if not running:
                break
            chunk, future = running.popleft()
            yield from zip(chunk, future.result(), strict=True)
        for chunk, future in running:
            future.cancel()
            yield from ((item, []) for item in chunk)
    for chunk in chunks:
        yield from ((item, []) for item in chunk)


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Runs of items of about CHUNK_BYTES: enough work to be worth sending to another process."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += 0 if item.refused else item.size
        if len(chunk) >= CHUNK_ITEMS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _split(rows: list[_Row], config: BuildConfig) -> None:
    """Give each kept row its split. Units are packages in site-packages, else files (rows of JSONL).

    Packages that share a near duplicate (forks, backports) count as one unit: one must not be held out while
    the other teaches the model its text.
    """
    kept = [row for row in rows if not row.reason]
    packages = {row.id: row.item.package for row in kept if row.item.group == "packages"}
    copies = (
        (r.item.package, packages.get(r.meta["duplicate_of"]["id"], ""))
        for r in rows
        if r.reason in COPIES
    )
    together = united((a, b) for a, b in copies if a and b)
    for row in kept:
        package = row.item.package
        row.unit = together.get(package, package) if row.item.group == "packages" else row.source
    if len({(row.item.group, row.unit) for row in kept}) < 2 and config.heldout_fraction > 0:
        raise RequestError(
            f"only one document is left ({kept[0].source}), so none can be held out. "
            "Add documents, cut the file into several, or set data.heldout_fraction=0."
        )
    units = ((row.item.group, row.unit, row.length) for row in kept)
    held = held_out(units, config.heldout_fraction, config.seed)
    for row in kept:
        row.split = "heldout" if (row.item.group, row.unit) in held else "train"


def _nothing_usable(reasons: list[str], config: BuildConfig) -> str:
    named = ", ".join(
        f'"{source}"' for source in ((config.path,) if config.path else config.sources)
    )
    if not reasons:
        return f"nothing in {named}: it is empty"
    listed = ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(reasons).items()))
    return f"nothing usable in {named}: all {len(reasons)} files were left out ({listed})"


def _write(path: Path, rows: list[_Row], name: str, spool: _Spool) -> None:
    """The rows of one part, sorted by group and source, a row group at a time."""
    pyarrow = arrow()
    schema = arrow_schema()
    part = [row for row in rows if (row.split or "dropped") == name]
    part.sort(key=_Row.order)

    def write(temporary: Path) -> None:
        with pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for start in range(0, max(len(part), 1), ROW_GROUP):
                table = [row.columns(spool) for row in part[start : start + ROW_GROUP]]
                writer.write_table(pyarrow.Table.from_pylist(table, schema=schema))

    write_with(path, write)
