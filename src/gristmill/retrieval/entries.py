"""What goes into an index: one entry a documented name, one a chunk of prose, with the words it is found by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gristmill.data import Document, Fact, headings_of, module_name, passage, prose_passage
from gristmill.retrieval.chunks import chunk_lines, chunk_text
from gristmill.retrieval.terms import phrase

_VERBATIM = ("python", "code")  # a `#` begins no heading there, and lines are not a paragraph's


@dataclass(frozen=True)
class Entry:
    """name: the dotted name of code, '' for prose. text: the passage that is shown, and that a model reads.

    known_as: whole names and headings that find it exactly. names, heading, body: the three columns of
    full-text search, before they are cut into terms.
    """

    name: str
    title: str
    text: str
    source: str
    line: int
    fact_id: str | None
    known_as: tuple[str, ...]
    names: str
    heading: str
    body: str


def is_prose(document: Document) -> bool:
    """Whether the text itself is indexed. Python is not: its facts are, which say what it is for."""
    return document.group == "topics" or document.kind not in ("python", "pydoc")


def entries(facts: Iterable[Fact], prose: Iterable[Document], chunk_chars: int) -> Iterator[Entry]:
    """Code facts in their order, then the chunks of each document in theirs.

    A topic or a section is a chunk, not an entry of its own: its fact is recognized by source and line.
    """
    of_prose: dict[tuple[str, int], Fact] = {}
    for fact in facts:
        if fact.kind in ("topic", "section"):
            of_prose[fact.source, fact.line] = fact
        else:
            yield _code_entry(fact)
    for document in prose:
        yield from _prose_entries(document, of_prose, chunk_chars)


def _code_entry(fact: Fact) -> Entry:
    path = fact.name.removeprefix(f"{fact.module}.")
    defined = "" if fact.kind == "module" else f"{module_name(fact.source)[0]}.{path}"
    return Entry(
        name=fact.name,
        title=fact.name,
        text=passage(fact),
        source=fact.source,
        line=fact.line,
        fact_id=fact.id,
        known_as=tuple(dict.fromkeys(name for name in (fact.name, defined) if name)),
        names=f"{fact.name} {fact.module}",
        heading=fact.summary,
        body=f"{fact.signature} {fact.doc} {fact.returns}",
    )


def _prose_entries(
    document: Document, of_prose: dict[tuple[str, int], Fact], chunk_chars: int
) -> Iterator[Entry]:
    verbatim = document.kind in _VERBATIM
    first = None if verbatim else next(iter(headings_of(document.text.split("\n"))), None)
    stem = document.source.rsplit("/", 1)[-1]
    of = first[2] if first else stem
    before = ""
    cut = chunk_lines if verbatim else chunk_text
    for number, chunk in enumerate(cut(document.text, chunk_chars)):
        line = 1 if document.group == "topics" and number == 0 else chunk.line
        fact = of_prose.get((document.source, line))
        title = fact.name if fact else chunk.heading or of
        # Only the first chunk under a heading answers to its name.
        begins = bool(chunk.heading) and chunk.heading != before
        before = chunk.heading
        names = [
            title.lower(),
            phrase(title),
            phrase(chunk.heading),
            phrase(fact.module if fact else ""),
        ]
        yield Entry(
            name="",
            title=title,
            text=f"{title}:\n{chunk.text}" if verbatim else prose_passage(title, chunk.text),
            source=document.source,
            line=chunk.line,
            fact_id=fact.id if fact else None,
            known_as=tuple(dict.fromkeys(filter(None, names))) if begins else (),
            names=title,
            heading=f"{of} {stem} {document.package}",
            body=chunk.text,
        )
