"""A person's own folder or file as a source: everything in it is read or gets a reason why not.

Reasons: "symlink" (links are not followed: they leave the folder or go round in it), "broken_symlink",
"not_a_file" (pipe, socket, device), "unreadable", "hidden", "tool_folder", "unsupported_format".
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gristmill.data.formats import format_of
from gristmill.data.sources import Group, Item, file_url, modified, printable
from gristmill.errors import RequestError

# Folders that tools make: copies, caches and dependencies, not what the person wrote.
TOOL_FOLDERS = {"__pycache__", "node_modules", "bower_components", "site-packages", "venv", "env"}
TOOL_FOLDERS |= {"dist", "build", "target", "_build", "__MACOSX", "$RECYCLE.BIN"}
SEGMENT_BYTES = 1_000_000
MAX_ROW_BYTES = 8_000_000


def folder_group(path: str, name: str) -> Group:
    """The group of one folder or file, named `name`.

    Raises RequestError when it is missing or cannot be listed.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise RequestError(
            f'source "{path}" does not exist (looked at {root.absolute()}). '
            'Name a folder, a file, or "python" for the installed Python.'
        )
    root = root.resolve()
    if root.is_file():
        items = list(_entry_items(root.parent, root.name, root.name, group_name(name)))
    elif not root.is_dir():
        raise RequestError(f'source "{path}" is neither a folder nor a regular file')
    else:
        try:
            os.scandir(root).close()
        except OSError as error:
            raise RequestError(f'source "{path}" cannot be listed: {error.strerror}') from None
        items = list(_folder_items(root, name))
    size = sum(item.size for item in items if not item.refused)
    return Group(group_name(name), size, partial(_segmented, items))


def group_name(name: str) -> str:
    """`name` with what is awkward in file names replaced by "-": groups name token files."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "folder"


def _folder_items(root: Path, name: str) -> Iterator[Item]:
    """Breadth first, names sorted: of equal files the one nearest to the top is read first and stays."""
    level = [""]
    while level:
        below: list[str] = []
        for prefix in level:
            try:
                names = sorted(os.listdir(root / prefix))
            except OSError as error:
                yield _item(root, prefix, name, refused="unreadable", detail=_why(error))
                continue
            if prefix and ".git" in names:
                yield _labelled(
                    root / prefix,
                    f"{name}/{prefix}".rstrip("/"),
                    group_name(name),
                    reader="source_tree",
                    kind="code",
                )
                continue
            for entry in names:
                relative = f"{prefix}{entry}"
                if _is_folder(root / relative) and not _skipped_folder(entry):
                    below.append(f"{relative}/")
                else:
                    yield from _entry_items(root, relative, f"{name}/{relative}", group_name(name))
        level = below


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _skipped_folder(name: str) -> bool:
    return name.startswith(".") or name in TOOL_FOLDERS


def _entry_items(root: Path, relative: str, source: str, group: str) -> Iterator[Item]:
    """The one item of a directory entry, refused when it is nothing that can be read."""
    path = root / relative
    make = partial(_labelled, path, source, group)
    try:
        status = path.lstat()
    except OSError as error:
        yield make(refused="unreadable", detail=_why(error))
        return
    name = path.name
    if stat.S_ISLNK(status.st_mode):
        target = {"target": printable(os.readlink(path))}
        yield make(refused="symlink" if path.exists() else "broken_symlink", detail=target)
    elif stat.S_ISDIR(status.st_mode):
        yield make(refused="hidden" if name.startswith(".") else "tool_folder")
    elif not stat.S_ISREG(status.st_mode):
        yield make(refused="not_a_file", detail={"type": _file_type(status.st_mode)})
    elif name.startswith("."):
        yield make(status, refused="hidden")
    else:
        format = format_of(path)
        if format.unsupported:
            detail = {"format": format.unsupported}
            yield make(status, refused="unsupported_format", detail=detail)
        else:
            yield make(status, reader=format.reader, kind=format.kind)


def _item(root: Path, relative: str, name: str, **fields: Any) -> Item:
    return _labelled(root / relative, f"{name}/{relative}", group_name(name), **fields)


def _labelled(
    path: Path, source: str, group: str, status: os.stat_result | None = None, **fields: Any
) -> Item:
    return Item(
        **{"reader": "", "kind": "text", **fields},
        path=str(path),
        source=printable(source),
        url=file_url(path),
        group=group,
        date=modified(status.st_mtime) if status else "",
        size=status.st_size if status else 0,
    )


def _why(error: OSError) -> dict[str, str]:
    return {"error": error.strerror or str(error)}


def _file_type(mode: int) -> str:
    kinds = {
        stat.S_ISFIFO: "pipe",
        stat.S_ISSOCK: "socket",
        stat.S_ISCHR: "device",
        stat.S_ISBLK: "device",
    }
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "special")


def _segmented(items: list[Item]) -> Iterator[Item]:
    """`items` with each JSONL file cut at line ends into pieces that one worker reads at a time."""
    for item in items:
        if item.reader == "jsonl":
            yield from _segments(item)
        else:
            yield item


def _segments(item: Item) -> Iterator[Item]:
    if item.size == 0:
        yield replace(item, reader="", refused="empty")
        return
    try:
        yield from _cut(item)
    except OSError as error:
        yield replace(item, reader="", refused="unreadable", detail=_why(error))


def _cut(item: Item) -> Iterator[Item]:
    with open(item.path, "rb") as file:
        offset = start = 0
        line = first = 1
        while head := file.readline(MAX_ROW_BYTES):
            length = len(head)
            too_long = False
            while not head.endswith(b"\n") and (head := file.readline(MAX_ROW_BYTES)):
                too_long = True
                length += len(head)
            if too_long:
                if offset > start:
                    yield replace(item, offset=start, size=offset - start, line=first)
                yield replace(
                    item,
                    source=f"{item.source}:{line}",
                    reader="",
                    refused="too_large",
                    size=length,
                    detail={"bytes": length, "limit": MAX_ROW_BYTES},
                )
                start, first = offset + length, line + 1
            offset += length
            line += 1
            if offset - start >= SEGMENT_BYTES:
                yield replace(item, offset=start, size=offset - start, line=first)
                start, first = offset, line
        if offset > start:
            yield replace(item, offset=start, size=offset - start, line=first)
