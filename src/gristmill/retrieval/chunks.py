"""Documents cut into chunks: prose never across headings, then between paragraphs; with the line kept."""

from __future__ import annotations

from dataclasses import dataclass

from gristmill.data import headings_of, pieces


@dataclass(frozen=True)
class Chunk:
    """`heading` is the nearest heading above ('' before the first). `line` is the 1-based line where the
    chunk begins; the first chunk under a heading begins at the heading, whose words are not in `text`."""

    heading: str
    text: str
    line: int


def chunk_text(text: str, chunk_chars: int) -> list[Chunk]:
    """Cut `text` at its headings, and what lies between into pieces of at most `chunk_chars` characters."""
    lines = text.split("\n")
    starts = list(headings_of(lines))
    bounds = [(0, 0, ""), *starts] if not starts or starts[0][0] > 0 else starts
    chunks: list[Chunk] = []
    for position, (first, body, heading) in enumerate(bounds):
        end = bounds[position + 1][0] if position + 1 < len(bounds) else len(lines)
        cut = list(pieces(lines, body, end, chunk_chars))
        if cut and heading:
            cut[0] = (cut[0][0], first)
        chunks += [Chunk(heading[:120], piece, line + 1) for piece, line in cut]
    return chunks


def chunk_lines(text: str, chunk_chars: int) -> list[Chunk]:
    """Cut code or data into pieces of at most `chunk_chars` characters, at the ends of lines where they fit."""
    lines = text.split("\n")
    return [Chunk("", piece, line + 1) for piece, line in pieces(lines, 0, len(lines), chunk_chars)]
