"""Chat templates, rendered as `transformers` renders them, with what people typed kept apart from control tokens.

The template is the single definition of a model's chat format; training, evaluation, engine and server all
render it here. Every string that came from outside is *guarded* before rendering: inside each character
sequence that would read as an added token, an invisible mark is put. The template works on the guarded text,
and the marks are taken out again after the rendered text was cut at its control tokens, so only the template
itself can write a control token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gristmill.errors import RequestError
from gristmill.tokenizer.sandbox import run_template
from gristmill.tokenizer.unicode import check_unicode

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Noncharacters of Unicode: valid in a Python string, never assigned, so never part of real text.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered conversation: a control token the template wrote, or plain text.

    generated: for plain text, the [start, end) character spans inside {% generation %}; a control token there
    has the one span (0, len(text)).
    """

    text: str
    control: bool
    generated: tuple[tuple[int, int], ...] = ()


def render(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """The conversation as text, identical to `transformers`' apply_chat_template(tokenize=False).

    Raises RequestError when the template refuses the conversation.
    """
    return _run(template, _prepare(messages), variables, marks=("", ""))


def render_pieces(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    control_tokens: Iterable[str],
    named_tokens: Mapping[str, str],
    **variables: Any,
) -> list[Piece]:
    """The conversation cut at the control tokens that the template itself wrote.

    named_tokens: the tokenizer's own, such as bos_token; a template that writes them writes control tokens.
    """
    control = _control(tuple(control_tokens))
    prepared, outside = _prepare(messages), _plain(variables)
    used = template + json.dumps([prepared, outside], ensure_ascii=False)
    free = [mark for mark in _MARKS if mark not in used]
    if len(free) < 3:
        raise RequestError(
            "the messages contain almost every Unicode noncharacter U+FDD0…U+FDEF; remove them"
        )
    mark, start, end = free[:3]
    guarded = [_guard(message, control, mark) for message in prepared]
    values = {**named_tokens, **_guard(outside, control, mark)}
    text = _run(template, guarded, values, marks=(start, end))
    return _cut(text, control, mark, start, end)


@dataclass(frozen=True)
class _Control:
    """Control tokens, with what finds them and their beginnings and ends."""

    tokens: frozenset[str]
    pattern: re.Pattern[str]
    beginnings: tuple[str, ...]
    ends: tuple[str, ...]


@lru_cache(maxsize=16)
def _control(tokens: tuple[str, ...]) -> _Control:
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    beginnings = {token[:n] for token in tokens for n in range(1, len(token))}
    ends = {token[-n:] for token in tokens for n in range(1, len(token))}
    by_length = lambda text: (-len(text), text)  # noqa: E731
    return _Control(
        frozenset(tokens),
        pattern,
        tuple(sorted(beginnings, key=by_length)),
        tuple(sorted(ends, key=by_length)),
    )


def _guard(value: Any, control: _Control, mark: str, inside: bool = True) -> Any:
    """Put `mark` into every string of `value` wherever it could become (part of) a control token."""
    if isinstance(value, str):
        value = control.pattern.sub(lambda found: mark.join((found[0][:1], found[0][1:])), value)
        # What the template writes next to it could complete a token.
        if value.endswith(control.beginnings):
            found = next(b for b in control.beginnings if value.endswith(b))
            value = value[: len(value) - len(found)] + found[:1] + mark + found[1:]
        if value.startswith(control.ends):
            found = next(e for e in control.ends if value.startswith(e))
            value = found[:-1] + mark + found[-1:] + value[len(found) :]
        if inside and value and any(value in token for token in control.tokens):
            value = mark + value
        return value
    if isinstance(value, dict):
        # Some templates write '<|' + role + '|>', so a role may be the inside of a control token; and they
        # compare a part's type with 'text', which is inside <|endoftext|>.
        return {
            key: _guard(item, control, mark, key not in ("role", "type"))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_guard(item, control, mark, inside) for item in value]
    return value


def _cut(text: str, control: _Control, mark: str, start: str, end: str) -> list[Piece]:
    """Undo the marks: control tokens apart, plain text joined, with the spans between `start` and `end`."""
    pieces: list[Piece] = []
    plain, spans = "", []
    opened: int | None = None  # where in `plain` the generation under way begins

    def close_span() -> None:
        if opened is not None and len(plain) > opened:
            spans.append((opened, len(plain)))

    for part in re.split(f"({control.pattern.pattern}|{start}|{end})", text):
        if part == start:
            opened = len(plain)
        elif part == end:
            close_span()
            opened = None
        elif part in control.tokens:
            close_span()
            if plain:
                pieces.append(Piece(plain, False, tuple(spans)))
            pieces.append(Piece(part, True, ((0, len(part)),) if opened is not None else ()))
            plain, spans, opened = "", [], None if opened is None else 0
        else:
            plain += part.replace(mark, "")
    close_span()
    if plain:
        pieces.append(Piece(plain, False, tuple(spans)))
    return pieces


def _prepare(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Plain dicts without None values, reasoning under each of its three names, as transformers 5 does."""
    prepared = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise RequestError(
                f'message {index} must be an object with "role" and "content", not {message!r}'
            )
        plain = {key: value for key, value in _plain(message).items() if value is not None}
        reasoning = next((plain[key] for key in _REASONING if key in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        prepared.append(plain)
    return prepared


def _plain(value: Any) -> Any:
    """Rebuilt from JSON types: other objects have methods that the sandbox does not know to be dangerous."""
    if value is None or type(value) in (int, float, bool):
        return value
    if isinstance(value, str):
        return check_unicode(str.__str__(value), "a text of the conversation")
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _run(
    template: str,
    messages: list[dict[str, Any]],
    variables: Mapping[str, Any],
    marks: tuple[str, str],
) -> str:
    values = {"tools": None, "documents": None, "add_generation_prompt": False, **_plain(variables)}
    return run_template(template, {**values, "messages": messages, "generation_marks": marks})
