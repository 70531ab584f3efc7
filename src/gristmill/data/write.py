"""The last step: documents with their final decision, as `train`, `heldout` and `dropped` Parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.data.decisions import Labels
from gristmill.data.duplicates.cuts import without
from gristmill.data.schema import FILES, TEXT_COLUMNS, arrow, arrow_schema, document_id
from gristmill.data.sources import Item
from gristmill.data.split import Splits
from gristmill.files import write_with

ROW_GROUP, GROUP_CHARACTERS = 512, 32_000_000  # whichever is reached first
Columns = dict[str, str]


def write_documents(
    directory: Path,
    labels: Labels,
    splits: Splits,
    unread: Iterator[tuple[Item, dict[str, Any]]],
) -> None:
    """Write the three files, by group and in reading order. `unread`: files that the limit kept from being read.

    train.parquet, by which readers know a documents directory, goes first and comes last: whoever finds it finds
    three files of one build, also after a kill between them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    train, heldout, dropped = (directory / f"{name}.parquet" for name in FILES)
    train.unlink(missing_ok=True)

    def rows() -> Iterator[Columns]:
        named = _named(labels)
        for number in _by_group(labels):
            yield from _final(labels, splits, number, named)
        yield from (_unread(item, story) for item, story in unread)

    def write(paths: tuple[Path, ...]) -> None:
        _write(dict(zip(FILES, paths, strict=True)), rows())

    write_with(
        train,
        lambda first: write_with(
            heldout,
            lambda second: write_with(dropped, lambda third: write((first, second, third))),
        ),
    )


def _by_group(labels: Labels) -> list[int]:
    """The parts, by the name of their group and in reading order. A part is of one group."""
    names = [
        labels.groups.names[labels.group[start]] if part.rows else ""
        for part, start in zip(labels.parts, labels.starts.tolist(), strict=False)
    ]
    return sorted(range(len(names)), key=lambda number: (names[number], number))


def _write(paths: Mapping[str, Path], rows: Iterator[Columns]) -> None:
    pyarrow, schema = arrow(), arrow_schema()
    writers = {
        name: pyarrow.parquet.ParquetWriter(path, schema, compression="zstd")
        for name, path in paths.items()
    }
    waiting: dict[str, list[Columns]] = {name: [] for name in paths}
    sizes = dict.fromkeys(paths, 0)

    def flush(name: str) -> None:
        if waiting[name]:
            writers[name].write_table(pyarrow.Table.from_pylist(waiting[name], schema=schema))
            waiting[name], sizes[name] = [], 0

    try:
        for row in rows:
            name = row["split"] or "dropped"
            waiting[name].append(row)
            sizes[name] += len(row["text"])
            if len(waiting[name]) >= ROW_GROUP or sizes[name] >= GROUP_CHARACTERS:
                flush(name)
        for name in paths:
            flush(name)
    finally:
        for writer in writers.values():
            writer.close()


def _final(
    labels: Labels, splits: Splits, number: int, named: Mapping[int, dict[str, str]]
) -> Iterator[Columns]:
    at = int(labels.starts[number])
    names = [name for name in TEXT_COLUMNS if name != "split"]
    with arrow().parquet.ParquetFile(labels.parts[number].path) as file:
        for group in range(file.num_row_groups):  # of bounded size: see units.BATCH_BYTES
            for columns in file.read_row_group(group, [*names, "unit"]).to_pylist():
                yield _decided(labels, splits, at, columns, named)
                at += 1


def _decided(
    labels: Labels,
    splits: Splits,
    at: int,
    columns: Columns,
    named: Mapping[int, dict[str, str]],
) -> Columns:
    """The final columns of the document `at`: with its reason or split, and the end of its story."""
    unit = columns.pop("unit")
    story = json.loads(columns["meta"]) | labels.stories.get(at, {})
    reason = labels.reasons.names[labels.reason[at]]
    if (of := int(labels.of[at])) >= 0:
        story["duplicate_of"] = named[of]
        if not np.isnan(labels.similarity[at]):
            value = round(float(labels.similarity[at]), 4)
            story["decided"] = {"signal": "jaccard", "value": value, "limit": labels.limits[reason]}
    if not reason:
        story["split_by"] = splits.together.get(unit, unit)
    if at in labels.cuts:
        columns["text"] = without(columns["text"], labels.cuts[at])
    columns["meta"] = json.dumps(story, ensure_ascii=False)
    columns["drop_reason"] = reason
    columns["split"] = "" if reason else "heldout" if splits.heldout[at] else "train"
    return columns


def _named(labels: Labels) -> dict[int, dict[str, str]]:
    """Id and source of the documents that others are copies of."""
    wanted = np.unique(labels.of[labels.of >= 0])
    named: dict[int, dict[str, str]] = {}
    for where, table in labels.rows(wanted, "id", "source"):
        named |= dict(zip(wanted[where].tolist(), table.to_pylist(), strict=True))
    return named


def _unread(item: Item, story: dict[str, Any]) -> Columns:
    return {
        "id": document_id(item.url, item.source),
        "text": "",
        "source": item.source,
        "url": item.url,
        "license": item.license,
        "date": item.date,
        "meta": json.dumps(
            {"bytes": item.size, **item.detail, **story}, ensure_ascii=False, default=str
        ),
        "kind": item.kind,
        "group": item.group,
        "package": item.package,
        "drop_reason": item.refused or "over_max_bytes",
        "split": "",
    }
