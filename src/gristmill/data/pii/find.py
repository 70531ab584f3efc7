"""Private data in a text: e-mail and IP addresses here, all other kinds from the files beside this one.

Candidates by patterns whose repeats are bounded, each behind a cheap test (is there an "@" at all?);
then a validator; then what stands around. Time is linear in the text, whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from gristmill.data.pii.digits import find_digits, find_ibans
from gristmill.data.pii.found import Found
from gristmill.data.pii.secrets import find_keys
from gristmill.data.pii.streets import find_addresses
from gristmill.data.pii.validate import is_email, is_public_ipv4, is_public_ipv6

_LATIN = "A-Za-z0-9À-ÖØ-öø-ɏ"
_AT = re.compile(rf"@(?=[{_LATIN}])")
_LOCAL = re.compile(rf"(?<![{_LATIN}_.+%/=-])[{_LATIN}][{_LATIN}_.+%-]{{0,63}}\Z")
_DOMAIN = re.compile(
    rf"((?:[{_LATIN}](?:[{_LATIN}-]{{0,62}})\.){{1,6}}[A-Za-z]{{2,13}})"
    rf"(?![{_LATIN}_@-])(?!\.[{_LATIN}_])(?!\()(?!:[{_LATIN}_~/])"
)
_LOGIN = re.compile(r"://[^/\s@]{0,64}\Z")  # of "https://user:password@host.org/"
_IPV4 = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?![\w-]|\.[0-9])", re.ASCII)
_VERSION = re.compile(
    r"(?i)(?:\bver(?:sion|\.)?|\bv|\brelease|\bbuild|\brev(?:ision)?|\bsection|\bchapter|\boid|[=~<>]=|[<>^~]|\bsince|§)"
    r"s?[ \t:=]{0,3}[\"']?\Z"
)
_NETWORK = re.compile(
    r"(?i)\bip\b|\bipv4\b|address|host|server|from|connect|client|ping|remote|dns|://|@"
)
_GROUP6 = re.compile(r":[0-9A-Fa-f]{0,4}:")
_HEX6 = frozenset("0123456789abcdefABCDEF:")


# Two pictures of a text, made and searched at over 1 GB/s, that tell which patterns can match at all.
_SHAPE = bytes(0x30 if 48 <= c <= 57 else 0x41 if 65 <= c <= 90 else c for c in range(256))
_TOKENS = bytes(
    0x61 if (chr(c).isalnum() and c < 128) or chr(c) in "_-+/=" else 0x20 for c in range(256)
)
_TOKEN_RUN = b"a" * 16  # no key is shorter


def find(text: str, names: Callable[[str], Iterable[tuple[int, int]]] | None = None) -> list[Found]:
    """What is private in `text`, by position; spans never overlap (the earlier one wins, then the longer).

    `names` gives the (start, end) of names of persons, from a recognizer of your own.
    """
    raw = text.encode("utf-8", "surrogatepass")
    shape = raw.translate(_SHAPE)
    found = [*_emails(text), *_ipv6(text), *find_digits(text)]
    if raw.translate(_TOKENS).find(_TOKEN_RUN) >= 0 or "://" in text:
        found += find_keys(text)
    if b"0.0" in shape:
        found += _ipv4(text)
    if b"AA00" in shape:
        found += find_ibans(text)
    found += find_addresses(text, shape)
    if names is not None:
        found += [Found("person", start, end, text[start:end]) for start, end in names(text)]
    return _apart(found)


# Which kind is right where two end alike: the one with a checksum or a prefix before the one with a shape.
_ORDER = ("key", "iban", "card", "email", "ipv6", "ipv4", "address", "phone", "person")


def _apart(found: list[Found]) -> list[Found]:
    """Without those that overlap another: the kind surer of itself stays, then the earlier, then the longer."""
    kept: list[Found] = []
    end = -1
    ordered = sorted(found, key=lambda f: (f.start, -f.end, _ORDER.index(f.kind)))
    for item in ordered:
        if item.start >= end:
            kept.append(item)
            end = item.end
        elif _ORDER.index(item.kind) < _ORDER.index(kept[-1].kind):
            kept[-1] = item
            end = item.end
    return kept


def _emails(text: str) -> Iterator[Found]:
    if "@" not in text:
        return
    for at in _AT.finditer(text):
        i = at.start()
        domain = _DOMAIN.match(text, i + 1)
        if domain is None:
            continue
        local = _LOCAL.search(text, max(0, i - 65), i)
        if local is None or _LOGIN.search(text, max(0, local.start() - 70), local.start()):
            continue
        if is_email(local[0], domain[1]):
            yield Found("email", local.start(), domain.end(1), text[local.start() : domain.end(1)])


def _ipv4(text: str) -> Iterator[Found]:
    for match in _IPV4.finditer(text):
        start, value = match.start(), match[0]
        before = text[max(0, start - 2) : start]
        if before and (before[-1].isalnum() or before[-1] in "_.-"):
            continue
        if before[-1:] == "/" and before != "//":
            continue  # product/1.2.3.4
        if not is_public_ipv4(value):
            continue
        around = text[max(0, start - 40) : start]
        if _VERSION.search(around):
            continue
        # Version numbers are small: of addresses one in 600 has four numbers below 50.
        if all(int(part) < 50 for part in value.split(".")) and not _NETWORK.search(around):
            continue
        yield Found("ipv4", start, match.end(), value)


def _ipv6(text: str) -> Iterator[Found]:
    done = 0
    for match in _GROUP6.finditer(text):
        if match.start() < done:
            continue
        start, end = match.span()
        while start > done and match.start() - start < 40 and text[start - 1] in _HEX6:
            start -= 1
        while end < len(text) and end - match.start() < 45 and text[end] in _HEX6:
            end += 1
        done = end
        before, after = text[start - 1 : start], text[end : end + 1]
        if before.isalnum() or after.isalnum() or before in ("_", ".") or after == "_":
            continue
        value = (
            text[start:end].rstrip(":") if not text[start:end].endswith("::") else text[start:end]
        )
        if is_public_ipv6(value):
            yield Found("ipv6", start, start + len(value), value)
