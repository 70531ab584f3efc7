"""What OpenAI's responses share: identity, usage, log-probabilities, server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gristmill import __version__
from gristmill.lm import Completion, TokenLogprob
from gristmill.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
LEAST = -9999.0  # JSON has no -inf; OpenAI's own floor
# json.dumps makes a new encoder at every call that asks for something.
dumps = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class Identity:
    """The fields that every piece of one response shares. `object` is "chat.completion", say; seed: what was drawn
    with, so that the answer can be had again."""

    object: str
    prefix: str
    model: str
    seed: int | None
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.id or f"{self.prefix}-{secrets.token_hex(12)}")

    def fields(self, kind: str = "") -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.object + kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"gristmill-{__version__}",
            "seed": self.seed,
        }

    def stream(self, kind: str, include_usage: bool) -> Stream:
        return Stream(dumps(self.fields(kind))[:-1], include_usage)


class Stream:
    """Writes events whose beginnings and ends are made once. choice: the JSON of one entry of `choices`."""

    def __init__(self, head: str, include_usage: bool) -> None:
        self.include_usage = include_usage
        self._head = f'data: {head}, "choices": ['
        self._tail = '], "usage": null}\n\n' if include_usage else "]}\n\n"

    def event(self, choice: str) -> bytes:
        return f"{self._head}{choice}{self._tail}".encode()

    def usage(self, used: dict[str, Any]) -> bytes:
        return f'{self._head}], "usage": {json.dumps(used)}}}\n\n'.encode()


def usage(completions: Sequence[Completion], reasoning_tokens: int = 0) -> dict[str, Any]:
    """Of several answers to one prompt, which is counted once."""
    prompt = completions[0].prompt_tokens if completions else 0
    return total(prompt, completions, reasoning_tokens)


def total(
    prompt_tokens: int, completions: Sequence[Completion], reasoning_tokens: int = 0
) -> dict[str, Any]:
    output = sum(len(c.token_ids) for c in completions)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output,
        "total_tokens": prompt_tokens + output,
        "prompt_tokens_details": {
            "cached_tokens": max((c.cached_tokens for c in completions), default=0)
        },
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def logprob_entries(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Chat's: one entry a token. `bytes` are its raw bytes, also where they are half a character."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token_id)
        token = raw.decode("utf-8", errors="replace")
        return {"token": token, "logprob": max(logprob, LEAST), "bytes": list(raw)}

    return [
        {**entry(t.token_id, t.logprob), "top_logprobs": [entry(i, value) for i, value in t.top]}
        for t in logprobs
    ]
