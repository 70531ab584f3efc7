"""What the verbs that ask a model share: which one, how its text is constrained, what proposes tokens, and what
standard input holds."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from gristmill.errors import RequestError, nearest

if TYPE_CHECKING:
    from gristmill.engine import Engine
    from gristmill.engine.drafting import Draft
    from gristmill.lm import Grammar

MODEL_HELP = "Run, model directory, .gguf or llama2.c .bin file."
ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help=MODEL_HELP),
]

DraftOption = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="What proposes tokens, for speed alone: a smaller model with the same tokenizer; ngram: "
        "the text itself; early-exit: the model's own first layers. The text stays the same.",
    ),
]

ActivationsOption = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        help="What quantized weights are multiplied with: int8, rounded for speed, or float, for reference.",
    ),
]

CacheOption = Annotated[
    str,
    typer.Option(
        "--cache-dtype",
        metavar="TYPE",
        help="How keys and values are kept: float32, float16, int8, int4, or auto: float16 for weights narrower than "
        "float32.",
    ),
]

_DRAFT_WORDS = ("ngram", "early-exit")


def draft_of(name: str | None) -> Draft:
    """The drafter that `--draft` names. Raises RequestError for what is neither a word nor a model."""
    from gristmill.formats import Model, resolve

    if name is None or name in _DRAFT_WORDS:
        return name  # type: ignore[return-value]
    try:
        resolve(name)
    except RequestError as error:
        hint = nearest(name, _DRAFT_WORDS)
        what = f"there is no model at {name}.{hint}" if hint else str(error)
        raise RequestError(
            f"--draft takes {', '.join(_DRAFT_WORDS)} or a model, and {what}"
        ) from None
    return Model.load(name)


def draft_note(engine: Engine) -> str:
    """How many drafts were kept; "" where nothing was drafted."""
    stats = engine.stats
    if not stats.spec_examined:
        return ""
    return f", {stats.spec_accepted_per_examined:.0%} of the examined drafts kept"


def grammar_of(
    json_schema: Path | None,
    json_object: bool,
    regex: str | None,
    grammar: Path | None,
    choices: Sequence[str],
) -> Grammar | None:
    """What the text must match, if anything. Raises RequestError for more than one such demand."""
    from gristmill.lm import Grammar

    asked = {
        "--json-schema": json_schema is not None,
        "--json-object": json_object,
        "--regex": regex is not None,
        "--grammar": grammar is not None,
        "--choice": bool(choices),
    }
    at_most_one(name for name, given in asked.items() if given)
    if json_schema is not None:
        try:
            schema = json.loads(read_file(json_schema, "--json-schema"))
        except ValueError as error:
            raise RequestError(f"--json-schema {json_schema}: not JSON: {error}") from None
        if not isinstance(schema, dict):
            raise RequestError(f"--json-schema {json_schema}: a schema is a JSON object")
        return Grammar("json_schema", schema)
    if json_object:
        return Grammar("json_object")
    if grammar is not None:
        return Grammar("lark", read_file(grammar, "--grammar"))
    if regex is not None:
        return Grammar("regex", regex)
    if choices:
        return Grammar("choice", tuple(choices))
    return None


def at_most_one(given: Iterable[str]) -> None:
    """Raises RequestError for more than one demand on the text's form; `given` are their names."""
    names = list(given)
    if len(names) > 1:
        raise RequestError(f"{' and '.join(names)} exclude each other; give one")


def read_file(path: Path, option: str) -> str:
    try:
        return _decoded(path.expanduser().read_bytes())
    except FileNotFoundError:
        raise RequestError(f"{option}: there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{option} {path}: {_place(error)}") from None


def read_input() -> str:
    """All of standard input, as text; lines end with a newline, as Python reads them."""
    try:
        text = _decoded(_input().read())
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input: {_place(error)}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def input_lines() -> Iterator[tuple[int, str | RequestError]]:
    """The lines of standard input with their numbers, from 1, as they come; blank ones are left out.

    Of a line that is not UTF-8 the error comes, so that the others can go on.
    """
    for number, line in enumerate(_input(), 1):
        try:
            text = _decoded(line, begins=number == 1).rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield number, RequestError(f"not UTF-8 text: {_byte(error)}")
            continue
        if text.strip():
            yield number, text


def _input() -> BinaryIO:
    """Its bytes: what is not UTF-8 must be told by line, and Python's own reading may let it pass."""
    if sys.stdin is None:
        raise RequestError("standard input is closed; give it a file or a pipe")
    return sys.stdin.buffer


def _decoded(data: bytes, begins: bool = True) -> str:
    """UTF-8 text, without the mark that Windows puts where a file `begins`."""
    return (data.removeprefix(codecs.BOM_UTF8) if begins else data).decode("utf-8")


def _place(error: UnicodeDecodeError) -> str:
    line = error.object[: error.start].count(b"\n") + 1
    return f"line {line} is not UTF-8 text: {_byte(error)}"


def _byte(error: UnicodeDecodeError) -> str:
    column = error.start - error.object.rfind(b"\n", 0, error.start)
    return f"its byte {column} is 0x{error.object[error.start]:02X}; save it as UTF-8"


def unescaped(texts: Sequence[str] | None) -> tuple[str, ...]:
    r"""Strings as typed in a shell: \n and \t are a newline and a tab."""
    return tuple(text.replace("\\n", "\n").replace("\\t", "\t") for text in texts or ())
