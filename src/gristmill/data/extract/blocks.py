"""Main text by our own block scoring: the smallest element with most of the paragraphs, without the
blocks that are links or that their class names call something else.

It is right on ordinary articles and wrong on odd pages, so it is used only where resiliparse's text says
the same (see `careful`). It works on an lxml tree in one walk.
"""

from __future__ import annotations

import re
from typing import Any

# Never text of the page, for this extractor and for trafilatura alike.
_NO_TEXT_NAMES = (
    "script style noscript svg iframe template link button input select canvas object embed video audio"
    " img picture source nav footer aside map area param track textarea option label meta base"
)
NO_TEXT = tuple(_NO_TEXT_NAMES.split())
_OTHER = re.compile(
    r"comment|disqus|related|recommend|share|social|promo|newsletter|subscri|signup|sidebar|footer"
    r"|(?:^|[-_ ])nav|menu|breadcrumb|byline|author|caption|advert|sponsor|cookie|consent|popup|modal"
    r"|meta(?!l)|tags?(?:[-_ ]|$)|pagination|popular|trending|widget|more-(?:from|stories|on)|read-?more"
    r"|hidden|credit|copyright|banner|login|survey|toolbar|most-|teaser|timestamp|dateline",
    re.I,
)
_BLOCK_NAMES = (
    "p pre blockquote h1 h2 h3 h4 h5 h6 li td th dd dt div section article main tr table ul ol dl figure"
    " figcaption header form fieldset body center br hr tbody details summary"
)
_BLOCKS = frozenset(_BLOCK_NAMES.split())
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_LOOSE = ("div", "section", "article", "header", "figure", "ul", "td", "figcaption", "form")
_SENTENCE_ENDS = (".", "!", "?", '"', "”", "。", "؟", "।")
_PARAGRAPH_CHARS = 40
_ENOUGH_CHARS = 400
_MAX_LINK_SHARE = 0.4
_MAX_DEPTH = 400


def paragraph_weights(body: Any) -> tuple[dict[Any, int], int]:
    """(characters of paragraphs below each element, characters in all)."""
    weights: dict[Any, int] = {}
    total = 0
    for paragraph in body.iter("p", "pre", "blockquote"):
        size = len(" ".join("".join(paragraph.itertext()).split()))
        if size < _PARAGRAPH_CHARS:
            continue
        total += size
        for depth, above in enumerate(paragraph.iterancestors()):
            if above is body or depth > _MAX_DEPTH:
                break
            weights[above] = weights.get(above, 0) + size
    return weights, total


def container(body: Any, weights: dict[Any, int], total: int, share: float = 0.8) -> Any:
    """The element with the fewest paragraphs' characters that still holds `share` of them, the innermost
    of equals; the body when the page has hardly any paragraphs."""
    if total < _ENOUGH_CHARS:
        return body
    best, fewest = body, total + 1
    for element, size in weights.items():  # inner elements come before those around them
        if share * total <= size < fewest:
            best, fewest = element, size
    return best


def main_text(root: Any, weights: dict[Any, int], total: int) -> str:
    """Lines of text of the blocks below `root` that read like content. "" when the page nests too deep."""
    walk = _Walk(weights, total)
    if not walk.element(root, in_link=False, tag=root.tag, depth=0):
        return ""
    walk.end_block(root.tag)
    kept = [
        (tag, text)
        for tag, text, in_links in walk.blocks
        if _reads_like_content(tag, text, in_links)
    ]
    while kept and kept[-1][0] in _HEADINGS:
        kept.pop()
    return "\n".join(text for _, text in kept)


def _reads_like_content(tag: str, text: str, in_links: int) -> bool:
    if tag in _HEADINGS:
        return True
    if in_links > _MAX_LINK_SHARE * len(text):
        return False
    return tag not in _LOOSE or len(text) >= 80 or text.endswith(_SENTENCE_ENDS)


class _Walk:
    """blocks: (tag, text, characters of it in links), in reading order."""

    def __init__(self, weights: dict[Any, int], total: int) -> None:
        self.blocks: list[tuple[str, str, int]] = []
        self._weights, self._total = weights, total
        self._parts: list[str] = []
        self._in_links = 0

    def end_block(self, tag: str) -> None:
        text = " ".join("".join(self._parts).split())
        if text:
            self.blocks.append((tag, text, self._in_links))
        self._parts.clear()
        self._in_links = 0

    def element(self, element: Any, *, in_link: bool, tag: str, depth: int) -> bool:
        """Whether all below `element` could be read."""
        if depth > _MAX_DEPTH:
            return False
        self._add(element.text, in_link)
        for child in element:
            name = child.tag
            if name in _BLOCKS:
                self.end_block(tag)
                if not self._is_other(child):
                    if not self.element(child, in_link=in_link, tag=name, depth=depth + 1):
                        return False
                    self.end_block(name)
            elif isinstance(name, str):
                inner = in_link or name == "a"
                if not self.element(child, in_link=inner, tag=tag, depth=depth + 1):
                    return False
            self._add(child.tail, in_link)
        return True

    def _add(self, text: str | None, in_link: bool) -> None:
        if text:
            self._parts.append(text)
            if in_link:
                self._in_links += len(text)

    def _is_other(self, element: Any) -> bool:
        """Whether its names say that it is not content; what holds much of the paragraphs is, all the same."""
        if element.tag in ("figcaption", "form"):
            return self._weights.get(element, 0) < 0.3 * self._total or not self._total
        name = f"{element.get('class') or ''} {element.get('id') or ''}"
        if name == " " or element.tag in ("body", "article", "main") or not _OTHER.search(name):
            return False
        return self._weights.get(element, 0) < 0.3 * self._total
