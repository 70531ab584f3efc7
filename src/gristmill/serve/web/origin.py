"""What all handlers of the app share: the state they need, and who may change it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar, Protocol, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gristmill.serve.complaints import field_error
from gristmill.serve.errors import ApiError
from gristmill.serve.http import Body
from gristmill.serve.models import Served
from gristmill.serve.store import Store
from gristmill.serve.web.attached import Attachments

JSON, OCTETS = "application/json", "application/octet-stream"
Handler = Callable[[Request], Awaitable[Response]]


class State(Protocol):
    """What the app's routes need of the server."""

    @property
    def models(self) -> Iterable[Served]: ...

    @property
    def store(self) -> Store | None: ...

    @property
    def attachments(self) -> Attachments: ...

    @property
    def keys_required(self) -> bool: ...

    def stats(self) -> dict[str, Any]:
        """`GET /app/stats`: {"time", "models": {name: counters}, "memory_bytes"}."""
        ...


class Strict(Body):
    """A body of the app's own: a field that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    REFUSED: ClassVar[dict[str, Any]] = {}


T = TypeVar("T", bound=Strict)


def store_of(state: State) -> Store:
    """Raises ApiError, 404."""
    if state.store is None:
        raise ApiError(
            404, "this server keeps nothing: it was started without a store", code="no_store"
        )
    return state.store


def route(path: str, method: str, handler: Handler, accepts: str = JSON) -> Route:
    """A route of the app. One that changes something answers only to the app's own pages.

    accepts: the content type of a body. A page elsewhere can send forms and plain text here, but neither of the two
    that the app sends without asking this server first.
    """

    async def guarded(request: Request) -> Response:
        if method != "GET":
            _check_origin(request)
        if method in ("POST", "PUT"):
            _check_type(request, accepts)
        return await handler(request)

    return Route(path, guarded, methods=[method])


def _check_origin(request: Request) -> None:
    """Browsers that tell how the page is related are believed, also through a proxy that renames the host; older ones
    tell where it is from. Programs that are no browsers say neither."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        own = origin is None or _place(origin) == request.headers.get("host", "").lower()
    if not own:
        raise ApiError(
            403,
            f"only the server's own page may do this, not one of {origin or site!r:.200}",
            code="cross_origin",
        )


def _place(origin: str) -> str | None:
    """Host and port; None for what is no origin, such as `null`."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _check_type(request: Request, accepts: str) -> None:
    given = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if given != accepts:
        raise ApiError(415, f"send {accepts}, not {given[:100] or 'a body without a content type'}")


async def octets(request: Request, limit: int) -> bytes:
    """The body as it comes. Raises ApiError, 413, as soon as it has more than `limit` bytes."""
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > limit:
            raise ApiError(413, f"the request is larger than {limit >> 20} MiB")
    return bytes(raw)


def parsed(raw: bytes, kind: type[T]) -> T:
    """A body of JSON. Raises ApiError, and FieldError for the first field that is wrong. Not for an event loop: one of
    some MiB takes a while."""
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            told = first["msg"].removeprefix("Invalid JSON: ")
            raise ApiError(400, f"the request is not JSON: {told}", code="invalid_json") from None
        raise field_error(error) from None
    return body


def download(content: bytes, name: str, media_type: str, **headers: str) -> Response:
    """A response that browsers save as `name`."""
    plain = name.isascii() and not set(name) & set('"\\')
    file = f'filename="{name}"' if plain else f"filename*=UTF-8''{quote(name, safe='')}"
    disposition = f"attachment; {file}"
    return Response(
        content, media_type=media_type, headers={"content-disposition": disposition, **headers}
    )


def answer(value: dict[str, Any], status: int = 200) -> Response:
    return JSONResponse(value, status_code=status, headers={"cache-control": "no-store"})
