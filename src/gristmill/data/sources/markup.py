"""HTML fragments to markdown-like text: what an answer or a chapter says, with its code and headings.

Unlike a web page such a fragment is all content, so nothing is judged; only scripts and the like go.
"""

from __future__ import annotations

import re
from typing import Any

from gristmill.errors import missing_extra

_SILENT = frozenset(
    ("script", "style", "head", "template", "iframe", "object", "svg", "noscript", "nav")
)
_HEADING = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_BLOCK = frozenset(
    """address article aside blockquote body center dd details div dl dt figcaption figure footer
    h1 h2 h3 h4 h5 h6 header hr html li main ol p pre section summary table tbody tfoot thead tr
    ul""".split()
)
_PARAGRAPH = frozenset(
    """p pre blockquote h1 h2 h3 h4 h5 h6 ul ol dl table figure hr div section""".split()
)
MAX_DEPTH = 250  # the depth of nesting that lxml reads, and what indentation we follow


def fragment_text(html: str | bytes) -> str:
    """The text of an HTML fragment or XHTML document, blocks separated by blank lines; never raises on bad HTML."""
    try:
        import lxml.html
        from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]
    except ModuleNotFoundError:
        raise missing_extra("lxml", "data") from None
    if isinstance(html, str):  # bytes, so that an XML declaration is no error
        html = html.replace("\x00", "").encode("utf-8", "replace")
    parser = lxml.html.HTMLParser(
        encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True, huge_tree=False
    )
    try:
        root = etree.fromstring(html, parser)
    except (etree.ParserError, etree.XMLSyntaxError):
        return ""
    return "" if root is None else element_text(root)


def element_text(root: Any) -> str:
    """The text of an lxml element and what is in it, in one walk without recursion."""
    writer = _Writer()
    walk: list[tuple[Any, bool]] = [(root, True)]
    while walk:
        element, entering = walk.pop()
        if not isinstance(element.tag, str):
            writer.add(element.tail)
            continue
        tag = element.tag.rpartition("}")[2].lower()
        if not entering:
            writer.leave(tag)
            if element is not root:
                writer.add(element.tail)
            continue
        if tag in _SILENT:
            if element is not root:
                writer.add(element.tail)
            continue
        writer.enter(tag, element)
        writer.add(element.text)
        walk.append((element, False))
        walk += [(child, True) for child in reversed(element)]
    return writer.text()


class _Writer:
    def __init__(self) -> None:
        self.blocks: list[tuple[str, bool]] = []  # (text, whether a blank line goes before it)
        self.parts: list[str] = []
        self.lists: list[tuple[str, int]] = []
        self.prefix = ""
        self.quotes = 0
        self.preformatted = 0
        self.language = ""
        self.paragraph = True

    def add(self, text: str | None) -> None:
        if text:
            self.parts.append(text)

    def enter(self, tag: str, element: Any) -> None:
        if tag in _BLOCK:
            self.flush()
            self.paragraph |= tag in _PARAGRAPH and not (self.prefix and tag in ("p", "div"))
        if tag in _HEADING:
            self.prefix = _HEADING[tag]
        elif tag in ("ul", "ol"):
            self.paragraph = not self.lists
            self.lists.append((tag, 0))
        elif tag == "li":
            kind, count = self.lists[-1] if self.lists else ("ul", 0)
            if self.lists:
                self.lists[-1] = (kind, count + 1)
            indent = "  " * min(max(0, len(self.lists) - 1), 20)
            self.prefix = indent + ("- " if kind == "ul" else f"{count + 1}. ")
        elif tag == "blockquote":
            self.quotes = min(self.quotes + 1, 20)
        elif tag == "pre":
            self.preformatted += 1
            self.language = _language(element.get("class") or "")
        elif tag == "br":
            self.parts.append("\n" if self.preformatted else "\x00")
        elif tag == "code" and self.preformatted:
            self.language = self.language or _language(element.get("class") or "")
        elif tag == "code":
            self.parts.append("`")
        elif tag in ("td", "th") and "".join(self.parts).strip():
            self.parts.append(" | ")
        elif tag == "math" and (tex := element.get("alttext")):
            self.parts.append(f"${tex}$")

    def leave(self, tag: str) -> None:
        if tag == "code" and not self.preformatted:
            self.parts.append("`")
        if tag not in _BLOCK:
            return
        self.flush()
        self.paragraph |= tag in _PARAGRAPH
        if tag == "pre":
            self.preformatted = max(0, self.preformatted - 1)
        elif tag == "blockquote":
            self.quotes = max(0, self.quotes - 1)
        elif tag in ("ul", "ol") and self.lists:
            self.lists.pop()
            self.paragraph = not self.lists
        if tag in _HEADING or tag == "li":
            self.prefix = ""

    def flush(self) -> None:
        text, self.parts = "".join(self.parts), []
        if self.preformatted:
            text = text.strip("\n").rstrip()
            if text:
                text = f"```{self.language}\n{text}\n```"
        else:
            lines = (" ".join(line.split()) for line in text.split("\x00"))
            text = "\n".join(line for line in lines if line)
        if not text or text == "``":
            return
        lines = (self.prefix + text).split("\n")
        if self.quotes:
            lines = [("> " * self.quotes + line).rstrip() for line in lines]
        self.blocks.append(("\n".join(lines), self.paragraph))
        self.prefix, self.paragraph = "", False

    def text(self) -> str:
        self.flush()
        out = [("\n\n" if blank else "\n") + text for text, blank in self.blocks]
        return "".join(out).strip("\n")


def _language(classes: str) -> str:
    found = re.search(r"\b(?:lang(?:uage)?-)([\w+#-]{1,20})", classes)
    return "" if not found or found[1] in ("none", "default") else found[1]
