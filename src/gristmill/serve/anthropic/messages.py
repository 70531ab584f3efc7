"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gristmill.serve.anthropic.body import CountTokensRequest, MessagesRequest
from gristmill.serve.anthropic.events import PING, STOP, Content, event, usage
from gristmill.serve.errors import anthropic_event, broken_off
from gristmill.serve.exchange import End, Exchange
from gristmill.serve.http import EventStream, read, unless_gone, warnings
from gristmill.serve.openai.shapes import dumps
from gristmill.serve.server import Server
from gristmill.serve.ticket import Ticket


async def messages(server: Server, request: Request) -> Response:
    body = await read(request, MessagesRequest)
    served = server.model(request, body.model)
    ask = body.ask(served)
    exchange = Exchange(served, ask, Ticket(request))
    headers = {**warnings(body), "x-gristmill-seed": str(ask.params.seed)}
    if body.stream:
        await unless_gone(request, exchange, exchange.start())
        return EventStream(exchange, _events(exchange), headers)
    answer = await unless_gone(request, exchange, _whole(exchange))
    return Response(answer, headers=headers, media_type="application/json")


async def count_tokens(server: Server, request: Request) -> Response:
    body = await read(request, CountTokensRequest)
    served = server.model(request, body.model)
    told, (tools, _) = body.conversation(), body.tools_offered()
    variables = body.variables(served)
    prompt = await asyncio.to_thread(served.prompt, told, tools, variables, body.continued)
    return JSONResponse({"input_tokens": len(prompt.ids)}, headers=warnings(body))


async def _whole(exchange: Exchange) -> str:
    """JSON, in which inputs of tools stand as the model wrote them."""
    await exchange.start()
    content, end = Content(), None
    async for pieces in exchange.pieces():
        for piece in pieces:
            for each in piece.events:
                content.take(each)
            end = piece.end
    assert end is not None
    told = {**_head(exchange), **_stop(exchange, content, end), "usage": _usage(end) | _TIER}
    return f'{dumps(told)[:-1]}, "content": {content.whole()}}}'


async def _events(exchange: Exchange) -> AsyncIterator[bytes]:
    """The message starts with the first news, which tell what was cached; or when there were none for a while."""
    content, started = Content(), False
    try:
        async for pieces in exchange.pieces():
            out = []
            if not started:
                started = True
                out.append(_start(exchange))
            for piece in pieces:
                for each in piece.events:
                    out += content.take(each)
                if piece.end is not None:
                    out += [*content.close(), _delta(exchange, content, piece.end), STOP]
            if not pieces:
                out.append(PING)
            if out:
                yield b"".join(out)
    except Exception as error:
        yield anthropic_event(broken_off(error))


def _start(exchange: Exchange) -> bytes:
    message = {
        **_head(exchange),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage(*exchange.prompt_tokens, 0) | _TIER,
    }
    return event("message_start", f'"message": {dumps(message)}')


def _delta(exchange: Exchange, content: Content, end: End) -> bytes:
    told = {"delta": _stop(exchange, content, end), "usage": _usage(end)}
    return event("message_delta", dumps(told)[1:-1])


def _head(exchange: Exchange) -> dict[str, Any]:
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": exchange.served.name,
    }


_TIER = {"service_tier": "standard"}


def _usage(end: End) -> dict[str, Any]:
    completion = end.completion
    output = len(completion.token_ids)
    return usage(completion.prompt_tokens, completion.cached_tokens, output, end.reasoning_tokens)


def _stop(exchange: Exchange, content: Content, end: End) -> dict[str, Any]:
    """Why the answer ended."""
    completion = end.completion
    reason = "tool_use" if content.called else "end_turn"
    if completion.finish_reason == "length":
        full = len(completion.token_ids) >= exchange.ask.params.max_tokens
        reason = "max_tokens" if full else "model_context_window_exceeded"
    elif completion.stop_string is not None:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": completion.stop_string}
