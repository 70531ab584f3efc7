"""What is text at all: lone surrogates (broken JSON escapes, undecodable file names) are not, and have no UTF-8."""

from __future__ import annotations

from gristmill.errors import RequestError


def check_unicode(text: str, what: str = "the text") -> str:
    """`text` itself. Raises RequestError, naming the character's place, where it holds a lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{what} holds U+{ord(text[error.start]):04X}, half of a surrogate pair, at character "
            f"{error.start}: that is no Unicode text; mend its source, or decode it with errors='replace'"
        ) from None
    return text
