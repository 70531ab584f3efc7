"""LaTeX papers: a .tex file, a folder, a paper's archive, or arXiv's bulk .tar of one .gz a paper.

Only what the archive itself holds is read: \\input of a path that leads out of it finds nothing.
Reasons: "not_latex", "no_text", "too_large", "unsupported_format" (a paper that is a PDF only), "bad_record",
"broken_archive", "unreadable".
"""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gristmill.data.decode import decode
from gristmill.data.sources.item import Raw, printable
from gristmill.data.sources.latex_text import latex_text
from gristmill.data.sources.opening import Damaged, opened

MAX_PAPER_BYTES = 60_000_000  # compressed, with its figures
MAX_UNPACKED_BYTES = 300_000_000  # read through while looking for sources
MAX_SOURCE_BYTES = 4_000_000  # one .tex file
MAX_SOURCES = 500
_SOURCE = (".tex", ".ltx", ".latex")
_ARXIV = re.compile(
    r"(?:^|/)(\d{4}\.\d{4,5}|[a-z-]{2,10}(?:\.[A-Z]{2})?\d{7})(?:v\d+)?\.(?:tar\.)?gz$"
)
_MAIN_NAMES = ("main.tex", "ms.tex", "paper.tex", "article.tex", "manuscript.tex")
_BROKEN = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError)


def read_latex(path: Path) -> Iterator[Raw]:
    """The papers in a file or folder, in the archive's order."""
    name = printable(path.name)
    if path.is_dir():
        try:
            yield _paper(name, _in_folder(path))
        except OSError as error:
            detail = {"error": error.strerror or str(error)}
            yield Raw(name, reason="unreadable", detail=detail, kind="paper")
        return
    papers = 0
    try:
        with opened(path) as stream:
            head = stream.read(512)
            rest: Any = _Joined(head, stream)
            if _is_tar(head):
                for raw in _bulk(name, rest):
                    papers += 1
                    yield raw
            else:
                data = rest.read(MAX_SOURCE_BYTES + 1)
                if len(data) > MAX_SOURCE_BYTES:
                    yield Raw(
                        name, reason="too_large", detail={"limit": MAX_SOURCE_BYTES}, kind="paper"
                    )
                else:
                    yield _paper(name, {name: data}, path.name)
    except (Damaged, tarfile.TarError, EOFError) as error:
        reason = "broken_archive" if papers else "unreadable"
        yield Raw(
            name, reason=reason, detail={"error": str(error), "papers_read": papers}, kind="paper"
        )
    except OSError as error:
        yield Raw(
            name, reason="unreadable", detail={"error": error.strerror or str(error)}, kind="paper"
        )


def _in_folder(path: Path) -> dict[str, bytes]:
    """Source files below a folder, links left out."""
    files: dict[str, bytes] = {}
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() not in _SOURCE or file.is_symlink() or not file.is_file():
            continue
        if len(files) < MAX_SOURCES and file.stat().st_size <= MAX_SOURCE_BYTES:
            files[file.relative_to(path).as_posix()] = file.read_bytes()
    return files


class _Joined:
    """Bytes already read, then the stream they came from."""

    def __init__(self, head: bytes, stream: Any) -> None:
        self.head, self.stream = head, stream

    def read(self, size: int) -> bytes:
        if self.head:
            piece, self.head = self.head[:size], self.head[size:]
            return piece + (self.stream.read(size - len(piece)) if size > len(piece) else b"")
        return self.stream.read(size)


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _bulk(name: str, stream: Any) -> Iterator[Raw]:
    """A tar of papers, each in its own .gz, or the tar of one paper."""
    sources: dict[str, bytes] = {}
    others = 0
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if not member.isfile():
                continue
            suffix = posixpath.splitext(member.name)[1].lower()
            place = f"{name}/{printable(member.name)}"
            if suffix == ".gz" and not sources:
                others += 1
                yield _packed(place, member, archive)
            elif suffix == ".pdf" and others:
                yield Raw(
                    place, reason="unsupported_format", detail={"format": ".pdf"}, kind="paper"
                )
            elif suffix in _SOURCE:
                if member.size > MAX_SOURCE_BYTES or len(sources) >= MAX_SOURCES:
                    detail = {"bytes": member.size, "limit": MAX_SOURCE_BYTES}
                    yield Raw(place, reason="too_large", detail=detail, kind="paper")
                    continue
                file = archive.extractfile(member)
                sources[member.name] = file.read() if file else b""
    if sources or not others:
        yield _paper(name, sources, name)


def _packed(place: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> Raw:
    if member.size > MAX_PAPER_BYTES:
        return Raw(
            place,
            reason="too_large",
            detail={"bytes": member.size, "limit": MAX_PAPER_BYTES},
            kind="paper",
        )
    file = archive.extractfile(member)
    packed = file.read() if file else b""
    try:
        unpacked = _Inflated(io.BytesIO(packed))
        head = unpacked.read(512)
        rest: Any = _Joined(head, unpacked)
        if not _is_tar(head):
            data = rest.read(MAX_SOURCE_BYTES + 1)
            if len(data) > MAX_SOURCE_BYTES:
                return Raw(
                    place, reason="too_large", detail={"limit": MAX_SOURCE_BYTES}, kind="paper"
                )
            return _paper(place, {"main.tex": data}, member.name)
        sources: dict[str, bytes] = {}
        with tarfile.open(fileobj=rest, mode="r|") as paper:
            for inner in paper:
                if not inner.isfile() or posixpath.splitext(inner.name)[1].lower() not in _SOURCE:
                    continue
                if inner.size <= MAX_SOURCE_BYTES and len(sources) < MAX_SOURCES:
                    text = paper.extractfile(inner)
                    sources[inner.name] = text.read() if text else b""
        return _paper(place, sources, member.name)
    except _TooMuch:
        return Raw(place, reason="too_large", detail={"limit": MAX_UNPACKED_BYTES}, kind="paper")
    except _BROKEN as error:
        return Raw(place, reason="bad_record", detail={"error": str(error)}, kind="paper")


class _TooMuch(Exception):
    pass


class _Inflated:
    """A gzip's bytes, at most MAX_UNPACKED_BYTES of them."""

    def __init__(self, file: BinaryIO) -> None:
        import gzip

        self.file, self.left = gzip.GzipFile(fileobj=file), MAX_UNPACKED_BYTES

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _TooMuch
        return data


def _paper(source: str, files: dict[str, bytes], file_name: str = "") -> Raw:
    """The paper made of these files (by their path in the archive)."""
    texts: dict[str, str] = {}
    problems: dict[str, str] = {}
    for place, data in sorted(files.items()):
        if data.startswith(b"%PDF"):
            return Raw(source, reason="unsupported_format", detail={"format": ".pdf"}, kind="paper")
        decoded = decode(data)
        if decoded.reason:
            problems[printable(place)] = decoded.reason
        else:
            texts[posixpath.normpath(place)] = decoded.text
    main = _main_file(texts)
    arxiv = _ARXIV.search(file_name)
    detail: dict[str, Any] = {"files": len(texts)}
    if problems:
        detail["left_out"] = dict(list(problems.items())[:20])
    if main is None:
        return Raw(source, reason="not_latex", detail=detail, kind="paper")
    folder = posixpath.dirname(main)

    def include(wanted: str) -> str | None:
        for base in dict.fromkeys((folder, "")):
            place = posixpath.normpath(posixpath.join(base, wanted))
            for candidate in (place, place + ".tex"):
                if candidate in texts and candidate != main:
                    return texts[candidate]
        return None

    paper = latex_text(texts[main], include)
    if paper.problem or not paper.text:
        return Raw(
            source,
            reason=paper.problem or "no_text",
            detail=detail,
            kind="paper",
            title=paper.title,
        )
    detail |= {"main_file": printable(main), "authors": paper.authors}
    head = "".join(
        f"{line}\n\n" for line in (paper.title and f"# {paper.title}", paper.authors) if line
    )
    url = ""
    if arxiv:
        number = re.sub(r"^([a-z-]+(?:\.[A-Z]{2})?)(\d{7})$", r"\1/\2", arxiv[1])
        url, detail["arxiv_id"] = f"https://arxiv.org/abs/{number}", number
    return Raw(
        source, head + paper.text + "\n", detail=detail, url=url, kind="paper", title=paper.title
    )


def _main_file(texts: dict[str, str]) -> str | None:
    """The file that begins the document: by its usual names first, else the longest, the shallowest."""
    able = [
        p
        for p, t in texts.items()
        if re.search(r"^[^%\n]{0,200}\\begin\s{0,9}\{document\}", t, re.M)
    ]
    whole = [
        p
        for p in able
        if not re.search(r"\\documentclass[^{]{0,100}\{(?:standalone|subfiles)\}", texts[p])
    ]
    for name in _MAIN_NAMES:
        for place in sorted(whole, key=lambda p: (p.count("/"), p)):
            if posixpath.basename(place).lower() == name:
                return place
    best = sorted(whole or able, key=lambda p: (p.count("/"), -len(texts[p]), p))
    return best[0] if best else None
