"""Answers under way, as the event loop sees them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

from gristmill.engine import Generation
from gristmill.errors import RequestError
from gristmill.lm import CacheOverflow, ContextOverflow, Request, TokenLogprob
from gristmill.serve.errors import FieldError
from gristmill.serve.models import Served
from gristmill.serve.ticket import Ticket
from gristmill.serve.worker import Step, Unavailable

TOO_LONG = "context_length_exceeded"  # OpenAI's code, by which clients know to shorten
PATIENCE = 10.0  # seconds without news, after which a reader is told that the answer is under way


@dataclass(frozen=True)
class Names:
    """By which fields an API asks for what the engine may refuse. prompt: for what the model reads. form: for what the
    text must be. limit: for a number of tokens, which must then fit; None: the client asked for none."""

    prompt: str
    form: str
    limit: str | None = None


async def off_the_loop(work: Callable[[], None], compiles: bool) -> None:
    """Run it on a thread. compiles: it may compile a grammar."""
    await asyncio.get_running_loop().run_in_executor(_compilers() if compiles else None, work)


@cache
def _compilers() -> ThreadPoolExecutor:
    """Grammars have threads of their own: a few that take minutes to compile must not stop whoever asks for none."""
    return ThreadPoolExecutor(2, "gristmill-grammars")


class Inbox:
    """What arrives on the loop's thread, read by one task; a reader that is late gets all at once."""

    def __init__(self) -> None:
        self._items: list[tuple[int, Step | Exception]] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, number: int, item: Step | Exception) -> None:
        self._items.append((number, item))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self, patience: float) -> list[tuple[int, Step | Exception]]:
        """What has arrived, or after `patience` seconds nothing."""
        if not self._items:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            alarm = loop.call_later(patience, self._wake)
            try:
                await self._waiter
            finally:
                alarm.cancel()
        items, self._items = self._items, []
        return items


class Running:
    """What the answers to some requests gain, step by step. They are numbered: n to the first request come first."""

    def __init__(self, served: Served, ticket: Ticket) -> None:
        self.served, self.ticket = served, ticket
        self.generations: list[Generation] = []
        self._inbox = Inbox()
        self._left = 0
        self._cancelled = False
        self._lock = threading.Lock()  # two threads may begin and cancel at once

    def begin(self, requests: Sequence[Request], names: Names) -> None:
        """Check all, then queue all. Tokenizes: not for the event loop.

        Raises RequestError and Unavailable; then none runs.
        """
        try:
            made = [self.served.engine.prepare(request) for request in requests]
        except ContextOverflow as error:
            raise FieldError(names.prompt, str(error), TOO_LONG) from None
        except CacheOverflow as error:
            raise FieldError(names.limit or names.prompt, str(error), TOO_LONG) from None
        except RequestError as error:
            if (told := str(error)).startswith("grammar: "):
                raise FieldError(names.form, told.removeprefix("grammar: ")) from None
            raise
        if names.limit is not None:
            for generation in made:
                self._check_room(generation, names.limit)
        answers = [g for generation in made for g in (generation, *generation.siblings)]
        most = sum(len(g.prompt) for g in made) + sum(g.params.max_tokens for g in answers)
        self.ticket.charge(most, asked_for=names.limit is not None)
        try:
            for generation in made:
                with self._lock:
                    first = len(self.generations)
                    self.generations += [generation, *generation.siblings]
                    for each in self.generations[first:]:
                        each.cancelled = self._cancelled
                self.served.running.submit(
                    generation,
                    lambda number, first=first: partial(self._inbox.put, first + number),
                    self.served.adapter,
                )
        except Exception:
            self._cancel()
            raise
        self._left = len(self.generations)

    def cancel(self) -> None:
        """End what is under way, and whatever would follow. May be called from any thread."""
        self._cancel()
        if self._left:
            self._settle()

    def _cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            for generation in self.generations:
                generation.cancelled = True

    def abort(self) -> None:
        """The server goes down. On the loop's thread."""
        self._inbox.put(0, Unavailable("the server is going down"))
        self.cancel()

    async def steps(self) -> AsyncIterator[list[tuple[int, Step]]]:
        """What is new, with each answer's number; nothing after a while without news. Raises what went wrong."""
        while self._left:
            items = await self._inbox.take(PATIENCE)
            steps: list[tuple[int, Step]] = []
            for number, item in items:
                if isinstance(item, Exception):
                    self.ticket.failed(item)
                    self._cancel()  # nobody hears the others any more
                    raise item
                steps.append((number, item))
                self._left -= item.completion is not None
            if not self._left:
                self._settle()
            yield steps

    def shown(self, number: int, logprobs: list[TokenLogprob]) -> list[TokenLogprob]:
        """Without the stop token that ends an answer."""
        stops = self.generations[number].stop_ids
        return [t for t in logprobs if t.token_id not in stops]

    def _settle(self) -> None:
        """What the request came to, all of it or as far as it got."""
        made = self.generations
        prompts = {id(g.prompt): len(g.prompt) for g in made}
        cached = sum(g.cached_tokens or 0 for g in made)
        self.ticket.settle(sum(prompts.values()), sum(len(g.output) for g in made), cached)
        first = made[0].completion
        reason = first.finish_reason if first is not None else "abort"
        times = self.served.running.watch.times(made[0])
        self.ticket.ended(reason, times, [g.text.text for g in made])

    def _check_room(self, generation: Generation, limited_by: str) -> None:
        context, prompt = self.served.context, len(generation.prompt)
        wanted, room = generation.params.max_tokens, context - prompt
        if wanted > room:
            raise FieldError(
                limited_by,
                f"{wanted} tokens do not fit: the prompt has {prompt} and the model's context holds {context}, "
                f"which leaves {room}. Ask for fewer, shorten the prompt, or leave {limited_by} out to take "
                "what is left",
                TOO_LONG,
            )
