"""Rows of JSONL, Parquet, CSV and TSV files as documents: which column is the text, which are labels.

Reasons: "bad_row", "no_text_field" (the first row's columns are in the detail), "empty", "too_large", those
of `decode`, "unreadable", "broken_archive" (the rest cannot be read).
"""

from __future__ import annotations

import csv
import datetime
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gristmill.data.decode import decode
from gristmill.data.sources.chats import conversation, conversation_turns
from gristmill.data.sources.item import Raw, printable
from gristmill.data.sources.json_records import BadRecord, json_records
from gristmill.data.sources.licences import spdx
from gristmill.data.sources.opening import Stream, lines, opened
from gristmill.errors import missing_extra

MAX_ROW_BYTES = 8_000_000
MAX_DETAIL_CHARS = 2_000  # of all other columns together
TEXT_FIELDS = (
    "text",
    "content",
    "body",
    "message",
    "raw_content",
    "document",
    "article",
    "passage",
    "story",
)
_URL = ("url", "link", "uri", "source_url", "webpage_url")
_DATE = ("date", "timestamp", "created", "created_at", "published", "creationdate", "crawl_date")
_LICENSE = ("license", "licence", "license_type", "rights")
_TITLE = ("title", "headline", "name")
_ID = ("id", "doc_id", "_id", "uuid", "warc-record-id")
_SEVERAL_WORDS = re.compile(r"[^\W\d_]{2,}\W+[^\W\d_]{2,}")


def read_jsonl(
    path: Path, *, text_field: str = "", max_bytes: int = MAX_ROW_BYTES
) -> Iterator[Raw]:
    """The rows of a JSONL file, plain or compressed. text_field: the column of the text; "" = found by name."""
    name, read = printable(path.name), 0
    try:
        with opened(path) as stream:
            for number, line, length in lines(stream, max_bytes):
                read = number
                if line is None:
                    detail = {"bytes": length, "limit": max_bytes}
                    yield Raw(f"{name}:{number}", reason="too_large", detail=detail)
                elif line.strip():
                    yield jsonl_row(f"{name}:{number}", line, text_field)
    except OSError as error:
        yield _broken(name, error, read)


def jsonl_row(source: str, line: bytes, text_field: str = "") -> Raw:
    """One row of a JSONL file."""
    decoded = decode(line)
    if decoded.reason:
        return Raw(source, reason=decoded.reason, detail=decoded.detail)
    try:
        row = json.loads(decoded.text)
    except (ValueError, RecursionError) as error:
        return Raw(source, decoded.text[:1000], "bad_row", {"error": str(error)})
    raw = row_document(source, row, text_field)
    if raw.reason == "no_text_field":
        return Raw(source, decoded.text[:1000], raw.reason, raw.detail)
    return raw


def read_parquet(path: Path, *, text_field: str = "", batch_rows: int = 256) -> Iterator[Raw]:
    """The rows of a Parquet file, a batch at a time."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise missing_extra("pyarrow", "data") from None
    name, number = printable(path.name), 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=batch_rows):
                for row in batch.to_pylist():
                    number += 1
                    yield row_document(f"{name}:{number}", row, text_field)
    except (OSError, pa.ArrowException, ValueError) as error:
        yield _broken(name, error, number)


def read_csv(path: Path, *, text_field: str = "", max_bytes: int = MAX_ROW_BYTES) -> Iterator[Raw]:
    """The rows of a CSV or TSV file with a header line, plain or compressed; the delimiter is guessed from it.

    Without a column of a known name the one with the longest text in the first row is the text.
    """
    name, number = printable(path.name), 1
    try:
        with opened(path) as stream:
            text = _Text(stream, max_bytes)
            first = next(text, "")
            if text.reason or not first.strip():
                yield Raw(name, reason=text.reason or "empty", detail=text.detail)
                return
            tabs = first.count("\t") >= max(first.count(","), first.count(";"), 1)
            delimiter = "\t" if tabs else ";" if first.count(";") > first.count(",") else ","
            header = next(csv.reader([first], delimiter=delimiter))
            csv.field_size_limit(max(csv.field_size_limit(), max_bytes))
            rows = csv.reader(text, delimiter=delimiter)
            while True:
                try:
                    values = next(rows)
                except StopIteration:
                    break
                except csv.Error as error:
                    number += 1
                    yield Raw(f"{name}:{number}", reason="bad_row", detail={"error": str(error)})
                    continue
                number += 1
                if not values:
                    continue
                if len(values) != len(header):
                    detail = {"columns": len(values), "expected": len(header)}
                    yield Raw(f"{name}:{number}", "\t".join(values)[:1000], "bad_row", detail)
                    continue
                row = dict(zip(header, values, strict=True))
                if not text_field and _text(row, "") is None:
                    text_field = max(header, key=lambda column: len(row[column]))
                    if not _SEVERAL_WORDS.search(row[text_field]):
                        detail = {"found": header[:20]}
                        yield Raw(name, reason="no_text_field", detail=detail)  # a table of numbers
                        return
                yield row_document(f"{name}:{number}", row, text_field)
            if text.reason:
                yield Raw(name, reason=text.reason, detail=text.detail)
    except OSError as error:
        yield _broken(name, error, number - 1)


def read_json(path: Path) -> Iterator[Raw]:
    """The objects of a JSON array, or of one object after another."""
    name, read = printable(path.name), 0
    try:
        with opened(path) as stream:
            for number, record in json_records(stream, MAX_ROW_BYTES):
                read = number
                source = f"{name}:{number}"
                if isinstance(record, BadRecord):
                    yield Raw(source, reason=record.reason, detail={"error": record.error})
                else:
                    yield row_document(source, record)
    except OSError as error:
        yield _broken(name, error, read)


class _Text:
    """Decoded lines of a stream for csv; stops with a `reason` at one that cannot be decoded or is too long."""

    def __init__(self, stream: Stream, limit: int) -> None:
        self.stream, self.limit, self.first = stream, limit, True
        self.reason, self.detail = "", {}

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.stream.readline(self.limit + 1)
        if not line or self.reason:
            raise StopIteration
        if len(line) > self.limit:
            self.reason, self.detail = "too_large", {"limit": self.limit}
            raise StopIteration
        if not line.strip():
            return line.decode("ascii", "replace")
        decoded = decode(line)
        if decoded.reason:
            self.reason, self.detail = decoded.reason, decoded.detail
            raise StopIteration
        return decoded.text


def row_document(source: str, row: Any, text_field: str = "") -> Raw:
    """A row as a document: its text, the columns that are labels, the rest in the detail (bounded)."""
    text = _text(row, text_field)
    if (
        text is None and not text_field and conversation_turns(row)
    ):  # OASST trees, exports line by line
        return conversation(source, row)
    if text is None:
        keys = sorted(map(str, row))[:20] if isinstance(row, dict) else type(row).__name__
        detail: dict[str, Any] = {"found": keys}
        if text_field:
            detail["wanted"] = text_field
        return Raw(source, reason="no_text_field", detail=detail)
    if not text.strip():
        return Raw(source, reason="empty")
    if not isinstance(row, dict):
        return Raw(source, text)
    names = {str(name).lower(): name for name in reversed(row)}

    def label(candidates: Sequence[str]) -> str:
        for candidate in candidates:
            value = row.get(names.get(candidate))
            if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
                return " ".join(str(value).split())[:1000]
            if isinstance(value, (datetime.datetime, datetime.date)):
                return value.isoformat()
        return ""

    license = label(_LICENSE)
    url = label(_URL)
    detail = {"row_id": label(_ID)} if label(_ID) else {}
    used = {
        text_field,
        *TEXT_FIELDS,
        *_URL,
        *_DATE,
        *_LICENSE,
        *_TITLE,
        *_ID,
        "messages",
        "conversations",
    }
    columns = _bounded({k: v for k, v in row.items() if str(k).lower() not in used})
    if columns:
        detail["columns"] = columns
    return Raw(
        source,
        text,
        detail=detail,
        url=url if ":" in url else "",
        date=label(_DATE),
        license=spdx(license) or license,
        title=label(_TITLE),
    )


def _bounded(columns: dict[Any, Any]) -> dict[str, Any]:
    """The columns that fit into MAX_DETAIL_CHARS as JSON, in order."""
    kept, room = {}, MAX_DETAIL_CHARS
    for name, value in columns.items():
        if isinstance(value, (str, bytes, list, dict)) and len(value) > room:
            continue
        try:
            size = len(json.dumps(value)) + len(str(name))
        except (TypeError, ValueError, RecursionError):
            value = str(value)[:200]
            size = len(value) + len(str(name))
        if size <= room:
            kept[str(name)[:200]] = value
            room -= size
    return kept


def _text(row: Any, text_field: str) -> str | None:
    """The text of a row: the named field, one of TEXT_FIELDS, or the turns of "messages"; None without any."""
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        return None
    names = (text_field,) if text_field else TEXT_FIELDS
    for name in names:
        if isinstance(row.get(name), str):
            return row[name]
    if text_field:
        return None
    lower = {str(name).lower(): name for name in row}
    for name in TEXT_FIELDS:
        if isinstance(row.get(lower.get(name)), str):
            return row[lower[name]]
    turns = row.get("messages") or row.get("conversations")
    if not isinstance(turns, list):
        return None
    said = []
    for turn in turns:
        if not isinstance(turn, dict):
            return None
        who, what = turn.get("role") or turn.get("from"), turn.get("content") or turn.get("value")
        if isinstance(who, str) and isinstance(what, str):
            said.append(f"{who}: {what}")
    return "\n\n".join(said) if said else None


def _broken(name: str, error: Exception, rows: int) -> Raw:
    reason = "broken_archive" if rows else "unreadable"
    message = getattr(error, "strerror", None) or str(error)
    return Raw(name, reason=reason, detail={"error": message, "rows_read": rows})
