"""Wikipedia (MediaWiki) XML dumps: plain, .gz, .bz2 (multi-stream too), page by page in bounded memory.

A dump is cut at <page> and </page>, which cannot occur inside text (it is escaped there), so one damaged
page costs that page only. Articles (namespace 0) come out; the rest is only counted.
Reasons: "redirect", "disambiguation", "not_wikitext", "too_large", "bad_record", "no_text",
"broken_archive" (the rest of the file cannot be read), "unreadable" (no dump at all).
Format: https://www.mediawiki.org/xml/export-0.11.xsd
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from gristmill.data.sources.item import Raw, printable
from gristmill.data.sources.opening import Damaged, Stream, opened
from gristmill.data.sources.wikitext import wikitext_text

MAX_PAGE_BYTES = 16_000_000  # MediaWiki refuses articles above 2 MB; a page has some XML around it
MAX_HEAD_BYTES = 1_000_000
_CHUNK = 1 << 20
_FILE_NAMESPACES = ("-2", "6", "14")  # Media, File, Category
_LICENSES = {
    "wikinews": "CC-BY-4.0",
    "wikidata": "CC0-1.0",
}  # text of the other projects is CC-BY-SA-4.0
_DISAMBIGUATION = re.compile(
    r"__DISAMBIG__|\{\{\s{0,9}(?:disambig\w{0,12}|dab|dp|hndis|geodis|numberdis|letter-?numbercombdisambig"
    r"|begriffsklärung\w{0,12}|homonymie|desambiguación|disambigua|doorverwijspagina|ujednoznacznienie"
    r"|неоднозначность|aimai|曖昧さ回避|消歧义)\s{0,9}(?:\||\}\})",
    re.I,
)
_REDIRECT = re.compile(r"\s*#(?:redirect|weiterleitung|redirection|redirección)\b", re.I)


@dataclass(frozen=True, slots=True)
class _Site:
    """base: URL of articles without the title, e.g. "https://en.wikipedia.org/wiki/"."""

    base: str
    license: str
    namespaces: frozenset[str]


def read_wikipedia(
    path: Path, *, max_bytes: int = MAX_PAGE_BYTES, counts: Counter[str] | None = None
) -> Iterator[Raw]:
    """The articles of a dump as markdown-like text, in the dump's order.

    counts: takes the pages that are no articles, by namespace ("namespace 10").
    """
    counts = counts if counts is not None else Counter()
    name = printable(path.name)
    pages = 0
    try:
        with opened(path) as stream:
            head, found, buffer = _head(stream)
            problem = _refusal(head)
            if problem:
                yield Raw(name, reason="unreadable", detail={"error": problem})
                return
            if not found:
                return  # a dump without pages
            site = _site(head)
            for page in _pages(stream, buffer, max_bytes):
                pages += 1
                yield from _page(name, page, pages, site, max_bytes, counts)
    except Damaged as error:
        reason = "broken_archive" if pages else "unreadable"
        yield Raw(name, reason=reason, detail={"error": str(error), "pages_read": pages})
    except OSError as error:
        yield Raw(name, reason="unreadable", detail={"error": error.strerror or str(error)})


def is_wikipedia(head: bytes) -> bool:
    """Whether a file's first (decompressed) bytes are those of a MediaWiki export."""
    return b"<mediawiki" in head[:2000]


def _head(stream: Stream) -> tuple[bytes, bool, bytes]:
    """(bytes before the first <page>, whether there is one, bytes from it on)."""
    head = b""
    while b"<page>" not in head and len(head) < MAX_HEAD_BYTES:
        chunk = stream.some(_CHUNK)
        if not chunk:
            break
        head += chunk
        if not is_wikipedia(head):
            break
    before, found, after = head.partition(b"<page>")
    return before, bool(found), found + after


def _refusal(head: bytes) -> str:
    if b"<!DOCTYPE" in head or b"<!ENTITY" in head:
        return (
            "it declares a document type; MediaWiki's dumps have none, and entities can be a bomb"
        )
    if not is_wikipedia(head):
        return "no <mediawiki> element at its start"
    return ""


def _site(head: bytes) -> _Site:
    text = head.decode("utf-8", "replace")
    base = re.search(r"<base>(https?://[^<\s]{1,500}/)[^<\s/]{0,500}</base>", text)
    names = re.findall(r'<namespace key="(-?\d+)"[^>]{0,100}>([^<]{1,100})</namespace>', text)
    project = re.search(r"//[\w.-]{0,100}?(\w+)\.org/", base[1]) if base else None
    return _Site(
        base[1] if base else "",
        _LICENSES.get(project[1] if project else "", "CC-BY-SA-4.0"),
        frozenset(value.lower() for key, value in names if key in _FILE_NAMESPACES),
    )


def _pages(stream: Stream, buffer: bytes, limit: int) -> Iterator[bytes | int]:
    """The bytes of each page, or the size of one that is larger than `limit`."""
    while True:
        start = buffer.find(b"<page>")
        if start < 0:
            buffer = buffer[-5:]
        else:
            buffer = buffer[start:]
            searched, size, kept = 0, 0, True
            while True:
                end = buffer.find(b"</page>", searched)
                following = buffer.find(b"<page>", max(searched, 6)) if kept else -1
                if following >= 0 and (end < 0 or following < end):
                    yield buffer[:following]  # cut off: the next one begins before it ends
                    buffer = buffer[following:]
                    break
                if end >= 0:
                    yield buffer[: end + 7] if kept else size + end + 7
                    buffer = buffer[end + 7 :]
                    break
                searched = max(0, len(buffer) - 6)
                if len(buffer) > limit:  # keep nothing of it but the place where its end may begin
                    size += searched
                    buffer, searched, kept = buffer[searched:], 0, False
                chunk = stream.some(_CHUNK)
                if not chunk:
                    yield buffer if kept else size + len(buffer)
                    return
                buffer += chunk
            continue
        chunk = stream.some(_CHUNK)
        if not chunk:
            return
        buffer += chunk


def _page(
    name: str, page: bytes | int, number: int, site: _Site, limit: int, counts: Counter[str]
) -> Iterator[Raw]:
    if isinstance(page, int) or len(page) > limit:
        size = page if isinstance(page, int) else len(page)
        yield Raw(f"{name}#{number}", reason="too_large", detail={"bytes": size, "limit": limit})
        return
    try:
        # Begins with <page>, so it cannot declare entities; those it uses undeclared are errors.
        root = ElementTree.fromstring(page)
    except ElementTree.ParseError as error:
        yield Raw(f"{name}#{number}", reason="bad_record", detail={"error": str(error)})
        return
    fields = _fields(root)
    title, namespace = fields.get("title", ""), fields.get("ns", "0")
    if namespace != "0":
        counts[f"namespace {namespace}"] += 1
        return
    detail: dict[str, Any] = {
        "page_id": fields.get("id", ""),
        "revision": fields.get("revision", ""),
    }
    labels: dict[str, Any] = {
        "source": f"{name}/{printable(title)}" if title else f"{name}#{number}",
        "url": site.base + quote(title.replace(" ", "_"), safe="/:(),;@!*'~$&+=")
        if site.base
        else "",
        "date": fields.get("timestamp", ""),
        "license": site.license,
        "kind": "wiki",
        "title": title,
    }
    source = fields.get("text", "")
    if "redirect" in fields or _REDIRECT.match(source):
        yield Raw(**labels, reason="redirect", detail=detail | {"to": fields.get("redirect", "")})
    elif fields.get("model", "wikitext") != "wikitext":
        yield Raw(**labels, reason="not_wikitext", detail=detail | {"model": fields["model"]})
    elif _DISAMBIGUATION.search(source):
        yield Raw(**labels, reason="disambiguation", detail=detail)
    else:
        text = wikitext_text(source, site.namespaces)
        if not text:
            yield Raw(**labels, reason="no_text", detail=detail)
        else:
            yield Raw(
                **labels, text=f"# {title}\n\n{text}\n" if title else text + "\n", detail=detail
            )


def _fields(page: ElementTree.Element) -> dict[str, str]:
    """The page's fields and those of its last revision; redirect: the target's title."""
    fields: dict[str, str] = {}
    for element in page:
        if element.tag == "redirect":
            fields["redirect"] = element.get("title") or ""
        elif element.tag == "revision":
            fields |= {
                "revision" if child.tag == "id" else child.tag: child.text or ""
                for child in element
                if child.tag in ("id", "timestamp", "model", "text")
            }
        elif element.tag in ("title", "ns", "id"):
            fields[element.tag] = element.text or ""
    return fields
