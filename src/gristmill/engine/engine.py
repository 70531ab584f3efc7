"""The engine: a model as an LM that one can ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor

from gristmill.engine.adapters import Residents
from gristmill.engine.blocks import BlockPool
from gristmill.engine.checks import check_request, check_sizes, listed
from gristmill.engine.core import EngineCore, Event, Load
from gristmill.engine.drafting import Draft, make_drafter
from gristmill.engine.generation import Generation
from gristmill.engine.kept import CacheDtype, chosen
from gristmill.engine.native import NativeRunner
from gristmill.engine.preparing import Preparer
from gristmill.engine.runner import RunnerKind, num_blocks, runner_class
from gristmill.engine.stats import Stats
from gristmill.engine.turns import Turns
from gristmill.errors import RequestError
from gristmill.lm import LM, Chunk, Completion, Message, Request, SamplingParams, Scored

if TYPE_CHECKING:
    from gristmill.formats import Model

T = TypeVar("T")


class Engine(LM):
    """Generates from and scores with `model`.

    A prompt given as text is encoded as the model's own tokenizer encodes it; an empty one starts
    from the tokenizer's beginning-of-text token. Generation ends at the tokenizer's stop tokens, at
    the request's own stops, after max_tokens, or at the end of the model's context.

    The weights are the model's own tensors (`model.network.parameters()`), so a trainer's steps are seen at once;
    `update_weights` says that what is cached no longer holds.

    Any number of threads may use an engine: what they ask for runs in the same batches, and each gets the answer
    that it would have had alone. Where a step fails, all that was under way ends: the thread that ran it raises what
    went wrong, the others WorkError.

    block_size: tokens of a cache block, a multiple of 16. cache_tokens: how many the cache holds; "auto": what
    all rows need at full context, or 40% of the free memory. max_rows: requests that run at once.
    cache_dtype: how keys and values are kept, "float32", "float16", "int8" or "int4"; "auto": float16 for weights
    narrower than fp32, else float32. The choice can be read from the engine's attribute of that name.
    step_tokens: tokens computed in one step, where a long prompt is cut. draft: what proposes tokens: another
    model with the same tokenizer, "ngram" for the text itself, "early-exit" for the model's own first
    layers. draft_tokens: so many at once, or with adaptive_drafts at most so many, as long as they pay.
    runner: "native" computes a row alike whatever runs beside it; "auto" takes it where it can.
    """

    def __init__(
        self,
        model: Model,
        *,
        block_size: int = 16,
        cache_tokens: int | Literal["auto"] = "auto",
        cache_dtype: CacheDtype | Literal["auto"] = "auto",
        max_rows: int = 64,
        step_tokens: int = 512,
        prefix_caching: bool = True,
        draft: Draft = None,
        draft_tokens: int = 8,
        adaptive_drafts: bool = True,
        runner: RunnerKind = "auto",
    ) -> None:
        if not hasattr(model, "network"):
            raise RequestError(
                f'Engine needs a model, as in Engine(Model.load("…")), not {model!r}'
            )
        check_sizes(block_size, cache_tokens, max_rows, step_tokens, draft_tokens)
        self.model, self.tokenizer = model, model.tokenizer
        self.context = model.config.max_seq_len
        network = model.network
        kind = runner_class(network, runner)
        self.cache_dtype: CacheDtype = chosen(cache_dtype, network, native=kind is NativeRunner)
        blocks = num_blocks(
            cache_tokens,
            block_size,
            kind.block_bytes(network, block_size, self.cache_dtype),
            self.context,
            max_rows,
            network.model.norm.weight.device,
        )
        self.runner = kind(network, blocks, block_size, self.cache_dtype)
        self.block_size, self._prefix_caching = block_size, prefix_caching
        self._step_tokens, self._max_rows = step_tokens, max_rows
        self._drafter = make_drafter(
            draft, model, self.runner, blocks, block_size, self.cache_dtype, runner
        )
        self._draft_tokens, self._adaptive_drafts = draft_tokens, adaptive_drafts
        self._blocks, self._adapters = blocks, Residents(model)
        self._preparer = Preparer(model, self._adapters, self.cache_tokens)
        self._turns = Turns(self._new_core, after_step=self._sweep)

    @property
    def runner_name(self) -> str:
        """What computes: "native" or "torch"."""
        return self.runner.name

    @property
    def stats(self) -> Stats:
        return self._turns.core.stats

    @property
    def load(self) -> Load:
        return self._turns.core.load()

    @property
    def cache_tokens(self) -> int:
        """How many tokens the key-value cache holds."""
        return self._blocks * self.block_size

    @property
    def cache_bytes(self) -> int:
        """What the key-value cache takes when it is full."""
        block = type(self.runner).block_bytes(self.model.network, self.block_size, self.cache_dtype)
        return self._blocks * block

    def describe(self) -> str:
        """A line for people: what computes, and how large the cache is."""
        exact = "answers do not depend on load" if self.runner.exact else "equal within rounding"
        return (
            f"engine: {self.runner.name} runner ({exact}), {self.cache_dtype} key-value cache for "
            f"{self.cache_tokens:,} tokens in blocks of {self.block_size} (at most "
            f"{self.cache_bytes / 2**30:.2f} GiB), up to {self._max_rows} requests at once, context {self.context:,}"
        )

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        requests = listed(requests, 'generate([Request("…")])')
        for request in requests:
            check_request(request)
        generations = [self.prepare(request) for request in requests]
        families = [[g, *g.siblings] for g in generations]
        self._turns.run(generations)
        return [
            _together([g.completion for g in family if g.completion], request.params)
            for family, request in zip(families, requests, strict=True)
        ]

    def stream(self, request: Request) -> Iterator[Chunk]:
        """The answer's text in a `Chunk` a step, the last one with the whole `Completion`. A stream that is closed, or
        no longer held, ends its request. Raises RequestError at once, and for n or best_of above 1."""
        check_request(request)
        if (request.params.best_of or request.params.n) > 1:
            raise RequestError("n and best_of cannot be streamed here; use generate")
        generation = self.prepare(request)  # a bad request fails here, not at the first chunk
        return self._turns.chunks(generation)

    def score(self, texts: Sequence[str | Sequence[int]]) -> list[Scored]:
        """A `Scored` for each text: its token ids, and each one's log-probability after those before it, as the
        model itself has it. The first token's is None: nothing stands before it. Text begins as a prompt does (with
        BOS where the family has it so). Raises RequestError, ContextOverflow for a text longer than the context."""
        rows = [self._preparer.ids(text) for text in listed(texts, 'score(["…"])')]
        tasks = [self._preparer.reading(row, "score") if len(row) > 1 else None for row in rows]
        self._turns.run([task for task in tasks if task])
        return [
            Scored(tuple(row), (None, *(task.scores if task else ())) if row else ())
            for row, task in zip(rows, tasks, strict=True)
        ]

    def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        pooling: Literal["mean", "last"] = "mean",
        adapter: str | None = None,
    ) -> Tensor:
        """One vector of length 1 for each text, fp32 [texts, hidden_size], from the final normed hidden states.

        pooling: over all tokens, or the last one's alone. adapter: as in `Request`. Raises RequestError for an empty
        text.
        """
        rows = [self._preparer.ids(text) for text in listed(texts, 'embed(["…"])')]
        if pooling not in ("mean", "last"):
            raise RequestError(f'pooling must be "mean" or "last", not {pooling!r}')
        if not rows:
            return torch.empty(0, self.model.config.hidden_size)
        if not all(rows):
            raise RequestError(f"text {rows.index([])} is empty and has no embedding")
        tasks = [self._preparer.reading(row, "embed", adapter) for row in rows]
        self._turns.run(tasks)
        states = [torch.cat(task.hidden).float() for task in tasks]
        pooled = [s.mean(0) if pooling == "mean" else s[-1] for s in states]
        return torch.nn.functional.normalize(torch.stack(pooled), dim=-1).cpu()

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Completion:
        """The answer to a conversation, [{"role": "user", "content": "…"}, …], in the model's own chat template.
        Its text is what the model says, a space at the beginning included. Raises RequestError for a model without a
        template, and for messages that the template refuses."""
        return self.generate([self.chat_request(messages, params)])[0]

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None
    ) -> Iterator[Chunk]:
        """`chat`, as `stream` gives it."""
        return self.stream(self.chat_request(messages, params))

    def chat_request(
        self, messages: Sequence[Message], params: SamplingParams | None = None
    ) -> Request:
        """The conversation in the model's own chat template, up to where the answer begins."""
        told = listed(messages, 'chat([{"role": "user", "content": "…"}])')
        ids = self.tokenizer.chat_ids(told, add_generation_prompt=True)
        return Request(token_ids=ids, params=params or SamplingParams())

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Serve the PEFT adapter in the directory `path` as `name`, at once and beside others; `Request(adapter=name)`
        asks for it, and `adapters` lists the names. Requests that run with an older one of that name end with it.
        Raises RequestError, and changes nothing, for a damaged or unfitting one, or one that the runner cannot run."""

        def work() -> None:
            self._adapters.load(name, path, self._why_not)
            self._refresh()
            self._sweep()

        self._turns.take(work)

    def unload_adapter(self, name: str) -> None:
        """Serve it no more; requests that run with it end with it. Raises RequestError where there is none."""

        def work() -> None:
            self._adapters.unload(name)
            self._sweep()

        self._turns.take(work)

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._adapters.serving)

    def update_weights(self) -> None:
        """The model's tensors were written to, or replaced: what is cached no longer serves new requests."""

        def work() -> None:
            self._preparer.weights += 1
            self._refresh()
            self._turns.core.forget_prefixes()

        self._turns.take(work)

    # For whoever runs the steps: a server's thread.

    def prepare(self, request: Request) -> Generation:
        """Tokenize and check a request. Raises RequestError; computes nothing."""
        return self._preparer.answer(request)

    def add(self, generation: Generation) -> None:
        """Queue what `prepare` made."""
        self._turns.add(generation)

    def step(self) -> list[Event]:
        """One step for all that runs. After an exception everything under way has ended and the cache is new.

        The events are this caller's alone: one thread that calls `step` serves all, or each calls `generate` and so on.
        """
        return self._turns.step()

    @property
    def busy(self) -> bool:
        return self._turns.busy

    def _refresh(self) -> None:
        self.runner.refresh()
        if self._drafter is not None:
            self._drafter.refresh()

    def _why_not(self) -> str | None:
        """What of the adapters now on the network this engine cannot run."""
        why_not = type(self.runner).unsupported(self.model.network)
        elsewhere = ', or start the engine with runner="torch"' if self.runner.exact else ""
        return why_not and why_not + elsewhere

    def _sweep(self) -> None:
        if self._preparer.sweep():
            self._refresh()

    def _new_core(self) -> EngineCore:
        return EngineCore(
            self.runner,
            BlockPool(self._blocks, self.block_size, self._prefix_caching),
            vocab_size=self.tokenizer.vocab_size,
            context=self.context,
            step_tokens=self._step_tokens,
            max_rows=self._max_rows,
            drafter=self._drafter,
            max_drafts=self._draft_tokens,
            adaptive_drafts=self._adaptive_drafts,
        )


def best_of(answers: Sequence[T], n: int, completion: Callable[[T], Completion]) -> list[T]:
    """The n with the best mean log-probability, the best first."""

    def mean(answer: T) -> float:
        values = [t.logprob for t in completion(answer).logprobs or ()]
        return sum(values) / len(values) if values else float("-inf")

    return sorted(answers, key=mean, reverse=True)[:n]


def _together(answers: list[Completion], params: SamplingParams) -> Completion:
    """The first of n answers, with the others; of `best_of` those with the best mean log-probability."""
    if params.best_of:
        answers = best_of(answers, params.n, lambda answer: answer)
    if params.logprobs is None:
        answers = [replace(answer, logprobs=None) for answer in answers]
    return replace(answers[0], alternatives=tuple(answers[1:])) if answers[1:] else answers[0]
