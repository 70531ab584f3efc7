"""A person's own folder or file as a source: everything in it is read or gets a reason why not.

Reasons: "symlink" (links are not followed: they leave the folder or go round in it), "broken_symlink",
"not_a_file" (pipe, socket, device), "unreadable", "hidden", "tool_folder", "build" (what `gristmill data build`
made), "unsupported_format", "missing" (a file that a list of paths names), "crawl_list" (such a list in a folder).
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

from gristmill.data.formats import TOOL_FOLDERS, format_of
from gristmill.data.sources import Group, Item, file_url, modified, printable
from gristmill.data.sources.builds import training_documents
from gristmill.data.sources.crawl_paths import is_crawl_paths, read_crawl_paths
from gristmill.data.sources.tables import MAX_ROW_BYTES
from gristmill.data.sources.trees import tree_state
from gristmill.errors import RequestError

SEGMENT_BYTES = 1_000_000


def folder_group(path: str, name: str, crawl_root: Path | None = None) -> Group:
    """The group of one folder or file, named `name`. crawl_root: where the files of a list of paths lie, by
    default beside the list.

    Raises RequestError when it is missing or cannot be listed.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise RequestError(
            f'source "{path}" does not exist (looked at {root.absolute()}). '
            'Name a folder, a file, or "python" for the installed Python.'
        )
    root = root.resolve()
    if root.is_file() and is_crawl_paths(root):
        items = list(_crawl_items(root, root.name, group_name(name), crawl_root))
    elif root.is_file():
        items = list(_entry_items(root.parent, root.name, root.name, group_name(name)))
    elif (train := training_documents(root)) is not None:
        found = _entry_items(train.parent, train.name, f"{name}/{train.name}", group_name(name))
        items = [replace(item, reader="documents") for item in found]
    elif not root.is_dir():
        raise RequestError(f'source "{path}" is neither a folder nor a regular file')
    else:
        try:
            os.scandir(root).close()
        except OSError as error:
            raise RequestError(f'source "{path}" cannot be listed: {error.strerror}') from None
        items = list(_folder_items(root, name, crawl_root))
    size = sum(item.size for item in items if not item.refused)
    return Group(group_name(name), size, partial(_segmented, items))


def group_name(name: str) -> str:
    """`name` with what is awkward in file names replaced by "-": groups name token files."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "folder"


def _folder_items(root: Path, name: str, crawl_root: Path | None = None) -> Iterator[Item]:
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
                item = _item(root, prefix, name, reader="source_tree", kind="code")
                size, stamp = tree_state(root / prefix)
                yield replace(item, source=item.source.rstrip("/"), size=size, stamp=stamp)
                continue
            for entry in names:
                relative = f"{prefix}{entry}"
                if _is_folder(root / relative) and not _refused_folder(root / relative):
                    below.append(f"{relative}/")
                elif is_crawl_paths(root / relative) and (root / relative).is_file():
                    yield from _listed_items(root, relative, name, crawl_root)
                else:
                    yield from _entry_items(root, relative, f"{name}/{relative}", group_name(name))
        level = below


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _refused_folder(path: Path) -> str:
    """Why nothing in a folder is read, or "". A build that lies in its own source must not read itself."""
    if path.name.startswith("."):
        return "hidden"
    if path.name in TOOL_FOLDERS:
        return "tool_folder"
    return "build" if (path / "work/parts").is_dir() and (path / "documents").is_dir() else ""


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
        yield make(refused=_refused_folder(path))
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


def _listed_items(root: Path, relative: str, name: str, crawl_root: Path | None) -> Iterator[Item]:
    """What a list of paths in a folder adds to it: what is missing, and what lies elsewhere."""
    path, source = root / relative, f"{name}/{relative}"
    try:
        for item in _crawl_items(path, source, group_name(name), crawl_root):
            if item.refused or root not in Path(item.path).parents:
                yield item
    except RequestError as error:
        yield _item(root, relative, name, refused="unreadable", detail={"error": str(error)})
    else:
        yield _item(root, relative, name, refused="crawl_list")


def _crawl_items(path: Path, source: str, group: str, crawl_root: Path | None) -> Iterator[Item]:
    """The files that a list of paths names, in its order, and what is missing of them."""
    root = crawl_root or path.parent
    listed = read_crawl_paths(path, root)
    for file in listed.found:
        relative = file.relative_to(root).as_posix()
        yield from _entry_items(root, relative, f"{source}/{relative}", group)
    for line in listed.missing:
        detail = {"looked_in": printable(str(root))}
        yield _labelled(path, f"{source}/{line}", group, refused="missing", detail=detail)


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
        stamp=str(status.st_mtime_ns) if status else "",
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
