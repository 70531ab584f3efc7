"""An item to raw texts: opens, checks, decodes; anything that cannot be read gets a reason, never a hang.

Reasons: those of decode.py, and "unreadable" (the system refused), "not_a_file" (pipe, socket, device),
"too_large", "no_text" (a page or module without any), "bad_row" (a JSONL row that is not JSON), "no_text_field".
"""

from __future__ import annotations

import email
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from gristmill.data.decode import decode
from gristmill.data.html import html_text
from gristmill.data.sources import Item, Raw, printable
from gristmill.data.sources.gutenberg import gutenberg_book, looks_like_gutenberg
from gristmill.data.sources.opening import opened
from gristmill.data.sources.tables import jsonl_row

MAX_FILE_BYTES = 8_000_000  # a larger "text" file is a log, a dump or data; books end near 4 MB


# reader -> (module of gristmill.data.sources, its function): files that hold many documents, or one in a wrapping.
_READERS = {
    "warc": ("warc", "read_warc"),
    "wikipedia": ("wikipedia", "read_wikipedia"),
    "stackexchange": ("stackexchange", "read_stackexchange"),
    "latex": ("latex", "read_latex"),
    "epub": ("epub", "read_epub"),
    "pdf": ("pdf", "read_pdf"),
    "parquet": ("tables", "read_parquet"),
    "csv": ("tables", "read_csv"),
    "packed_jsonl": ("tables", "read_jsonl"),
    "json": ("tables", "read_json"),
    "chats": ("chats", "read_chats"),
    "documents": ("builds", "read_documents"),
    "source_tree": ("source_tree", "read_source_tree"),
}


def read(item: Item) -> Iterator[Raw]:
    """What `item` holds: one Raw, or one for each record in it."""
    if item.reader in _READERS:
        yield from _records(item)
    elif item.reader == "jsonl":
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


def _records(item: Item) -> Iterator[Raw]:
    """What the format's reader finds, under the name that the item has among the sources."""
    module, function = _READERS[item.reader]
    found = getattr(import_module(f"gristmill.data.sources.{module}"), function)(Path(item.path))
    own = printable(Path(item.path).name)
    for raw in found:
        yield replace(raw, source=item.source + raw.source.removeprefix(own))


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
    data = _unpacked(item) if item.reader == "packed" else read_bytes(item.path)
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
    elif item.kind == "text" and looks_like_gutenberg(text):
        return replace(gutenberg_book(item.source, text), source=item.source)
    return Raw(item.source, text, detail=detail) if text.strip() else _no_text(item)


def _unpacked(item: Item) -> bytes | Raw:
    try:
        with opened(Path(item.path)) as stream:
            return stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        return Raw(item.source, reason="unreadable", detail={"error": error.strerror or str(error)})


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
        if line.strip():
            yield jsonl_row(f"{item.source}:{number}", line)
