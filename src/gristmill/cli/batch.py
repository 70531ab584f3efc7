"""Many prompts through one engine: a line of standard input each, answers in the order of the lines.

A line that begins with { is a JSON object: `prompt` or `messages`, and what it sets for itself (`max_tokens`,
`temperature`, …; `id` comes back with the answer). Every other line is a prompt as it stands; empty ones are
passed over. A line that is wrong gets an error in place of its answer, and the others go on.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gristmill.errors import GristmillError, RequestError, WorkError, nearest
from gristmill.lm import Completion, Request, SamplingParams

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
_KEYS = ("prompt", "messages", "id", *_SETTINGS)


@dataclass
class Line:
    """One line: its number, what it is called and asks, and the error where it asks nothing sensible."""

    number: int
    given: dict[str, Any] = field(default_factory=dict)  # what comes back with the answer
    params: SamplingParams | None = None
    error: GristmillError | None = None
    family: list[Generation] = field(default_factory=list)  # the answers under way

    @property
    def done(self) -> bool:
        return self.error is not None or all(g.completion is not None for g in self.family)

    def row(self) -> dict[str, Any]:
        """What is written for it."""
        shown: dict[str, Any] = {"line": self.number, **self.given}
        if self.error is not None:
            return shown | {"error": str(self.error)}
        first, *others = (_shown(g.completion) for g in self.family if g.completion)
        return shown | first | ({"alternatives": others} if others else {})


def read_lines(defaults: SamplingParams) -> list[Line]:
    """All of standard input. `defaults` holds for what a line does not set for itself."""
    lines = []
    for number, raw in enumerate(getattr(sys.stdin, "buffer", sys.stdin), 1):
        line = Line(number)
        try:
            text = (raw if isinstance(raw, str) else raw.decode("utf-8")).rstrip("\r\n")
            if not text.strip():
                continue
            line.given, line.params = _parse(text, defaults)
        except UnicodeDecodeError as error:
            line.error = RequestError(f"not UTF-8 text: {error}")
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
            for line in [line for line in active if line.done]:
                active.remove(line)
                ended += 1
                _end(line)
                for g in line.family:
                    lengths.pop(g, None)
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


def _end(line: Line) -> None:
    failed = next(
        (g.completion.error for g in line.family if g.completion and g.completion.error), ""
    )
    if failed:
        line.error = WorkError(failed)


def _parse(text: str, defaults: SamplingParams) -> tuple[dict[str, Any], SamplingParams]:
    if not text.lstrip().startswith("{"):
        return {"prompt": text}, defaults
    try:
        asked = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"begins like a JSON object and is none: {error}") from None
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
    given = {name: asked[name] for name in ("id", "prompt", "messages") if name in asked}
    return given, replace(defaults, **settings)


def _setting(name: str, value: Any) -> Any:
    kinds = _SETTINGS[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        words = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
        allowed = " or ".join(words[kind] for kind in kinds if kind in words)
        allowed = "a number" if kinds == _NUMBER else allowed
        raise RequestError(f"{name} must be {allowed}, not {value!r:.60}")
    if name == "stop":
        value = [value] if isinstance(value, str) else value
        if not all(isinstance(stop, str) for stop in value):
            raise RequestError("stop must be a string or a list of strings")
        return tuple(value)
    return value


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


def _shown(completion: Completion) -> dict[str, Any]:
    """The answer without what was not asked for; ids come with their log-probabilities."""
    shown: dict[str, Any] = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "output_tokens": len(completion.token_ids),
        "seed": completion.seed,
    }
    if completion.logprobs is not None:
        shown["logprobs"] = [asdict(token) for token in completion.logprobs]
    return shown
