"""Plain-text books: Project Gutenberg's own wrapping taken off, chapters made headings, lines joined.

Gutenberg's rules allow the text of a book without its header and licence when its name is not used:
https://www.gutenberg.org/policy/license.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gristmill.data.decode import decode
from gristmill.data.sources.item import Raw, printable
from gristmill.data.sources.opening import opened

MAX_BOOK_BYTES = 20_000_000
_START = re.compile(
    r"^\W{0,5}START OF (?:THE|THIS) PROJECT GUTENBERG(?:'S)? E?-?(?:BOOK|TEXT)\b.{0,300}$",
    re.M | re.I,
)
_END = re.compile(
    r"^\W{0,5}END OF (?:THE |THIS )?PROJECT GUTENBERG\b.{0,300}$|^End of (?:the )?Project Gutenberg(?:'s)?\b.{0,300}$",
    re.M | re.I,
)
# Before about 2003: a "small print" block, whose last line is this, ended the header.
_SMALL_PRINT = re.compile(r"^\*?\s?END\W{0,3}THE SMALL PRINT.{0,200}$", re.M | re.I)
_SIGNS = re.compile(r"Project Gutenberg|gutenberg\.(?:org|net)", re.I)
_FIELD = re.compile(
    r"^(Title|Author|Language|Release Date|Editor|Translator):[ \t]{0,9}(\S.{0,300})$", re.M
)
_CREDITS = re.compile(
    r"\A\s*(?:e-?text prepared by|produced by|transcribed (?:from|by)|this e?-?(?:book|text) was)",
    re.I,
)
_CHAPTER = re.compile(
    r"(?:(?:chapter|book|part|volume|canto|letter|stave|section|act|scene)\s+(?:the\s+)?"
    r"(?:[ivxlcdm]{1,8}|\d{1,3}|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|first|second|third"
    r"|fourth|fifth|last)\b[.:]?.{0,100}|(?:preface|introduction|prologue|epilogue|conclusion|foreword|appendix)\.?"
    r"|[IVXLC]{1,7}\.?)",
    re.I,
)
_ILLUSTRATION = re.compile(r"\[(?:Illustration|Transcriber'?s? note)[^\]\[]{0,1000}\]", re.I)


def looks_like_gutenberg(text: str) -> bool:
    """Whether the text carries Project Gutenberg's header or footer."""
    head, tail = text[:20_000], text[-25_000:]
    return bool(
        (_START.search(head) or _END.search(tail) or _SMALL_PRINT.search(head))
        and _SIGNS.search(head + tail)
    )


def read_gutenberg(path: Path, *, max_bytes: int = MAX_BOOK_BYTES) -> Iterator[Raw]:
    """One Raw: the book. A plain text that is no Gutenberg book is read as a book without wrapping."""
    name = printable(path.name)
    try:
        with opened(path) as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        yield Raw(
            name, reason="unreadable", detail={"error": error.strerror or str(error)}, kind="book"
        )
        return
    if len(data) > max_bytes:
        yield Raw(name, reason="too_large", detail={"limit": max_bytes}, kind="book")
        return
    decoded = decode(data)
    if decoded.reason:
        yield Raw(name, reason=decoded.reason, detail=decoded.detail, kind="book")
        return
    yield gutenberg_book(name, decoded.text)


def gutenberg_book(name: str, text: str) -> Raw:
    """The book in a decoded file: its text without wrapping, with what the header says of it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    wrapped = looks_like_gutenberg(text)
    about: dict[str, str] = {}
    if wrapped:
        for key, value in _FIELD.findall(text[:20_000]):
            about.setdefault(key.lower(), value.strip())
        text = _body(text)
    body = book_text(text)
    title = about.get("title", "")
    told = (("author", "author"), ("language", "stated_language"), ("translator", "translator"))
    detail: dict[str, Any] = {name: about[key] for key, name in told if key in about}
    detail["gutenberg"] = wrapped
    if not body.strip():
        return Raw(name, reason="no_text", detail=detail, kind="book", title=title)
    return Raw(
        name,
        (f"# {title}\n\n" if title else "") + body + "\n",
        detail=detail,
        kind="book",
        title=title,
        license="public-domain" if wrapped else "",
    )


def _body(text: str) -> str:
    """What stands between header and footer, without the credits of those who prepared the file."""
    start = _START.search(text[:50_000]) or _SMALL_PRINT.search(text[:50_000])
    begin = start.end() if start else 0
    ends = [found.start() for found in _END.finditer(text, max(begin, len(text) - 60_000))]
    body = text[begin : ends[0] if ends else len(text)].strip("\n")
    for _ in range(2):  # credits, then perhaps a note
        if not _CREDITS.match(body):
            break
        _, _, rest = body.partition("\n\n" if "\n\n" in body[:1000] else "\n")
        body = rest.lstrip("\n")
    return body


def book_text(text: str) -> str:
    """Paragraphs with their lines joined, chapter lines as "## " headings; verse and tables keep their lines."""
    text = _ILLUSTRATION.sub("", text)
    blocks = []
    for block in re.split(r"\n[ \t]*\n", _with_blank_lines(text)):
        lines = [line.rstrip() for line in block.strip("\n").split("\n")]
        lines = [line for line in lines if line.strip()]
        if not lines:
            continue
        if len(lines) <= 3 and _CHAPTER.fullmatch(lines[0].strip(" _*=")) and len(block) < 200:
            blocks.append("## " + " ".join(line.strip(" _*=") for line in lines))
        elif all(line[0] in " \t" for line in lines) or _is_verse(lines):
            blocks.append("\n".join(line.strip() if len(lines) == 1 else line for line in lines))
        else:
            blocks.append(_joined(lines))
    return "\n\n".join(blocks)


def _with_blank_lines(text: str) -> str:
    """A text that lost its blank lines gets them back: around chapter lines, and after a sentence's end on a
    line shorter than the page is wide."""
    lines = text.split("\n")
    if len(lines) < 100 or sum(not line.strip() for line in lines) > len(lines) / 100:
        return text
    width = sorted(map(len, lines))[len(lines) * 9 // 10]
    out = []
    for line in lines:
        chapter = len(line) < 60 and (_CHAPTER.fullmatch(line.strip()) or line.isupper())
        out += ["", line, ""] if chapter else [line]
        if len(line) < 0.85 * width and re.search(r"""[.!?:]["'”’)]?\s*$""", line):
            out.append("")
    return "\n".join(out)


def _is_verse(lines: list[str]) -> bool:
    """Short lines throughout (the last aside), most of which begin with a capital."""
    inner = lines[:-1]
    capitals = sum(line.lstrip(" \"'“‘_(")[:1].isupper() for line in lines)
    return len(lines) > 1 and all(len(line) < 56 for line in inner) and capitals >= 0.8 * len(lines)


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)
