"""DeepSeek: one pair of marks around all calls, one around each; V3 and R1 put the arguments in a fence, V3.1 does not.

<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME ```json {…} ```<｜tool▁call▁end｜>
<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}<｜tool▁call▁end｜>
"""

from __future__ import annotations

from gristmill.serve.parsing.calls import CallScript
from gristmill.serve.parsing.grammars import ARGUMENTS, NAME, Shape
from gristmill.serve.parsing.json_text import NotJSON
from gristmill.serve.parsing.script import Reading

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
KIND, FENCE, FENCE_END = "function", "```json", "```"
MARKS = (CALLS, CALLS_END, CALL, CALL_END, SEPARATOR)
FENCED = Shape(
    before=(CALLS,),
    call=(CALL, KIND, SEPARATOR, f"{NAME}\n{FENCE}\n", ARGUMENTS, f"\n{FENCE_END}", CALL_END),
    between="\n",
    after=(CALLS_END,),
    marks=MARKS,
)
UNFENCED = Shape(
    before=(CALLS,),
    call=(CALL, NAME, SEPARATOR, ARGUMENTS, CALL_END),
    after=(CALLS_END,),
    marks=MARKS,
)


class DeepSeekParser(CallScript):
    close = CALL_END

    def _answer(self) -> Reading[None]:
        while (yield from self._say_until(CALLS)):
            more = yield from self._try(self._first())
            while more and (yield from self._another()):
                more = yield from self._try(self._one())
        self._end()

    def _first(self) -> Reading[None]:
        yield from self._skip()
        if not (yield from self._follows(CALL)):
            raise NotJSON
        yield from self._one()

    def _another(self) -> Reading[bool]:
        """Whether one more call follows; else the mark after them all is read."""
        yield from self._skip()
        if (yield from self._follows(CALL)):
            return True
        if (yield from self._follows(CALLS_END)):
            self._kept = self._at
        self._at = self._kept
        return False

    def _one(self) -> Reading[None]:
        name = yield from self._word()
        if not (yield from self._follows(SEPARATOR)):
            raise NotJSON
        if name == KIND and (yield from self._peek()) != "{":
            name = yield from self._word()
            yield from self._skip()
            yield from self._follows(FENCE)
            yield from self._arguments(name)
            yield from self._skip()
            yield from self._follows(FENCE_END)
        else:
            yield from self._arguments(name)
        yield from self._closing()
