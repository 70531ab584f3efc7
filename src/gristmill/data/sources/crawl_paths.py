"""Lists of a crawl's files (`warc.paths`, `wet.paths.gz`): which of them the user has. Nothing is fetched."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gristmill.errors import RequestError

_MAX_LINE = 4096
_MAX_LINES = 10_000_000


@dataclass(frozen=True, slots=True)
class CrawlPaths:
    """found: files in the list's order. missing: the lines whose file is in none of the directories."""

    found: tuple[Path, ...]
    missing: tuple[str, ...]


def is_crawl_paths(path: Path) -> bool:
    return path.name.endswith((".paths", ".paths.gz"))


def read_crawl_paths(path: Path, root: Path | None = None) -> CrawlPaths:
    """Resolve each line of a list below `root` (by default the list's own directory), with the line's
    whole path or with its file name alone.

    Raises RequestError when the list cannot be read or a line leads out of the directory.
    """
    base = root if root is not None else path.parent
    found: list[Path] = []
    missing: list[str] = []
    for number, line in enumerate(_lines(path), 1):
        pure = PurePosixPath(line)
        if pure.is_absolute() or ".." in pure.parts or "\0" in line:
            raise RequestError(
                f'{path.name} line {number}: "{line}" leads out of {base}. '
                "Lines are paths below the crawl's directory, such as crawl-data/…/x.warc.gz"
            )
        for candidate in (base / line, base / pure.name):
            if candidate.is_file():
                found.append(candidate)
                break
        else:
            missing.append(line)
    return CrawlPaths(tuple(dict.fromkeys(found)), tuple(dict.fromkeys(missing)))


def _lines(path: Path) -> list[str]:
    lines: list[str] = []
    try:
        with open(path, "rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            stream = gzip.GzipFile(fileobj=plain) if packed else plain
            while line := stream.readline(_MAX_LINE + 1):
                if len(line) > _MAX_LINE or len(lines) >= _MAX_LINES:
                    raise RequestError(
                        f"{path.name}: line {len(lines) + 1} is no path (over {_MAX_LINE} bytes a line or "
                        f"{_MAX_LINES:,} lines). Is this a list of paths?"
                    )
                text = line.decode("utf-8", "replace").strip()
                if text and not text.startswith("#"):
                    lines.append(text)
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(
            f"{path}: cannot read this list of paths ({error}). Get it again?"
        ) from None
    return lines
