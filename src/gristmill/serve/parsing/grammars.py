"""Grammars that force calls of tools: Lark, as llguidance reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gristmill.errors import RequestError
from gristmill.lm import Grammar
from gristmill.serve.parsing.events import Tool

NAME, ARGUMENTS = "\0name", "\0arguments"  # in a Shape: where these stand
JSON_SPACE = {"x-guidance": {"whitespace_pattern": " ?"}}  # as in all JSON that the engine forces
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
_BARE_TEXT = r"/[ \t\r\n]*([^ \t\r\n{](?s:.*))?/"  # begins with no bracket


@dataclass(frozen=True)
class Mark:
    """A tag. id: of the one token that says it, where the vocabulary has one; special: which decoding hides.

    To llguidance a special token has no letters and can only be named; any other is the letters it says.
    """

    text: str
    id: int | None = None
    special: bool = False

    @property
    def lark(self) -> str:
        return f"<[{self.id}]>" if self.special else literal(self.text)

    @property
    def absent(self) -> str:
        """A terminal: some text without the mark in it."""
        return f"/(?s:.+)/ & ~/(?s:.*){_escaped(self.text)}(?s:.*)/"


@dataclass(frozen=True)
class Shape:
    """How a format writes calls, as pieces: marks, text around NAME, and ARGUMENTS.

    before, after: around all calls together; between: two of them. bare: a call begins with its bracket, so that
    an answer beginning with one must be a call.
    """

    call: tuple[str, ...]
    before: tuple[str, ...] = ()
    between: str = ""
    after: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    bare: bool = False


@dataclass(frozen=True)
class Writer:
    """The grammars of one model's calls. `mark`: by its text."""

    shape: Shape
    mark: Callable[[str], Mark]

    def forced(self, tools: Sequence[Tool], parallel: bool) -> Grammar:
        """Nothing but calls, one at least, the arguments valid under the tools' schemas."""
        return self._grammar("calls", self._calls(tools, parallel, every=True))

    def free(self, tools: Sequence[Tool], parallel: bool) -> Grammar:
        """Any text; what begins as a call is one, and a strict tool's is valid under its schema."""
        shape, often = self.shape, "*" if parallel else "?"
        if shape.bare:
            calls = self._calls(tools, parallel, every=False)
            text = " & ".join([_BARE_TEXT, *(self.mark(tag).absent for tag in shape.marks)])
            return self._grammar("TEXT? | calls", calls, f"TEXT: {text}")
        trigger = self.mark((shape.before or shape.call)[0])
        parallel = parallel and bool(shape.before)  # others have text between them, too
        if trigger.special:
            calls = self._calls(tools, parallel, every=False)
            return self._grammar(f"TEXT? (calls TEXT?){often}", calls, f"TEXT: {trigger.absent}")
        calls = self._calls(tools, parallel, every=False, begin="text_and_mark")
        # Lazy: the lexeme ends with the first mark, after which a call must go on.
        mark = f"text_and_mark[lazy]: TEXT {trigger.lark}"
        text = ("TEXT: /(?s:.*)/", f"LAST: {trigger.absent}")
        return self._grammar(f"calls{often} LAST?", calls, mark, *text)

    def _grammar(self, start: str, *rules: str) -> Grammar:
        marks = map(self.mark, self.shape.marks)
        if any(mark.id is not None and not mark.special for mark in marks):
            # What must come would be spelled in small tokens, and never with the model's own for the mark.
            rules = (*rules, '%llguidance {"no_forcing": true}')
        return Grammar("lark", "\n".join([f"start: {start}", *rules]))

    def _calls(
        self, tools: Sequence[Tool], parallel: bool, every: bool, begin: str | None = None
    ) -> str:
        """The rule `calls`. every: all tools' schemas hold, not only those of strict ones; begin: a rule to stand in
        for the first mark."""
        shape = self.shape
        first = shape.before or shape.call
        between = literal(shape.between) if shape.between else ""
        more = f" ({between} call)*" if parallel else ""
        before = self._lark(shape.before, begin if first is shape.before else None)
        rules = [f"calls: {before} call{more} {self._lark(shape.after)}"]
        rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
        for i, tool in enumerate(tools):
            name = json.dumps(tool.name, ensure_ascii=False)[1:-1]
            pieces = tuple(piece.replace(NAME, name) for piece in shape.call)
            written = self._lark(pieces, begin if first is shape.call else None)
            rules.append(f"call_{i}: {written.replace(ARGUMENTS, f'arguments_{i}')}")
            rules.append(f"arguments_{i}: %json {json.dumps(_schema(tool, every))}")
        return "\n".join(rules)

    def _lark(self, pieces: Sequence[str], begin: str | None = None) -> str:
        written = [
            piece if piece == ARGUMENTS
            else self.mark(piece).lark if piece in self.shape.marks
            else literal(piece)
            for piece in pieces
        ]  # fmt: skip
        return " ".join([begin, *written[1:]] if begin else written)


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", "\\/")


def _schema(tool: Tool, every: bool) -> dict[str, Any]:
    """What the grammar holds the arguments to. Raises RequestError for a schema that is none of an object."""
    schema = {"type": "object", **tool.parameters} if tool.parameters else _NOTHING
    if schema["type"] != "object":
        raise RequestError(
            f"the parameters of the tool {tool.name!r} must be a schema of an object, "
            f'{{"type": "object", …}}, not of {schema["type"]!r}'
        )
    # A strict tool's schema that cannot be enforced is refused when the grammar is compiled.
    if not (tool.strict or (every and _enforceable(json.dumps(schema)))):
        schema = {"type": "object"}
    return {**schema, **JSON_SPACE}


@lru_cache(maxsize=256)
def _enforceable(schema: str) -> bool:
    try:
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_json_schema(schema)
        _, notes = LLMatcher.validate_grammar_with_warnings(grammar)
        return not notes
    except (ImportError, ValueError):  # the engine says it better
        return False
