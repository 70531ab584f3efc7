"""Web archives: WARC and WET (and ARC), plain, gzip or zstd, read record by record in bounded memory.

HTML responses come out undecoded, to be extracted by a later step; the text of WET conversions and of
text/plain as text. What holds no document (requests, revisits, images, redirects) is only counted.

Reasons: "too_large", "truncated_record", "damaged_record", "broken_archive" (the rest of the file cannot
be read), "unreadable" (no archive at all), and those of `decode`.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from gristmill.data.decode import decode
from gristmill.data.sources.arc import is_arc, read_arc_records
from gristmill.data.sources.http_block import (
    BadBody,
    TooLarge,
    charset,
    media_type,
    parse_response,
)
from gristmill.data.sources.item import Raw, printable
from gristmill.data.sources.opening import MAX_EXPANSION
from gristmill.errors import missing_extra

MAX_RECORD_BYTES = 10_000_000
_HTTP_HEADER_ROOM = 64 * 1024
_ZSTD = b"\x28\xb5\x2f\xfd"
_NO_LABEL = ("", "application/octet-stream", "unk", "unknown")
_HTML = ("text/html", "application/xhtml+xml")
_PAGE_START = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*){0,3}<(?:!doctype\s+html|html|head)\b", re.I | re.S
)


def read_warc(
    path: Path, *, max_bytes: int = MAX_RECORD_BYTES, counts: Counter[str] | None = None
) -> Iterator[Raw]:
    """The documents of a web archive.

    max_bytes: of one document, decoded. counts: takes the records without a document, by what they were
    ("request", "response image/png", "response status 404").
    """
    reading = _Reading(path, max_bytes, counts if counts is not None else Counter())
    try:
        with open(path, "rb") as file:
            head = file.read(4)
            packed = head[:2] == b"\x1f\x8b"
            file.seek(0)
            arc = is_arc(_start(file, packed))
            file.seek(0)
            if arc:
                yield from _arc(file, packed, reading)
            else:
                yield from _warc(file, packed or head == _ZSTD, reading)
    except OSError as error:
        yield Raw(path.name, reason="unreadable", detail={"error": str(error)})


def _start(file: BinaryIO, packed: bool) -> bytes:
    """The first bytes, decompressed where that is gzip."""
    try:
        return gzip.GzipFile(fileobj=file).read(16) if packed else file.read(16)
    except (OSError, EOFError, zlib.error):
        return b""


def _warc(file: BinaryIO, compressed: bool, reading: _Reading) -> Iterator[Raw]:
    try:
        from fastwarc.warc import ArchiveIterator
    except ModuleNotFoundError:
        raise missing_extra("fastwarc", "data") from None
    name = reading.path.name
    size = reading.path.stat().st_size
    position = read = 0
    try:
        for record in ArchiveIterator(file, parse_http=False):
            position = record.stream_pos
            read += 1
            length = record.content_length
            bomb = length > MAX_EXPANSION * max(size - position, 1)
            if compressed and bomb and length > reading.max_bytes:
                about = _about(record, "response")
                yield _over(reading, about, length, rest_of_file_skipped=True)
                return
            raw = _record(record, reading)
            if raw is not None:
                yield raw
    except OSError as error:  # fastwarc says so of damaged compression and of headers that are none
        detail: dict[str, Any] = {"error": str(error), "records_read": read}
        if not read:
            yield Raw(name, reason="unreadable", detail=detail)
        else:
            yield Raw(name, reason="broken_archive", detail=detail | {"after_byte": position})
        return
    if not read:
        yield Raw(name, reason="unreadable", detail={"error": "no record", "bytes": size})


@dataclass(frozen=True, slots=True)
class _Reading:
    """What holds for a whole file: its name in sources, the limit, and where the rest is counted."""

    path: Path
    max_bytes: int
    counts: Counter[str]

    @property
    def room(self) -> int:
        """Bytes of a block that are read: a body and its HTTP headers."""
        return self.max_bytes + _HTTP_HEADER_ROOM


@dataclass(frozen=True, slots=True)
class _About:
    """What the archive says of a record. kind: response, resource or conversion; length: as announced;
    declared: its Content-Type; identified: the media type that the crawler found."""

    kind: str
    length: int
    declared: str
    url: str = ""
    date: str = ""
    identified: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


def _record(record: Any, reading: _Reading) -> Raw | None:
    kind = str(record.record_type).rpartition(".")[2]
    if kind not in ("response", "resource", "conversion"):
        reading.counts[kind] += 1
        return None
    about = _about(record, kind)
    block = record.reader.read(min(about.length, reading.room + 1))
    if len(block) < min(about.length, reading.room):
        return _refused(
            reading, about, "truncated_record", bytes=len(block), announced=about.length
        )
    if kind == "response":
        return _response(reading, about, block)
    return _document(reading, about, block, about.length, about.declared, charset(about.declared))


def _about(record: Any, kind: str) -> _About:
    def header(name: str) -> str:
        return record.headers.get(name) or ""

    detail = {
        name: value
        for name, value in (
            ("cut_by_crawler", header("WARC-Truncated")),
            ("languages", header("WARC-Identified-Content-Language")),
        )
        if value
    }
    return _About(
        kind=kind,
        length=record.content_length,
        declared=header("Content-Type"),
        url=header("WARC-Target-URI").strip("<> "),
        date=_iso(header("WARC-Date")),
        identified=media_type(header("WARC-Identified-Payload-Type")),
        detail=detail,
    )


def _response(reading: _Reading, about: _About, block: bytes) -> Raw | None:
    """An HTTP response; some archives put a bare page under that label."""
    try:
        response = parse_response(block[: reading.room], reading.max_bytes)
    except TooLarge:
        if _maybe_page(block, about.identified):
            return _over(reading, about, about.length)
        reading.counts["response too large, no page"] += 1
        return None
    except BadBody as error:
        return _refused(reading, about, "damaged_record", error=str(error))
    if response.headers and response.status != 200:
        reading.counts[f"response status {response.status}"] += 1
        return None
    label = response.media_type or about.identified
    if (
        not label
        and not block.startswith(b"HTTP/")
        and not about.declared.startswith("application/http")
    ):
        label = media_type(about.declared)
    whole = about.length <= len(block)
    length = len(response.body) if whole else about.length
    return _document(reading, about, response.body, length, label, response.charset)


def _maybe_page(block: bytes, identified: str) -> bool:
    head = block[:_HTTP_HEADER_ROOM].lower()
    return identified in _HTML or b"text/html" in head or b"<html" in head


def _document(
    reading: _Reading, about: _About, body: bytes, length: int, declared: str, encoding: str
) -> Raw | None:
    label = media_type(declared)
    if label in _NO_LABEL and _PAGE_START.match(body[:4096]):
        label = "text/html"
    if label not in _HTML and label != "text/plain":
        reading.counts[f"{about.kind} {label or 'of unknown type'}"] += 1
        return None
    if length > reading.max_bytes:
        return _over(reading, about, length)
    name = _name(reading.path, about.url)
    if label == "text/plain":
        decoded = decode(body)
        detail = about.detail | decoded.detail
        return Raw(name, decoded.text, decoded.reason, detail, url=about.url, date=about.date)
    if not body.strip():
        return _refused(reading, about, "empty", bytes=len(body))
    return Raw(
        name, html=body, charset=encoding, url=about.url, date=about.date, detail=about.detail
    )


def _arc(file: BinaryIO, packed: bool, reading: _Reading) -> Iterator[Raw]:
    """ARC 1 records; gzip members are read as one stream."""
    stream = gzip.open(file) if packed else file  # noqa: SIM115
    try:
        for record in read_arc_records(stream, reading.room + 1):
            if isinstance(record, str):
                yield Raw(
                    reading.path.name, reason="damaged_record", detail={"header_line": record}
                )
                continue
            if record.url.startswith("filedesc:"):
                reading.counts["filedesc"] += 1
                continue
            about = _About(
                "response", record.length, record.media_type, record.url, _iso(record.date)
            )
            size = len(record.block)
            if size < min(record.length, reading.room):
                yield _refused(
                    reading, about, "truncated_record", bytes=size, announced=record.length
                )
                return
            raw = _response(reading, about, record.block)
            if raw is not None:
                yield raw
    except (OSError, EOFError, zlib.error) as error:
        yield Raw(reading.path.name, reason="broken_archive", detail={"error": str(error)})


def _over(reading: _Reading, about: _About, length: int, **more: Any) -> Raw:
    return _refused(
        reading, about, "too_large", bytes_at_least=length, limit=reading.max_bytes, **more
    )


def _refused(reading: _Reading, about: _About, reason: str, **detail: Any) -> Raw:
    name = _name(reading.path, about.url)
    return Raw(name, reason=reason, detail=about.detail | detail, url=about.url, date=about.date)


def _name(path: Path, url: str) -> str:
    return printable(f"{path.name}/{url}" if url else path.name)


def _iso(stamp: str) -> str:
    """A WARC date, or the 14 digits of an ARC date, as ISO 8601 UTC to the second; "" when it is none."""
    try:
        moment = (
            datetime.strptime(stamp, "%Y%m%d%H%M%S")
            if stamp.isdigit()
            else datetime.fromisoformat(stamp)
        )
    except ValueError:
        return ""
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
