"""Which web pages may speak to the server: its own, and those that were named.

A page from elsewhere reaches a server on loopback in two ways. It can let its own name point to 127.0.0.1 (DNS
rebinding): then the Host header says that name. Or it can post a plain form: then Origin says where it came from, and
that it may not read the answer does not undo what was done. Programs that are no browsers send no Origin.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gristmill.serve.errors import ApiError
from gristmill.serve.http import error_response

# Nothing on a page may come from, or go to, anywhere but this server.
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
}


def is_loopback(host: str) -> bool:
    """Whether a name or address, without a port, means this machine alone."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


class Origins:
    """421 for a Host that is not this machine's where the server is bound to loopback; 403 for a page from elsewhere.

    allowed: origins (`https://chat.example.org`) that may; "*" is all.
    """

    def __init__(self, app: ASGIApp, loopback: bool, allowed: Collection[str] = ()) -> None:
        self._app, self._loopback, self._allowed = app, loopback, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        error = self._why_not(Headers(scope=scope))
        if error is not None:
            return await error_response(scope["path"], error)(scope, receive, send)

        async def safer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("x-content-type-options", "nosniff")
                if headers.get("content-type", "").startswith("text/html"):
                    for name, value in PAGE_HEADERS.items():
                        headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, safer)

    def _why_not(self, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname if _is_authority(host) else None
        if self._loopback and host and not (name and is_loopback(name)):
            return ApiError(
                421, f"this server is at localhost, and the request asks for {host!r:.80}"
            )
        origin = headers.get("origin")
        if origin is None or headers.get("sec-fetch-site") in ("same-origin", "none"):
            return None
        if "*" in self._allowed or origin in self._allowed or origin.partition("://")[2] == host:
            return None
        return ApiError(
            403, f"pages from {origin!r:.80} may not use this server; --cors-origin allows them"
        )


def _is_authority(host: str) -> bool:
    try:
        urlsplit(f"//{host}")
    except ValueError:
        return False
    return not set(host) & set("/?#@\\")


def cors(allowed: Collection[str]) -> list[Middleware]:
    """What lets pages from `allowed` read the answers; nothing when there are none."""
    if not allowed:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(allowed),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "x-gristmill-warning"],
            max_age=600,
        )
    ]
