"""What a refused or failed request gets: a status, and one of two envelopes (OpenAI's, or Anthropic's)."""

from __future__ import annotations

import json
import logging
from typing import Any

from gristmill.errors import RequestError, WorkError
from gristmill.serve.worker import Cancelled, Unavailable

log = logging.getLogger("gristmill.serve")

FAILED = "the server failed; see its log"
OVERLOADED = 529  # Anthropic's, for what is 503 elsewhere
CLIENT_GONE = 499  # nobody reads it; nginx's "client closed request"


class ApiError(Exception):
    """A response other than 200. kind, code: OpenAI's `type` and `code`."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.headers = headers or {}


class FieldError(RequestError):
    """A field of the request is wrong; `param` is its path, as in `messages[2].content`."""

    def __init__(self, param: str, message: str, code: str = "invalid_value") -> None:
        super().__init__(f"{param}: {message}")
        self.param, self.code = param, code


def as_api_error(error: Exception) -> ApiError:
    """Whatever went wrong, as what the client is told. What is nobody's request stays in the log."""
    match error:
        case ApiError():
            return error
        case FieldError():
            return ApiError(400, str(error), param=error.param, code=error.code)
        case RequestError():
            return ApiError(400, str(error))
        case Unavailable() | Cancelled():
            retry = {"retry-after": "5"}
            return ApiError(503, str(error), "server_error", code="unavailable", headers=retry)
        case WorkError():
            return ApiError(500, str(error), "server_error")
        case _:
            return ApiError(500, FAILED, "server_error")


def broken_off(error: Exception) -> ApiError:
    """`as_api_error`, for a stream whose status is out already: only the stream can say it, and the log where it is
    the server's own fault."""
    told = as_api_error(error)
    if told.status == 500:
        log.error("an answer broke off", exc_info=error)
    return told


def openai_body(error: ApiError) -> dict[str, Any]:
    message = {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}
    return {"error": message}


def openai_event(error: ApiError) -> bytes:
    """The last event of a stream of chat or completions."""
    return f"data: {json.dumps(openai_body(error))}\n\n".encode()


def responses_event(error: ApiError, number: int) -> bytes:
    """That of `/v1/responses`, which numbers its events."""
    told = {"code": error.code, "message": str(error), "param": error.param}
    numbered = {"type": "error", **told, "sequence_number": number}
    return f"event: error\ndata: {json.dumps(numbered)}\n\n".encode()


_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_body(error: ApiError) -> dict[str, Any]:
    """Anthropic's envelope has no place for the field: the message names it."""
    default = "api_error" if error.status >= 500 else "invalid_request_error"
    told = {"type": _ANTHROPIC.get(error.status, default), "message": str(error)}
    return {"type": "error", "error": told}


def anthropic_event(error: ApiError) -> bytes:
    """The last event of a stream."""
    return f"event: error\ndata: {json.dumps(anthropic_body(error))}\n\n".encode()


def is_anthropic(path: str) -> bool:
    """Whether a route is of Anthropic's API; all others speak OpenAI's."""
    return path.startswith("/v1/messages")


def anthropic_status(status: int) -> int:
    """What that API says where others say `status`."""
    return OVERLOADED if status == 503 else status
