"""Passages, and the prompt that puts them before a question: one form for training, evaluation and chat."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from gristmill.data.docstrings import clip
from gristmill.data.facts import Fact
from gristmill.data.prose import pieces, reflow

NOT_FOUND = "I did not find that in the documents."
"""What the assistant says when the passages, or the whole index, do not hold the answer."""

TITLE_CHARS = 120
PASSAGE_CHARS = 320


def grounded(question: str, passages: Sequence[str]) -> str:
    """The user message that asks `question` about numbered passages: `[1]`, the passage on the next lines, a
    blank line, `[2]`, …, then it.

    The question comes last: it is then next to the answer, as in a conversation without passages. A passage
    begins on a line of its own, as an answer does, so that both are spelled with the same tokens.
    """
    blocks = [f"[{number}]\n{text.strip()}" for number, text in enumerate(passages, 1)]
    return "\n\n".join([*blocks, f"Question: {question.strip()}"])


def described(name: str, description: str) -> str:
    """A name with what it is, `heapq.nlargest: Find the n largest …`: how passages begin and how "what is it"
    is answered. An answer that repeats the name first can be found by copying on from where the name stands."""
    return f"{name}: {description}"


def passage(fact: Fact) -> str:
    """A fact as the passage that an index returns for it: at most about 320 characters.

    Code: the name with the summary, the call with its arguments, and, each only when it fits whole, what is
    returned and the example. A topic or section: its name with the beginning of its text.
    """
    if fact.kind in ("topic", "section"):
        lines = fact.doc.split("\n")
        text = next(pieces(lines, 0, len(lines), PASSAGE_CHARS), (fact.summary, 0))[0]
        return prose_passage(fact.name, text)
    lines = [described(fact.name, fact.summary)]
    if fact.signature:
        lines.append(title_line(fact))
    used = sum(map(len, lines))
    told = fact.returns.lower() in fact.summary.lower()
    for part in ("" if told else f"Returns: {fact.returns}", fact.example):
        if part and used + len(part) <= PASSAGE_CHARS:
            lines.append(part)
            used += len(part)
    return "\n".join(lines)


def prose_passage(title: str, text: str) -> str:
    """A piece of prose as a passage: its title with its text, the lines of paragraphs joined."""
    title = clip(" ".join(title.split()), TITLE_CHARS)
    body = reflow(text).strip()
    return described(title, body) if title else body


def title_line(fact: Fact) -> str:
    """Name and arguments within 120 characters: annotations go first, then the arguments' tail."""
    return clip(fact.name + bare_signature(fact.signature), TITLE_CHARS)


def bare_signature(signature: str) -> str:
    """The arguments without their annotations: '(n: int, key: Any=None)' -> '(n, key=None)'."""
    if ":" not in signature:
        return signature
    try:
        function = ast.parse(f"def f{signature}: pass").body[0]
    except SyntaxError:
        return signature
    assert isinstance(function, ast.FunctionDef)
    for argument in ast.walk(function.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return f"({ast.unparse(function.args)})"
