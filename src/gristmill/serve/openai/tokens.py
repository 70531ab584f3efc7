"""POST /tokenize and /detokenize, by vLLM's fields."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gristmill.serve.errors import FieldError
from gristmill.serve.http import Body, read, warnings
from gristmill.serve.openai.messages import Messages, Tools, conversation, tools_of
from gristmill.serve.server import Server


class TokenizeRequest(Body):
    """A prompt, or messages as chat would read them."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[int] = Field(max_length=1 << 20)


async def tokenize(server: Server, request: Request) -> Response:
    body = await read(request, TokenizeRequest)
    served = server.model(request, body.model)
    tokenizer = served.engine.tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise FieldError("prompt", "give either prompt or messages")
    tools, _ = tools_of(body.tools, None)

    def ids() -> list[int]:
        if body.messages is not None:
            told = conversation(body.messages)
            return served.prompt(told, tools, body.chat_template_kwargs or {}).ids
        prompt = body.prompt or ""
        if body.add_special_tokens is False:
            return tokenizer.encode(prompt)
        return tokenizer.prompt_ids(prompt)

    made = await asyncio.to_thread(ids)
    answer: dict[str, Any] = {"count": len(made), "max_model_len": served.context, "tokens": made}
    if body.return_token_strs:
        answer["token_strs"] = [tokenizer.token_bytes(i).decode(errors="replace") for i in made]
    return JSONResponse(answer, headers=warnings(body))


async def detokenize(server: Server, request: Request) -> Response:
    body = await read(request, DetokenizeRequest)
    tokenizer = server.model(request, body.model).engine.tokenizer
    if not all(0 <= id < tokenizer.vocab_size for id in body.tokens):
        raise FieldError("tokens", f"must be ids from 0 to {tokenizer.vocab_size - 1}")
    text = await asyncio.to_thread(tokenizer.decode, body.tokens, False)
    return JSONResponse({"prompt": text}, headers=warnings(body))
