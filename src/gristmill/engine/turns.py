"""Who steps: any number of threads ask, and whoever waits for an answer takes the next step for all, in turns."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from gristmill.engine.core import EngineCore, Event
from gristmill.engine.generation import Generation
from gristmill.errors import WorkError
from gristmill.lm import Chunk

T = TypeVar("T")


class Turns:
    """What arrives, and the `core` that computes it, which the turn's holder alone may touch.

    A step that fails or is interrupted ends everything that was under way, and a new core takes the old one's place.
    The thread that ran it raises what went wrong, the others WorkError.

    new_core: makes one. after_step: is called in the turn, after each step.
    """

    def __init__(
        self, new_core: Callable[[], EngineCore], after_step: Callable[[], object]
    ) -> None:
        self._new_core, self._after_step = new_core, after_step
        self.core = new_core()
        self._arrived: deque[Generation] = deque()  # nobody need wait for a step's end to add one
        # A lock goes again to whoever has just given it back, for as long as they ask. Here they ask at the door,
        # where the next one stands already.
        self._door, self._room = threading.Lock(), threading.RLock()

    def take(self, work: Callable[[], T]) -> T:
        """What `work` returns, run while nobody else's runs."""
        try:
            with self._door:
                self._room.acquire()
            return work()
        finally:
            # Ctrl-C comes when a call begins or returns: perhaps just after the room was entered, which only the lock
            # knows, and not between here and its release, as long as nothing else is called (no `suppress`).
            try:  # noqa: SIM105
                self._room.release()
            except RuntimeError:  # this thread has not entered it
                pass

    def add(self, generation: Generation) -> None:
        """Queue it for the next step. Any thread may, at any time."""
        self._arrived.append(generation)

    @property
    def busy(self) -> bool:
        return bool(self._arrived) or self.core.busy

    def step(self) -> list[Event]:
        """One step for all; its events are the caller's alone."""
        return self.take(self._step)

    def run(self, generations: Sequence[Generation]) -> None:
        """Add them, and step until they and their siblings have ended. Whatever is raised, they are cancelled."""
        everyone = [each for g in generations for each in (g, *g.siblings)]
        try:
            for g in generations:
                self.add(g)
            for g in everyone:  # one after the other: most have ended when their turn comes
                while not g.ended:
                    g.chunks.clear()  # nobody reads them
                    self._advance(g)
                _raise_failure(g)
        except BaseException:
            for g in everyone:
                g.cancelled = True
            raise

    def chunks(self, generation: Generation) -> Iterator[Chunk]:
        """Add it; what it says step by step, the completion with the last. Left early, it is cancelled."""
        try:
            self.add(generation)
            ended = False
            while not ended:
                ended = self._advance(generation)
                _raise_failure(generation)
                while generation.chunks:
                    chunk = generation.chunks.popleft()
                    yield chunk
                    if chunk.completion is not None:
                        return
            raise WorkError(
                "a stream's text went to Engine.step, which is for a thread that serves all"
            )
        finally:
            generation.cancelled = True  # of no effect when it has ended

    def _advance(self, generation: Generation) -> bool:
        """A step, unless another thread's has brought the generation further meanwhile; whether it has ended, all its
        chunks being there."""

        def work() -> bool:
            if not generation.ended and not generation.chunks:
                self._step(deliver=True)
            return generation.ended

        return self.take(work)

    def _step(self, deliver: bool = False) -> list[Event]:
        """Of whoever has the turn. deliver: put the events where streams read them."""
        present: list[Generation] = []
        try:
            while self._arrived:
                generation = self._arrived[0]  # and there it stays until the core has it
                if not generation.ended:  # else it was about to go when the last step failed
                    self.core.add(generation)
                    self.core.stats.requests += generation.task == "generate"
                self._arrived.popleft()
            present = self.core.everyone()
            events = self.core.step()
            if deliver:
                for g, chunk in events:
                    g.chunks.append(chunk)
            self._after_step()
        except BaseException as error:
            # Those who have left the core may have ended in this step, with nobody told.
            for g in (*present, *self.core.everyone()):
                g.failure = error
            stats, self.core = self.core.stats, self._new_core()
            self.core.stats = stats
            raise
        return events


def _raise_failure(g: Generation) -> None:
    if g.failure is not None:
        raise WorkError(
            "the engine's step failed, and with it all that was under way"
        ) from g.failure
