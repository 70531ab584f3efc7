"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gristmill.lm import ContextOverflow
from gristmill.serve.errors import FieldError
from gristmill.serve.http import Body, read, unless_gone, warnings
from gristmill.serve.models import Served
from gristmill.serve.openai.completions import TokenIds, texts_of
from gristmill.serve.openai.shapes import dumps
from gristmill.serve.running import TOO_LONG
from gristmill.serve.server import Server
from gristmill.serve.ticket import Ticket
from gristmill.serve.worker import Cancelled, Unavailable

MAX_INPUTS = 2048  # OpenAI's
BATCH_TOKENS = 2048  # read before it is asked again whether the client is still there


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

    def place(self, i: int) -> str:
        """The field that holds text number `i`."""
        return f"input[{i}]" if self.inputs == self.input else "input"


async def embeddings(server: Server, request: Request) -> Response:
    body = await read(request, EmbeddingRequest)
    served = server.model(request, body.model)
    width = served.engine.model.config.hidden_size
    if body.dimensions is not None and body.dimensions > width:
        raise FieldError("dimensions", f"must be at most {width}, the model's own")
    for i, text in enumerate(body.inputs):
        if not text:
            raise FieldError(body.place(i), "is empty")
    embedding = _Embedding(served, body, Ticket(request))
    content = await unless_gone(request, embedding, embedding.made())
    return Response(content, media_type="application/json", headers=warnings(body))


class _Embedding:
    """One request's vectors. When it is to end it does so between two batches of texts."""

    def __init__(self, served: Served, body: EmbeddingRequest, ticket: Ticket) -> None:
        ticket.asks(served.name, body.inputs)
        self._served, self._body, self._ticket = served, body, ticket
        self._ended: Exception | None = None

    def cancel(self) -> None:
        self._ended = Cancelled("the client left")

    def abort(self) -> None:
        self._ended = Unavailable("the server is going down")

    async def made(self) -> str:
        """The response's JSON."""
        return await asyncio.get_running_loop().run_in_executor(_threads(), self._make)

    def _make(self) -> str:
        served, body = self._served, self._body
        tokenizer = served.engine.tokenizer
        rows = [tokenizer.prompt_ids(t) if isinstance(t, str) else t for t in body.inputs]
        for i, row in enumerate(rows):
            if len(row) > served.context:
                told = str(ContextOverflow(len(row), served.context))
                raise FieldError(body.place(i), told, TOO_LONG)
        tokens = sum(map(len, rows))
        self._ticket.charge(tokens)
        written: list[str] = []
        for batch in _batches(rows):
            if self._ended is not None:
                raise self._ended
            vectors = served.engine.embed(batch, body.pooling or "mean", served.adapter)
            if body.dimensions is not None:
                vectors = torch.nn.functional.normalize(vectors[:, : body.dimensions], dim=-1)
            written += [dumps(_written(vector, body.encoding_format)) for vector in vectors]
        self._ticket.settle(tokens, 0)
        head = dumps(
            {
                "object": "list",
                "model": served.name,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )
        data = ", ".join(
            f'{{"object": "embedding", "index": {i}, "embedding": {each}}}'
            for i, each in enumerate(written)
        )
        return f'{head[:-1]}, "data": [{data}]}}'


@cache
def _threads() -> ThreadPoolExecutor:
    """Their own: texts without number must not stop whoever has one question."""
    return ThreadPoolExecutor(4, "gristmill-embeddings")


def _batches(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    for row in rows:
        if batch and sum(map(len, batch)) + len(row) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _written(vector: torch.Tensor, form: str | None) -> Any:
    """base64 is of little-endian fp32, which OpenAI's SDK asks for."""
    if form == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    return vector.tolist()
