"""A folder or git repository as a list of files and a way to read each: HEAD through git, else what is on disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from gristmill.data.sources.item import modified, printable
from gristmill.files import hash_json

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
class File:
    """path: inside the tree. key: what to read it by (a blob's hash, or the path on disk)."""

    path: str
    key: str
    size: int
    refused: str = ""
    date: str = ""
    stamp: int = 0


@dataclass(frozen=True, slots=True)
class Tree:
    """files: by path. read: the bytes of a file's `key`, or OSError. date, facts: what all files share.
    web: the address of a file is this and its path; "" where we know none."""

    files: list[File]
    read: Callable[[str], bytes]
    date: str = ""
    web: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def is_repository(root: Path) -> bool:
    """Whether the folder is a git repository: a work tree with .git, or a bare one."""
    return (root / ".git").exists() or all(
        (root / part).exists() for part in ("HEAD", "objects", "refs")
    )


def tree_state(root: Path) -> tuple[int, str]:
    """(bytes of the files, what changes when they do: the commit, or a hash of the listing).

    Raises nothing: a tree that cannot be listed is refused when it is read.
    """
    try:
        files, commit = _committed(root) if is_repository(root) else ([], "")
        if not commit:
            files = _folder(root).files
    except (OSError, subprocess.SubprocessError):
        return 0, ""
    listed = [(printable(file.path), file.size, file.stamp) for file in files]
    return sum(file.size for file in files if not file.refused), commit or hash_json(listed)


@contextmanager
def opened_tree(root: Path) -> Iterator[Tree]:
    files, commit = _committed(root) if is_repository(root) else ([], "")
    if commit:
        with _repository(root, files) as tree:
            yield tree
    else:
        yield _folder(root)


def _git(root: Path, *arguments: str) -> bytes | None:
    """What a git command says about the repository `root`, None where it refuses or there is no git."""
    if not shutil.which("git"):
        return None
    done = subprocess.run(
        [*_command(root), *arguments],
        capture_output=True,
        env=_environment(),
        timeout=300,
        check=False,
    )
    return None if done.returncode else done.stdout


def _command(root: Path) -> list[str]:
    place = str((root / ".git") if (root / ".git").exists() else root)
    return ["git", f"--git-dir={place}", *_GIT]


def _environment() -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return own | _GIT_ENV


def _committed(root: Path) -> tuple[list[File], str]:
    """The files of HEAD and its hash, ([], "") where there is no commit that git can read."""
    head = _git(root, "rev-parse", "--verify", "HEAD^{commit}")
    listing = _git(root, "ls-tree", "-r", "-z", "-l", "--full-tree", "HEAD") if head else None
    if head is None or listing is None:
        return [], ""
    files = []
    for line in listing.split(b"\0"):
        if not line:
            continue
        about, _, path = line.partition(b"\t")
        mode, _, key, size = about.decode().split()
        refused = {"120000": "symlink", "160000": "submodule"}.get(mode, "")
        files.append(File(os.fsdecode(path), key, int(size) if size.isdigit() else 0, refused))
    files.sort(key=lambda file: file.path)
    return files, head.decode().strip()


@contextmanager
def _repository(root: Path, files: list[File]) -> Iterator[Tree]:
    remote = _git(root, "config", "--local", "remote.origin.url") or b""
    with subprocess.Popen(
        [*_command(root), "cat-file", "--batch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(),
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
            web = _web(remote.decode("utf-8", "replace").strip(), key)
            yield Tree(
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


def _folder(root: Path) -> Tree:
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(
            d
            for d in folders
            if not d.startswith(".") and not os.path.islink(os.path.join(folder, d))
        )
        for name in names:
            place = os.path.join(folder, name)
            try:
                status = os.lstat(place)
            except OSError:  # gone since it was listed
                continue
            path = os.path.relpath(place, root).replace(os.sep, "/")
            refused = (
                "symlink"
                if os.path.islink(place)
                else ""
                if os.path.isfile(place)
                else "not_a_file"
            )
            changed = modified(status.st_mtime)
            files.append(File(path, place, status.st_size, refused, changed, status.st_mtime_ns))
    files.sort(key=lambda file: file.path)
    return Tree(files, lambda key: Path(key).read_bytes())
