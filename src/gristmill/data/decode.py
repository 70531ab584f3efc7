"""Bytes of a file to text: which encoding, and when it is not text at all.

Reasons: "empty", "binary", "undecodable".
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from typing import Any

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: its mark begins with that of UTF-16 LE
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL = bytes(set(range(32)) - {9, 10, 12, 13, 27}) + b"\x7f"
_DECLARED = re.compile(rb"""(?:coding[:=]\s*|charset=["']?)([-\w.]+)""")
# A file in an 8-bit Western encoding is mostly ASCII; more than this is another alphabet, or no text.
MAX_HIGH_BYTES = 0.30
MAX_CONTROL_BYTES = 0.003
# UTF-8 with a few damaged bytes is still UTF-8: at least so many sound sequences for each bad one.
SOUND_PER_DAMAGED = 4


@dataclass(frozen=True, slots=True)
class Decoded:
    """`text` and its `encoding`, or the `reason` why there is none, with the numbers that decided."""

    text: str = ""
    encoding: str = ""
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


def decode(data: bytes) -> Decoded:
    """Text of `data` by byte order mark, UTF-8, the encoding the file declares, or Windows-1252."""
    if not data.strip():
        return Decoded(reason="empty", detail={"bytes": len(data)})
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            try:
                return Decoded(data.decode(encoding), encoding.removesuffix("-sig"))
            except UnicodeDecodeError as error:
                return _undecodable(encoding, error)
    if b"\0" in data:
        return Decoded(reason="binary", detail={"first_nul_byte": data.index(b"\0")})
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        damage = error
    else:
        return _binary(data) or Decoded(text, "utf-8")
    return _binary(data) or _declared(data) or _damaged_utf8(data) or _western(data, damage)


def _binary(data: bytes) -> Decoded | None:
    share = (len(data) - len(data.translate(None, _CONTROL))) / len(data)
    if share > MAX_CONTROL_BYTES and len(data) * share > 2:
        return Decoded(
            reason="binary",
            detail={"control_share": round(share, 4), "limit": MAX_CONTROL_BYTES},
        )
    return None


def _declared(data: bytes) -> Decoded | None:
    """By a `coding:` or `charset=` declaration in the first kilobyte."""
    found = _DECLARED.search(data[:1024])
    if not found:
        return None
    name = found[1].decode("ascii", "replace").lower()
    try:
        codec = codecs.lookup(name)
        if codec.name == "utf-8" or not codec._is_text_encoding:
            return None
        return Decoded(data.decode(name), codec.name)
    except (LookupError, UnicodeDecodeError, ValueError):
        return None


def _damaged_utf8(data: bytes) -> Decoded | None:
    text = data.decode("utf-8", "surrogateescape")
    damaged = sum("\udc80" <= c <= "\udcff" for c in text)
    sound = sum(c > "\x7f" for c in text) - damaged
    if sound < SOUND_PER_DAMAGED * damaged:
        return None
    repaired = re.sub("[\udc80-\udcff]", "\ufffd", text)
    return Decoded(repaired, "utf-8", detail={"damaged_bytes": damaged})


def _western(data: bytes, error: UnicodeDecodeError) -> Decoded:
    share = sum(byte > 127 for byte in data) / len(data)
    if share > MAX_HIGH_BYTES:
        return Decoded(
            reason="undecodable",
            detail={"high_byte_share": round(share, 3), "limit": MAX_HIGH_BYTES},
        )
    try:
        return Decoded(data.decode("cp1252"), "cp1252")
    except UnicodeDecodeError:
        return _undecodable("utf-8, cp1252", error)


def _undecodable(encoding: str, error: UnicodeDecodeError) -> Decoded:
    return Decoded(
        reason="undecodable",
        detail={"tried": encoding, "byte": error.start, "error": error.reason},
    )
