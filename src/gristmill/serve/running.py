"""One answer under way: a thread that asks engine and index; the event loop reads along."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

from gristmill.lm import Completion, TokenLogprob
from gristmill.retrieval import Answer, Index, Passage, answer_stream
from gristmill.serve.fields import Ask
from gristmill.serve.worker import QueuedEngine, Worker

log = logging.getLogger("gristmill.serve")


@dataclass(frozen=True)
class End:
    """The end of an answer. citations: None when nothing was looked up; found: see retrieval.Answer."""

    text: str
    completion: Completion
    citations: tuple[Passage, ...] | None = None
    found: bool = False


class Running:
    """Everything that may be refused is refused by `start`; after it, only `next` and `cancel`."""

    def __init__(self, worker: Worker, ask: Ask, index: Index | None) -> None:
        self.engine = QueuedEngine(worker, lambda: self._push(""), ask.limited_by)
        self._messages, self._params, self._index = ask.messages, ask.params, index
        self._pieces: asyncio.Queue[str | End | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._first: str | End | None = None
        self._logprobs_seen = 0

    async def start(self, executor: Executor) -> None:
        """Begin, and wait until the request is accepted. Raises what engine or index refuse."""
        self._loop.run_in_executor(executor, self._work)
        self._first = await self._take()

    async def next(self) -> str | End:
        """The next piece of text ('' when only log-probabilities are new), or the end."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await self._take()

    def cancel(self) -> None:
        self.engine.cancel()

    def new_logprobs(self) -> list[TokenLogprob]:
        """Those of tokens made since the last call, without the stop token that ends an answer."""
        generation = self.engine.generation
        if generation is None:
            return []
        new = generation.logprobs[self._logprobs_seen :]
        self._logprobs_seen += len(new)
        return [t for t in new if t.token_id not in generation.stop_ids]

    async def _take(self) -> str | End:
        item = await self._pieces.get()
        if isinstance(item, Exception):
            raise item
        return item

    def _work(self) -> None:
        """Runs on a thread of its own."""
        try:
            for piece in self._plain() if self._index is None else self._grounded(self._index):
                self._push(piece)
        except Exception as error:
            self._push(error)

    def _plain(self) -> Iterator[str | End]:
        for chunk in self.engine.stream_chat(self._messages, self._params):
            yield chunk.text
            if chunk.completion is not None:
                yield End(chunk.completion.text, chunk.completion)

    def _grounded(self, index: Index) -> Iterator[str | End]:
        for piece in answer_stream(self.engine, index, self._messages, self._params):
            if isinstance(piece, Answer):
                nothing = Completion(piece.text, (), "stop", 0)  # found nothing: nobody was asked
                completion = self.engine.completion or nothing
                yield End(piece.text, completion, piece.citations, piece.found)
            else:
                yield piece

    def _push(self, piece: str | End | Exception) -> None:
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:  # the loop has closed: nobody reads along any more
            log.debug("a piece of an answer came after the server's end")
