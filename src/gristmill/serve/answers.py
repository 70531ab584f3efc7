"""What a chat response looks like, whole and as server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gristmill.lm import Completion, TokenLogprob
from gristmill.serve.running import End
from gristmill.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


@dataclass(frozen=True)
class Envelope:
    """The fields that every piece of one response shares."""

    model: str
    seed: int
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, end: End, logprobs: list[dict[str, Any]] | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": end.text, "refusal": None, **citations(end)}
        choice = _choice("message", message, end.completion.finish_reason, logprobs)
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
            "usage": usage(end.completion),
            "seed": self.seed,
        }

    def event(
        self,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: list[dict[str, Any]] | None = None,
    ) -> bytes:
        return self._chunk([_choice("delta", delta, finish_reason, logprobs)], None)

    def last_event(self, end: End, logprobs: list[dict[str, Any]] | None) -> bytes:
        return self.event(citations(end), end.completion.finish_reason, logprobs)

    def usage_event(self, completion: Completion) -> bytes:
        return self._chunk([], usage(completion))

    def _chunk(self, choices: list[dict[str, Any]], used: dict[str, int] | None) -> bytes:
        chunk: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "seed": self.seed,
        }
        if self.include_usage:
            chunk["usage"] = used
        return event(chunk)


def _choice(
    kind: str, content: dict[str, Any], finish_reason: str | None, logprobs: list[Any] | None
) -> dict[str, Any]:
    return {
        "index": 0,
        kind: content,
        "finish_reason": finish_reason,
        "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
    }


def citations(end: End) -> dict[str, Any]:
    """What supports the answer, and whether the documents hold one; absent when nothing was looked up."""
    if end.citations is None:
        return {}
    cited = [
        {"source": p.source, "line": p.line, "title": p.title, "text": p.text}
        for p in end.citations
    ]
    return {"citations": cited, "found": end.found}


def usage(completion: Completion) -> dict[str, int]:
    prompt, output = completion.prompt_tokens, len(completion.token_ids)
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def error_body(
    message: str,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """OpenAI's error envelope."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def logprob_entries(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """One entry a token. `bytes` are its raw bytes, also where they are half a character."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token_id)
        return {
            "token": raw.decode("utf-8", errors="replace"),
            "logprob": max(logprob, -9999.0),  # JSON has no -inf; OpenAI's own floor
            "bytes": list(raw),
        }

    return [
        {**entry(t.token_id, t.logprob), "top_logprobs": [entry(i, value) for i, value in t.top]}
        for t in logprobs
    ]
