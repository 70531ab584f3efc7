"""EPUB books: the chapters in reading order as markdown-like text.

A zip file whose META-INF/container.xml names a package file (OPF); its spine gives the order. Sizes are
checked while a member is unpacked, so a zip bomb costs at most MAX_BOOK_BYTES.
Reasons: "too_large", "no_text", "encrypted" (DRM), "bad_record" (a chapter that cannot be read), "unreadable".
Format: https://www.w3.org/TR/epub-33/
"""

from __future__ import annotations

import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from gristmill.data.sources.item import Raw, printable
from gristmill.data.sources.licences import spdx
from gristmill.data.sources.markup import fragment_text

MAX_MEMBER_BYTES = 10_000_000  # the longest novels in one XHTML file have 4 MB
MAX_BOOK_BYTES = 60_000_000
MAX_MEMBERS = 20_000
_CONTAINER = "META-INF/container.xml"
_NOT_TEXT = re.compile(
    r"(?i)(?:^|[/_-])(?:cover|nav|toc|titlepage|title-page|contents|wrap0000)[\w-]{0,20}\.x?html?$"
)
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    ValueError,
    RuntimeError,
    OSError,
)


class _Refused(Exception):
    def __init__(self, reason: str, **detail: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def read_epub(path: Path) -> Iterator[Raw]:
    """One Raw for the book, after one for each chapter that cannot be read."""
    name = printable(path.name)
    try:
        with zipfile.ZipFile(path) as book:
            yield from _book(book, name)
    except _Refused as refused:
        yield Raw(name, reason=refused.reason, detail=refused.detail, kind="book")
    except _BROKEN as error:
        yield Raw(name, reason="unreadable", detail={"error": f"{error}"}, kind="book")


def _book(book: zipfile.ZipFile, name: str) -> Iterator[Raw]:
    members = book.infolist()
    if len(members) > MAX_MEMBERS:
        raise _Refused("too_large", members=len(members), limit=MAX_MEMBERS)
    if "META-INF/encryption.xml" in book.namelist() and "META-INF/rights.xml" in book.namelist():
        raise _Refused("encrypted")
    container = _xml(_member(book, _CONTAINER), _CONTAINER)
    root = next((e.get("full-path") for e in container.iter() if _local(e) == "rootfile"), None)
    if not root:
        raise _Refused("unreadable", error=f"{_CONTAINER} names no package file")
    package = _xml(_member(book, root), root)
    about = _metadata(package)
    chapters, size = [], 0
    for href in dict.fromkeys(_spine(package)):
        place = posixpath.normpath(
            posixpath.join(posixpath.dirname(root), unquote(href.partition("#")[0]))
        )
        try:
            data = _member(book, place)
        except _Refused as refused:
            size += refused.detail.get("limit", 0)  # it was unpacked so far
            yield Raw(
                f"{name}/{printable(place)}",
                reason=refused.reason,
                detail=refused.detail,
                kind="book",
            )
            data = b""
        except _BROKEN as error:
            detail = {"error": str(error)}
            yield Raw(f"{name}/{printable(place)}", reason="bad_record", detail=detail, kind="book")
            continue
        size += len(data)
        if size > MAX_BOOK_BYTES:
            raise _Refused("too_large", bytes=size, limit=MAX_BOOK_BYTES)
        text = fragment_text(data)
        if text:
            chapters.append(text)
    labels: dict[str, Any] = {
        "source": name,
        "kind": "book",
        "title": about.pop("title", ""),
        "license": about.pop("license", ""),
        "date": about.pop("date", ""),
        "detail": about | {"chapters": len(chapters)},
    }
    if chapters:
        title = labels["title"]
        first = chapters[0].split("\n", 1)[0].lstrip("# ")
        head = f"# {title}\n\n" if title and first != title else ""
        yield Raw(**labels, text=head + "\n\n".join(chapters) + "\n")
    else:
        yield Raw(**labels, reason="no_text")


def _member(book: zipfile.ZipFile, place: str) -> bytes:
    """A member's bytes; never more than MAX_MEMBER_BYTES are unpacked, whatever its header says."""
    try:
        info = book.getinfo(place)
    except KeyError:
        raise _Refused("unreadable", error=f"no {place} in the book") from None
    if info.flag_bits & 1:
        raise _Refused("encrypted", member=place)
    with book.open(info) as file:
        data = file.read(MAX_MEMBER_BYTES + 1)
    if len(data) > MAX_MEMBER_BYTES:
        raise _Refused(
            "too_large", member=place, bytes=max(info.file_size, len(data)), limit=MAX_MEMBER_BYTES
        )
    return data


def _xml(data: bytes, place: str) -> ElementTree.Element:
    """Container and package files declare no entities, so one that does is refused before it is parsed."""
    if b"<!ENTITY" in data or b"<!ENTITY".decode().encode("utf-16-le") in data:
        raise _Refused("unreadable", error=f"{place} declares entities, which can be a bomb")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise _Refused("unreadable", error=f"{place}: {error}") from None


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _metadata(package: ElementTree.Element) -> dict[str, Any]:
    """title, license, date (as on the contract) and creators, language, publisher, rights."""
    about: dict[str, Any] = {}
    creators = []
    for element in package.iter():
        name, value = _local(element), " ".join((element.text or "").split())[:500]
        if not value or "purl.org/dc" not in element.tag:
            continue
        if name == "creator":
            creators.append(value)
        elif name in ("title", "language", "publisher", "rights", "date", "identifier"):
            about.setdefault(name, value)
    if language := about.pop("language", ""):
        about["stated_language"] = language
    if creators:
        about["creators"] = creators[:20]
    rights = about.get("rights", "")
    if "public domain" in rights.lower():
        about["license"] = "public-domain"
    elif license := spdx(rights):
        about["license"] = license
    day = re.match(r"\d{4}(?:-\d\d(?:-\d\d)?)?", about.pop("date", ""))
    if day:
        about["date"] = day[0]
    return about


def _spine(package: ElementTree.Element) -> Iterator[str]:
    """Hrefs of the linear chapters in reading order, without covers, tables of contents and navigation."""
    manifest: dict[str, ElementTree.Element] = {}
    apart = set()
    for element in package.iter():
        if _local(element) == "item" and element.get("id"):
            manifest[element.get("id", "")] = element
        elif _local(element) == "reference" and element.get("type") in (
            "cover",
            "toc",
            "title-page",
        ):
            apart.add((element.get("href") or "").partition("#")[0])
    for element in package.iter():
        item = manifest.get(element.get("idref", "")) if _local(element) == "itemref" else None
        if item is None or element.get("linear") == "no":
            continue
        href, media = item.get("href") or "", item.get("media-type") or ""
        if not href or "html" not in media or "nav" in (item.get("properties") or "").split():
            continue
        if href.partition("#")[0] not in apart and not _NOT_TEXT.search(href):
            yield href
