"""Telephone numbers, payment cards and IBANs: runs of digits that a checksum or a number plan confirms."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gristmill.data.pii.found import Found
from gristmill.data.pii.validate import (
    IBAN_LENGTHS,
    calling_code,
    is_card,
    is_iban,
    is_international,
    is_nanp,
)

# Digits and what people put between them, on one line. One class in a row: no backtracking.
_RUN = re.compile(r"[0-9][0-9 .()/\u00a0\u2010\u2011\u2013-]{7,}")
_CARD = re.compile(
    r"(?<![\w.,#/-])(?<![0-9] )(?:[0-9]{13,19}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?"
    r"|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5})(?![\w-]|[.,/][0-9]| [0-9])",
    re.ASCII,
)
_NANP = re.compile(
    r"(?<![\w.+/=&?%#-])(?:1([-. ]))?(?:\(([2-9][0-9]{2})\)[ -]?|([2-9][0-9]{2})([-. \u2011\u2013]))"
    r"([2-9][0-9]{2})([-. \u2011\u2013])([0-9]{4})(?![\w=]|[-.,/][0-9]| [0-9])",
    re.ASCII,
)
_PLUS = re.compile(
    r"(?:\+|(?<![0-9])00)(?=[ (]?[1-9])[ (]?[0-9][0-9 .()/\u00a0\u2010\u2011\u2013-]{6,24}"
)
_NATIONAL = re.compile(
    r"(?<![\w.+/=&?%#-])\(?0[0-9][0-9 ()/\u00a0\u2011-]{6,17}[0-9](?![\w]|[-.,/][0-9])", re.ASCII
)
_PLAIN = re.compile(r"(?<![\w.+/=&?%#-])(?:[0-9]{10}|1[0-9]{10})(?![\w-]|[.,/][0-9])", re.ASCII)
_CALLS = re.compile(
    r"(?i)(?:\b(?:tele?(?:ph|f)on|phone|tel|call|fax|mobile?|cell|whatsapp|sms|dial|handy|contact|hotline|ring|text)"
    r"(?:s|e|us|me|number|nummer|no|nr)?\b|\bt:|\bm:|☎|📞)[^0-9\n]{0,30}\Z"
)
_IBAN = re.compile(r"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,34}")


def find_digits(text: str) -> Iterator[Found]:
    """Phones and cards in `text`, in no order; they may overlap."""
    for run in _RUN.finditer(text):
        start, end = max(0, run.start() - 2), run.end()
        for match in _CARD.finditer(text, start, end):
            if is_card(_only_digits(match[0])):
                yield Found("card", *match.span(), match[0])
        yield from _phones(text, start, end)
    if "+" in text:
        yield from _with_plus(text)


def _phones(text: str, start: int, end: int) -> Iterator[Found]:
    for match in _NANP.finditer(text, start, end):
        spaced = (match[4] or "-") == " " or match[6] == " "
        even = match[4] is None or match[4] == match[6]
        if not even or not is_nanp(_only_digits(match[0])[-10:]):
            continue
        if spaced and match[2] is None and not _is_called(text, match.start()):
            continue  # three numbers in a table look the same
        yield Found("phone", *match.span(), match[0])
    for match in _PLAIN.finditer(text, start, end):
        if is_nanp(match[0][-10:]) and _is_called(text, match.start()):
            yield Found("phone", *match.span(), match[0])
    for match in _NATIONAL.finditer(text, start, end):
        digits = _only_digits(match[0])
        abroad = digits.startswith("00")
        if (is_international(digits[2:]) if abroad else _is_national(digits)) and _is_called(
            text, match.start()
        ):
            yield Found("phone", *match.span(), match[0])


def _is_called(text: str, start: int) -> bool:
    return _CALLS.search(text, max(0, start - 50), start) is not None


def _is_national(digits: str) -> bool:
    """Digits from the zero on that open a call within a country; stand-ins go on with "000"."""
    if not 9 <= len(digits) <= 12 or len(set(digits)) < 4:
        return False
    return is_international("44" + digits[1:].ljust(9, "0")[:10])


def _with_plus(text: str) -> Iterator[Found]:
    for match in _PLUS.finditer(text):
        if match[0][0] != "+":
            continue
        before = text[match.start() - 1] if match.start() else " "
        if before.isalnum() or before in "+-=_)]}%*^$":
            continue
        value = match[0].rstrip(" .()/\u00a0\u2010\u2011\u2013-")
        end = match.start() + len(value)
        while value and not _is_written_phone(value):  # a second number, or a year, may follow
            cut = max(value.rfind(" "), value.rfind("/"), value.rfind("."))
            value = value[:cut].rstrip(" .()/\u00a0\u2010\u2011\u2013-") if cut > 0 else ""
        if not value:
            continue
        if len(value) == end - match.start():
            after = text[end : end + 1]
            if after.isalnum() or after == "_":
                continue
        yield Found("phone", match.start(), match.start() + len(value), value)


def _is_written_phone(value: str) -> bool:
    digits = _only_digits(value)
    if not is_international(digits):
        return False
    separators = re.findall(r"[^0-9+]", value)
    if separators == ["."]:
        return False  # a decimal number with its sign
    if not separators:
        return len(digits) >= 10
    groups = re.findall(r"[0-9]+", value)
    code = calling_code(digits)
    # "+49 30 123456" or "+4930 123456", and no group that nobody would speak
    return groups[0].startswith(code) and len(groups) <= 8 and max(map(len, groups)) <= 11


def find_ibans(text: str) -> Iterator[Found]:
    """IBANs, written in one or in groups of four."""
    at = 0
    while match := _IBAN.search(text, at):
        start = match.start()
        at = start + 2
        if start and (text[start - 1].isalnum() or text[start - 1] == "_"):
            continue
        length = IBAN_LENGTHS.get(match[0][:2])
        if length is None:
            continue
        end = _end_of(match[0], length)
        if end is None:
            continue
        value = match[0][:end]
        after = text[start + end : start + end + 1]
        if after.isalnum() or after == "_" or not is_iban(value.replace(" ", "")):
            continue
        yield Found("iban", start, start + end, value)
        at = start + end


def _end_of(value: str, length: int) -> int | None:
    seen = 0
    for i, c in enumerate(value):
        seen += c != " "
        if seen == length:
            return i + 1
    return None


def _only_digits(value: str) -> str:
    return "".join([c for c in value if "0" <= c <= "9"])
