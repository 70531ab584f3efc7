"""What the verbs that ask a model share: how its text is constrained, and what proposes tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gristmill.errors import RequestError

if TYPE_CHECKING:
    from gristmill.engine import Engine
    from gristmill.engine.drafting import Draft
    from gristmill.lm import Grammar

DraftOption = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="What proposes tokens, for speed alone: a smaller model with the same tokenizer; ngram: "
        "the text itself; early-exit: the model's own first layers. The text stays the same.",
    ),
]


def draft_of(name: str | None) -> Draft:
    """The drafter that `--draft` names."""
    from gristmill.formats import Model

    if name is None or name in ("ngram", "early-exit"):
        return name  # type: ignore[return-value]
    return Model.load(name)


def draft_note(engine: Engine) -> str:
    """How many drafts were kept; "" where nothing was drafted."""
    stats = engine.stats
    if not stats.spec_examined:
        return ""
    return f", {stats.spec_accepted_per_examined:.0%} of the examined drafts kept"


def grammar_of(
    json_schema: Path | None, regex: str | None, grammar: Path | None, choices: Sequence[str]
) -> Grammar | None:
    """What the text must match, if anything. Raises RequestError for more than one such demand."""
    from gristmill.lm import Grammar

    asked = {
        "--json-schema": json_schema,
        "--regex": regex,
        "--grammar": grammar,
        "--choice": choices or None,
    }
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} exclude each other; give one")
    if json_schema is not None:
        try:
            schema = json.loads(read_file(json_schema, "--json-schema"))
        except ValueError as error:
            raise RequestError(f"--json-schema {json_schema}: not JSON: {error}") from None
        if not isinstance(schema, dict):
            raise RequestError(f"--json-schema {json_schema}: a schema is a JSON object")
        return Grammar("json_schema", schema)
    if grammar is not None:
        return Grammar("lark", read_file(grammar, "--grammar"))
    if regex is not None:
        return Grammar("regex", regex)
    if choices:
        return Grammar("choice", tuple(choices))
    return None


def read_file(path: Path, option: str) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RequestError(f"{option}: there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{option} {path}: not UTF-8 text: {error}") from None


def read_input() -> str:
    """All of standard input, as text."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8 text: {error}") from None


def unescaped(texts: Sequence[str] | None) -> tuple[str, ...]:
    r"""Strings as typed in a shell: \n and \t are a newline and a tab."""
    return tuple(text.replace("\\n", "\n").replace("\\t", "\t") for text in texts or ())
