"""One request's part in its key's limits, in the log and in the server's life; the middleware made them."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from gristmill.serve.limits import Allowance
from gristmill.serve.logs import Record
from gristmill.serve.watching import Times


class Ticket:
    """Of a request that came past the middleware; another has none of these, and nothing binds it."""

    def __init__(self, request: Request) -> None:
        state = request.scope.get("state", {})
        self._allowance: Allowance | None = state.get("allowance")
        self._record: Record = state.get("record") or Record()

    def asks(self, model: str, prompt: Any = None) -> None:
        """prompt: for the log, where it keeps them."""
        self._record.model, self._record.prompt = model, prompt

    def charge(self, tokens: int, asked_for: bool = True) -> None:
        """See Allowance.charge."""
        if self._allowance is not None:
            self._allowance.charge(tokens, asked_for)

    def settle(self, prompt: int, completion: int, cached: int = 0) -> None:
        """What it came to."""
        record = self._record
        record.prompt_tokens, record.completion_tokens = prompt, completion
        record.cached_tokens = cached
        if self._allowance is not None:
            self._allowance.settle(prompt + completion)

    def ended(self, reason: str, times: Times | None, answer: Any = None) -> None:
        record = self._record
        record.finish_reason, record.answer = reason, answer
        if times is not None:
            record.queue_ms = _ms(times.queue_seconds())
            record.ttft_ms = _ms(times.first_token_seconds())

    def failed(self, error: Exception) -> None:
        self._record.error = f"{type(error).__name__}: {error}"[:500]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
