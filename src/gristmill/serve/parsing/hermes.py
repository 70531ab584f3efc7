"""Hermes and Qwen: <tool_call>{"name": …, "arguments": {…}}</tool_call>, any number of them."""

from __future__ import annotations

from gristmill.serve.parsing.calls import CallScript
from gristmill.serve.parsing.grammars import ARGUMENTS, NAME, Shape
from gristmill.serve.parsing.script import Reading

OPEN, CLOSE = "<tool_call>", "</tool_call>"
SHAPE = Shape(
    call=(OPEN, f'\n{{"name": "{NAME}", "arguments": ', ARGUMENTS, "}\n", CLOSE),
    between="\n",
    marks=(OPEN, CLOSE),
)


class HermesParser(CallScript):
    """A call counts without its closing tag, too, which small models forget."""

    close = CLOSE

    def _answer(self) -> Reading[None]:
        while (yield from self._say_until(OPEN)):
            yield from self._try(self._one())
        self._end()

    def _one(self) -> Reading[None]:
        yield from self._skip()
        yield from self._call()
        yield from self._closing()
