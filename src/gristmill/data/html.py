"""HTML to text with the standard library: title, text in blocks, no scripts, styles or navigation."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

_SILENT = {
    "script",
    "style",
    "noscript",
    "template",
    "svg",
    "nav",
    "form",
    "iframe",
    "object",
    "head",
}
_VOID = {
    "area",
    "base",
    "br",
    "col",
    "embed",
    "hr",
    "img",
    "input",
    "link",
    "meta",
    "source",
    "wbr",
}
_BLOCKS = """address article aside blockquote body dd details div dl dt fieldset figcaption figure
footer h1 h2 h3 h4 h5 h6 header hr html li main ol p pre section summary table tbody td
tfoot th thead tr ul"""
_BLOCK = frozenset(_BLOCKS.split())
_HEADING = {"h1": "# ", "h2": "## ", "h3": "### ", "h4": "#### ", "h5": "##### ", "h6": "###### "}
_PERMALINK = re.compile("[¶§]$")
_MAX_REST = 4096
_LONG_REFERENCE = re.compile(
    "&#[0-9]{8,};?"
)  # no character; a number of thousands of digits is an error
_ANY_TAG = re.compile(r"<[^\s<>]*")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.blocks: list[str] = []
        self._parts: list[str] = []
        self._prefix = ""
        self._silent: list[str] = []
        self._open: Counter[str] = Counter()  # of those in `_silent`
        self._preformatted = 0
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self._in_title = True
        if tag == "body" and self._open.pop("head", 0):  # <head> left open
            self._silent = [t for t in self._silent if t != "head"]
        if tag in _SILENT and tag not in _VOID:
            self._flush()
            self._silent.append(tag)
            self._open[tag] += 1
        elif tag == "br":
            self._parts.append("\n")
        elif tag in _BLOCK:
            self._flush()
            if tag == "pre":
                self._preformatted += 1
            self._prefix = _HEADING.get(tag, "- " if tag == "li" else self._prefix)

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        if self._open[tag]:
            closed = ""
            while closed != tag:
                closed = self._silent.pop()
                self._open[closed] -= 1
        elif tag in _BLOCK:
            self._flush()
            self._prefix = ""
            if tag == "pre":
                self._preformatted = max(0, self._preformatted - 1)

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._silent:
            self._parts.append(data)

    def _flush(self) -> None:
        text = "".join(self._parts)
        self._parts = []
        if self._preformatted:
            text = text.strip("\n").rstrip()
        else:
            lines = (" ".join(line.split()) for line in text.split("\n\n"))
            text = "\n".join(line for line in lines if line)
            text = _PERMALINK.sub("", text).rstrip()
        if text.strip():
            self.blocks.append(self._prefix + text)
            self._prefix = ""

    def finish(self) -> None:
        # What is left begins with a tag or comment that nothing closes; at each "<" in it the parser would look
        # for the end again.
        if len(self.rawdata) > _MAX_REST:
            rest, self.rawdata = self.rawdata, ""
            self.handle_data("" if self.cdata_elem else _ANY_TAG.sub(" ", rest))
        self.close()
        self._flush()


def html_text(html: str) -> str:
    """The readable text of a page: "# title", then blocks separated by blank lines.

    Never raises on malformed HTML. A page whose text is all inside removed elements gives "".
    """
    reader = _Reader()
    reader.feed(_LONG_REFERENCE.sub("\ufffd", html))
    reader.finish()
    title = " ".join(reader.title.split())
    blocks = reader.blocks
    if title and blocks and blocks[0].lstrip("# ") != title:
        blocks = [f"# {title}", *blocks]
    return "\n\n".join(blocks) + "\n" if blocks else ""
