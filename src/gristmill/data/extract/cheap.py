"""The first look at a page: its main text in about 4 ms, and what its head says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_REL = re.compile(r"""rel=["']?[^"'>]{0,40}license""")
_LICENSE_TAG = re.compile(
    r"""<(?:a|link)\b(?=[^>]{0,300}?\brel\s{0,9}=\s{0,9}["']?[^"'>]{0,60}\blicense\b)[^>]{0,300}?"""
    r"""\bhref\s{0,9}=\s{0,9}["']?([^\s"'>]{1,300})""",
    re.I,
)
_CC = re.compile(
    r"creativecommons\.org/(?:licenses/(by(?:-nc)?(?:-nd|-sa)?)/(\d\.\d)|publicdomain/(zero|mark)/1\.0)",
    re.I,
)
_LANG = re.compile(
    r"""<html\b[^>]{0,1000}?\blang\s{0,9}=\s{0,9}["']?([A-Za-z]{2,8}(?:-\w{1,8}){0,3})""", re.I
)
_TITLE = re.compile(r"<title\b[^>]{0,300}>([^<]{0,2000})", re.I)
_META_TAG = re.compile(r"<meta\b[^>]{0,2000}>", re.I)
_DATE_NAMES = re.compile(
    r"""\b(?:property|name|itemprop)\s{0,9}=\s{0,9}["']?"""
    r"""(?:article:published_time|datepublished|dc\.date(?:\.issued)?|dcterms\.(?:created|issued)|date)\b""",
    re.I,
)
_CONTENT = re.compile(r"""\bcontent\s{0,9}=\s{0,9}["']([^"']{4,40})["']""", re.I)
_DAY = re.compile(r"(?:19|20)\d\d-\d\d-\d\d(?:T\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?)?")
_HEAD_CHARS = 200_000


@dataclass(frozen=True, slots=True)
class Cheap:
    """language: the page's own word for it (BCP 47, lower case). license: SPDX id or URL, or "".
    license_from: "rel" (the page states it) or "link" (its only Creative Commons link)."""

    text: str = ""
    title: str = ""
    language: str = ""
    date: str = ""
    license: str = ""
    license_from: str = ""


def cheap(html: str) -> Cheap:
    """Main content by resiliparse, whose one pass costs a tenth of a careful extraction."""
    from resiliparse.extract.html2text import extract_plain_text

    text = extract_plain_text(
        html,
        main_content=True,
        alt_texts=False,
        comments=False,
        post_meta=False,
        list_bullets=False,
    )
    head = html[:_HEAD_CHARS]
    found, how = _license(html)
    language = _LANG.search(head)
    return Cheap(
        text=text.strip(),
        title=_title(head),
        language=language[1].lower() if language else "",
        date=_date(head),
        license=found,
        license_from=how,
    )


def _title(head: str) -> str:
    import html

    found = _TITLE.search(head)
    return " ".join(html.unescape(found[1]).split())[:300] if found else ""


def _date(head: str) -> str:
    """The date of publication that a meta tag gives, as ISO 8601 UTC (a day alone at midnight)."""
    from datetime import UTC, datetime

    for tag in _META_TAG.findall(head):
        if not _DATE_NAMES.search(tag):
            continue
        content = _CONTENT.search(tag)
        day = _DAY.match(content[1]) if content else None
        try:
            moment = datetime.fromisoformat(day[0]) if day else None
        except ValueError:
            continue
        if moment is not None:
            if moment.tzinfo is not None:
                moment = moment.astimezone(UTC)
            return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return ""


def _license(html: str) -> tuple[str, str]:
    # Plain searches first: they spare most pages the long expressions, a quarter of the time.
    stated = _LICENSE_TAG.search(html) if _REL.search(html) else None
    if stated:
        found = _CC.search(stated[1])
        return (_spdx(found) if found else stated[1]), "rel"
    if "creativecommons.org/" not in html:
        return "", ""
    linked = {_spdx(found) for found in _CC.finditer(html)}
    return (linked.pop(), "link") if len(linked) == 1 else ("", "")


def _spdx(found: re.Match[str]) -> str:
    if found[3]:
        return "CC0-1.0" if found[3].lower() == "zero" else "CC-PDM-1.0"
    return f"CC-{found[1].upper()}-{found[2]}"
