"""What one key may take: requests and tokens a minute, answers at once.

Rates are token buckets: a bucket holds a minute's worth and fills evenly, so whoever was idle may take a minute's worth
at once, and over any t minutes nobody gets more than (1 + t) times the limit. Headers are OpenAI's.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gristmill.serve.auth import key_of
from gristmill.serve.errors import CLIENT_GONE, ApiError
from gristmill.serve.http import error_response
from gristmill.serve.keys import Key

Clock = Callable[[], float]  # seconds


class TooMany(ApiError):
    """429. retry_after: seconds until the same request would be admitted; None when it never would."""

    def __init__(self, message: str, kind: str, retry_after: float | None) -> None:
        # SDKs try a 429 again unless told otherwise.
        headers = {"x-should-retry": "false"}
        if retry_after is not None:
            headers = {"retry-after": str(max(1, math.ceil(retry_after)))}
        super().__init__(429, message, kind, code="rate_limit_exceeded", headers=headers)


@dataclass
class Bucket:
    """`used` of a minute's limit, given back evenly. The limit comes with each call: it may change meanwhile."""

    at: float
    used: float = 0.0

    def left(self, limit: float, now: float) -> float:
        self.used = max(0.0, self.used - (now - self.at) * limit / 60)
        self.at = now
        return limit - self.used

    def wait(self, amount: float, limit: float, now: float) -> float:
        """Seconds until so much is left; 0 when it is."""
        missing = amount - self.left(limit, now)
        return max(0.0, missing * 60 / limit) if missing > 1e-9 * limit else 0.0


@dataclass
class _Account:
    """What the requests of one key share."""

    requests: Bucket
    tokens: Bucket
    concurrent: int = 0


class Limits:
    """The accounts of all keys. Any thread may charge."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock, self.lock = clock, threading.Lock()
        self._accounts: dict[str, _Account] = {}

    def account(self, key: Key) -> _Account:
        now = self.clock()
        return self._accounts.setdefault(key.name, _Account(Bucket(now), Bucket(now)))


@dataclass
class Allowance:
    """One request's part of its key's limits: scope["state"]["allowance"]. Without a key nothing binds."""

    limits: Limits
    key: Key | None = None
    charged: int = 0
    settled: bool = field(default=False, init=False)

    def charge(self, tokens: int, asked_for: bool = True) -> None:
        """Take what the request may come to: its prompt and all that its answers may hold. Raises TooMany.

        asked_for: the client set the bound of its answers; else more than a minute's worth is charged as that."""
        if self.key is None or self.key.tokens_per_minute is None:
            return
        limit = self.key.tokens_per_minute
        tokens = tokens if asked_for else min(tokens, limit)
        with self.limits.lock:
            bucket, now = self.limits.account(self.key).tokens, self.limits.clock()
            if tokens > limit:
                raise TooMany(
                    f"the request may take {tokens} tokens and the key has {limit} a minute: "
                    "shorten the prompt, or ask for fewer by max_tokens",
                    "tokens",
                    None,
                )
            wait = bucket.wait(tokens, limit, now)
            if wait:
                raise TooMany(
                    f"the request may take {tokens} tokens, and of the key's {limit} a minute "
                    f"{math.floor(bucket.left(limit, now))} are left; ask again in {math.ceil(wait)} s, or for fewer",
                    "tokens",
                    wait,
                )
            bucket.used += tokens
            self.charged += tokens

    def tokens_used(self) -> float:
        """Of the key's minute; 0 where it has no such limit."""
        if self.key is None or self.key.tokens_per_minute is None:
            return 0.0
        limit = self.key.tokens_per_minute
        with self.limits.lock:
            return limit - self.limits.account(self.key).tokens.left(limit, self.limits.clock())

    def admitted(self, tokens: int) -> None:
        """Charge what was admitted elsewhere, by `tokens_used`."""
        if self.key is None or self.key.tokens_per_minute is None:
            return
        with self.limits.lock:
            bucket = self.limits.account(self.key).tokens
            bucket.left(self.key.tokens_per_minute, self.limits.clock())
            bucket.used += tokens
            self.charged += tokens

    def settle(self, actual: int) -> None:
        """Give back what was charged beyond what the request came to. Once; later calls do nothing."""
        if self.settled:
            return
        self.settled = True
        if self.key is None or self.key.tokens_per_minute is None:
            return
        with self.limits.lock:
            bucket = self.limits.account(self.key).tokens
            bucket.left(self.key.tokens_per_minute, self.limits.clock())
            bucket.used = max(0.0, bucket.used + actual - self.charged)

    def headers(self) -> dict[str, str]:
        """x-ratelimit-*, of the limits that there are."""
        if self.key is None:
            return {}
        shown: dict[str, str] = {}
        with self.limits.lock:
            account, now = self.limits.account(self.key), self.limits.clock()
            for kind, bucket, limit in (
                ("requests", account.requests, self.key.requests_per_minute),
                ("tokens", account.tokens, self.key.tokens_per_minute),
            ):
                if limit is not None:
                    left = bucket.left(limit, now)
                    shown[f"x-ratelimit-limit-{kind}"] = str(limit)
                    shown[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(left + 1e-9)))
                    shown[f"x-ratelimit-reset-{kind}"] = duration(bucket.wait(limit, limit, now))
        return shown


class RateLimits:
    """Admits requests by their key's limits. Tokens are charged and settled by whoever answers; what is not settled
    when the response begins is given back where it refuses, and else stays charged. So does what a client who left
    would have got: else leaving early would be free."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        key = key_of(scope)
        allowance = Allowance(self._limits, key)
        scope.setdefault("state", {})["allowance"] = allowance
        if key is None or not asks_the_model(scope):
            return await self._app(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400 and message["status"] != CLIENT_GONE:
                    allowance.settle(0)
                MutableHeaders(scope=message).update(allowance.headers())
            await send(message)

        try:
            account = self._enter(key)
        except TooMany as error:
            response = error_response(scope["path"], error)
            return await response(scope, receive, counted)
        try:
            await self._app(scope, receive, counted)
        finally:
            with self._limits.lock:
                account.concurrent -= 1

    def _enter(self, key: Key) -> _Account:
        with self._limits.lock:
            account, now = self._limits.account(key), self._limits.clock()
            if key.concurrent is not None and account.concurrent >= key.concurrent:
                raise TooMany(
                    f"{account.concurrent} requests of this key are under way, as many as it may have at once",
                    "requests",
                    1,
                )
            if (limit := key.requests_per_minute) is not None:
                if wait := account.requests.wait(1, limit, now):
                    raise TooMany(
                        f"the key's {limit} requests a minute are used up; ask again in {math.ceil(wait)} s",
                        "requests",
                        wait,
                    )
                account.requests.used += 1
            account.concurrent += 1
            return account


def asks_the_model(scope: Scope) -> bool:
    """Looking at models, figures and conversations costs nothing worth counting."""
    return scope["method"] == "POST" and not scope["path"].startswith("/app/")


def duration(seconds: float) -> str:
    """As OpenAI writes it: "17ms", "59s", "6m0s"; rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000 - 1e-6)}ms"
    whole = math.ceil(seconds - 1e-9)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
