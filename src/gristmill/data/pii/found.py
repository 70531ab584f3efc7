"""What a finder gives."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("email", "phone", "ipv4", "ipv6", "iban", "card", "key", "address", "person")


@dataclass(frozen=True, slots=True)
class Found:
    """`value` is `text[start:end]` (in characters)."""

    kind: str
    start: int
    end: int
    value: str
