"""The facts stage: what the documents state about names, one row a fact, each with its source and line.

Python source and stubs give modules, classes, functions and methods; Python's help topics and the
sections of prose documents give the rest. A fact is extracted, never written: all its fields are parts of
the document at `source`:`line`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from gristmill.data import docstrings, pyfacts
from gristmill.data.prose import headings_of
from gristmill.data.schema import Document, documents
from gristmill.files import read_jsonl, write_jsonl
from gristmill.stage import Progress, Result, StageConfig, quiet

KINDS = ("module", "class", "function", "method", "topic", "section")
_UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
_VERSION = re.compile(r"(?:version |release )?v?\d+\.\d+(?:[\s.(:-]|$)", re.IGNORECASE)


class FactsConfig(StageConfig):
    """min_section_words: a section whose first sentence has fewer words than this states nothing."""

    min_section_words: int = 4


@dataclass(frozen=True)
class Fact:
    """One row of facts.jsonl.

    name: what a person calls it: 'heapq.nlargest', 'with', 'Installation'.
    kind: one of KINDS.
    signature: the arguments as written, without self ('(n, iterable, key=None)'), or ''.
    summary: the first sentence of the description, on one line, at most 160 characters.
    doc: the cleaned docstring or section, at most 1,200 characters.
    unique: whether no other fact has this summary, so that it tells this fact from all others.
    """

    id: str
    doc_id: str
    name: str
    kind: str
    package: str
    group: str
    module: str
    signature: str
    summary: str
    doc: str
    example: str
    returns: str
    source: str
    line: int
    split: str
    unique: bool = True

    @property
    def label(self) -> str:
        """Name and arguments: 'heapq.nlargest(n, iterable, key=None)'."""
        return self.name + self.signature


def read_facts(path: Path) -> list[Fact]:
    """The facts of a facts.jsonl, or of a directory that holds one."""
    path = Path(path)
    rows = read_jsonl(path / "facts.jsonl" if path.is_dir() else path)
    return [Fact(**row) for row in rows]


def run(
    config: FactsConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """Read `inputs["documents"]`, write out_dir/facts.jsonl."""
    parts = {part: documents(inputs["documents"], part) for part in ("train", "heldout", "dropped")}
    kept = [*parts["train"], *parts["heldout"]]
    packages = [row for row in parts["dropped"] if row.text and row.source.endswith("/__init__.py")]
    facts, counts = extract(kept, config, progress, names_from=packages)
    path = out_dir / "facts.jsonl"
    write_jsonl(path, [asdict(fact) for fact in facts])
    metrics = {
        "facts": len(facts),
        "by_kind": _count(facts, "kind"),
        "by_split": _count(facts, "split"),
        "by_group": _count(facts, "group"),
        "unique_summaries": sum(fact.unique for fact in facts),
        **counts,
    }
    return Result({"facts": path}, metrics)


def extract(
    rows: list[Document],
    config: FactsConfig | None = None,
    progress: Progress = quiet,
    names_from: list[Document] | None = None,
) -> tuple[list[Fact], dict[str, int]]:
    """All facts of the documents, ordered by source and line, and what was passed over.

    names_from: modules that give no facts but public names, such as an `__init__` that was dropped from
    the corpus because it holds nothing but imports.
    Counts: documents that do not parse as Python ("unparsed"), definitions without a usable summary
    ("undescribed"), without a public name ("private"), and names met before ("repeated").
    """
    config = config or FactsConfig()
    counts: Counter[str] = Counter(unparsed=0, undescribed=0, private=0, repeated=0)
    scans: list[tuple[Document, pyfacts.Scan]] = []
    found: list[Fact] = []
    for index, document in enumerate(rows):
        if document.group == "topics":
            found += _topic(document)
        elif document.kind in ("python", "pydoc"):
            try:
                scans.append((document, pyfacts.scan(document.text, document.source)))
            except _UNPARSABLE:
                counts["unparsed"] += 1
        elif document.kind in ("markdown", "html", "text"):
            found += _sections(document, config.min_section_words)
        if index % 64 == 0:
            progress(index, len(rows), "documents", facts=len(found))
    found += _python_facts(scans, _scans_that_parse(names_from or []), counts)
    progress(len(rows), len(rows), "documents", facts=len(found))
    return _finish(found), dict(counts)


def _scans_that_parse(rows: list[Document]) -> list[pyfacts.Scan]:
    scans = []
    for document in rows:
        with contextlib.suppress(*_UNPARSABLE):
            scans.append(pyfacts.scan(document.text, document.source))
    return scans


def _python_facts(
    scans: list[tuple[Document, pyfacts.Scan]], names_from: list[pyfacts.Scan], counts: Counter[str]
) -> list[Fact]:
    # Source before stubs: the same name is then described by the text that a citation can open.
    scans = sorted(scans, key=lambda pair: (pair[0].kind == "pydoc", pair[0].source))
    aliases = pyfacts.public_names([*names_from, *(scan for _, scan in scans)])
    facts: dict[str, Fact] = {}
    for document, scan in scans:
        for definition in scan.definitions:
            name = pyfacts.public_name(scan, definition, aliases)
            if name is None:
                counts["private"] += 1
                continue
            fact = _python_fact(document, scan, definition, name)
            if fact is None:
                counts["undescribed"] += 1
            elif name in facts:
                counts["repeated"] += 1
            else:
                facts[name] = fact
    return list(facts.values())


def _python_fact(
    document: Document, scan: pyfacts.Scan, definition: pyfacts.Definition, name: str
) -> Fact | None:
    summary = docstrings.summary(definition.doc)
    if not summary:
        return None
    signature = definition.signature
    if document.kind == "pydoc" and signature in ("", "(*args, **kwargs)", "(...)"):
        # A C function that does not tell its arguments; the docstring's first line may.
        signature = docstrings.call_line(definition.doc, name)
    module = name if not definition.path else name[: -len(definition.path)].rstrip(".")
    return Fact(
        id=_fact_id(name, document.source),
        doc_id=document.id,
        name=name,
        kind=definition.kind,
        package=document.package,
        group=document.group,
        module=module or scan.module,
        signature=" ".join(signature.split()),
        summary=summary,
        doc=docstrings.clean_doc(definition.doc),
        example=docstrings.example(definition.doc),
        returns=docstrings.returns(definition.doc, definition.annotation),
        source=document.source,
        line=definition.line,
        split=document.split,
    )


def _topic(document: Document) -> list[Fact]:
    """A help topic: its title line, then the first paragraph that is a sentence."""
    name = document.source.rsplit("/", 1)[-1]
    title, _, body = document.text.strip().partition("\n")
    body = body.lstrip("*=-#\n ")
    summary = docstrings.summary(body)
    if not summary:
        return []
    return [_prose_fact(document, name, "topic", _unquote(title), summary, body, 1)]


def _sections(document: Document, min_words: int) -> list[Fact]:
    """One fact for each heading that a sentence of its own follows, except the version numbers of changelogs.

    The name is the heading; `_finish` puts the document's title before headings that occur more than once.
    """
    lines = document.text.split("\n")
    headings = list(headings_of(lines))
    facts: list[Fact] = []
    for position, (index, body_from, heading) in enumerate(headings):
        end = headings[position + 1][0] if position + 1 < len(headings) else len(lines)
        body = "\n".join(lines[body_from:end]).strip("\n")
        summary = _prose_summary(body, min_words)
        name = heading
        if summary and 2 <= len(name) <= 60 and not _VERSION.match(name):
            title = headings[0][2]
            facts.append(_prose_fact(document, name, "section", title, summary, body, index + 1))
    return facts


def _prose_summary(body: str, min_words: int) -> str:
    for paragraph in re.split(r"\n\s*\n", body)[:2]:
        text = paragraph.strip()
        if not text or text.startswith(
            ("|", "```", "~~~", "<", ">>>", "$ ", "..", "[!", "![", "    ")
        ):
            continue
        summary = docstrings.summary(text)
        if len(summary.split()) >= min_words and not summary.startswith(("- ", "* ", "http")):
            return summary
    return ""


def _prose_fact(
    document: Document, name: str, kind: str, title: str, summary: str, body: str, line: int
) -> Fact:
    return Fact(
        id=_fact_id(f"{name}:{line}", document.source),
        doc_id=document.id,
        name=name,
        kind=kind,
        package=document.package,
        group=document.group,
        module=title,
        signature="",
        summary=summary,
        doc=docstrings.clean_doc(body),
        example="",
        returns="",
        source=document.source,
        line=line,
        split=document.split,
    )


def _finish(facts: list[Fact]) -> list[Fact]:
    """Qualify headings that occur more than once, mark summaries that do not tell facts apart, sort."""
    headings = Counter(fact.name.lower() for fact in facts if fact.kind == "section")
    named = [
        _replace(fact, name=f"{fact.module}: {fact.name}")
        if fact.kind == "section" and headings[fact.name.lower()] > 1 and fact.module != fact.name
        else fact
        for fact in facts
    ]
    names = Counter(fact.name.lower() for fact in named)
    summaries = Counter(_bare(fact.summary) for fact in named)
    # Case matters in code (`threading.Lock`, `threading.lock`) and not in headings.
    marked = [
        _replace(
            fact,
            unique=summaries[_bare(fact.summary)] == 1
            and (fact.kind != "section" or names[fact.name.lower()] == 1),
        )
        for fact in named
    ]
    return sorted(marked, key=lambda fact: (fact.source, fact.line, fact.name))


def _replace(fact: Fact, **changes: object) -> Fact:
    return Fact(**{**vars(fact), **changes})


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _unquote(title: str) -> str:
    return title.replace('"', "`").strip(" *=")


def _fact_id(name: str, source: str) -> str:
    return hashlib.blake2b(f"{name}\0{source}".encode(), digest_size=8).hexdigest()


def _count(facts: list[Fact], field: str) -> dict[str, int]:
    return dict(sorted(Counter(getattr(fact, field) for fact in facts).items()))
