"""Cleaning that keeps every line where it was, so that a citation's line number stays true."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gristmill.data.private import remove_private

# C0 and C1 controls except tab and newline, the byte order mark, and soft hyphens.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ufeff\u00ad]")
_NEWLINES = re.compile("\r\n?")
# Line separators that `str.splitlines` would count and editors would not.
_SEPARATORS = re.compile("[\x85\u2028\u2029]")
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Cleaned:
    """`text`, and how many e-mail addresses and secrets were taken out of it."""

    text: str
    emails: int
    secrets: int


def clean(text: str) -> Cleaned:
    """Normalize newlines, drop control characters and trailing blanks, take out addresses and secrets.

    The number of lines stays what it was, and cleaning twice changes nothing more.
    """
    text = _NEWLINES.sub("\n", text)
    text = _SEPARATORS.sub(" ", text)
    text = _CONTROLS.sub("", text)
    text = _SURROGATES.sub("\ufffd", text)
    text = "\n".join([line.rstrip() for line in text.split("\n")])
    text, emails, secrets = remove_private(text)
    return Cleaned(text, emails, secrets)
