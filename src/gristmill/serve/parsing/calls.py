"""What the formats of tool calls have in common: content around the calls, and how one call is told.

A call is told ("ToolStart") once its name is that of a tool and its arguments have begun, and complete ("ToolEnd")
with the last bracket of the arguments. What looked like a call and was none before that is content again. Where the
JSON breaks later, the call stays incomplete and everything up to its closing mark, else to the end of the answer, is
its arguments, just as the model wrote them. Blanks beside calls are content only between two texts.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Sequence

from gristmill.serve.parsing.events import (
    Event,
    Text,
    Tool,
    ToolArguments,
    ToolEnd,
    ToolStart,
)
from gristmill.serve.parsing.json_text import JSONScript, NotJSON
from gristmill.serve.parsing.script import SPACE, Reading

# Mistral's templates refuse any other form, and everybody else's take it.
_ID_LENGTH, _ID_CHARACTERS = 9, string.ascii_letters + string.digits
_ARGUMENTS = ("arguments", "parameters")
_WORD = re.compile(r"[\w.:/-]")
_BESIDES = ("id", "type")  # that models write into a call, too


class CallScript(JSONScript):
    """`close`: what ends a call of this format, "" where only its JSON does."""

    close = ""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__()
        self._names = frozenset(tool.name for tool in tools)
        # Up to here the text was told or was a mark; what follows may become content again.
        self._kept = 0
        self._count = 0
        self._told: int | None = None  # up to here the arguments of the call under way were told
        self._blank = ""  # blanks that wait for a text to follow
        self._blank_before = ""  # those before the call, or the calls without text between them
        self._spoke = self._called = False  # there was content; and since then a call

    # Content

    def _say(self, text: str) -> None:
        text = self._blank + text
        if self._count and not self._spoke:
            text = text.lstrip(SPACE)
        said = text.rstrip(SPACE)
        self._blank = text[len(said) :]
        if said:
            self._spoke, self._called = True, False
            self._events.append(Text(said))

    def _say_until(self, mark: str) -> Reading[bool]:
        """Everything is content up to `mark`, which is read; False when the answer ends before it."""
        while True:
            certain = self._certain(mark)
            self._say(self._text[self._at : certain])
            self._forget(certain)
            self._at = self._kept = 0
            if self._text.startswith(mark):
                self._at = len(mark)
                return True
            if self._over:
                return False
            yield

    def _say_rest(self) -> Reading[None]:
        while True:
            self._say(self._text[self._at :])
            self._forget(len(self._text))
            self._kept = 0
            if self._over:
                return
            yield

    def _end(self) -> None:
        """The answer is over."""
        if self._blank and not self._called:
            self._events.append(Text(self._blank))

    # Calls

    def _try(self, call: Reading[None]) -> Reading[bool]:
        """Read a call, or several; False where it was none, and what was not told of it is content again."""
        try:
            yield from call
            return True
        except NotJSON:
            if self._told is not None:
                yield from self._spoilt()
                return True
            # Its first character is content, and in what follows it a mark is looked for anew.
            self._at = self._kept + 1
            self._say(self._text[self._kept : self._at])
            self._kept = self._at
            return False

    def _spoilt(self) -> Reading[None]:
        """The arguments under way are no JSON: tell them as they are, up to the closing mark."""
        while True:
            self._at = self._certain(self.close) if self.close else len(self._text)
            self._tell_arguments()
            closed = bool(self.close) and self._text.startswith(self.close, self._at)
            if closed or self._over:
                break
            yield
        self._told = None
        self._at += len(self.close) if closed else 0
        self._kept = self._at

    def _closing(self) -> Reading[None]:
        """Read the closing mark, where it is there."""
        yield from self._skip()
        if (yield from self._follows(self.close)):
            self._kept = self._at
        self._at = self._kept

    def _call(self, bare: bool = False) -> Reading[None]:
        """{"name": …, "arguments": {…}}, its keys in any order. bare: with no mark around it, other keys show that
        it is no call, and so does a lack of arguments."""
        count = self._count
        try:
            yield from self._fields(bare)
        except NotJSON:
            if self._told is not None or self._count == count:
                raise
            self._at = self._kept  # a complete call without its last bracket
        self._kept = self._at

    def _fields(self, bare: bool) -> Reading[None]:
        name: str | None = None
        early = ""  # arguments that came before the name
        told = False
        more = yield from self._opens("{", "}")
        while more:
            key = yield from self._key()
            yield from self._skip()
            if key == "name" and name is None:
                name = yield from self._string()
                self._known(name)
                if early:
                    self._tell_whole(name, early)
                    told = True
            elif key in _ARGUMENTS and not told and not early:
                if name is not None:
                    yield from self._arguments(name)
                    told = True
                else:
                    start = self._at
                    yield from self._object(0)
                    early = self._text[start : self._at]
            elif bare and not told and key not in _BESIDES:
                raise NotJSON
            else:
                yield from self._value()
            more = (yield from self._take(",}")) == ","
        if not told:
            if name is None or bare:
                raise NotJSON
            self._tell_whole(name, "{}")

    def _arguments(self, name: str) -> Reading[None]:
        """The arguments of a call of `name`, told while they are read."""
        self._known(name)
        yield from self._skip()
        if (yield from self._peek()) != "{":
            raise NotJSON
        self._start(name)
        self._told = self._at
        yield from self._object(0)
        self._tell_arguments()
        self._finish_call()

    def _word(self) -> Reading[str]:
        """A name that no quotes surround."""
        start = self._at
        while _WORD.match((yield from self._peek())):
            self._at += 1
        return self._text[start : self._at]

    def _known(self, name: str) -> None:
        if name not in self._names:
            raise NotJSON

    def _start(self, name: str) -> None:
        id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
        self._events.append(ToolStart(self._count, id, name))
        self._count += 1
        if self._called:
            self._blank = self._blank_before
        self._blank_before, self._called = self._blank, True

    def _tell_whole(self, name: str, arguments: str) -> None:
        self._start(name)
        self._events.append(ToolArguments(self._count - 1, arguments))
        self._finish_call()

    def _tell_arguments(self) -> None:
        if self._told is not None and self._at > self._told:
            self._events.append(ToolArguments(self._count - 1, self._text[self._told : self._at]))
            self._told = self._at

    def _finish_call(self) -> None:
        self._events.append(ToolEnd(self._count - 1))
        self._told = None
        self._kept = self._at

    def _go_on(self) -> list[Event]:
        events = super()._go_on()
        self._tell_arguments()
        told, self._events = self._events, []
        return events + told
