"""Prose as people structure it: headings, and pieces that end where a thought does."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gristmill.data.docstrings import plain

_MARKDOWN_HEADING = re.compile(r"#{1,6}\s+(?P<title>\S.*?)\s*#*$")
_UNDERLINE = re.compile(r"([=\-~^*+#])\1{2,}\s*$")
_NOT_WORDS = re.compile(r"!\[[^\]]*\]\([^)]*\)|\[\s*\]\([^)]*\)|</?[a-zA-Z][^>]*>")
_FENCE = ("```", "~~~")


def headings_of(lines: list[str]) -> Iterator[tuple[int, int, str]]:
    """(index of its line, index of the line after it, its text) for Markdown and underlined headings.

    Lines inside fenced code blocks are not headings. Pictures, tags and markup are taken out of the text.
    """
    fenced = False
    for index, raw in enumerate(lines):
        line = raw.rstrip()
        if line.lstrip().startswith(_FENCE):
            fenced = not fenced
        if fenced:
            continue
        match = _MARKDOWN_HEADING.match(line)
        if match:
            first, title = index, match["title"]
        elif index and _UNDERLINE.match(line) and len(line) >= 3:
            first, title = index - 1, lines[index - 1].rstrip()
            is_text = title[:1].strip() and len(title) <= 120 and not _UNDERLINE.match(title)
            if not is_text or len(line) < min(len(title), 6):
                continue
        else:
            continue
        text = " ".join(plain(_NOT_WORDS.sub("", title)).replace("`", "").split()).strip(" :.")
        if text:
            yield first, index + 1, text


def pieces(lines: list[str], start: int, end: int, limit: int) -> Iterator[tuple[str, int]]:
    """Pieces of at most `limit` characters of lines[start:end], each with the index of its first line.

    A piece ends at the end of a paragraph once it is half full; else where the next line would not fit. A
    line that alone does not fit is cut between words. Nothing but blank lines between pieces is lost.
    """
    block: list[str] = []
    first = size = 0
    for index in range(start, end):
        for part in _cut(lines[index].rstrip(), limit):
            ends_paragraph = not part and size >= limit // 2
            if block and (ends_paragraph or size + len(part) > limit):
                yield "\n".join(block).rstrip(), first
                block, size = [], 0
            if not block and not part.strip():
                continue
            if not block:
                first = index
            block.append(part)
            size += len(part) + 1
    if block:
        yield "\n".join(block).rstrip(), first


def _cut(line: str, limit: int) -> list[str]:
    """The line whole, or in parts of at most `limit` characters, cut at the last space that allows it."""
    parts = []
    while len(line) > limit:
        at = line.rfind(" ", limit // 2, limit + 1)
        at = at if at > 0 else limit
        parts.append(line[:at].rstrip())
        line = line[at:].lstrip()
    return [*parts, line]


def reflow(text: str) -> str:
    """Inline markup taken out, and the lines of a paragraph joined, as a reader would see them.

    A line that is indented, fenced, or begins with anything but a word, a quote or markup of a word stays by
    itself: lists, tables and code keep their lines.
    """
    out: list[str] = []
    fenced = joinable = False
    for line in text.split("\n"):
        fence = line.lstrip().startswith(_FENCE)
        fenced ^= fence
        flows = bool(re.match(r"[\w\"'`(]|:\w+:`", line)) and not fenced and not fence
        shown = plain(line) if flows else line
        if flows and joinable:
            out[-1] += f" {shown.strip()}"
        else:
            out.append(shown.rstrip())
        joinable = flows
    return "\n".join(out)
