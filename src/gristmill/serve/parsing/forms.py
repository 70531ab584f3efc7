"""Answers that have a form and stand after a thought, which is free."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from gristmill.lm import Grammar
from gristmill.serve.parsing.grammars import JSON_SPACE, Mark, literal


def after_thought(grammar: Grammar, close: Mark, opening: Mark | None = None) -> Grammar:
    """`grammar` after a thought that ends with `close`. opening: with which the model may begin one; without it the
    prompt has begun it. The newlines after a thought (two at most) are no part of the answer."""
    thought = "thought" if opening is None else f"({opening.lark} thought)?"
    rules = [f"start: {thought} answer"]
    if not close.special:
        rules += ["thought: closed BREAK?", f"closed[lazy]: /(?s:.*)/ {close.lark}"]
    else:
        rules += [f"thought: THINKING? {close.lark} BREAK?", f"THINKING: {close.absent}"]
    return Grammar("lark", "\n".join([*rules, r"BREAK: /\n{1,2}/", _answer(grammar)]))


def _answer(grammar: Grammar) -> str:
    """The rule `answer`, with what it needs."""
    source = grammar.source
    match grammar.kind:
        case "json_schema" | "json_object":
            schema = source if isinstance(source, Mapping) else {"type": "object"}
            return f"answer: %json {json.dumps({**schema, **JSON_SPACE})}"
        case "regex":
            return f"answer: ANSWER\nANSWER: /{_slashes_escaped(str(source))}/"
        case "choice":
            return "answer: " + " | ".join(literal(each) for each in source)
        case "lark":
            return f"answer: %lark {{\n{source}\n}}"


def _slashes_escaped(regex: str) -> str:
    escaped = re.sub(r"\\.|/", lambda m: r"\/" if m[0] == "/" else m[0], regex, flags=re.DOTALL)
    return escaped.replace("\n", r"\n")
