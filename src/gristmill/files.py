"""Durable files: written under a temporary name, fsynced, renamed; and content hashes of what rests on disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gristmill.errors import RequestError


def write_with(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write(temporary_path)` make the file, then fsync and rename it onto `path`.

    A reader sees the old file or the whole new one, also across kill -9 and power loss.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_with(path, write)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Keys keep their order; floats keep every digit, so equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file of someone else's, {} where there is none. Raises RequestError, naming the file."""
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f"{path} must hold a JSON object")
    return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


@contextmanager
def lock_file(path: Path, refusal: Callable[[str], str]) -> Iterator[None]:
    """Hold the file `path`, which is made; it says the number of this process. The lock dies with the process.

    Raises RequestError where another process holds it: `refusal` makes the message of that one's number.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            raise RequestError(refusal(holder)) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make a rename in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_path(path: Path) -> str:
    """sha256 of a file, or of a directory's sorted (relative name, file hash) pairs, in hex."""
    path = Path(path)
    if path.is_file():
        return hash_file(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """sha256 of a JSON-able value in canonical form (sorted keys, no spaces), in hex."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def listing_hash(place: Path) -> str:
    """Changes when the file `place`, or one directly in that directory, is added, removed or touched; nothing
    is read."""
    files = (
        sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else [place]
    )
    return hash_json(
        [(os.fsencode(p.name).hex(), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    )
