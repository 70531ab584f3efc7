"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gristmill.retrieval import Searchable
from gristmill.serve.errors import FieldError, broken_off, openai_event
from gristmill.serve.exchange import Ask, End, Exchange, Piece
from gristmill.serve.http import EventStream, read, unless_gone, warnings
from gristmill.serve.models import Served
from gristmill.serve.openai.messages import Messages, ToolChoice, Tools, conversation, tools_of
from gristmill.serve.openai.sampling import MAX_TOP_LOGPROBS, Part, Sampling
from gristmill.serve.openai.shapes import (
    DONE,
    PING,
    Identity,
    dumps,
    logprob_entries,
    usage,
)
from gristmill.serve.parsing import Event, Reasoning, Text, ToolArguments, ToolStart
from gristmill.serve.running import Names
from gristmill.serve.server import Server
from gristmill.serve.ticket import Ticket


class Retrieval(Part):
    """Ours: answer from the server's index, from attached files, or from both."""

    index: bool = False
    attachments: Annotated[list[str], Field(max_length=64)] = Field(default_factory=list)


class ChatRequest(Sampling):
    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    retrieval: bool | Retrieval | None = None

    REFUSED: ClassVar[dict[str, Any]] = {
        **Sampling.REFUSED,
        "functions": [],
        "function_call": "none",
        "modalities": ["text"],
        "audio": None,
        "prediction": None,
        "verbosity": None,
        "web_search_options": None,
        "chat_template": None,  # it would run code
        "best_of": 1,
        "echo": False,
    }

    def ask(self, server: Server, served: Served) -> Ask:
        """Raises FieldError."""
        if self.top_logprobs is not None and not self.logprobs:
            raise FieldError("top_logprobs", "needs logprobs: true")
        messages = conversation(self.messages)
        last_is_assistants = messages[-1]["role"] == "assistant"
        if last_is_assistants != bool(self.continue_final_message):
            raise FieldError(
                "messages" if last_is_assistants else "continue_final_message",
                "the last message must not be the assistant's own, unless continue_final_message is true"
                if last_is_assistants
                else "needs a last message of the assistant",
            )
        if self.add_generation_prompt is last_is_assistants:
            raise FieldError("add_generation_prompt", "this server always lets the model answer")
        tools, choice = tools_of(self.tools, self.tool_choice)
        if tools and self.grammar() is not None:
            raise FieldError(
                "response_format", "cannot be given beside tools; say tool_choice: none"
            )
        limits = {
            "max_completion_tokens": self.max_completion_tokens,
            "max_tokens": self.max_tokens,
        }
        limited_by = next((name for name, limit in limits.items() if limit is not None), None)
        limit = limits[limited_by] if limited_by else None
        return Ask(
            messages=messages,
            params=self.params(
                limit or served.context, (self.top_logprobs or 0) if self.logprobs else None
            ),
            names=Names("messages", self.form_field, limited_by),
            tools=tools,
            choice=choice,
            parallel=self.parallel_tool_calls is not False,
            variables=self._variables(),
            look_up=self._look_up(server, served),
            continued=bool(self.continue_final_message),
            cache_salt=self.cache_salt or "",
        )

    def _variables(self) -> dict[str, Any]:
        given = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            given.setdefault("reasoning_effort", self.reasoning_effort)
            given.setdefault("enable_thinking", self.reasoning_effort != "none")
        return given

    def _look_up(self, server: Server, served: Served) -> Callable[[], Searchable] | None:
        wanted = self.retrieval
        if wanted is True:
            wanted = Retrieval(index=True, attachments=[])
        if not wanted or not (wanted.index or wanted.attachments):
            return None
        if (self.n or 1) > 1 or self.tools or self.grammar():
            raise FieldError("retrieval", "cannot be given beside n, tools or response_format")
        if wanted.index and served.index is None:
            raise FieldError("retrieval", "this server was started without an index", "unsupported")
        return lambda: server.look_up(served.index if wanted.index else None, wanted.attachments)


async def chat(server: Server, request: Request) -> Response:
    body = await read(request, ChatRequest)
    served = server.model(request, body.model)
    ask = body.ask(server, served)
    exchange = Exchange(served, ask, Ticket(request))
    identity = Identity("chat.completion", "chatcmpl", served.name, ask.params.seed)
    headers = warnings(body)
    if body.stream:
        await unless_gone(request, exchange, exchange.start())
        events = _events(exchange, identity, body.include_usage)
        return EventStream(exchange, events, headers)
    answer = await unless_gone(request, exchange, _whole(exchange, identity))
    answer.headers.update(headers)
    return answer


async def _whole(exchange: Exchange, identity: Identity) -> Response:
    await exchange.start()
    ends = await exchange.whole()
    return JSONResponse(
        {
            **identity.fields(),
            "choices": [_choice(exchange, index, end) for index, end in enumerate(ends)],
            "usage": usage_of(ends),
        }
    )


def _choice(exchange: Exchange, index: int, end: End) -> dict[str, Any]:
    said = end.message
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if said.tool_calls and not said.content else said.content,
        "refusal": None,
        **citations(end),
    }
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    if said.tool_calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in said.tool_calls
        ]
    logprobs = None
    if exchange.ask.params.logprobs is not None:
        logprobs = _logprobs(exchange, exchange.logprobs(index))
    return {
        "index": index,
        "message": message,
        "finish_reason": end.finish_reason,
        "logprobs": logprobs,
    }


def usage_of(ends: list[End]) -> dict[str, Any]:
    return usage([end.completion for end in ends], sum(end.reasoning_tokens for end in ends))


def citations(end: End) -> dict[str, Any]:
    """What supports the answer, and whether the documents hold one; absent when nothing was looked up."""
    if end.citations is None:
        return {}
    cited = [
        {"source": p.source, "line": p.line, "title": p.title, "text": p.text}
        for p in end.citations
    ]
    return {"citations": cited, "found": end.found}


def _logprobs(exchange: Exchange, logprobs: list[Any]) -> dict[str, Any]:
    tokenizer = exchange.served.engine.tokenizer
    return {"content": logprob_entries(tokenizer, logprobs), "refusal": None}


async def _events(
    exchange: Exchange, identity: Identity, include_usage: bool
) -> AsyncIterator[bytes]:
    stream = identity.stream(".chunk", include_usage)
    with_logprobs = exchange.ask.params.logprobs is not None
    ends: list[End] = []
    try:
        yield b"".join(
            stream.event(_delta(index, '{"role": "assistant", "content": ""}'))
            for index in range(exchange.ask.params.n)
        )
        async for pieces in exchange.pieces():
            out: list[bytes] = [] if pieces else [PING]
            for piece in pieces:
                logprobs = _logprobs(exchange, piece.logprobs) if with_logprobs else None
                out += _piece(stream, piece, logprobs)
                if piece.end is not None:
                    ends.append(piece.end)
            if out:
                yield b"".join(out)
        yield (stream.usage(usage_of(ends)) if include_usage else b"") + DONE
    except Exception as error:
        yield openai_event(broken_off(error))


def _piece(stream: Any, piece: Piece, logprobs: dict[str, Any] | None) -> list[bytes]:
    """The log-probabilities go with the first of a piece's deltas."""
    told = "null" if logprobs is None else dumps(logprobs)
    out = []
    for delta in [delta for e in piece.events if (delta := _delta_of(e))]:
        out.append(stream.event(_delta(piece.index, delta, logprobs=told)))
        told = "null"
    if piece.end is None:
        if told != "null" and piece.logprobs:
            out.append(stream.event(_delta(piece.index, '{"content": ""}', logprobs=told)))
        return out
    last = dumps(citations(piece.end))
    reason = dumps(piece.end.finish_reason)
    return [*out, stream.event(_delta(piece.index, last, reason, told))]


def _delta(index: int, delta: str, reason: str = "null", logprobs: str = "null") -> str:
    """One entry of `choices`; all but the index is JSON already."""
    return (
        f'{{"index": {index}, "delta": {delta}, "finish_reason": {reason}, "logprobs": {logprobs}}}'
    )


def _delta_of(event: Event) -> str:
    match event:
        case Text(text):
            return f'{{"content": {dumps(text)}}}'
        case Reasoning(text):
            return f'{{"reasoning_content": {dumps(text)}}}'
        case ToolStart(index, id, name):
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": id, "type": "function", "function": function}
            return f'{{"tool_calls": [{dumps(call)}]}}'
        case ToolArguments(index, text):
            call = {"index": index, "function": {"arguments": text}}
            return f'{{"tool_calls": [{dumps(call)}]}}'
        case _:
            return ""
