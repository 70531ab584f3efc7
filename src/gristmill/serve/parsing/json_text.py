"""Reading JSON that is still arriving. What it accepts, `json.loads` accepts."""

from __future__ import annotations

import json
import re

from gristmill.serve.parsing.script import Reading, Script

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_DEEPEST = 100  # brackets within brackets; Python's own limits are near 1,000
_LONGEST = 4000  # characters of a number; int() refuses 4,301 digits


class NotJSON(Exception):
    """What comes next is no JSON, or the answer ended inside it."""


class JSONScript(Script):
    """Each method reads one thing from `_at` on; NotJSON at the first character that does not fit."""

    def _take(self, characters: str) -> Reading[str]:
        """One of these characters, after blanks."""
        yield from self._skip()
        found = yield from self._peek()
        if not found or found not in characters:
            raise NotJSON
        self._at += 1
        return found

    def _value(self, depth: int = 0) -> Reading[None]:
        yield from self._skip()
        first = yield from self._peek()
        if first == "{":
            yield from self._object(depth)
        elif first == "[":
            yield from self._array(depth)
        elif first == '"':
            yield from self._string()
        elif first and first in "-0123456789":
            yield from self._number()
        else:
            word = {"t": "true", "f": "false", "n": "null"}.get(first)
            if word is None or not (yield from self._follows(word)):
                raise NotJSON

    def _object(self, depth: int) -> Reading[None]:
        if (yield from self._opens("{", "}", depth)):
            more = True
            while more:
                yield from self._key()
                yield from self._value(depth + 1)
                more = (yield from self._take(",}")) == ","

    def _array(self, depth: int) -> Reading[None]:
        if (yield from self._opens("[", "]", depth)):
            more = True
            while more:
                yield from self._value(depth + 1)
                more = (yield from self._take(",]")) == ","

    def _opens(self, bracket: str, closing: str, depth: int = 0) -> Reading[bool]:
        """Read the bracket; whether there is something in it: "{}" is read whole."""
        yield from self._take(bracket)
        if depth == _DEEPEST:
            raise NotJSON
        yield from self._skip()
        return not (yield from self._follows(closing))

    def _key(self) -> Reading[str]:
        yield from self._skip()
        key = yield from self._string()
        yield from self._take(":")
        return key

    def _string(self) -> Reading[str]:
        """A string that begins here; what it says."""
        start = self._at
        if (yield from self._peek()) != '"':
            raise NotJSON
        self._at += 1
        while (character := (yield from self._peek())) != '"':
            if character == "\\":
                yield from self._escape()
            else:
                plain = _PLAIN.match(self._text, self._at)
                if plain is None or plain.end() == self._at:  # a control character, or the end
                    raise NotJSON
                self._at = plain.end()
        self._at += 1
        return json.loads(self._text[start : self._at])

    def _escape(self) -> Reading[None]:
        self._at += 1
        kind = yield from self._peek()
        if not kind or kind not in '"\\/bfnrtu':
            raise NotJSON
        self._at += 1
        for _ in range(4 if kind == "u" else 0):
            digit = yield from self._peek()
            if not digit or digit not in "0123456789abcdefABCDEF":
                raise NotJSON
            self._at += 1

    def _number(self) -> Reading[None]:
        start = self._at
        while (character := (yield from self._peek())) and character in "0123456789+-.eE":
            self._at += 1
        if self._at - start > _LONGEST or not _NUMBER.fullmatch(self._text, start, self._at):
            raise NotJSON
