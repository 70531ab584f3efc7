"""HTML pages to text: a quick look at every page, a careful one at those worth keeping.

Everything that parses runs in a child process with a deadline and a memory limit (`watchdog`).
Reasons: "empty", "too_large", "extraction_timeout", "extraction_memory", "extraction_failed", "no_text",
and what the gate says.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gristmill.data.extract.watchdog import DEADLINE_SECONDS, MEMORY_BYTES, Failure, Watchdog

__all__ = ["DEADLINE_SECONDS", "MAX_HTML_BYTES", "MEMORY_BYTES", "Extracted", "Watchdog", "extract"]

MAX_HTML_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class Extracted:
    """A page's text and facts, or the reason why it is left out.

    text: also there (from the quick look) when `reason` is the gate's, so that a report can show it.
    language: what the page says of itself (BCP 47), or "". date: of publication, ISO 8601 UTC, or "".
    license: an SPDX id or a URL that the page links as its licence, or "".
    method: "resiliparse" (the quick look only), "blocks" or "trafilatura".
    """

    text: str = ""
    title: str = ""
    language: str = ""
    date: str = ""
    license: str = ""
    method: str = ""
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


_shared: list[Watchdog] = []


def extract(
    html: bytes,
    charset: str = "",
    url: str = "",
    *,
    gate: Callable[[str], str] | None = None,
    watchdog: Watchdog | None = None,
) -> Extracted:
    """The main text of a page.

    charset: what the HTTP header said. gate: takes the quick text and answers with the reason to leave the
    page out, or "" to go on to the careful pass; its thresholds should be looser than the real rules',
    because the quick text holds more of the page's frame. watchdog: this process's own one by default.
    """
    if not html.strip():
        return Extracted(reason="empty", detail={"bytes": len(html)})
    if len(html) > MAX_HTML_BYTES:
        return Extracted(reason="too_large", detail={"bytes": len(html), "limit": MAX_HTML_BYTES})
    dog = watchdog or _own()
    dog.rest()
    first = dog.ask("page", html, charset)
    if isinstance(first, Failure):
        return Extracted(reason=first.reason, detail=first.detail | {"tier": "cheap"})
    facts, encoding = first[1], first[2]
    known = {
        "title": facts.title,
        "language": facts.language,
        "date": facts.date,
        "license": facts.license,
    }
    detail = {"encoding": encoding}
    if facts.license_from:
        detail["license_from"] = facts.license_from
    if not facts.text:
        return Extracted(**known, method="resiliparse", reason="no_text", detail=detail)
    if gate is not None and (reason := gate(facts.text)):
        return Extracted(facts.text, **known, method="resiliparse", reason=reason, detail=detail)
    second = dog.ask("careful")
    if isinstance(second, Failure):
        detail |= second.detail | {"tier": "careful"}
        return Extracted(**known, reason=second.reason, detail=detail)
    text, method = second[1], second[2]
    reason = "" if text else "no_text"
    return Extracted(text, **known, method=method, reason=reason, detail=detail)


def _own() -> Watchdog:
    """The one of this process, started at its first page and closed at its end."""
    if not _shared:
        _shared.append(Watchdog())
        atexit.register(_shared[0].close)
    return _shared[0]
