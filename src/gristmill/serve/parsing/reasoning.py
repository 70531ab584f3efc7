"""The thought before the answer: <think> … </think>, whose opening tag is often in the prompt.

Newlines beside the tags are no part of either text: those after the opening one, before the closing one, and after
it. A thought that is never closed is all reasoning. An opening tag anywhere but at the beginning is content.
"""

from __future__ import annotations

from dataclasses import dataclass

from gristmill.serve.parsing.events import Parser, Reasoning
from gristmill.serve.parsing.script import Reading, Script


@dataclass(frozen=True)
class Thought:
    """The tags around a family's thoughts."""

    open: str
    close: str


THOUGHTS = (Thought("<think>", "</think>"), Thought("[THINK]", "[/THINK]"))


class ReasoningParser(Script):
    """`opened`: the prompt ends with the opening tag. After the thought, `answer` reads on."""

    def __init__(self, answer: Parser, thought: Thought, opened: bool) -> None:
        super().__init__()
        self._answer_parser, self._thought, self._opened = answer, thought, opened

    def _answer(self) -> Reading[None]:
        yield from self._skip()
        if (yield from self._follows(self._thought.open)) or self._opened:
            self._forget(self._at)
            yield from self._think()
        else:
            self._at = 0
        while True:
            self._events += self._answer_parser.feed(self._text[self._at :])
            self._forget(len(self._text))
            if self._over:
                break
            yield
        self._events += self._answer_parser.finish()

    def _think(self) -> Reading[None]:
        yield from self._skip("\n")
        self._forget(self._at)
        blank = ""  # newlines that may stand before the closing tag
        while True:
            certain = self._certain(self._thought.close)
            text = blank + self._text[:certain]
            closed = self._text.startswith(self._thought.close, certain)
            said = text.rstrip("\n")
            blank = text[len(said) :]
            if self._over and not closed:
                said += blank
            if said:
                self._events.append(Reasoning(said))
            self._forget(certain)
            self._at = 0
            if closed or self._over:
                break
            yield
        if closed:
            self._at = len(self._thought.close)
            yield from self._skip("\n")
