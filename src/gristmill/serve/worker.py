"""The one thread that runs an engine. Requests come in by a queue; chunks go out by callbacks.

New requests join the batch between two steps, so nobody waits for another's answer to end, and the
event loop of the server never computes.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gristmill.engine import Engine, Generation
from gristmill.errors import WorkError
from gristmill.lm import Completion, TokenLogprob
from gristmill.serve.metrics import Metrics
from gristmill.serve.watching import Watch

MAX_UNDER_WAY = 1024  # beyond this many answers, the wait would exceed anyone's patience

log = logging.getLogger("gristmill.serve")


class Unavailable(WorkError):
    """The server has too much to do, or is going down; another time it may answer."""


class Cancelled(WorkError):
    """The answer was cancelled before its end."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one answer gained in a step of the engine; with the last one comes its `completion`."""

    text: str
    tokens: int
    logprobs: list[TokenLogprob]
    completion: Completion | None = None


Deliver = Callable[[Step | Exception], None]
Post = Callable[[Callable[[], None]], object]


@dataclass(eq=False, slots=True)
class _Listener:
    deliver: Deliver
    # how much was delivered
    tokens: int = 0
    pieces: int = 0  # of text
    logprobs: int = 0


class Worker:
    """Runs the requests of any number of threads on one engine.

    post: how a step's deliveries reach whoever waits for them, all in one call; as it is, on the engine's thread.
    """

    def __init__(
        self, engine: Engine, post: Post = lambda call: call(), watch: Watch | None = None
    ) -> None:
        self.engine, self.post, self.watch = engine, post, watch or _for_nobody(engine)
        self._inbox: queue.SimpleQueue[list[tuple[Generation, Deliver]]] = queue.SimpleQueue()
        self._listeners: dict[Generation, _Listener] = {}
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
        self._inbox.put([])
        self._thread.join(timeout=10)

    @property
    def under_way(self) -> int:
        """Answers waiting or running."""
        return self._under_way

    def submit(
        self,
        generation: Generation,
        deliver: Callable[[int], Deliver],
        adapter: str | None = None,
    ) -> None:
        """Start what `engine.prepare` made. For each answer to it, by its number, `deliver` gives what is called with
        each step, and after the last one never again; or with what went wrong. Set `cancelled` on the generation to
        end it within a step. adapter: as the request named it, for the metrics. Raises Unavailable when too many wait.
        """
        answers = [generation, *generation.siblings]
        entries = [(g, deliver(number)) for number, g in enumerate(answers)]
        with self._lock:
            if self._stopping:
                raise Unavailable("the server is going down")
            if self._under_way + len(entries) > MAX_UNDER_WAY:
                raise Unavailable(f"{self._under_way} answers are under way; try again later")
            self._under_way += len(entries)
            self.watch.arrived(generation, time.monotonic(), adapter)
            self._inbox.put(entries)

    def _run(self) -> None:
        while not self._stopping:
            self._take()
            try:
                self.engine.step()
            except Exception as error:
                log.exception("a step of the engine failed; its %d answers end", self._under_way)
                self._end_all(error)
                continue
            self._tell()
        self._take()  # what came in meanwhile
        self._end_all(Unavailable("the server is going down"))

    def _take(self) -> None:
        """Give the engine what has arrived; with nothing else to do, wait for something."""
        block = not (self._listeners or self.engine.busy or self._stopping)
        while True:
            try:
                entries = self._inbox.get(block=block)
            except queue.Empty:
                return
            block = False
            for generation, deliver in entries:
                self._listeners[generation] = _Listener(deliver)
            if entries:
                self.engine.add(entries[0][0])  # the others are its siblings

    def _tell(self) -> None:
        """Everyone what is new, by what the generations hold: other threads may have taken steps as well."""
        now = time.monotonic()
        news: list[tuple[Deliver, Step | Exception]] = []
        gained: list[tuple[Generation, int]] = []
        ended = 0
        for g, listener in list(self._listeners.items()):
            item = self._news(g, listener)
            if item is None:
                continue
            last = True
            if isinstance(item, Step):
                gained.append((g, item.tokens))
                last = item.completion is not None
            news.append((listener.deliver, item))
            if last:
                del self._listeners[g]
                ended += 1
                if g.completion is not None:
                    self.watch.ended(g, g.completion, now)
        self.watch.step(gained, now)
        self._send(news, ended)

    def _news(self, g: Generation, listener: _Listener) -> Step | Exception | None:
        if g.failure is not None:
            broken = g.failure
            return broken if isinstance(broken, Exception) else WorkError("the engine was stopped")
        completion = g.completion  # first: when it is there, so is all the rest
        if completion is not None and completion.finish_reason == "abort":
            return Cancelled("the answer was cancelled")
        if completion is not None and completion.error is not None:
            return WorkError(completion.error)
        tokens, said = len(g.output), len(g.logprobs)
        if tokens == listener.tokens and completion is None:
            return None
        text, pieces = g.text.since(listener.pieces)
        logprobs = g.logprobs[listener.logprobs : said]
        step = Step(text, tokens - listener.tokens, logprobs, completion)
        listener.tokens, listener.pieces, listener.logprobs = tokens, pieces, said
        return step

    def _send(self, news: list[tuple[Deliver, Step | Exception]], ended: int) -> None:
        with self._lock:
            self._under_way -= ended
        if news:
            self.post(partial(_deliver, news))

    def _end_all(self, error: Exception) -> None:
        listeners, self._listeners = self._listeners, {}
        self._send([(each.deliver, error) for each in listeners.values()], len(listeners))


def _for_nobody(engine: Engine) -> Watch:
    metrics = Metrics()
    return Watch(lambda name: metrics.model(name or ""), lambda: engine.stats)


def _deliver(news: list[tuple[Deliver, Step | Exception]]) -> None:
    for deliver, item in news:
        deliver(item)
