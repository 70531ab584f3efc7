"""The one thread that runs the engine. Requests come in by a queue; chunks go out by callbacks.

New requests join the batch between two steps, so nobody waits for another's answer to end, and the
event loop of the server never computes.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence

from gristmill.engine import Engine, Generation
from gristmill.errors import WorkError
from gristmill.lm import Chunk, Completion, Request
from gristmill.serve.fields import FieldError

Deliver = Callable[[Chunk | Exception], None]
MAX_UNDER_WAY = 256  # beyond this many requests, the wait would exceed anyone's patience

log = logging.getLogger("gristmill.serve")


class Unavailable(WorkError):
    """The server has too much to do, or is going down; another time it may answer."""


class Cancelled(WorkError):
    """The answer was cancelled before its end."""


class Worker:
    """Runs the requests of any number of threads on one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._inbox: queue.SimpleQueue[tuple[Generation, Deliver] | None] = queue.SimpleQueue()
        self._under_way = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="gristmill-engine", daemon=True)
        self._stopping = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is under way ends with Unavailable."""
        with self._lock:
            self._stopping = True
        self._inbox.put(None)
        self._thread.join(timeout=10)

    @property
    def under_way(self) -> int:
        """Requests waiting or running."""
        return self._under_way

    def submit(
        self, request: Request, deliver: Deliver, limited_by: str | None = None
    ) -> Generation:
        """Start a request. `deliver` is called on the engine's thread with each chunk, and after
        the last one never again; or with what went wrong. Set `cancelled` on the returned
        generation to end it within a step.

        limited_by: the field by which max_tokens was asked for; so many tokens must then fit.
        Raises RequestError for a request that cannot be run, Unavailable when too many wait.
        """
        generation = self.engine.prepare(request)
        room = self.engine.context - len(generation.prompt)
        if limited_by is not None and request.params.max_tokens > room:
            raise FieldError(
                limited_by,
                f"{request.params.max_tokens} tokens do not fit: the prompt has "
                f"{len(generation.prompt)} and the model's context holds {self.engine.context}, which "
                f"leaves {room}. Ask for fewer, shorten the messages, or leave {limited_by} out to "
                "take what is left",
                "context_length_exceeded",
            )
        with self._lock:
            if self._stopping:
                raise Unavailable("the server is going down")
            if self._under_way >= MAX_UNDER_WAY:
                raise Unavailable(f"{self._under_way} requests are under way; try again later")
            self._under_way += 1
            self._inbox.put((generation, deliver))
        return generation

    def _run(self) -> None:
        listeners: dict[Generation, Deliver] = {}
        while not self._stopping:
            self._take(listeners)
            try:
                events = self.engine.step()
            except Exception as error:
                log.exception("a step of the engine failed; its %d requests end", len(listeners))
                events = []
                for generation in list(listeners):
                    listeners.pop(generation)(error)
            for generation, chunk in events:
                deliver = listeners.get(generation)
                if deliver is None:
                    continue
                cancelled = generation.cancelled  # once: it may be set at any moment
                deliver(Cancelled("the answer was cancelled") if cancelled else chunk)
                if cancelled or chunk.completion is not None:
                    del listeners[generation]
            with self._lock:
                self._under_way = len(listeners) + self._inbox.qsize()
        self._take(listeners)  # what came in meanwhile
        for deliver in listeners.values():
            deliver(Unavailable("the server is going down"))

    def _take(self, listeners: dict[Generation, Deliver]) -> None:
        """Give the engine what has arrived; with nothing else to do, wait for something."""
        block = not self.engine.busy and not self._stopping
        while True:
            try:
                item = self._inbox.get(block=block)
            except queue.Empty:
                return
            block = False
            if item is not None:
                generation, deliver = item
                listeners[generation] = deliver
                self.engine.add(generation)


class QueuedEngine(Engine):
    """The engine as one answer's thread sees it: the same interface, run by the worker.

    `generation` and `completion` are those of the latest request.
    """

    def __init__(
        self,
        worker: Worker,
        accepted: Callable[[], None] = lambda: None,
        limited_by: str | None = None,
    ) -> None:
        """`accepted` is called when a request has been checked and queued; limited_by: see Worker."""
        self.model, self.tokenizer = worker.engine.model, worker.engine.tokenizer
        self.context = worker.engine.context
        self._worker, self._accepted, self._limited_by = worker, accepted, limited_by
        self.generation: Generation | None = None
        self.completion: Completion | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """End what is under way, and whatever would follow. May be called from any thread."""
        self._cancelled = True
        if self.generation is not None:
            self.generation.cancelled = True

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        streams = [self.stream(request) for request in requests]
        return [next(c.completion for c in stream if c.completion) for stream in streams]

    def stream(self, request: Request) -> Iterator[Chunk]:
        chunks: queue.SimpleQueue[Chunk | Exception] = queue.SimpleQueue()
        self.generation = self._worker.submit(request, chunks.put, self._limited_by)
        if self._cancelled:
            self.generation.cancelled = True
        self._accepted()
        return self._received(chunks)

    def _received(self, chunks: queue.SimpleQueue[Chunk | Exception]) -> Iterator[Chunk]:
        while True:
            item = chunks.get()
            if isinstance(item, Exception):
                raise item
            self.completion = item.completion
            if item.completion is not None:
                item.completion.checked()
            yield item
            if item.completion is not None:
                return
