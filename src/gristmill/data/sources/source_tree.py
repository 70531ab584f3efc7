"""A source folder or git repository as documents: one a file, each with its licence and language.

A repository (bare ones too) is read at HEAD through the git command, so what is ignored or not committed
stays out; without git, and for folders that are no repository, the files on disk are read.
Reasons: those of source_files.py and of `decode`, "license_text", "symlink", "submodule",
"hidden", "too_large", "unreadable".
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from gristmill.data.decode import decode
from gristmill.data.sources.item import Raw, file_url, modified, printable
from gristmill.data.sources.licences import license_of_header, license_of_text, spdx
from gristmill.data.sources.source_files import (
    MAX_SOURCE_BYTES,
    kind_of,
    language_of,
    refused_by_name,
    refused_by_text,
)

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
# A repository comes from a stranger: nothing it configures may run a program or reach the network.
_GIT = (
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "protocol.allow=never",
)
_GIT_ENV = {
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
    "LC_ALL": "C",
}


@dataclass(frozen=True, slots=True)
class _File:
    """path: inside the tree. key: what to read it by (a blob's hash, or the path on disk)."""

    path: str
    key: str
    size: int
    refused: str = ""
    date: str = ""


class _Tree:
    """A tree to read from: its files in order, their bytes, and what all of them share."""

    def __init__(
        self, files: list[_File], read, date: str = "", web: str = "", facts: Any = None
    ) -> None:
        self.files, self.read, self.date, self.web, self.facts = files, read, date, web, facts or {}


def read_source_tree(root: Path) -> Iterator[Raw]:
    """The files of a folder or repository, in the order of their paths."""
    name = printable(root.name.removesuffix(".git") or root.parent.name or "tree")
    try:
        with _opened(root) as tree:
            licenses = _licenses(tree)
            for file in tree.files:
                yield _document(name, root, file, tree, licenses)
    except (OSError, subprocess.SubprocessError) as error:
        yield Raw(name, reason="unreadable", detail={"error": str(error)})


def is_repository(root: Path) -> bool:
    """Whether the folder is a git repository: a work tree with .git, or a bare one."""
    return (root / ".git").exists() or all(
        (root / part).exists() for part in ("HEAD", "objects", "refs")
    )


@contextmanager
def _opened(root: Path) -> Iterator[_Tree]:
    if is_repository(root) and shutil.which("git"):
        with _repository(root) as tree:
            yield tree
    else:
        yield _folder(root)


@contextmanager
def _repository(root: Path) -> Iterator[_Tree]:
    place = str((root / ".git") if (root / ".git").exists() else root)
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("GIT_")
    } | _GIT_ENV
    command = ["git", f"--git-dir={place}", *_GIT]
    listing = subprocess.run(
        [*command, "ls-tree", "-r", "-z", "-l", "--full-tree", "HEAD"],
        capture_output=True,
        env=environment,
        timeout=300,
        check=False,
    )
    if listing.returncode:
        why = listing.stderr.decode("utf-8", "replace").strip().splitlines()
        raise OSError(f"git: {why[0] if why else listing.returncode}")
    files = []
    for line in listing.stdout.split(b"\0"):
        if not line:
            continue
        about, _, path = line.partition(b"\t")
        mode, _, key, size = about.decode().split()
        refused = {"120000": "symlink", "160000": "submodule"}.get(mode, "")
        files.append(_File(os.fsdecode(path), key, 0 if size == "-" else int(size), refused))
    remote = subprocess.run(
        [*command, "config", "--local", "remote.origin.url"],
        capture_output=True,
        env=environment,
        timeout=60,
        check=False,
    )
    with subprocess.Popen(
        [*command, "cat-file", "--batch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdin and process.stdout  # both are pipes
        try:
            key, commit = _object(process.stdin, process.stdout, "HEAD^{commit}")
            found = re.search(rb"^committer .*> (\d{1,12}) ", commit, re.M)
            date = (
                datetime.fromtimestamp(int(found[1]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                if found
                else ""
            )
            stdin, stdout = process.stdin, process.stdout
            web = _web(remote.stdout.decode("utf-8", "replace").strip(), key)
            files.sort(key=lambda file: file.path)
            yield _Tree(
                files, lambda key: _object(stdin, stdout, key)[1], date, web, {"commit": key}
            )
        finally:
            process.stdin.close()
            process.stdout.close()
            process.kill()


def _object(stdin: IO[bytes], stdout: IO[bytes], name: str) -> tuple[str, bytes]:
    """(hash, content) of an object, from `git cat-file --batch`."""
    stdin.write(name.encode() + b"\n")
    stdin.flush()
    answer = stdout.readline().split()
    if len(answer) != 3:
        raise OSError(
            f"git: {name} {b' '.join(answer[1:]).decode(errors='replace') or 'cannot be read'}"
        )
    data = stdout.read(int(answer[2]))
    stdout.read(1)
    return answer[0].decode(), data


def _web(remote: str, commit: str) -> str:
    """Where a file of this commit is seen, up to its path: for hosts whose addresses we know, else ""."""
    found = re.fullmatch(
        r"(?:https://(?:[^@/]{1,100}@)?|git@|ssh://git@)([\w.-]+)[/:]([\w./-]{3,200}?)(?:\.git)?/?",
        remote,
    )
    if not found or found[1] not in ("github.com", "gitlab.com", "codeberg.org"):
        return ""
    middle = {"github.com": "blob", "gitlab.com": "-/blob", "codeberg.org": "src/commit"}[found[1]]
    return f"https://{found[1]}/{found[2]}/{middle}/{commit}/"


def _folder(root: Path) -> _Tree:
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(
            d
            for d in folders
            if not d.startswith(".") and not os.path.islink(os.path.join(folder, d))
        )
        for name in names:
            place = os.path.join(folder, name)
            status = os.lstat(place)
            path = os.path.relpath(place, root).replace(os.sep, "/")
            refused = (
                "symlink"
                if os.path.islink(place)
                else ""
                if os.path.isfile(place)
                else "not_a_file"
            )
            files.append(_File(path, place, status.st_size, refused, modified(status.st_mtime)))
    files.sort(key=lambda file: file.path)
    return _Tree(files, lambda key: Path(key).read_bytes())


def _licenses(tree: _Tree) -> dict[str, tuple[str, str]]:
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
        text = decode(tree.read(file.key)).text
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
    name: str, root: Path, file: _File, tree: _Tree, licenses: dict[str, tuple[str, str]]
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
        detail["language"] = language
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
