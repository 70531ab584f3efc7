"""PDF files page by page: running headers and footers removed, words put together that a line end divided.

Reasons: "encrypted", "no_text" (images only: it would need character recognition), "too_large", "unreadable".
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gristmill.data.sources.item import Raw, printable
from gristmill.errors import missing_extra

MAX_PDF_BYTES = 200_000_000
MAX_PAGES = 5_000
MAX_TEXT_CHARS = 20_000_000
_EDGE_LINES = 2  # lines at the top and at the bottom of a page where headers and footers stand
_MIN_PAGES = 4
_MIN_SHARE = 0.4  # of the pages; books alternate two headers


def read_pdf(path: Path) -> Iterator[Raw]:
    """One Raw: the file's text."""
    try:
        import pypdf
        from pypdf.errors import PyPdfError
    except ModuleNotFoundError:
        raise missing_extra("pypdf", "documents") from None
    name = printable(path.name)
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of each oddity of each file
    try:
        size = path.stat().st_size
        if size > MAX_PDF_BYTES:
            yield Raw(name, reason="too_large", detail={"bytes": size, "limit": MAX_PDF_BYTES})
            return
        with open(path, "rb") as file:
            reader = pypdf.PdfReader(file)
            if reader.is_encrypted and not reader.decrypt(""):
                yield Raw(name, reason="encrypted")
                return
            count = len(reader.pages)
            if count > MAX_PAGES:
                yield Raw(name, reason="too_large", detail={"pages": count, "limit": MAX_PAGES})
                return
            pages, bad, chars = [], [], 0
            for number in range(count):
                try:
                    text = reader.pages[number].extract_text() or ""
                except Exception as error:  # pypdf raises what it stumbles over on damaged pages
                    bad.append({"page": number + 1, "error": str(error)[:200]})
                    continue
                chars += len(text)
                if chars > MAX_TEXT_CHARS:
                    yield Raw(
                        name,
                        reason="too_large",
                        detail={"characters": chars, "limit": MAX_TEXT_CHARS},
                    )
                    return
                pages.append(text)
            about = _metadata(reader)
    except (
        OSError,
        PyPdfError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        IndexError,
    ) as error:
        yield Raw(
            name, reason="unreadable", detail={"error": str(error)[:300] or type(error).__name__}
        )
        return
    except Exception as error:
        if type(error).__name__ != "DependencyError":  # AES without the cryptography package
            raise
        yield Raw(name, reason="encrypted", detail={"error": str(error)[:300]})
        return
    detail: dict[str, Any] = {"pages": count} | about
    if bad:
        detail["bad_pages"] = bad[:20]
    text = pdf_text(pages)
    title = detail.pop("title", "")
    if text:
        yield Raw(name, text + "\n", detail=detail, title=title)
    else:
        yield Raw(name, reason="no_text", detail=detail, title=title)


def _metadata(reader: Any) -> dict[str, str]:
    try:
        about = reader.metadata or {}
        found = {"title": str(about.get("/Title") or ""), "author": str(about.get("/Author") or "")}
    except Exception:  # metadata is often damaged where pages are not
        return {}
    return {key: " ".join(value.split())[:300] for key, value in found.items() if value.strip()}


def pdf_text(pages: list[str]) -> str:
    """Pages' texts as one: without what repeats at their edges, paragraphs joined over line and page ends."""
    split = [[line.rstrip() for line in page.split("\n") if line.strip()] for page in pages]
    repeated = _running(split)
    kept: list[str] = []
    for lines in split:
        inner = [
            line
            for place, line in enumerate(lines)
            if _EDGE_LINES <= place < len(lines) - _EDGE_LINES or _shape(line) not in repeated
        ]
        kept += inner
    return _joined(kept)


def _shape(line: str) -> str:
    """A line with its numbers as "#": the same header on every page."""
    return re.sub(r"\d+", "#", " ".join(line.split()))


def _running(pages: list[list[str]]) -> set[str]:
    """Shapes that stand at the edge of at least _MIN_SHARE of the pages."""
    filled = [lines for lines in pages if lines]
    if len(filled) < _MIN_PAGES:
        return set()
    seen: Counter[str] = Counter()
    for lines in filled:
        seen.update({_shape(line) for line in (*lines[:_EDGE_LINES], *lines[-_EDGE_LINES:])})
    return {shape for shape, count in seen.items() if count >= max(3, _MIN_SHARE * len(filled))}


def _joined(lines: list[str]) -> str:
    """Lines to paragraphs: a new one after a line that ends a sentence clearly short of the usual width."""
    if not lines:
        return ""
    width = sorted(map(len, lines))[len(lines) * 3 // 4]
    paragraphs, current = [], ""
    for line in lines:
        line = line.strip()
        if re.search(r"[^\W\d_]-$", current) and line[:1].islower():
            current = current[:-1] + line
        else:
            current = f"{current} {line}" if current else line
        short = len(line) < 0.8 * width
        if short and (re.search(r"""[.!?:]["'”’)]?$""", line) or len(line) < 0.5 * width):
            paragraphs.append(current)
            current = ""
    return "\n\n".join([*paragraphs, current] if current else paragraphs)
