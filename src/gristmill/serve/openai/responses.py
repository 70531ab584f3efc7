"""/v1/responses: a conversation's next turn, in items; kept, so that the next request need not repeat it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gristmill.errors import WorkError
from gristmill.serve.errors import FieldError, broken_off
from gristmill.serve.exchange import End, Exchange
from gristmill.serve.http import EventStream, read, unless_gone, warnings
from gristmill.serve.lifecycle import Lifecycle
from gristmill.serve.openai.response_archive import NO_STORE, Archive, Background
from gristmill.serve.openai.response_body import ResponseRequest
from gristmill.serve.openai.response_events import EventWriter, Output
from gristmill.serve.openai.response_items import Fields, kept_items, new_id
from gristmill.serve.openai.shapes import PING
from gristmill.serve.server import Server
from gristmill.serve.ticket import Ticket

log = logging.getLogger("gristmill.serve")


class Making:
    """One response while it is made. response: as it is told, at any time."""

    def __init__(
        self, exchange: Exchange, echo: Fields, archive: Archive | None, items: list[Fields]
    ) -> None:
        """archive: where it is kept at its end; None: it is not."""
        self._exchange, self._archive, self._items = exchange, archive, items
        params, tokenizer = exchange.ask.params, exchange.served.engine.tokenizer
        self._output = Output(None if params.logprobs is None else tokenizer)
        self.response: Fields = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": exchange.served.name,
            "output": [],
            "usage": None,
            **echo,
            "store": archive is not None,
            "seed": params.seed,
        }
        self.deleted = False
        self._alone: asyncio.Task[None] | None = None
        self._cancelled = False

    async def start(self) -> None:
        """Raises what is refused."""
        await self._exchange.start()

    async def events(self) -> AsyncIterator[list[Fields]]:
        """From the first to the last; none when there was no news for a while. Raises what went wrong."""
        yield [self._told("created"), self._told("in_progress")]
        async for pieces in self._exchange.pieces():
            events = [event for piece in pieces for event in self._output.take(piece)]
            if events or not pieces:
                yield events
            for end in [piece.end for piece in pieces if piece.end is not None]:
                await self._complete(end)
                yield [self._told(self.response["status"])]

    async def failed(self, error: Exception) -> list[Fields]:
        """The last events, after what went wrong."""
        told = broken_off(error)
        events = self._output.close("incomplete")
        try:
            await self._end(status="failed", error={"code": "server_error", "message": str(told)})
        except WorkError:  # the store may be what failed
            log.exception("a response could not be kept")
        return [*events, self._told("failed")]

    async def go_on_alone(self, under_way: dict[str, Background], life: Lifecycle) -> None:
        """To the end, with nobody waiting. Returns when it is known in the archive."""
        assert self._archive is not None
        # What is told of it after a crash; its end takes the place of this.
        error = {"code": "server_error", "message": "the server stopped before the answer's end"}
        await self._archive.keep({**self.response, "status": "failed", "error": error}, self._items)
        under_way[self.response["id"]] = self
        self._alone = asyncio.create_task(self._to_the_end(life))
        self._alone.add_done_callback(lambda _: under_way.pop(self.response["id"]))

    async def cancel(self) -> None:
        self._cancelled = True
        self._exchange.cancel()
        if self._alone is not None:
            await asyncio.wait({self._alone})

    async def _to_the_end(self, life: Lifecycle) -> None:
        with life.working(), life.abortable(self._exchange.abort):
            try:
                async for _ in self.events():
                    pass
            except Exception as error:
                if not self._cancelled:
                    await self.failed(error)
                    return
                self._output.close("incomplete")
                await self._end(status="cancelled")

    async def _complete(self, end: End) -> None:
        completion = end.completion
        used = len(completion.token_ids)
        cut_short = end.finish_reason == "length"
        await self._end(
            status="incomplete" if cut_short else "completed",
            completed_at=None if cut_short else int(time.time()),
            incomplete_details={"reason": "max_output_tokens"} if cut_short else None,
            usage={
                "input_tokens": completion.prompt_tokens,
                # What is written to the cache is not counted apart: it costs nothing.
                "input_tokens_details": {
                    "cached_tokens": completion.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": used,
                "output_tokens_details": {"reasoning_tokens": end.reasoning_tokens},
                "total_tokens": completion.prompt_tokens + used,
            },
        )

    async def _end(self, **fields: Any) -> None:
        """Kept before it is told: whoever is told may ask for it."""
        ended = {**self.response, "output": self._output.items, **fields}
        try:
            if self._archive is not None and not self.deleted:
                await self._archive.keep(ended, self._items)
        finally:
            self.response = ended

    def _told(self, event: str) -> Fields:
        return {"type": f"response.{event}", "response": self.response}


async def create(server: Server, request: Request) -> Response:
    body = await read(request, ResponseRequest)
    body.check_echo()
    served = server.model(request, body.model)
    archive = archive_of(server)
    keeps = _keeps(body, archive)
    items = kept_items(body.input)
    ask = body.ask(served, await archive.conversation(body.previous_response_id), items)
    exchange = Exchange(served, ask, Ticket(request))
    making = Making(exchange, body.echo(), archive if keeps else None, items)
    headers = warnings(body)
    if body.stream:
        await unless_gone(request, exchange, making.start())
        return EventStream(exchange, _stream(making), headers)
    life = server.operations.lifecycle
    work = _in_background(making, archive, life) if body.background else _whole(making)
    await unless_gone(request, exchange, work)
    return JSONResponse(making.response, headers=headers)


async def get(server: Server, request: Request) -> Response:
    _check_query(request, "stream", "starting_after", "include", "include[]", "include_obfuscation")
    return JSONResponse(await archive_of(server).response(request.path_params["id"]))


async def delete(server: Server, request: Request) -> Response:
    id = request.path_params["id"]
    await archive_of(server).delete(id)
    return JSONResponse({"id": id, "object": "response", "deleted": True})


async def cancel(server: Server, request: Request) -> Response:
    return JSONResponse(await archive_of(server).cancel(request.path_params["id"]))


async def input_items(server: Server, request: Request) -> Response:
    _check_query(request, "include", "include[]")
    limit, order, after = _page(request)
    items = await archive_of(server).input_of(request.path_params["id"])
    if order == "desc":
        items.reverse()
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise FieldError("after", f"{after!r:.80} is none of the items")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    return JSONResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else "",
            "last_id": page[-1]["id"] if page else "",
            "has_more": len(items) > limit,
        }
    )


def archive_of(server: Server) -> Archive:
    return Archive(server.store, server.background)


def _keeps(body: ResponseRequest, archive: Archive) -> bool:
    """Whether the response is kept. Raises FieldError."""
    for name, wanted in (("store", body.store), ("background", body.background)):
        if wanted and archive.store is None:
            raise FieldError(name, NO_STORE, "unsupported")
    if body.background and body.store is False:
        raise FieldError("background", "needs store: true, to be fetched later")
    if body.background and body.stream:
        raise FieldError("background", "is not served with stream: true", "unsupported")
    return archive.store is not None and body.store is not False


async def _whole(making: Making) -> None:
    await making.start()
    async for _ in making.events():
        pass


async def _in_background(making: Making, archive: Archive, life: Lifecycle) -> None:
    await making.start()
    await making.go_on_alone(archive.under_way, life)


async def _stream(making: Making) -> AsyncIterator[bytes]:
    writer = EventWriter()
    try:
        async for events in making.events():
            yield writer.write(events) or PING
    except Exception as error:  # the status is out already: say it in the stream
        yield writer.write(await making.failed(error))


def _page(request: Request) -> tuple[int, str, str | None]:
    """limit, order, after. Raises FieldError."""
    query = request.query_params
    limit, order = query.get("limit", "20"), query.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= 100):
        raise FieldError("limit", f"must be a number from 1 to 100, not {limit!r:.80}")
    if order not in ("asc", "desc"):
        raise FieldError("order", f"must be asc or desc, not {order!r:.80}")
    return int(limit), order, query.get("after")


def _check_query(request: Request, *refused: str) -> None:
    for name in refused:
        if request.query_params.get(name, "false").lower() != "false":
            raise FieldError(name, "this server does not serve it; leave it out", "unsupported")
