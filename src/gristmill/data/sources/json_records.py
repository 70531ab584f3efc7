"""JSON values one at a time from a file that is an array of them, has one a line, or is a single one."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

from gristmill.data.sources.opening import Stream

_CHUNK = 1 << 18
_BLANK = " \t\r\n"


class BadRecord:
    """A value that cannot be read: why, and whether the rest of the file is lost with it."""

    def __init__(self, reason: str, error: str, last: bool = False) -> None:
        self.reason, self.error, self.last = reason, error, last


def json_records(stream: Stream, limit: int) -> Iterator[tuple[int, Any]]:
    """(number from 1, value or BadRecord) of each record; a record has at most about `limit` characters."""
    buffer = _Buffer(stream)
    first = buffer.skip(_BLANK + "\ufeff")
    array = first == "["
    if array:
        buffer.position += 1
    number = 0
    decode = json.JSONDecoder().raw_decode
    while True:
        following = buffer.skip(_BLANK + ("," if array else ""))
        if not following or (array and following == "]"):
            return
        number += 1
        value = _value(buffer, decode, limit, lines=not array)
        if isinstance(value, BadRecord) and (array or not buffer.skip_line()):
            value.last = True
        yield number, value
        if isinstance(value, BadRecord) and value.last:
            return


def _value(buffer: _Buffer, decode: Any, limit: int, lines: bool) -> Any:
    """The value at the buffer's position; what it cannot finish yet it reads on, twice as much each time."""
    while True:
        try:
            value, end = decode(buffer.text, buffer.position)
        except RecursionError:
            return BadRecord("bad_record", "nested too deeply")
        except json.JSONDecodeError as error:
            pending = len(buffer.text) - buffer.position
            # An error well before the end of what is read cannot be cured by more text.
            cut = error.pos > len(buffer.text) - 20 or "Unterminated" in error.msg
            if (
                lines
                and cut
                and "\n" in buffer.text[buffer.position :]
                and error.pos < buffer.line_end()
            ):
                cut = False
            place = error.pos - buffer.position
            if not cut or not buffer.more(max(_CHUNK, pending)):
                return BadRecord("bad_record", f"{error.msg} (character {place} of the record)")
            if pending > limit:
                return BadRecord("too_large", f"more than {limit} characters")
            continue
        buffer.position = end
        return value


class _Buffer:
    def __init__(self, stream: Stream) -> None:
        self.stream, self.text, self.position = stream, "", 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def more(self, size: int) -> bool:
        data = self.stream.some(size)
        text = self.decoder.decode(data, final=not data)
        self.text, self.position = self.text[self.position :] + text, 0
        return bool(text or data)

    def skip(self, characters: str) -> str:
        """The first character that is none of these, "" at the end."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in characters:
                self.position += 1
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more(_CHUNK):
                return ""

    def line_end(self) -> int:
        end = self.text.find("\n", self.position)
        return len(self.text) if end < 0 else end

    def skip_line(self) -> bool:
        """Goes to the start of the next line; False when there is none."""
        while True:
            end = self.text.find("\n", self.position)
            if end >= 0:
                self.position = end + 1
                return True
            self.position = len(self.text)
            if not self.more(_CHUNK):
                return False
