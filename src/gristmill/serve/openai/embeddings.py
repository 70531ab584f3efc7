"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gristmill.serve.errors import FieldError
from gristmill.serve.http import Body, read, warnings
from gristmill.serve.openai.completions import TokenIds, texts_of
from gristmill.serve.server import Server
from gristmill.serve.ticket import Ticket

MAX_INPUTS = 2048  # OpenAI's


class EmbeddingRequest(Body):
    """pooling: ours, as the engine's: over all tokens, or the last one's alone."""

    model: str | None = None
    input: (
        str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    pooling: Literal["mean", "last"] | None = None
    user: str | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        return texts_of(self.input)


async def embeddings(server: Server, request: Request) -> Response:
    body = await read(request, EmbeddingRequest)
    served = server.models.get(body.model)
    engine, width = served.engine, served.engine.model.config.hidden_size
    if body.dimensions is not None and body.dimensions > width:
        raise FieldError("dimensions", f"must be at most {width}, the model's own")
    for i, text in enumerate(body.inputs):
        if not text:
            raise FieldError(f"input[{i}]" if isinstance(body.input, list) else "input", "is empty")
    tokenizer, ticket = engine.tokenizer, Ticket(request)
    ticket.asks(served.name, body.inputs)

    def work() -> tuple[torch.Tensor, int]:
        rows = [tokenizer.prompt_ids(t) if isinstance(t, str) else t for t in body.inputs]
        ticket.charge(tokens := sum(map(len, rows)))
        vectors = engine.embed(rows, body.pooling or "mean", served.adapter)
        ticket.settle(tokens, 0)
        return vectors, tokens

    vectors, tokens = await asyncio.to_thread(work)
    if body.dimensions is not None:
        vectors = torch.nn.functional.normalize(vectors[:, : body.dimensions], dim=-1)
    data = [
        {"object": "embedding", "index": i, "embedding": _written(vector, body.encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    answer = {
        "object": "list",
        "data": data,
        "model": served.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return JSONResponse(answer, headers=warnings(body))


def _written(vector: torch.Tensor, form: str | None) -> Any:
    """base64 is of little-endian fp32, which OpenAI's SDK asks for."""
    if form == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    return vector.tolist()
