"""Tokens to text as they come: whole characters, nothing that may yet become a stop string."""

from __future__ import annotations

from gristmill.tokenizer import StreamDecoder, Tokenizer


class TextStream:
    """The visible text of one answer. Whole and streamed answers both come from here."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stop = stop
        self._held = ""
        self._shown: list[str] = []
        self.stopped = False  # a stop string was met; the text ends before it

    @property
    def text(self) -> str:
        return "".join(self._shown)

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now certain."""
        return self._release(self._decoder.push(token_id), last=False)

    def finish(self) -> str:
        """No more tokens: return what was held back. A character that was never completed is left out."""
        rest = "" if self.stopped else self._decoder.finish()
        return self._release(rest.rstrip("\ufffd"), last=True)

    def _release(self, piece: str, last: bool) -> str:
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = text[: min(found)], ""
        elif not last:
            keep = max((_overlap(text, stop) for stop in self._stop), default=0)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        else:
            self._held = ""
        self._shown.append(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
