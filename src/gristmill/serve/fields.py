"""What a chat request may contain. A documented field is honoured or refused by name; none is
ignored.

Fields that no API documents are accepted, and the response names them in a warning header: clients
add their own. Field names are OpenAI's; sampling extensions carry vLLM's names; `retrieval` is
ours.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from gristmill.errors import RequestError
from gristmill.lm import Message, SamplingParams

MAX_MESSAGES = 1024
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20

# Documented by OpenAI or vLLM, and not served here: refused unless the value asks for nothing.
REFUSED = {
    "n": 1,
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": None,
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "logit_bias": {},
    "modalities": ["text"],
    "audio": None,
    "prediction": None,
    "reasoning_effort": None,
    "verbosity": None,
    "web_search_options": None,
    "min_tokens": 0,
    "ignore_eos": False,
    "include_stop_str_in_output": False,
    "skip_special_tokens": True,
    "prompt_logprobs": None,
    "bad_words": [],
    "allowed_token_ids": None,
    "chat_template": None,
    "chat_template_kwargs": {},
    "add_generation_prompt": True,
    "continue_final_message": False,
    "structured_outputs": None,
    "guided_json": None,
    "guided_regex": None,
    "guided_choice": None,
    "guided_grammar": None,
    "truncate_prompt_tokens": None,
    "return_token_ids": False,
    "best_of": 1,
    "use_beam_search": False,
    "echo": False,
}
# Documented, and without effect on an answer by their own definition.
NOTED = frozenset(
    [
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "priority",
        "cache_salt",
    ]
)
HONOURED = frozenset(
    [
        "model",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "stop_token_ids",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logprobs",
        "top_logprobs",
        "stream",
        "stream_options",
        "retrieval",
    ]
)


_LIMITS = ("max_completion_tokens", "max_tokens")  # the newer name wins


class FieldError(RequestError):
    """A field of the request is wrong; `param` is its path, as in `messages[2].content`."""

    def __init__(self, param: str, message: str, code: str = "invalid_value") -> None:
        super().__init__(f"{param}: {message}")
        self.param, self.code = param, code


@dataclass(frozen=True)
class Ask:
    """A chat request that has been understood."""

    model: str | None
    messages: list[Message]
    params: SamplingParams
    stream: bool
    include_usage: bool
    retrieval: bool
    limited_by: str | None  # the field that asks for a number of tokens, which must then fit
    unknown: tuple[str, ...]


def parse(body: dict[str, Any], context: int) -> Ask:
    """Read a request body. `context` is the model's: the default of max_tokens is what it leaves.

    Raises FieldError naming the first field that is wrong or not served.
    """
    for name, harmless in REFUSED.items():
        if name in body and body[name] is not None and body[name] != harmless:
            raise FieldError(name, "this server does not serve it; leave it out", "unsupported")
    model = _optional(body, "model", str, None)
    stream = _optional(body, "stream", bool, False)
    options = _optional(body, "stream_options", dict, {})
    for name in options:
        if name != "include_usage":
            raise FieldError(
                f"stream_options.{name}", "this server does not serve it", "unsupported"
            )
    if options and not stream:
        raise FieldError("stream_options", "belongs to a request with stream: true")
    return Ask(
        model=model,
        messages=_messages(body),
        params=_params(body, context),
        stream=stream,
        include_usage=_optional(options, "include_usage", bool, False, "stream_options."),
        retrieval=_optional(body, "retrieval", bool, False),
        limited_by=next((name for name in _LIMITS if body.get(name) is not None), None),
        unknown=tuple(sorted(set(body) - HONOURED - NOTED - REFUSED.keys())),
    )


def _params(body: dict[str, Any], context: int) -> SamplingParams:
    limit = context  # the engine ends at the context's end: all that the prompt leaves
    for name in reversed(_LIMITS):
        limit = _integer(body, name, 1, None, limit)
    wanted = _optional(body, "logprobs", bool, False)
    alternatives = _integer(body, "top_logprobs", 0, MAX_TOP_LOGPROBS, None)
    if alternatives is not None and not wanted:
        raise FieldError("top_logprobs", "needs logprobs: true")
    stop = body.get("stop")
    stop = [] if stop is None else [stop] if isinstance(stop, str) else stop
    strings = isinstance(stop, list) and all(isinstance(s, str) and s for s in stop)
    if not strings or len(stop) > MAX_STOPS:
        raise FieldError("stop", f"must be a non-empty string, or a list of at most {MAX_STOPS}")
    stop_ids = _optional(body, "stop_token_ids", list, [])
    if not all(type(i) is int for i in stop_ids):
        raise FieldError("stop_token_ids", "must be a list of integers")
    seed = _integer(body, "seed", -(2**63), 2**64 - 1, None)
    top_k = _integer(body, "top_k", -1, None, None)
    return SamplingParams(
        max_tokens=limit,
        temperature=_number(body, "temperature", 0, 2, 1.0),
        top_k=top_k if top_k and top_k > 0 else None,  # vLLM: 0 and -1 are off
        top_p=_number(body, "top_p", 0, 1, 1.0, above=True),
        min_p=_number(body, "min_p", 0, 1, 0.0),
        repetition_penalty=_number(body, "repetition_penalty", 0, 100, 1.0, above=True),
        frequency_penalty=_number(body, "frequency_penalty", -2, 2, 0.0),
        presence_penalty=_number(body, "presence_penalty", -2, 2, 0.0),
        seed=secrets.randbits(31) if seed is None else seed % 2**64,
        stop=tuple(stop),
        stop_token_ids=tuple(stop_ids),
        logprobs=(alternatives or 0) if wanted else None,
    )


def _messages(body: dict[str, Any]) -> list[Message]:
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise FieldError("messages", "must be a non-empty list of {role, content}", "missing")
    if len(given) > MAX_MESSAGES:
        raise FieldError("messages", f"has {len(given)} entries; at most {MAX_MESSAGES} are taken")
    messages = []
    for i, message in enumerate(given):
        place = f"messages[{i}]"
        if not isinstance(message, dict):
            raise FieldError(place, "must be an object with role and content")
        role = message.get("role")
        if role == "developer":
            role = "system"  # OpenAI's newer name for it
        if role in ("tool", "function") or message.get("tool_calls"):
            raise FieldError(f"{place}.role", "this server does not serve tools", "unsupported")
        if role not in ("system", "user", "assistant"):
            raise FieldError(f"{place}.role", f"must be system, user or assistant, not {role!r}")
        messages.append({"role": role, "content": _content(message.get("content"), place)})
    if messages[-1]["role"] == "assistant":
        raise FieldError("messages", "the last message must not be the assistant's own")
    return messages


def _content(content: object, place: str) -> str:
    if isinstance(content, list):
        parts = []
        for j, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text":
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise FieldError(
                    f"{place}.content[{j}]",
                    f"only text parts are served, not {kind!r}",
                    "unsupported",
                )
            parts.append(part.get("text"))
        if all(isinstance(part, str) for part in parts):
            content = "".join(parts)
    if not isinstance(content, str):
        raise FieldError(f"{place}.content", "must be a string or a list of text parts")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise FieldError(
            f"{place}.content", f"is not valid Unicode: half a surrogate pair at {error.start}"
        ) from None
    return content


def _optional(body: dict[str, Any], name: str, kind: type, default: Any, prefix: str = "") -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        words = {str: "a string", bool: "true or false", dict: "an object", list: "a list"}
        raise FieldError(
            f"{prefix}{name}", f"must be {words[kind]}, not {value!r:.80}", "invalid_type"
        )
    return value


def _integer(body: dict[str, Any], name: str, low: int, high: int | None, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int:
        raise FieldError(name, f"must be an integer, not {value!r:.80}", "invalid_type")
    if value < low or (high is not None and value > high):
        raise FieldError(name, f"must be {_range(low, high)}, not {value!r:.80}")
    return value


def _number(
    body: dict[str, Any], name: str, low: float, high: float, default: float, above: bool = False
) -> float:
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in (int, float):
        raise FieldError(name, f"must be a number, not {value!r:.80}", "invalid_type")
    if not low <= value <= high or (above and value == low):
        allowed = f"above {low} and at most {high}" if above else _range(low, high)
        raise FieldError(name, f"must be {allowed}, not {value!r:.80}")
    return float(value)


def _range(low: float, high: float | None) -> str:
    return f"at least {low}" if high is None else f"{low} to {high}"
