"""How a vocabulary's tokens stand for bytes, where a token's bytes do not depend on its neighbours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gristmill.tokenizer.patterns import to_bytes

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_ESCAPED = re.compile(
    "[\udc80-\udcff]"
)  # bytes that are not UTF-8, as errors="surrogateescape" has them


@dataclass(frozen=True)
class Spelling:
    """byte_level: GPT-2's alphabet; else SentencePiece's "▁" for a space and <0x0A> for a byte.

    strip: whether a text loses the space it begins with (the dummy prefix).
    """

    byte_level: bool
    strip: bool = False

    @property
    def errors(self) -> str:
        """What is not UTF-8: U+FFFD for a byte-level vocabulary's broken character, for SentencePiece's byte."""
        return "replace" if self.byte_level else "surrogateescape"

    def bytes_of(self, token: str) -> bytes:
        if self.byte_level:
            return to_bytes(token)
        byte = _BYTE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode("utf-8")

    def shown(self, decoded: str, at_start: bool = True) -> str:
        """Text as it is shown, of what decoding with `errors` gave."""
        if self.strip and at_start and decoded.startswith(" "):
            decoded = decoded[1:]
        return decoded if self.byte_level else _ESCAPED.sub("\ufffd", decoded)

    def text(self, data: bytes) -> str:
        return self.shown(data.decode("utf-8", self.errors))


def spelling_of(decoder: Mapping[str, Any] | None) -> Spelling | None:
    """By the `decoder` of a tokenizer.json; None where tokens are not simply spelled (Metaspace, WordPiece)."""
    steps = [] if decoder is None else decoder.get("decoders", [decoder])
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" in kinds:
        return Spelling(byte_level=True)
    if kinds[:3] != ["Replace", "ByteFallback", "Fuse"]:
        return None
    space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    if steps[0] != space or steps[3:] not in ([], [strip]):
        return None
    return Spelling(byte_level=False, strip=bool(steps[3:]))
