"""A source folder or git repository as documents: one a file, each with its licence and language.

A repository (bare ones too) is read at HEAD through the git command, so what is ignored or not committed
stays out; without git or a commit that it can read, and for other folders, the files on disk are read.
Reasons: those of source_files.py and of `decode`, "license_text", "symlink", "submodule",
"hidden", "too_large", "unreadable".
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gristmill.data.decode import decode
from gristmill.data.sources.item import Raw, file_url, printable
from gristmill.data.sources.licences import license_of_header, license_of_text, spdx
from gristmill.data.sources.source_files import (
    MAX_SOURCE_BYTES,
    kind_of,
    language_of,
    refused_by_name,
    refused_by_text,
)
from gristmill.data.sources.trees import File, Tree, opened_tree

_LICENSE_FILE = re.compile(
    r"(?i)^(?:(?:un)?licen[cs]e|copying(?:\.lesser)?)(?:[-._](?!py$)[\w.-]{1,30})?$"
)
_MANIFESTS = {
    "pyproject.toml": r'^\s*license\s*=\s*(?:\{[^}\n]{0,40}text\s*=\s*)?"([^"\n]{1,100})"',
    "package.json": r'"license"\s*:\s*"([^"\n]{1,100})"',
    "cargo.toml": r'^\s*license\s*=\s*"([^"\n]{1,100})"',
    "setup.cfg": r"^\s*license\s*=\s*(\S.{0,80})$",
}
_MAX_LICENSE_FILES = 2_000


def read_source_tree(root: Path) -> Iterator[Raw]:
    """The files of a folder or repository, in the order of their paths."""
    name = printable(root.name.removesuffix(".git") or root.parent.name or "tree")
    try:
        with opened_tree(root) as tree:
            licenses = _licenses(tree)
            for file in tree.files:
                yield _document(name, root, file, tree, licenses)
    except (OSError, subprocess.SubprocessError) as error:
        yield Raw(name, reason="unreadable", detail={"error": str(error)})


def _licenses(tree: Tree) -> dict[str, tuple[str, str]]:
    """(licence, path of the file that says so) of each folder that has a licence file or names one."""
    said: dict[str, list[tuple[str, str]]] = {}
    named: dict[str, tuple[str, str]] = {}
    looked_at = 0
    for file in tree.files:
        folder, name = posixpath.split(file.path)
        pattern = _MANIFESTS.get(name.lower())
        wanted = _LICENSE_FILE.match(name) or pattern
        if (
            not wanted
            or file.refused
            or file.size > MAX_SOURCE_BYTES
            or looked_at >= _MAX_LICENSE_FILES
        ):
            continue
        looked_at += 1
        try:
            text = decode(tree.read(file.key)).text
        except OSError:  # listed as unreadable when its turn comes
            continue
        if pattern:
            found = re.search(pattern, text, re.M)
            if found and (license := spdx(found[1])):
                named.setdefault(folder, (license, file.path))
        elif license := license_of_text(text):
            said.setdefault(folder, []).append((license, file.path))
    merged = dict(named)
    for folder, found in said.items():
        # Several licence files: what the manifest says how they combine, else all of them hold.
        ids = sorted({license for license, _ in found})
        if len(ids) == 1 or folder not in named:
            merged[folder] = (" AND ".join(ids), found[0][1])
    return merged


def _license(path: str, text: str, licenses: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """(licence, where it is stated) of a file: its header, else the nearest folder above that has one."""
    if stated := license_of_header(text):
        return stated, "header"
    folder = posixpath.dirname(path)
    while folder not in licenses:
        if not folder:
            return "", ""
        folder = posixpath.dirname(folder)
    return licenses[folder]


def _document(
    name: str, root: Path, file: File, tree: Tree, licenses: dict[str, tuple[str, str]]
) -> Raw:
    source = f"{name}/{printable(file.path)}"
    labels: dict[str, Any] = {
        "source": source,
        "url": tree.web + quote(os.fsencode(file.path))
        if tree.web
        else file_url((root / file.path).absolute()),
        "date": file.date or tree.date,
        "kind": kind_of(file.path) or "code",
    }
    detail: dict[str, Any] = dict(tree.facts)
    if language := language_of(file.path):
        detail["programming_language"] = language
    hidden = any(part.startswith(".") for part in file.path.split("/"))
    reason = file.refused or ("hidden" if hidden else "")
    if _LICENSE_FILE.match(posixpath.basename(file.path)) and kind_of(file.path) not in (
        "code",
        "python",
    ):
        reason = (
            reason or "license_text"
        )  # read for the others' licence; as a document the most repeated text
    reason = reason or refused_by_name(file.path)
    if not reason and file.size > MAX_SOURCE_BYTES:
        reason = "too_large"
        detail |= {"bytes": file.size, "limit": MAX_SOURCE_BYTES}
    if reason:
        return Raw(**labels, reason=reason, detail=detail)
    try:
        decoded = decode(tree.read(file.key))
    except OSError as error:
        return Raw(
            **labels, reason="unreadable", detail=detail | {"error": error.strerror or str(error)}
        )
    reason = decoded.reason or refused_by_text(file.path, decoded.text)
    if reason:
        return Raw(**labels, reason=reason, detail=detail | decoded.detail)
    license, where = _license(file.path, decoded.text, licenses)
    if license:
        detail["license_from"] = printable(where)
    return Raw(
        **labels, text=decoded.text, license=license, detail=detail | {"encoding": decoded.encoding}
    )
