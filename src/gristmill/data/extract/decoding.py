"""Bytes of a page to text the way browsers do: byte order mark, HTTP header, meta tag, then detection.

Source: https://html.spec.whatwg.org/multipage/parsing.html#determining-the-character-encoding
"""

from __future__ import annotations

import codecs
import re

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# The standard looks at the first 1,024 bytes; pages put scripts before the tag, and browsers find it.
_META_BYTES = 4096
_META = re.compile(rb"""<meta[^>]{0,500}?charset\s{0,9}=\s{0,9}["']?\s{0,9}([-\w:.]{2,40})""", re.I)
_XML = re.compile(
    rb"""^\s{0,99}<\?xml[^>]{0,200}?encoding\s{0,9}=\s{0,9}["']([-\w:.]{2,40})""", re.I
)
_DETECT_BYTES = 64 * 1024
# UTF-8 is hard to hit by accident, so a stray bad byte in a page that says UTF-8 is damage; more means
# that the label is wrong.
_MAX_DAMAGE = 0.01


def decode_page(data: bytes, charset: str = "") -> tuple[str, str]:
    """(text, encoding). Never fails: what cannot be decoded is U+FFFD. NULs are taken out, as parsers do."""
    encoding, skip = _encoding(data, charset)
    text = data[skip:].decode(encoding, "replace")
    return text.replace("\0", ""), encoding


def _encoding(data: bytes, charset: str) -> tuple[str, int]:
    for mark, name in _BOMS:
        if data.startswith(mark):
            return name, len(mark)
    head = data[:_META_BYTES]
    # A page that could be searched for a tag in ASCII is not UTF-16, whatever the tag says.
    for label, in_page in ((charset, False), (_declared(head), True)):
        name = _known(label)
        if in_page and name.startswith("utf-16"):
            name = "utf-8"
        if name and _fits(data, name):
            return name, 0
    if _fits(data, "utf-8", damage=0.0):
        return "utf-8", 0
    from resiliparse.parse.encoding import detect_encoding

    name = _known(detect_encoding(data[:_DETECT_BYTES]) or "")
    return name or "cp1252", 0


def _declared(head: bytes) -> str:
    found = _META.search(head) or _XML.match(head)
    return found[1].decode("ascii", "replace") if found else ""


def _known(label: str) -> str:
    """The codec that browsers use for a label, or ""."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    if not label:
        return ""
    try:
        name = map_encoding_to_html5(label, False) or ""
        return codecs.lookup(name).name if name and codecs.lookup(name)._is_text_encoding else ""
    except (LookupError, ValueError, TypeError):
        return ""


def _fits(data: bytes, name: str, damage: float = _MAX_DAMAGE) -> bool:
    """Whether UTF-8 is plausible for the data; 8-bit encodings always are, so their label is believed."""
    if name != "utf-8":
        return True
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        bad = data.decode("utf-8", "replace").count("\ufffd")
        high = sum(map(data.count, range(0x80, 0x100)))
        return bad <= damage * len(data) and bad * 4 <= high
    return True
