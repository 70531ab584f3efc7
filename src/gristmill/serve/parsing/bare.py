"""Calls that are nothing but JSON: {"name": …, "arguments": {…}} where the answer begins.

Llama 3 writes "parameters", sometimes after <|python_tag|>, and several calls with ";" between them.
"""

from __future__ import annotations

from collections.abc import Sequence

from gristmill.serve.parsing.calls import CallScript
from gristmill.serve.parsing.events import Tool
from gristmill.serve.parsing.grammars import ARGUMENTS, NAME, Shape
from gristmill.serve.parsing.script import Reading

PYTHON_TAG = "<|python_tag|>"
LLAMA3 = Shape(
    call=(f'{{"name": "{NAME}", "parameters": ', ARGUMENTS, "}"),
    between="; ",
    marks=(PYTHON_TAG,),
    bare=True,
)
JSON = Shape(call=(f'{{"name": "{NAME}", "arguments": ', ARGUMENTS, "}"), between="\n", bare=True)


class BareParser(CallScript):
    """tag: after it calls may stand anywhere; without one only at the very beginning."""

    def __init__(self, tools: Sequence[Tool], tag: str | None = None) -> None:
        super().__init__(tools)
        self._tag = tag

    def _answer(self) -> Reading[None]:
        yield from self._skip()
        if (yield from self._peek()) == "{":
            yield from self._try(self._several())
        else:
            self._at = 0
        if self._tag is None:
            yield from self._say_rest()
        else:
            while (yield from self._say_until(self._tag)):
                yield from self._try(self._several())
        self._end()

    def _several(self) -> Reading[None]:
        more = True
        while more:
            yield from self._skip()
            yield from self._call(bare=True)
            yield from self._skip()
            if (yield from self._follows(";")):
                yield from self._skip()
            more = (yield from self._peek()) == "{"
        self._at = self._kept
