"""Many prompts through one engine: a line of standard input each, answers in the order of the lines.

A line that begins with { is a JSON object: `prompt` or `messages`, and what it sets for itself (`max_tokens`,
`temperature`, …; `id` comes back with the answer). Every other line is a prompt as it stands; empty ones are
passed over. A line that is wrong gets an error in place of its answer, and the others go on.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gristmill.cli.answer import answer, is_cut
from gristmill.cli.asking import at_most_one, input_lines
from gristmill.errors import GristmillError, RequestError, WorkError, nearest
from gristmill.lm import Grammar, Request, SamplingParams

if TYPE_CHECKING:
    from gristmill.engine import Engine, Generation

_WINDOW = 128  # prompts that the engine holds at once, those that wait for a row included
_NUMBER = (int, float)
_SETTINGS: dict[str, tuple[type, ...]] = {
    "max_tokens": (int,),
    "min_tokens": (int,),
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "top_k": (int, type(None)),
    "min_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "presence_penalty": _NUMBER,
    "seed": (int, type(None)),
    "stop": (str, list),
    "ignore_eos": (bool,),
    "logprobs": (int, type(None)),
    "n": (int,),
}
# The forms, by the names of the options; what each takes, and its kind of Grammar.
_FORMS: dict[str, tuple[tuple[type, ...], Any]] = {
    "json_schema": ((dict,), "json_schema"),
    "json_object": ((bool,), "json_object"),
    "regex": ((str,), "regex"),
    "grammar": ((str,), "lark"),
    "choice": ((str, list), "choice"),
}
_GIVEN = ("id", "prompt", "messages")  # come back with the answer
_KEYS = (*_GIVEN, *_SETTINGS, *_FORMS)


@dataclass
class Line:
    """One line: its number, what it is called and asks, and its answer, or the error where it asks nothing sensible."""

    number: int
    given: dict[str, Any] = field(default_factory=dict)  # what comes back with the answer
    params: SamplingParams | None = None
    error: GristmillError | None = None
    family: list[Generation] = field(default_factory=list)  # the answers under way
    answer: dict[str, Any] | None = None
    cut: bool = False  # an answer ended before it had the form that was asked for

    @property
    def done(self) -> bool:
        return self.error is not None or self.answer is not None

    def row(self) -> dict[str, Any]:
        """What is written for it."""
        shown: dict[str, Any] = {"line": self.number, **self.given}
        return shown | ({"error": str(self.error)} if self.error else self.answer or {})


def read_lines(defaults: SamplingParams) -> list[Line]:
    """All of standard input. `defaults` holds for what a line does not set for itself."""
    lines = []
    for number, text in input_lines():
        line = Line(number)
        try:
            if isinstance(text, RequestError):
                raise text
            _read(line, text, defaults)
        except RequestError as error:
            line.error = error
        lines.append(line)
    return lines


def answered(
    engine: Engine, lines: list[Line], progress: Callable[[int, int], None]
) -> Iterator[Line]:
    """The lines with their answers, in order, each as soon as all before it are answered.

    `progress` is told after every step how many lines are answered, and how many tokens were generated.
    """
    waiting, unwritten = deque(lines), deque(lines)
    active: list[Line] = []
    lengths: dict[Generation, int] = {}
    ended = tokens = 0
    while unwritten:
        while waiting and len(active) < _WINDOW:
            line = waiting.popleft()
            _begin(engine, line)
            if line.error is None:
                active.append(line)
            else:
                ended += 1
        if active:
            for g, _ in engine.step():
                tokens += len(g.output) - lengths.get(g, 0)
                lengths[g] = len(g.output)
            for line in [line for line in active if all(g.completion for g in line.family)]:
                active.remove(line)
                ended += 1
                for g in line.family:
                    lengths.pop(g, None)
                _end(engine, line)
        progress(ended, tokens)
        while unwritten and unwritten[0].done:
            yield unwritten.popleft()


def _begin(engine: Engine, line: Line) -> None:
    if line.error is not None:
        return
    assert line.params is not None
    try:
        if "messages" in line.given:
            request = engine.chat_request(line.given["messages"], line.params)
        else:
            request = Request(line.given["prompt"], line.params)
        generation = engine.prepare(request)
    except RequestError as error:
        line.error = error
        return
    line.family = [generation, *generation.siblings]
    engine.add(generation)


def _end(engine: Engine, line: Line) -> None:
    assert line.params is not None
    try:
        found = [g.completion.checked() for g in line.family if g.completion is not None]
    except WorkError as error:
        line.error = error
        return
    line.answer = answer(engine, line.params, found)
    line.cut = any(is_cut(engine, line.params, completion) for completion in found)
    line.family = []


def _read(line: Line, text: str, defaults: SamplingParams) -> None:
    """What the line asks. Raises RequestError; what was read by then stays, so that the error names its line's id."""
    if not text.lstrip().startswith("{"):
        line.given, line.params = {"prompt": text}, defaults
        return
    try:
        asked = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"begins like a JSON object and is none: {error}") from None
    line.given = {name: asked[name] for name in _GIVEN if name in asked}
    for name in asked:
        if name not in _KEYS:
            raise RequestError(f'there is no key "{name}".{nearest(name, _KEYS)}')
    if ("prompt" in asked) == ("messages" in asked):
        raise RequestError("needs a prompt or messages, and not both")
    if "prompt" in asked and not isinstance(asked["prompt"], str):
        raise RequestError(f"prompt must be a string, not {asked['prompt']!r:.60}")
    if "messages" in asked:
        check_messages(asked["messages"])
    settings = {name: _setting(name, value) for name, value in asked.items() if name in _SETTINGS}
    forms = {name: asked[name] for name in _FORMS if name in asked}
    if forms:
        settings["grammar"] = _grammar(forms)
    line.params = replace(defaults, **settings)


def _grammar(forms: Mapping[str, Any]) -> Grammar | None:
    """The form that the line asks for; null, or false for json_object, lifts the command's own."""
    given = {
        name: value for name, value in forms.items() if value is not None and value is not False
    }
    at_most_one(given)
    for name, value in given.items():
        kinds, kind = _FORMS[name]
        _check_type(name, value, kinds)
        if kind == "json_object":
            return Grammar(kind)
        if kind == "choice":
            value = (value,) if isinstance(value, str) else tuple(value)
        return Grammar(kind, value)
    return None


def _setting(name: str, value: Any) -> Any:
    _check_type(name, value, _SETTINGS[name])
    if name == "stop":
        value = [value] if isinstance(value, str) else value
        if not all(isinstance(stop, str) for stop in value):
            raise RequestError("stop must be a string or a list of strings")
        return tuple(value)
    return value


_WORDS = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    dict: "an object",
    list: "a list of strings",
}


def _check_type(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
        return
    allowed = " or ".join(_WORDS[kind] for kind in kinds if kind in _WORDS)
    allowed = "a number" if kinds == _NUMBER else allowed
    raise RequestError(f"{name} must be {allowed}, not {value!r:.60}")


def check_messages(messages: Any) -> None:
    """Raises RequestError for what is no conversation."""
    right = isinstance(messages, list) and bool(messages)
    for message in messages if right else ():
        right = right and isinstance(message, dict) and set(message) == {"role", "content"}
        right = right and all(isinstance(value, str) for value in message.values())
        right = right and message["role"] in ("system", "user", "assistant")
    if not right:
        raise RequestError(
            'messages must be a list of {"role": "system", "user" or "assistant", "content": TEXT}'
        )
