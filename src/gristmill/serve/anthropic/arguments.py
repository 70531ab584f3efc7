"""How much of a call's arguments is JSON. A model may write what is none, and this API has no place for that: its
clients parse an input while it arrives, and give up the answer where they cannot.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic_core import from_json, to_json

from gristmill.serve.parsing.json_text import JSONScript, NotJSON
from gristmill.serve.parsing.script import Reading

T = TypeVar("T")


class Arguments(JSONScript):
    """Those of one call, as they arrive. complete: they are the JSON of an object, up to its last bracket."""

    def __init__(self) -> None:
        super().__init__()
        self.complete = False
        self._told = 0
        self._held: int | None = None  # where a number or an escape begins that may turn out wrong

    def sound(self, text: str) -> str:
        """What is certain to be JSON after `text` has arrived, and was not before."""
        self.feed(text)
        start, self._told = self._told, self._at if self._held is None else self._held
        return self._text[start : self._told]

    def input(self) -> str:
        """JSON of the object: of an incomplete one what can be read of it, as Anthropic's clients read it."""
        sound = self._text[: self._told]
        if self.complete:
            return sound
        value = from_json(sound, allow_partial=True) if sound else {}
        return to_json(value, inf_nan_mode="null").decode()

    def _answer(self) -> Reading[None]:
        try:
            yield from self._object(0)
        except NotJSON:
            return
        self.complete = True

    def _number(self) -> Reading[None]:
        yield from self._hold(super()._number())

    def _escape(self) -> Reading[None]:
        yield from self._hold(self._character())

    def _character(self) -> Reading[None]:
        """One character, which may take two escapes: half of such a pair is no text."""
        half = yield from self._unit()
        if 0xDC00 <= half < 0xE000:
            raise NotJSON
        if 0xD800 <= half < 0xDC00:
            second = (yield from self._unit()) if (yield from self._peek()) == "\\" else 0
            if not 0xDC00 <= second < 0xE000:
                raise NotJSON

    def _unit(self) -> Reading[int]:
        start = self._at
        yield from super()._escape()
        escape = self._text[start : self._at]
        return int(escape[2:], 16) if escape.startswith("\\u") else 0

    def _hold(self, reading: Reading[T]) -> Reading[T]:
        self._held = self._at
        result = yield from reading
        self._held = None
        return result
