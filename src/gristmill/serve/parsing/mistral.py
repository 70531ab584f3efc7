"""Mistral: [TOOL_CALLS][{"name": …, "arguments": {…}}, …], and newer [TOOL_CALLS]name[ARGS]{…}, one mark a call."""

from __future__ import annotations

from dataclasses import replace

from gristmill.serve.parsing.calls import CallScript
from gristmill.serve.parsing.grammars import ARGUMENTS, NAME, Shape
from gristmill.serve.parsing.json_text import NotJSON
from gristmill.serve.parsing.script import Reading

OPEN, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
LIST = Shape(
    before=(OPEN, "["),
    call=(f'{{"name": "{NAME}", "arguments": ', ARGUMENTS, "}"),
    between=", ",
    after=("]",),
    marks=(OPEN,),
)
SPACED_LIST = replace(LIST, before=(OPEN, " ["))  # the first releases
NAMED = Shape(call=(OPEN, NAME, ARGS, ARGUMENTS), marks=(OPEN, CALL_ID, ARGS))


class MistralParser(CallScript):
    def _answer(self) -> Reading[None]:
        while (yield from self._say_until(OPEN)):
            yield from self._try(self._calls())
        self._end()

    def _calls(self) -> Reading[None]:
        yield from self._skip()
        if (yield from self._peek()) == "[":
            yield from self._list()
        else:
            yield from self._named()

    def _list(self) -> Reading[None]:
        more = yield from self._opens("[", "]")
        if not more:
            raise NotJSON
        while more:
            yield from self._skip()
            yield from self._call()
            more = (yield from self._take(",]")) == ","
        self._kept = self._at

    def _named(self) -> Reading[None]:
        name = yield from self._word()
        self._known(name)
        if (yield from self._follows(CALL_ID)):
            yield from self._word()
        yield from self._follows(ARGS)  # some releases leave it out
        yield from self._arguments(name)
