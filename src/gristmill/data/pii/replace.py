"""What stands in for private data: the same for the same value, of the same form, and nobody's.

Stand-ins come from what standards keep free (RFC 2606 domains, RFC 5737 and 3849 addresses, 555-01xx,
published test cards) or from forms that nobody is given; `find` passes them by, so applying twice
changes nothing more. Which stand-in a value gets depends on the key and the value only.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from gristmill.data.pii.found import Found
from gristmill.data.pii.validate import TEST_CARDS, calling_code, iban_remainder

Action = Literal["replace", "remove", "flag"]

_FIRST_NAMES = """Alex Blair Casey Dana Eden Finley Gray Harper Indigo Jordan Kai Logan Morgan Noel Oakley Parker Quinn
Riley Sage Taylor Umber Val Winter Yael Zion"""
_LAST_NAMES = """Ashby Brook Carver Dale Ellis Field Garner Hale Ives Judd Kirk Lane Marsh Nash Orchard Pond Quill Reed
Stone Thorn Underhill Vale Wood York"""
_FIRST = _FIRST_NAMES.split()
_LAST = _LAST_NAMES.split()
NAMES = frozenset(f"{first} {last}" for first in _FIRST for last in _LAST)
_AREAS = ("202", "206", "212", "303", "312", "404", "415", "503", "512", "617", "702", "808")
_HEX = "0123456789abcdef"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def apply(text: str, found: Iterable[Found], action: Action = "replace", key: bytes = b"") -> str:
    """`text` with what `find` found replaced by stand-ins, or removed ("<email>", "<secret>", …), or as it is.

    `key` decides the stand-ins: with a secret one they cannot be traced back by trying values. The number
    of lines stays.
    """
    if action == "flag":
        return text
    parts: list[str] = []
    end = 0
    for item in found:
        if item.kind == "person" and item.value in NAMES:
            continue
        new = stand_in(item.kind, item.value, key) if action == "replace" else _tag(item)
        parts += (text[end : item.start], new)
        end = item.end
    return "".join(parts) + text[end:]


def _tag(item: Found) -> str:
    name = "secret" if item.kind == "key" else item.kind
    return f"<{name}>" + "\n" * item.value.count("\n")


@lru_cache(maxsize=4096)
def stand_in(kind: str, value: str, key: bytes = b"") -> str:
    """What stands for `value`: of the same form, always the same under the same key."""
    return _MAKE[kind](value, _Draw(kind, _canonical(kind, value), key))


def _canonical(kind: str, value: str) -> str:
    """Two ways of writing one value are one value."""
    if kind in ("phone", "card", "iban"):
        return re.sub(r"[^0-9A-Z]", "", value)
    return value.lower() if kind in ("email", "ipv6") else value


class _Draw:
    """Numbers drawn from a keyed hash of a value, one after the other."""

    def __init__(self, kind: str, value: str, key: bytes) -> None:
        mac = hmac.new(key, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), hashlib.sha256)
        self._seed = mac.digest()
        self._state = int.from_bytes(self._seed, "big")

    def below(self, n: int) -> int:
        if self._state < 1 << 64:
            self._seed = hashlib.sha256(self._seed).digest()
            self._state = int.from_bytes(self._seed, "big")
        self._state, drawn = divmod(self._state, n)
        return drawn

    def text(self, alphabet: str, length: int) -> str:
        return "".join(alphabet[self.below(len(alphabet))] for _ in range(length))


def _email(value: str, draw: _Draw) -> str:
    return f"user-{draw.text(_HEX, 10)}@example.com"


def _ipv4(value: str, draw: _Draw) -> str:
    net = ("192.0.2", "198.51.100", "203.0.113")[draw.below(3)]  # RFC 5737
    return f"{net}.{1 + draw.below(254)}"


def _ipv6(value: str, draw: _Draw) -> str:
    return f"2001:db8::{1 + draw.below(0xFFFE):x}:{1 + draw.below(0xFFFE):x}"


def _written_like(value: str, characters: str) -> str:
    """`characters` with the punctuation of `value` between them."""
    given = iter(characters)
    return "".join(next(given) if c.isalnum() else c for c in value)


def _phone(value: str, draw: _Draw) -> str:
    digits = "".join(re.findall(r"[0-9]", value))
    lead = ""
    if value.lstrip("(").startswith("+"):
        lead = calling_code(digits)
    elif digits.startswith("00"):
        lead = "00" + calling_code(digits[2:])
    elif digits.startswith("0"):
        lead = "0"
    elif len(digits) == 11:
        lead = "1"
    rest = len(digits) - len(lead)
    if rest == 10 and lead in ("", "1"):
        new = f"{_AREAS[draw.below(len(_AREAS))]}55501{draw.below(100):02d}"
    else:
        new = "000" + draw.text("0123456789", rest - 3)  # no country gives out such numbers
    return _written_like(value, lead + new)


def _iban(value: str, draw: _Draw) -> str:
    length = len(value.replace(" ", ""))
    bban = "0000" + draw.text("0123456789", length - 8)
    check = 98 - iban_remainder(f"{value[:2]}00{bban}")
    return _written_like(value, f"{value[:2]}{check:02d}{bban}")


def _card(value: str, draw: _Draw) -> str:
    digits = re.sub(r"[^0-9]", "", value)
    alike = [card for card in TEST_CARDS if len(card) == len(digits) and card[0] == digits[0]]
    alike = alike or [card for card in TEST_CARDS if len(card) == len(digits)] or [TEST_CARDS[0]]
    card = alike[draw.below(len(alike))]
    return _written_like(value, card) if len(card) == len(digits) else card


def _key(value: str, draw: _Draw) -> str:
    if value.startswith("-----BEGIN"):
        lines = value.split("\n")
        body = [f"EXAMPLE{draw.text(_HEX, 24)}" for _ in lines[1:-1]]
        return "\n".join([lines[0], *body, lines[-1]]) if len(lines) > 2 else "<secret>"
    prefix = re.match(r"(?:[A-Za-z]{2,6}[_-]|AKIA|ASIA|AIza|eyJ)?", value)
    start = prefix[0] if prefix else ""
    rest = max(0, len(value) - len(start) - 7)
    return f"{start}EXAMPLE{draw.text(_LETTERS + '0123456789', rest)}"


def _address(value: str, draw: _Draw) -> str:
    number = 1 + draw.below(999)
    new = (
        f"Beispielstraße {number}"
        if re.search(r"[sS]tra(?:ß|ss)e|str\.", value)
        else f"{number} Example Street"
    )
    return new + "\n" * value.count("\n")


def _person(value: str, draw: _Draw) -> str:
    return f"{_FIRST[draw.below(len(_FIRST))]} {_LAST[draw.below(len(_LAST))]}"


_MAKE = {
    "email": _email,
    "phone": _phone,
    "ipv4": _ipv4,
    "ipv6": _ipv6,
    "iban": _iban,
    "card": _card,
    "key": _key,
    "address": _address,
    "person": _person,
}
