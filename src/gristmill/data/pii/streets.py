"""Postal addresses of the English- and German-speaking world: a house number, a street, perhaps a town.

Only what has both number and a word for street is taken: "Main Street" alone is a place, nobody's home.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gristmill.data.pii.found import Found

_NAME = r"(?:[A-Z][a-z'’.]{1,20}|[A-Z]\.|[0-9]{1,3}(?:st|nd|rd|th))"
_LONG = (
    "Street|Avenue|Road|Boulevard|Lane|Drive|Court|Terrace|Square|Circle|Parkway"
    "|Highway|Crescent|Close|Gardens|Way|Place"
)
_SHORT = "St|Ave|Rd|Blvd|Ln|Dr|Ct|Pkwy|Hwy|Pl"
_TOWN = r"[A-Z][a-zA-Z'’.-]{1,20}(?: [A-Z][a-zA-Z'’.-]{1,20}){0,2}"
_STATE = (
    "A[LKZR]|C[AOT]|D[EC]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]"
    "|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[AT]|W[AIVY]"
)
_UNIT = r"(?:,? (?:Suite|Ste\.?|Apt\.?|Apartment|Unit|Floor|Room|#) ?[A-Z0-9-]{1,6})?"
_FLOOR = r"(?:, [A-Za-z0-9]{1,10} Floor)?"
_CITY_US = rf"(?:,?[ \n]{{1,3}}{_TOWN},? (?:{_STATE})\.?,? {{1,3}}[0-9]{{5}}(?:-[0-9]{{4}})?)"
_POSTCODE = r"[A-Z]{1,2}[0-9][A-Z0-9]? [0-9][A-Z]{2}"
_CITY_UK = rf"(?:(?:,?[ \n]{{1,3}}{_TOWN}){{0,2}},? ?\n?{_POSTCODE})"
_ENGLISH = re.compile(
    rf"(?<![\w.,$/-])(?:[0-9]{{1,5}}[A-Za-z]?,?) (?:[NSEW]\.? |North |South |East |West )?"
    rf"(?:{_NAME} ){{1,3}}(?:(?:{_LONG})\b|(?:{_SHORT})\b(?:\.|(?=,|\n|$)))"
    rf"{_UNIT}{_FLOOR}(?:{_CITY_US}|{_CITY_UK})?",
    re.MULTILINE,
)
_SUFFIX = re.compile(rf" (?:{_LONG}|{_SHORT})\b")
_GERMAN_WORD = re.compile(r"[sS]tr(?:a(?:ß|ss)e|\.)[ -][0-9]")
_GERMAN = re.compile(
    r"(?<![\w-])(?:[A-ZÄÖÜ][a-zäöüß]{0,30}(?:[ -][A-ZÄÖÜ][a-zäöüß]{1,30}){0,3}[ -]?)?[sS]tr(?:a(?:ß|ss)e|\.) "
    r"[0-9]{1,4}(?: ?[a-h](?![a-zäöüß]))?(?:[-/][0-9]{1,4})?"
    r"(?:,?[ \n]{1,2}(?:D-)?[0-9]{5} [A-ZÄÖÜ][a-zäöüß]{1,30})?(?!\w)"
)
_POSTAL = re.compile(r"[0-9]{1,4}[a-h]?,?[ \n](?:D-)?[0-9]{5} [A-ZÄÖÜ]")
_BY_POSTAL = re.compile(
    r"(?<![\w-])(?:(?:Am|An der|Im|Zum|Zur|Auf dem) )?[A-ZÄÖÜ][a-zäöüß-]{1,30}"
    r"(?:weg|platz|allee|gasse|ring|damm|ufer|markt|berg|feld|hof)? [0-9]{1,4}[a-h]?"
    r",?[ \n](?:D-)?[0-9]{5} [A-ZÄÖÜ][a-zäöüß]{1,30}"
)
_STAND_IN = re.compile(r"\bExample (?:Street|St)|\bBeispielstr")
# "In 1924 Main Street was closed."
_YEAR = re.compile(r"(?:1[5-9]|20)[0-9]{2} ")
_BEFORE_YEAR = re.compile(
    r"(?i)\b(?:in|since|by|until|from|after|before|of|during|to|summer|spring|fall|winter) \Z"
)
# "8 District Court" and "3 World Way" are no homes.
_NO_STREET = re.compile(
    r"\b(?:District|Supreme|High|Circuit|Crown|County|Federal|Appeals?|International|Criminal|Superior|The|In|Of|And"
    r"|January|February|March|April|May|June|July|August|September|October|November|December)"
    r" (?:Court|Circle|Close|Drive|Place|Way|Square|Road|Street|Lane)\b"
)


def find_addresses(text: str, shape: bytes) -> Iterator[Found]:
    """Addresses with number and street, town and postal code included where they follow; in no order.

    `shape` is the text with "0" for every digit and "A" for every capital letter.
    """
    if any(hint in shape for hint in (b"0 A", b"0A A", b"0a A", b"0, A", b"0 0")):
        yield from _english(text)
    if "tr. " in text or "traße " in text or "trasse " in text:
        yield from _german(text)
    if b"00000 " in shape:
        yield from _by_postal_code(text)


def _english(text: str) -> Iterator[Found]:
    # a house number and a name of at most three words stand before the word for street
    yield from _around(text, _SUFFIX, _ENGLISH, 90, 160)


def _german(text: str) -> Iterator[Found]:
    yield from _around(text, _GERMAN_WORD, _GERMAN, 120, 60)


def _by_postal_code(text: str) -> Iterator[Found]:
    yield from _around(text, _POSTAL, _BY_POSTAL, 60, 40)


def _around(
    text: str, hints: re.Pattern[str], pattern: re.Pattern[str], before: int, after: int
) -> Iterator[Found]:
    """Addresses by `pattern` that hold a match of `hints`, in that many characters before and after it."""
    done = 0
    for hint in hints.finditer(text):
        if hint.start() < done:
            continue
        start = max(done, _line_start(text, hint.start(), before))
        for match in pattern.finditer(text, start, min(len(text), hint.end() + after)):
            if match.start() > hint.start():
                break  # the next one's, and perhaps cut off
            if match.end() > hint.start() and _is_address(text, match):
                yield Found("address", *match.span(), match[0])
                done = match.end()


def _line_start(text: str, at: int, most: int) -> int:
    """Where the line of `at` begins, or `most` characters before it: the search's beginning."""
    least = max(0, at - most)
    return max(least, text.rfind("\n", least, at) + 1)


def _is_address(text: str, match: re.Match[str]) -> bool:
    if _STAND_IN.search(match[0]) or _NO_STREET.search(match[0]):
        return False
    return not (
        _YEAR.match(match[0])
        and _BEFORE_YEAR.search(text, max(0, match.start() - 12), match.start())
    )
