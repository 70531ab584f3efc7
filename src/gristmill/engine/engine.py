"""The engine: a model as an LM that one can ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gristmill.engine.batch import Batch, Generation
from gristmill.engine.scoring import text_logprobs
from gristmill.engine.text import TextStream
from gristmill.errors import RequestError
from gristmill.lm import (
    LM,
    Chunk,
    Completion,
    ContextOverflow,
    Message,
    Request,
    SamplingParams,
    Scored,
)

if TYPE_CHECKING:
    from gristmill.formats import Model


class Engine(LM):
    """Generates from and scores with `model`. Holds no state between calls.

    A prompt given as text is encoded as the model's own tokenizer encodes it; an empty one starts
    from the tokenizer's beginning-of-text token. Generation ends at the tokenizer's stop tokens, at
    the request's own stops, after max_tokens, or at the end of the model's context.
    """

    def __init__(self, model: Model, max_rows: int = 64) -> None:
        self.model = model
        self.tokenizer = model.tokenizer
        self.context = model.config.max_seq_len
        self._max_rows = max_rows

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        generations = [self.start(request) for request in requests]
        batch = self.batch()
        for generation in generations:
            batch.add(generation)
        done: dict[int, Completion] = {}
        while batch.busy:
            for generation, chunk in batch.step():
                if chunk.completion is not None:
                    done[id(generation)] = chunk.completion
        return [done[id(generation)] for generation in generations]

    def stream(self, request: Request) -> Iterator[Chunk]:
        batch = self.batch()
        batch.add(self.start(request))  # a bad request fails here, not at the first chunk
        return self._chunks(batch)

    def score(self, texts: Sequence[str | Sequence[int]]) -> list[Scored]:
        """The first token's log-probability is None: nothing stands before it."""
        rows = [self._ids(text) for text in texts]
        for row in rows:
            if len(row) > self.context:
                raise ContextOverflow(len(row), self.context)
        values = text_logprobs(self.model.network, rows)
        return [
            Scored(tuple(row), (None, *value) if row else ())
            for row, value in zip(rows, values, strict=True)
        ]

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Completion:
        return self.generate([self.chat_request(messages, params)])[0]

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None
    ) -> Iterator[Chunk]:
        return self.stream(self.chat_request(messages, params))

    def chat_request(
        self, messages: Sequence[Message], params: SamplingParams | None = None
    ) -> Request:
        """The conversation in the model's own chat template, up to where the answer begins."""
        ids = self.tokenizer.chat_ids(list(messages), add_generation_prompt=True)
        return Request(token_ids=ids, params=params or SamplingParams())

    def batch(self) -> Batch:
        """An empty batch for whoever runs the steps (the server's thread)."""
        return Batch(self.model.network, self.tokenizer.vocab_size, self._max_rows)

    def start(self, request: Request) -> Generation:
        """Tokenize and check a request. Raises RequestError; computes nothing."""
        params = request.params
        prompt = self._ids(request.prompt if request.token_ids is None else request.token_ids)
        prompt = prompt or self.tokenizer.document_start
        if not prompt:
            raise RequestError("the prompt is empty, and the tokenizer has no token to begin with")
        if len(prompt) >= self.context:
            raise ContextOverflow(len(prompt), self.context, room=1)
        stop_ids = self.tokenizer.stop_ids | frozenset(params.stop_token_ids)
        return Generation(prompt, params, TextStream(self.tokenizer, params.stop), stop_ids)

    def _chunks(self, batch: Batch) -> Iterator[Chunk]:
        while batch.busy:
            for _, chunk in batch.step():
                yield chunk

    def _ids(self, text: str | Sequence[int]) -> list[int]:
        given = self.tokenizer.prompt_ids(text) if isinstance(text, str) else text
        ids = [int(i) for i in given]
        size = self.model.config.vocab_size
        for i in ids:
            if not 0 <= i < size:
                raise RequestError(f"token id {i} is outside the vocabulary of {size}")
        return ids
