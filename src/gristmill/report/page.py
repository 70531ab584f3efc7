"""The page itself: head, style, contents, sections. One file that loads nothing from anywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gristmill.report.html import Html, join, tag

_STYLE = Path(__file__).with_name("style.css")
# The browser itself then refuses whatever would be loaded or run.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Section:
    title: str
    body: Html
    lead: str = ""

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def page(
    title: str, sections: list[Section], *, subtitle: str = "", header: Html | None = None
) -> str:
    """A whole HTML document. header: what stands between the title and the first section."""
    contents = tag(
        "nav",
        join(tag("a", section.title, href=f"#{section.anchor}") for section in sections),
        aria_label="Contents",
    )
    body = join(
        tag(
            "section",
            tag("h2", section.title),
            tag("p", section.lead, class_="lead") if section.lead else "",
            section.body,
            id=section.anchor,
        )
        for section in sections
    )
    head = join(
        (
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            tag("title", title),
            tag("style", Html(_STYLE.read_text(encoding="utf-8"))),
        )
    )
    top = tag(
        "header",
        tag("h1", title),
        tag("p", subtitle, class_="subtitle") if subtitle else "",
        header or "",
    )
    document = tag(
        "html",
        tag("head", head),
        tag("body", top, contents, tag("main", body)),
        lang="en",
    )
    return f"<!doctype html>\n{document}\n"
