"""Who asks: an API key on every route but those that are open to all."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from gristmill.serve.errors import ApiError
from gristmill.serve.http import error_response
from gristmill.serve.keys import Key, KeyFile

OPEN = frozenset({"/", "/health"})
OPEN_BELOW = ("/static/",)  # the app's own files hold nothing of anyone's


class Auth:
    """Puts the `Key` into scope["state"]["key"]; 401 without one.

    A key comes as `Authorization: Bearer KEY` or as `x-api-key: KEY`. Some clients send both, one of them a
    placeholder: either may be the right one.
    """

    def __init__(self, app: ASGIApp, keys: KeyFile) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"]):
            return await self._app(scope, receive, send)
        offered = _offered(scope)
        key = next((key for secret in offered if (key := self._keys.find(secret))), None)
        if key is None:
            refusal = _refusal("wrong" if offered else "missing")
            return await error_response(scope["path"], refusal)(scope, receive, send)
        scope.setdefault("state", {})["key"] = key
        await self._app(scope, receive, send)


def is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_BELOW)


def key_of(scope: Scope) -> Key | None:
    """Who asks; None where the server has no keys, and on open routes."""
    return scope.get("state", {}).get("key")


def _offered(scope: Scope) -> list[bytes]:
    secrets = []
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, secret = value.strip().partition(b" ")
            if scheme.lower() == b"bearer" and secret.strip():
                secrets.append(secret.strip())
        elif name == b"x-api-key" and value.strip():
            secrets.append(value.strip())
    return secrets[:2]


def _refusal(why: str) -> ApiError:
    told = {
        "missing": "this server asks for an API key: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
        "wrong": "the API key is not one of this server's; whoever runs it makes one by `gristmill serve keys add`",
    }
    return ApiError(
        401,
        told[why],
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )
