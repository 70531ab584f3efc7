"""What stands before the routes, outermost first: log, tracing, origins, gate, keys, limits, bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.middleware import Middleware

from gristmill.serve.auth import Auth
from gristmill.serve.bounds import MAX_BODY_BYTES, Bounds
from gristmill.serve.keys import KeyFile
from gristmill.serve.lifecycle import Gate, Lifecycle
from gristmill.serve.limits import Limits, RateLimits
from gristmill.serve.logs import RequestLog, Write
from gristmill.serve.metrics import Metrics
from gristmill.serve.origins import Origins, cors
from gristmill.serve.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


@dataclass(frozen=True)
class Operations:
    """How an app is run. keys: without them anyone may ask. loopback: whether it listens on this machine alone.
    write: takes the lines of the request log; None writes none. tracing: takes a span of each request."""

    keys: KeyFile | None = None
    loopback: bool = True
    cors_origins: Sequence[str] = ()
    write: Write | None = None
    log_prompts: bool = False
    tracing: TracerProvider | None = None
    max_body_bytes: int = MAX_BODY_BYTES
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    metrics: Metrics = field(default_factory=Metrics)
    limits: Limits = field(default_factory=Limits)

    def middleware(self) -> list[Middleware]:
        """For Starlette(middleware=…). Preflights carry no key and are answered before keys are asked for; the gate
        counts all that got past the origins, so that draining waits for it."""
        return [
            Middleware(RequestLog, self.write or (lambda line: None), self.log_prompts),
            *([Middleware(Tracing, self.tracing)] if self.tracing else []),
            Middleware(Origins, self.loopback, self.cors_origins),
            *cors(self.cors_origins),
            Middleware(Gate, self.lifecycle),
            *([Middleware(Auth, self.keys)] if self.keys else []),
            Middleware(RateLimits, self.limits),
            Middleware(Bounds, self.max_body_bytes),
        ]
