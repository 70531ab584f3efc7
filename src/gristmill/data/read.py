"""An item to raw texts: opens, checks, decodes; anything that cannot be read gets a reason, never a hang.

Reasons: those of decode.py, and "unreadable" (the system refused), "not_a_file" (pipe, socket, device),
"too_large", "no_text" (a page or module without any), "bad_row" (a JSONL row that is not JSON), "no_text_field".
"""

from __future__ import annotations

import email
import json
import os
import stat
from collections.abc import Iterator
from typing import Any

from gristmill.data.decode import decode
from gristmill.data.html import html_text
from gristmill.data.sources import Item, Raw

MAX_FILE_BYTES = 8_000_000  # a larger "text" file is a log, a dump or data; books end near 4 MB
TEXT_FIELDS = ("text", "content", "body")


def read(item: Item) -> Iterator[Raw]:
    """What `item` holds: one Raw, or one per JSONL row."""
    if item.reader == "jsonl":
        yield from _rows(item)
    elif item.reader == "module":
        from gristmill.data.stub import render_module

        try:
            text = render_module(item.path)
        except Exception as error:  # importing a module may raise anything
            yield Raw(item.source, reason="unreadable", detail={"error": f"{error}"})
            return
        yield Raw(item.source, text, detail={"made_by": "pydoc"}) if text else _no_text(item)
    elif item.reader == "topic":
        from pydoc_data.topics import topics

        yield Raw(item.source, topics[item.path])
    else:
        yield _file(item)


def read_bytes(path: str, offset: int = 0, size: int = MAX_FILE_BYTES) -> bytes | Raw:
    """At most `size` + 1 bytes of a regular file; never waits for a pipe's other end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return Raw(path, reason="not_a_file")
            file.seek(offset)
            return file.read(size + 1)
    except OSError as error:
        return Raw(path, reason="unreadable", detail={"error": error.strerror or str(error)})


def _file(item: Item) -> Raw:
    data = read_bytes(item.path)
    if isinstance(data, Raw):
        return Raw(item.source, reason=data.reason, detail=data.detail)
    if len(data) > MAX_FILE_BYTES:
        detail = {"bytes": max(item.size, len(data)), "limit": MAX_FILE_BYTES}
        return Raw(item.source, reason="too_large", detail=detail)
    decoded = decode(data)
    if decoded.reason:
        return Raw(item.source, reason=decoded.reason, detail=decoded.detail)
    text, detail = decoded.text, {"encoding": decoded.encoding, **decoded.detail}
    if item.reader == "metadata":
        text, detail["line_offset"] = _description(text)
    elif item.kind == "html":
        text = html_text(text)
    return Raw(item.source, text, detail=detail) if text.strip() else _no_text(item)


def _no_text(item: Item) -> Raw:
    return Raw(item.source, reason="no_text")


def _description(metadata: str) -> tuple[str, int]:
    """(long description, lines before it) of a METADATA file."""
    head, _, body = metadata.replace("\r\n", "\n").partition("\n\n")
    if body.strip():
        return body, head.count("\n") + 2
    stated = email.message_from_string(metadata).get("Description") or ""
    return stated, 0


def _rows(item: Item) -> Iterator[Raw]:
    data = read_bytes(item.path, item.offset, max(item.size - 1, 0))
    if isinstance(data, Raw):
        yield Raw(item.source, reason=data.reason, detail=data.detail)
        return
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), start=item.line):
        source = f"{item.source}:{number}"
        if not line.strip():
            continue
        decoded = decode(line)
        if decoded.reason:
            yield Raw(source, reason=decoded.reason, detail=decoded.detail)
            continue
        try:
            row = json.loads(decoded.text)
        except (ValueError, RecursionError) as error:
            yield Raw(source, decoded.text[:1000], "bad_row", {"error": str(error)})
            continue
        text = row_text(row)
        if text is None:
            keys = sorted(map(str, row))[:20] if isinstance(row, dict) else type(row).__name__
            yield Raw(source, decoded.text[:1000], "no_text_field", {"found": keys})
        elif not text.strip():
            yield Raw(source, reason="empty")
        else:
            yield Raw(source, text, detail={"encoding": decoded.encoding})


def row_text(row: Any) -> str | None:
    """The text of a JSONL row: a field of TEXT_FIELDS, or the turns of "messages"; None when it has neither."""
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        return None
    for name in TEXT_FIELDS:
        if isinstance(row.get(name), str):
            return row[name]
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
