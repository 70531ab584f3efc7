"""One chat request: from messages to the events of its answers, whichever API it came by."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from gristmill.errors import RequestError
from gristmill.lm import Completion, Request, SamplingParams, TokenLogprob
from gristmill.retrieval import Grounding, Passage, Prompt, Searchable
from gristmill.serve.models import Served
from gristmill.serve.parsing import (
    Choice,
    Event,
    Message,
    Named,
    Parser,
    Reasoning,
    Text,
    Tool,
)
from gristmill.serve.running import Names, Running, off_the_loop
from gristmill.serve.ticket import Ticket
from gristmill.serve.worker import Step


@dataclass(frozen=True)
class Ask:
    """A chat request that has been understood, in no API's terms.

    messages: as chat templates take them. names: of the request's fields; without one for a limit, params.max_tokens is
    the most, and fewer come where the context ends. variables: for the template. look_up: gives the index to answer
    from; may read files. continued: the last message is the assistant's own, and goes on.
    """

    messages: list[dict[str, Any]]
    params: SamplingParams
    names: Names
    tools: tuple[Tool, ...] = ()
    choice: Choice = "auto"
    parallel: bool = True
    variables: dict[str, Any] = field(default_factory=dict)
    look_up: Callable[[], Searchable] | None = None
    continued: bool = False
    cache_salt: str = ""


@dataclass(frozen=True)
class End:
    """The end of one answer. citations: None when nothing was looked up; found: see retrieval.Answer."""

    finish_reason: str
    message: Message
    completion: Completion
    reasoning_tokens: int = 0
    citations: tuple[Passage, ...] | None = None
    found: bool = False


@dataclass(frozen=True)
class Piece:
    """What answer number `index` gained; with the last one its `end`."""

    index: int
    events: list[Event]
    logprobs: list[TokenLogprob]
    end: End | None = None


class Exchange:
    """Everything that may be refused is refused by `start`; after it, only `pieces` and `cancel`."""

    def __init__(self, served: Served, ask: Ask, ticket: Ticket) -> None:
        ticket.asks(served.name, ask.messages)
        self.served, self.ask = served, ask
        self._running = Running(served, ticket)
        self._grounded: Prompt | None = None
        self._nothing_found: End | None = None
        self._answers: list[_Answer] = []

    async def start(self) -> None:
        """Begin, and wait until the request is accepted. Raises what engine, template or index refuse."""
        form = self.ask.params.grammar is not None or bool(self.ask.tools)
        await off_the_loop(self._start, compiles=form)

    def cancel(self) -> None:
        self._running.cancel()

    def abort(self) -> None:
        self._running.abort()

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """What is new; nothing when there was nothing for a while. Raises what went wrong."""
        if self._nothing_found is not None:
            end = self._nothing_found
            yield [Piece(0, [Text(end.message.content)], [], end)]
            return
        async for steps in self._running.steps():
            yield [self._piece(number, step) for number, step in steps]

    async def whole(self) -> list[End]:
        """The answers in order. Made of the same events as a stream's."""
        ends: dict[int, End] = {}
        async for pieces in self.pieces():
            ends |= {piece.index: piece.end for piece in pieces if piece.end}
        return [ends[index] for index in sorted(ends)]

    @property
    def prompt_tokens(self) -> tuple[int, int]:
        """How many there are, and how many of them were cached: 0 until the first step."""
        first = self._running.generations[0]
        return len(first.prompt), first.cached_tokens or 0

    def logprobs(self, index: int) -> list[TokenLogprob]:
        """Those of a whole answer's tokens that are shown."""
        return self._running.shown(index, self._running.generations[index].logprobs)

    def _start(self) -> None:
        if self.ask.look_up is None:
            self._begin(self.ask.messages)
            return
        grounding = Grounding(self.ask.look_up(), self.ask.messages)
        if not grounding.prompts:
            told = grounding.nothing_found()
            empty = Completion(told.text, (), "stop", 0)
            message = Message(told.text)
            self._nothing_found = End("stop", message, empty, 0, told.citations, told.found)
            return
        for prompt in grounding.prompts:
            try:
                self._begin(prompt.messages)
            except RequestError:
                if prompt is grounding.prompts[-1]:
                    raise
                continue
            self._grounded = prompt
            return

    def _begin(self, messages: list[dict[str, Any]]) -> None:
        served, ask = self.served, self.ask
        prompt = served.prompt(messages, ask.tools, ask.variables, ask.continued)
        params = ask.params
        if ask.names.limit is None:  # as many as context and cache leave
            room = min(served.context, served.engine.cache_tokens) - len(prompt.ids)
            most = min(params.max_tokens, room)
            params = replace(params, max_tokens=max(1, params.min_tokens, most))
        parallel = ask.parallel and not isinstance(ask.choice, Named)  # which is one call
        form = params.grammar or served.format.grammar(ask.tools, ask.choice, parallel)
        grammar = form and served.format.with_reasoning(form, prompt.in_reasoning)
        if served.format.needs_special and (ask.tools or served.format.thought):
            params = replace(params, skip_special_tokens=False)
        request = Request(
            token_ids=prompt.ids,
            params=replace(params, grammar=grammar),
            adapter=served.adapter,
            cache_salt=ask.cache_salt,
        )
        names = ask.names if params.grammar is not None else replace(ask.names, form="tools")
        self._running.begin([request], names)
        parsers = [
            served.format.parser(ask.tools, prompt.in_reasoning) for _ in self._running.generations
        ]
        marks = tuple(served.format.marks) if ask.tools else ()
        self._answers = [_Answer(parser, marks) for parser in parsers]

    def _piece(self, number: int, step: Step) -> Piece:
        answer, completion = self._answers[number], step.completion
        events = answer.take(step)
        logprobs = self._running.shown(number, step.logprobs)
        if completion is None:
            return Piece(number, events, logprobs)
        message, citations, found = answer.message, None, False
        if self._grounded is not None:
            cut_short = completion.finish_reason == "length"
            judged = self._grounded.judge(message.content, cut_short)
            if judged.quoted:
                events.append(Text(judged.quotation))
                message.add(events[-1])
            citations, found = judged.citations, judged.found
        called = completion.finish_reason == "stop" and any(c.complete for c in message.tool_calls)
        reason = "tool_calls" if called else completion.finish_reason
        end = End(reason, message, completion, answer.reasoning_tokens, citations, found)
        return Piece(number, events, logprobs, end)


class _Answer:
    """One answer's parser, what it made so far, and how many tokens went into thought. marks: those around calls."""

    def __init__(self, parser: Parser, marks: tuple[str, ...]) -> None:
        self._marks = marks
        self.message = Message()
        self.reasoning_tokens = 0
        self._parser = parser
        self._pending = 0  # tokens since the last event: it will tell what they were

    def take(self, step: Step) -> list[Event]:
        events = self._parser.feed(step.text) if step.text else []
        if step.completion is not None:
            rest = self._parser.finish()
            if step.completion.finish_reason == "length":
                rest = [event for event in rest if not self._is_cut_call(event)]
            events += rest
        self._pending += step.tokens
        if events:
            thought = sum(isinstance(event, Reasoning) for event in events)
            # Of a step that ends a thought and begins an answer, its share.
            self.reasoning_tokens += round(self._pending * thought / len(events))
            self._pending = 0
        for event in events:
            self.message.add(event)
        return events

    def _is_cut_call(self, event: Event) -> bool:
        """Whether it is what the limit left of a call, or of a mark around it: nothing for people to read."""
        said = event.text.strip() if isinstance(event, Text) else ""
        begun = [mark for mark in self._marks if said.startswith(mark) or mark.startswith(said)]
        return len(said) > 2 and bool(begun)
