"""Reading text that is still arriving, written as if it were all there.

A parser is a script: a generator that reads on from a place in the text and pauses where it needs more. What it
decides depends on the text alone, never on where the pieces were cut, so a streamed answer and a whole one come out
the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import TypeVar

from gristmill.serve.parsing.events import Event

T = TypeVar("T")
Reading = Generator[None, None, T]  # pauses, and returns what it read
SPACE = " \t\r\n"


class Script(ABC):
    """`_at` is the place in `_text` up to which it was read; `_over` that no more text will come."""

    def __init__(self) -> None:
        self._text, self._at, self._over = "", 0, False
        self._events: list[Event] = []
        self._reading = self._answer()

    def feed(self, text: str) -> list[Event]:
        self._text += text
        return self._go_on()

    def finish(self) -> list[Event]:
        self._over = True
        return self._go_on()

    @abstractmethod
    def _answer(self) -> Reading[None]:
        """Read the whole answer, adding to `_events`; with `_over` it must not pause any more."""

    def _go_on(self) -> list[Event]:
        next(self._reading, None)
        events, self._events = self._events, []
        return events

    def _peek(self) -> Reading[str]:
        """The next character; "" at the end of the answer."""
        while self._at >= len(self._text) and not self._over:
            yield
        return self._text[self._at : self._at + 1]

    def _skip(self, characters: str = SPACE) -> Reading[None]:
        """Go on to the next character that is none of these."""
        while (yield from self._peek()) in tuple(characters):
            self._at += 1

    def _follows(self, mark: str) -> Reading[bool]:
        """Whether `mark` comes next; it is then read."""
        while not self._over and len(self._text) - self._at < len(mark):
            if not mark.startswith(self._text[self._at :]):
                return False
            yield
        found = self._text.startswith(mark, self._at)
        self._at += len(mark) if found else 0
        return found

    def _certain(self, mark: str) -> int:
        """Where the text ends that cannot belong to `mark`: at its first place, or at what may be its beginning."""
        found = self._text.find(mark, self._at)
        if found >= 0:
            return found
        if self._over:
            return len(self._text)
        longest = min(len(self._text) - self._at, len(mark) - 1)
        return len(self._text) - next(
            (n for n in range(longest, 0, -1) if self._text.endswith(mark[:n])), 0
        )

    def _forget(self, upto: int) -> None:
        """Drop the text before a place, which is done with and so counts as read."""
        self._text, self._at = self._text[upto:], max(0, self._at - upto)
