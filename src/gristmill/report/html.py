"""HTML that cannot be broken by its content: whatever is not already `Html` is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# Control characters and lone surrogates are not allowed in HTML (and cannot be encoded as UTF-8).
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_EMPTY = {"br", "hr", "meta", "link", "col", "line", "circle", "rect", "path"}


class Html(str):
    """Text that is HTML already and must not be escaped again."""

    __slots__ = ()


def text(value: object) -> Html:
    """Any value as HTML text. Html passes through; everything else is escaped."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(_UNPRINTABLE.sub(_visible, str(value))))


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # ␀, ␁, …
    return "␡" if code == 0x7F else "\ufffd"


def join(parts: Iterable[object], between: str = "") -> Html:
    return Html(text(between).join(text(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. `class_` and `for_` lose the underscore, others become hyphens; None is left out.

    >>> tag("p", "1 < 2", class_="note")
    '<p class="note">1 &lt; 2</p>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY and not children:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")
