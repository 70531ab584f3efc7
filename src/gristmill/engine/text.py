"""Tokens to text as they come: whole characters, nothing that may yet become a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from gristmill.tokenizer import StreamDecoder, Tokenizer


class TextStream:
    """The visible text of one answer. Whole and streamed answers both come from here."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...],
        include_stop: bool = False,
        min_tokens: int = 0,
        before: Sequence[int] = (),
        verbatim: bool = False,
        skip_special: bool = True,
    ) -> None:
        """include_stop: the stop string is shown too. It counts only where it ends after `min_tokens` tokens.
        before: the prompt's ids. verbatim: a space that a vocabulary puts before every text is shown, too.
        skip_special: special tokens are not shown."""
        self._decoder = StreamDecoder(tokenizer, before, verbatim, skip_special)
        self._stop, self._include_stop = stop, include_stop
        self._too_early = min_tokens - 1  # tokens still to come that cannot stop the text
        self._held = ""
        self._context = max((len(s) - 1 for s in stop), default=0)
        # So much of what was shown last: a stop string may begin there and end later.
        self._before = ""
        self._shown: list[str] = []
        self.stop_string: str | None = None  # the one that was met; the text ends before it

    @property
    def stopped(self) -> bool:
        return self.stop_string is not None

    @property
    def text(self) -> str:
        return "".join(self._shown)

    def since(self, pieces: int) -> tuple[str, int]:
        """What was shown after the first so many pieces, and how many there are now."""
        shown = len(self._shown)
        return "".join(self._shown[pieces:shown]), shown

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now certain."""
        piece = self._decoder.push(token_id)
        if self._too_early > 0:
            self._too_early -= 1
            return self._show(piece)
        return self._release(piece, last=False)

    def finish(self) -> str:
        """No more tokens: return what was held back; U+FFFD for a character that was never completed, so that the
        whole is what `Tokenizer.decode` makes of the tokens."""
        if self.stopped:
            return ""
        return self._release(self._decoder.finish(), last=True)

    def _release(self, piece: str, last: bool) -> str:
        text, seen = self._held + piece, len(self._before)
        whole = self._before + text
        found = [
            (at, stop)
            for stop in self._stop
            if (at := whole.find(stop, max(0, seen - len(stop) + 1))) >= 0
        ]
        if found:
            at, stop = min(found, key=lambda pair: pair[0])
            self.stop_string = stop
            text, self._held = whole[seen : at + len(stop) if self._include_stop else at], ""
        elif not last:
            keep = min(len(text), max((_overlap(whole, stop) for stop in self._stop), default=0))
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        else:
            self._held = ""
        return self._show(text)

    def _show(self, text: str) -> str:
        self._shown.append(text)
        if self._context:
            self._before = (self._before + text)[-self._context :]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
