"""Text of tokens while they are being generated."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gristmill.tokenizer.spelling import Spelling

if TYPE_CHECKING:
    from gristmill.tokenizer.tokenizer import Tokenizer


_NEIGHBOURS = 32  # tokens before the first one that decoding together with it looks at


class StreamDecoder:
    """Text of tokens as they come; a character appears when its last byte has.

    The pushed pieces and `finish()` joined are what `tokenizer.decode` of all ids has more than that of `before`:
    the text after a prompt, which must be one of whole characters.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        before: Sequence[int] = (),
        verbatim: bool = False,
        skip_special: bool = True,
    ) -> None:
        """before: ids of what stands before. verbatim: the bytes of the ids as they are, no first space left out.
        skip_special: special tokens have no text."""
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._spelling: Spelling | None = tokenizer.spelling
        errors = "strict" if self._spelling is None else self._spelling.errors
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors=errors)
        self._begun = verbatim
        self._ids: list[int] = []
        self._shown = ""
        if self._spelling is None:
            self._ids = [id for id in before if not self._hidden(id)][-_NEIGHBOURS:]
            self._shown = tokenizer.decode(self._ids, skip_special)
        elif self._spelling.strip and not verbatim:  # only then it matters
            self._begun = any(not self._hidden(id) and tokenizer.token_bytes(id) for id in before)

    def push(self, id: int) -> str:
        if self._spelling is not None:
            if self._hidden(id):
                return ""
            return self._show(self._utf8.decode(self._tokenizer.token_bytes(id)))
        self._ids.append(id)
        text = self._tokenizer.decode(self._ids, self._skip_special)
        return self._rest(text) if not text.endswith("\ufffd") else ""

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed, usually ''."""
        if self._spelling is not None:
            return self._show(self._utf8.decode(b"", final=True))
        return self._rest(self._tokenizer.decode(self._ids, self._skip_special))

    def _hidden(self, id: int) -> bool:
        return self._skip_special and self._tokenizer.is_special(id)

    def _show(self, text: str) -> str:
        assert self._spelling is not None
        shown = self._spelling.shown(text, at_start=not self._begun)
        self._begun = self._begun or bool(text)
        return shown

    def _rest(self, text: str) -> str:
        new, self._shown = text[len(self._shown) :], text
        return new
