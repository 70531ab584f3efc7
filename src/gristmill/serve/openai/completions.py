"""POST /v1/completions: plain text goes on, for one prompt or several."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import Field
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from gristmill.engine import best_of
from gristmill.lm import Completion, Request, TokenLogprob
from gristmill.serve.errors import FieldError, broken_off, openai_event
from gristmill.serve.http import EventStream, read, unless_gone, warnings
from gristmill.serve.openai.sampling import MAX_ANSWERS, MAX_TOP_LOGPROBS, Sampling
from gristmill.serve.openai.shapes import DONE, LEAST, PING, Identity, dumps, total
from gristmill.serve.running import Names, Running, off_the_loop
from gristmill.serve.server import Server
from gristmill.serve.ticket import Ticket
from gristmill.serve.worker import MAX_UNDER_WAY, Step
from gristmill.tokenizer import Tokenizer

MAX_PROMPTS = 256
DEFAULT_TOKENS = 16  # OpenAI's

TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Prompt = (
    str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
)


def texts_of(given: str | list[int] | list[str | list[int]]) -> list[str | list[int]]:
    """One text, or several; each a string or its ids."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given]  # type: ignore[list-item] - a list of ids
    return list(given)  # type: ignore[arg-type] - of strings and lists


class CompletionRequest(Sampling):
    prompt: Prompt
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: int | None = Field(None, ge=1, le=MAX_ANSWERS)

    REFUSED: ClassVar[dict[str, Any]] = {**Sampling.REFUSED, "suffix": None}

    @property
    def prompts(self) -> list[str | list[int]]:
        return texts_of(self.prompt)

    @property
    def limit(self) -> int:
        return DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens

    def requests(self, adapter: str | None) -> list[Request]:
        """Raises FieldError. max_tokens 0 is run with one token, which is not shown."""
        if self.limit == 0 and not self.echo:
            raise FieldError("max_tokens", "must be at least 1 without echo")
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise FieldError("best_of", f"must be at least n ({self.n})")
        if self.stream and (self.best_of or 1) > (self.n or 1):
            raise FieldError("best_of", "cannot be streamed: which are best shows at the end")
        each = max(self.n or 1, self.best_of or 1)
        if (answers := each * len(self.prompts)) > MAX_UNDER_WAY:
            raise FieldError(
                "prompt",
                f"asks for {answers} answers at once, and at most {MAX_UNDER_WAY} are made",
            )
        reads = self.logprobs if self.echo else None
        params = self.params(
            max(1, self.limit), self.logprobs, best_of=self.best_of, prompt_logprobs=reads
        )
        salt = self.cache_salt or ""
        return [
            Request(prompt, params, adapter=adapter, cache_salt=salt)
            if isinstance(prompt, str)
            else Request(token_ids=prompt, params=params, adapter=adapter, cache_salt=salt)
            for prompt in self.prompts
        ]


async def completions(server: Server, request: HTTPRequest) -> Response:
    body = await read(request, CompletionRequest)
    served = server.model(request, body.model)
    requests = body.requests(served.adapter)
    ticket = Ticket(request)
    ticket.asks(served.name, body.prompts)
    running = Running(served, ticket)
    names = Names("prompt", body.form_field, "max_tokens" if body.max_tokens else None)
    seed = requests[0].params.seed
    identity = Identity("text_completion", "cmpl", served.name, seed)
    answers = _Answers(running, body)

    async def begin() -> None:
        work = partial(running.begin, requests, names)
        await off_the_loop(work, compiles=requests[0].params.grammar is not None)

    async def whole() -> Response:
        await begin()
        async for steps in running.steps():
            answers.take(steps)
        return JSONResponse(identity.fields() | answers.whole())

    headers = warnings(body)
    if body.stream:
        await unless_gone(request, running, begin())
        return EventStream(running, _events(answers, identity), headers)
    answer = await unless_gone(request, running, whole())
    answer.headers.update(headers)
    return answer


class _Answers:
    """Those of all prompts, in order: n to the first come first."""

    def __init__(self, running: Running, body: CompletionRequest) -> None:
        self.running, self.body = running, body
        self.tokenizer = running.served.engine.tokenizer
        self._ended: dict[int, Completion] = {}
        self._logprobs: dict[int, _Logprobs] = {}

    def take(self, steps: list[tuple[int, Step]]) -> None:
        for number, step in steps:
            if step.completion is not None:
                self._ended[number] = step.completion

    def whole(self) -> dict[str, Any]:
        count = len(self._ended) // len(self.body.prompts)
        n, choices = self.body.n or 1, []
        for first in range(0, len(self._ended), count):
            family = [(i, self._ended[i]) for i in range(first, first + count)]
            if count > n:
                family = best_of(family, n, lambda pair: pair[1])
            choices += [self._choice(number, completion) for number, completion in family]
        for index, choice in enumerate(choices):
            choice["index"] = index
        return {"choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Every prompt once, and everything that was made, best_of's others too."""
        count = len(self._ended) // len(self.body.prompts)
        prompts = sum(self._ended[i].prompt_tokens for i in range(0, len(self._ended), count))
        hidden = self.body.limit == 0
        made = [replace(c, token_ids=()) if hidden else c for c in self._ended.values()]
        return total(prompts, made)

    def _choice(self, number: int, completion: Completion) -> dict[str, Any]:
        generation = self.running.generations[number]
        shown = self.running.shown(number, generation.logprobs)
        text = "" if self.body.limit == 0 else completion.text
        return {
            "index": 0,
            "text": self.prompt_text(number) + text,
            "finish_reason": "length" if self.body.limit == 0 else completion.finish_reason,
            "logprobs": self.logprobs(number, [] if self.body.limit == 0 else shown, first=True),
        }

    def prompt_text(self, number: int) -> str:
        if not self.body.echo:
            return ""
        count = len(self.running.generations) // len(self.body.prompts)
        prompt = self.body.prompts[number // count]
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt, False)

    def logprobs(self, number: int, new: list[TokenLogprob], first: bool) -> dict[str, Any] | None:
        """Of the tokens since the last call; the prompt's come with the first of an echo."""
        if self.body.logprobs is None:
            return None
        told = self._logprobs.setdefault(number, _Logprobs(self.tokenizer, self.body.logprobs))
        if first and self.body.echo:
            count = len(self.running.generations) // len(self.body.prompts)
            parent = self.running.generations[number - number % count]
            added = isinstance(self.body.prompts[number // count], str)
            hidden = added and self.tokenizer.is_special(parent.prompt[0])
            told.add(parent.prompt[0], None, hidden)
            for token in parent.prompt_logprobs:
                told.add(token.token_id, token)
        skips = self.running.generations[number].params.skip_special_tokens
        for token in new:
            told.add(token.token_id, token, skips and self.tokenizer.is_special(token.token_id))
        return told.taken()


class _Logprobs:
    """OpenAI's older form: four lists, one entry a token. text_offset: where in `text` what it adds begins."""

    def __init__(self, tokenizer: Tokenizer, top: int) -> None:
        self._tokenizer, self._top, self._offset = tokenizer, top, 0
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._lists = self._empty()

    def _empty(self) -> dict[str, list[Any]]:
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def add(self, token_id: int, token: TokenLogprob | None, hidden: bool = False) -> None:
        """hidden: it is not in the text."""
        lists = self._lists
        lists["tokens"].append(self._spelled(token_id))
        lists["text_offset"].append(self._offset)
        if not hidden:
            self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
        if token is None:
            lists["token_logprobs"].append(None)
            lists["top_logprobs"].append(None)
            return
        lists["token_logprobs"].append(max(token.logprob, LEAST))
        # The chosen one is always among them; two ids may spell alike, and the likelier is told.
        top: dict[str, float] = {}
        for id, value in [*token.top[: self._top], (token_id, token.logprob)]:
            top.setdefault(self._spelled(id), max(value, LEAST))
        lists["top_logprobs"].append(top)

    def taken(self) -> dict[str, list[Any]]:
        lists, self._lists = self._lists, self._empty()
        return lists

    def _spelled(self, id: int) -> str:
        """A control token by its name, half a character with its bytes told as vLLM tells them."""
        raw = self._tokenizer.token_bytes(id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


async def _events(answers: _Answers, identity: Identity) -> AsyncIterator[bytes]:
    body, running = answers.body, answers.running
    stream = identity.stream("", body.include_usage)
    begun: set[int] = set()
    try:
        async for steps in running.steps():
            answers.take(steps)
            out: list[bytes] = [] if steps else [PING]
            for number, step in steps:
                new = running.shown(number, step.logprobs)
                text, reason = step.text, step.completion and step.completion.finish_reason
                if body.limit == 0:
                    text, new = "", []
                first = number not in begun
                if first:
                    begun.add(number)
                    text = answers.prompt_text(number) + text
                if not (text or reason or new):
                    continue
                told = dumps(answers.logprobs(number, new, first))
                out.append(
                    stream.event(
                        f'{{"index": {number}, "text": {dumps(text)}, "finish_reason": {dumps(reason)}, '
                        f'"logprobs": {told}}}'
                    )
                )
            if out:
                yield b"".join(out)
        yield (stream.usage(answers.usage()) if body.include_usage else b"") + DONE
    except Exception as error:
        yield openai_event(broken_off(error))
