"""What a source gives: items to read, in reading order, each with the labels its documents will carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Item:
    """Something that can be read into one document (or, for JSONL, into one document a row).

    reader: how to read it: "file", "jsonl" (the bytes [offset, offset + size) of a file), "metadata" (the
        long description in a distribution's METADATA), "topic" (a pydoc topic), "module" (what Python
        tells about a module without source), a format of read.py, or "" when `refused` already says why it is not read.
    size: bytes on disk, or 0 when unknown before reading.
    stamp: what changes when the file does: its time of last change, or the commit of a repository.
    line: the number of the first line, for "jsonl".
    refused: the drop reason known before reading, or "".
    """

    reader: str
    path: str
    source: str
    url: str
    group: str
    kind: str
    package: str = ""
    license: str = ""
    date: str = ""
    size: int = 0
    stamp: str = ""
    offset: int = 0
    line: int = 1
    refused: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Raw:
    """One text as read, or the reason why there is none.

    source: what a person reads and a citation shows: the item's, with the record inside it.
    html: an undecoded page, to be extracted later; `charset` is what its HTTP header said.
    url, date, license, kind, title: of the document, where they differ from the file's.
    """

    source: str
    text: str = ""
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    html: bytes | None = None
    charset: str = ""
    url: str = ""
    date: str = ""
    license: str = ""
    kind: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """A mixture group: its name, the bytes it offers, and its items in reading order."""

    name: str
    bytes: int
    items: Callable[[], Iterator[Item]]


def modified(seconds: float) -> str:
    """A file's time of last change as ISO 8601 in UTC, to the second."""
    try:
        return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return ""


def file_url(path: Path | str) -> str:
    """The file:// URI of an absolute path; bytes that are not UTF-8 are percent-encoded."""
    return Path(path).as_uri()


def printable(name: str) -> str:
    """A file name as text: undecodable bytes and control characters as \\xNN, so any output accepts it."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
