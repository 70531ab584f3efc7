"""Records of ARC files, the format before WARC: one header line of five fields, then so many bytes.

`url ip-address YYYYMMDDhhmmss media/type length`; the first record (filedesc://) describes the file.
Source: https://archive.org/web/researcher/ArcFileFormat.php
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from gzip import GzipFile
from typing import BinaryIO

_MAX_LINE = 64 * 1024
_SKIP = 1 << 20
# The URL may hold spaces (written by careless crawlers), so the other four fields are read from the end.
_HEADER = re.compile(rb"(\S.*) (\S+) (\d{8,17}) (\S+) (\d{1,12})")


@dataclass(frozen=True, slots=True)
class ArcRecord:
    """block: the first `limit` bytes at most of the `length` that the header announced."""

    url: str
    date: str
    media_type: str
    length: int
    block: bytes


def is_arc(start: bytes) -> bool:
    return start.startswith(b"filedesc://")


def read_arc_records(stream: BinaryIO | GzipFile, limit: int) -> Iterator[ArcRecord | str]:
    """Records of a decompressed ARC; a header line that cannot be read gives that line (as text), and
    reading goes on at the next line."""
    while line := stream.readline(_MAX_LINE):
        line = line.strip()
        if not line:
            continue
        found = _HEADER.fullmatch(line)
        if not found:
            yield line[:200].decode("utf-8", "replace")
            continue
        length = int(found[5])
        block = stream.read(min(length, limit))
        left = length - len(block)
        while left > 0 and (piece := stream.read(min(left, _SKIP))):
            left -= len(piece)
        yield ArcRecord(
            url=found[1].decode("utf-8", "replace"),
            date=found[3].decode(),
            media_type=found[4].decode("latin-1").lower(),
            length=length,
            block=block,
        )
