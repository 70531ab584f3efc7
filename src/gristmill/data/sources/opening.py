"""Opening files that may be compressed, and lines of bounded length.

By the first bytes, not by the name: gzip, bzip2, xz, zstd, else plain.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gristmill.errors import missing_extra

# What a zstd frame may ask for as its window: 128 MiB, `zstd --long`'s default.
_ZSTD_WINDOW = 1 << 27
# Pages pack 5 to 20 to 1, logs 50; deflate reaches 1,032 to 1 on zeros. Reading on beyond this costs more time
# than the compressed bytes can justify.
MAX_EXPANSION, _SMALL = 200, 1 << 28


class Damaged(OSError):
    """The compressed stream ends early, is not what its first bytes promise, or is a bomb."""


class Stream:
    """A file's decompressed bytes; every way a decompressor has to fail becomes `Damaged`.

    packed: the file that `file` decompresses.
    """

    def __init__(self, file: BinaryIO, packed: BinaryIO) -> None:
        self._file, self._packed, self._given = file, packed, 0

    def read(self, size: int) -> bytes:
        return self._careful(self._file.read, size)

    def some(self, size: int) -> bytes:
        """At most `size` bytes, b"" at the end: what comes before damage comes out before the error does."""
        return self._careful(self._file.read1, size)  # type: ignore[attr-defined]

    def readline(self, limit: int) -> bytes:
        return self._careful(self._file.readline, limit)

    def _careful(self, read, size: int) -> bytes:
        if self._given > _SMALL and self._given > MAX_EXPANSION * self._packed.tell():
            raise Damaged(f"expands more than {MAX_EXPANSION} to 1: the rest is not read")
        try:
            data = read(size)
            self._given += len(data)
            return data
        except Exception as error:
            if isinstance(error, (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)) or (
                type(error).__name__ == "ZstdError"
            ):
                raise Damaged(f"damaged or cut off: {error}") from None
            raise


@contextmanager
def opened(path: Path) -> Iterator[Stream]:
    """The decompressed bytes of a regular file. Raises OSError; never waits for a pipe's other end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file")
        head = file.read(6)
        file.seek(0)
        with _decompressed(file, head) as plain:
            yield Stream(plain, file)


def _decompressed(file: BinaryIO, head: bytes) -> BinaryIO:
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)  # type: ignore[return-value]
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(file)  # type: ignore[return-value]
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            import zstandard
        except ModuleNotFoundError:
            raise missing_extra("zstandard", "data") from None
        reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        stream = reader.stream_reader(file, read_across_frames=True, closefd=False)
        return io.BufferedReader(stream, 1 << 16)  # type: ignore[return-value, arg-type]
    return file


def lines(stream: Stream, limit: int) -> Iterator[tuple[int, bytes | None, int]]:
    """(number from 1, the line without its end or None when longer than `limit` bytes, its length)."""
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        length = len(line)
        if line.endswith(b"\n") or length <= limit:
            yield number, line.rstrip(b"\r\n"), length
            continue
        while (more := stream.readline(1 << 20)) and not more.endswith(b"\n"):
            length += len(more)
        yield number, None, length + len(more)
