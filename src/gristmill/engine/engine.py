"""The engine: a model as an LM that one can ask."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from weakref import WeakSet

import torch
from torch import Tensor

from gristmill.engine.adapters import Residents
from gristmill.engine.blocks import BlockPool
from gristmill.engine.core import EngineCore, Event
from gristmill.engine.drafting import Draft, make_drafter
from gristmill.engine.generation import Generation, Task
from gristmill.engine.grammar import compile_grammar
from gristmill.engine.native import NativeRunner
from gristmill.engine.philox import child_seed
from gristmill.engine.runner import RunnerKind, num_blocks, runner_class
from gristmill.engine.stats import Stats
from gristmill.engine.text import TextStream
from gristmill.errors import RequestError, WorkError
from gristmill.lm import (
    LM,
    CacheOverflow,
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
    from gristmill.tokenizer import Tokenizer


class Engine(LM):
    """Generates from and scores with `model`.

    A prompt given as text is encoded as the model's own tokenizer encodes it; an empty one starts
    from the tokenizer's beginning-of-text token. Generation ends at the tokenizer's stop tokens, at
    the request's own stops, after max_tokens, or at the end of the model's context.

    The weights are the model's own tensors, so a trainer's steps are seen at once; `update_weights` says that
    what is cached no longer holds. One thread at a time may use an engine; `prepare` may be called by any.

    block_size: tokens of a cache block, a multiple of 16. cache_tokens: how many the cache holds; "auto": what
    all rows need at full context, or 40% of the free memory. max_rows: requests that run at once.
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
        max_rows: int = 64,
        step_tokens: int = 512,
        prefix_caching: bool = True,
        draft: Draft = None,
        draft_tokens: int = 8,
        adaptive_drafts: bool = True,
        runner: RunnerKind = "auto",
    ) -> None:
        _check_sizes(block_size, cache_tokens, max_rows, step_tokens, draft_tokens)
        self.model, self.tokenizer = model, model.tokenizer
        self.context = model.config.max_seq_len
        network = model.network
        kind = runner_class(network, runner)
        blocks = num_blocks(
            cache_tokens,
            block_size,
            kind.block_bytes(network, block_size),
            self.context,
            max_rows,
            network.head_weight.device,
        )
        self.runner = kind(network, blocks, block_size)
        self._block_size, self._prefix_caching = block_size, prefix_caching
        self._step_tokens, self._max_rows = step_tokens, max_rows
        self._drafter = make_drafter(draft, model, self.runner, blocks, block_size, runner)
        self._draft_tokens, self._adaptive_drafts = draft_tokens, adaptive_drafts
        self._blocks, self._weights, self._adapters = blocks, 0, Residents(model)
        self._prepared: WeakSet[Generation] = WeakSet()
        self._lock = threading.Lock()  # of `_prepared`, which any thread adds to
        self._core = self._new_core()

    @property
    def runner_name(self) -> str:
        """What computes: "native" or "torch"."""
        return self.runner.name

    @property
    def stats(self) -> Stats:
        return self._core.stats

    @property
    def cache_tokens(self) -> int:
        """How many tokens the key-value cache holds."""
        return self._blocks * self._block_size

    def describe(self) -> str:
        """A line for people: what computes, and how large the cache is."""
        size = self._blocks * type(self.runner).block_bytes(self.model.network, self._block_size)
        exact = "answers do not depend on load" if self.runner.exact else "equal within rounding"
        return (
            f"engine: {self.runner.name} runner ({exact}), key-value cache for {self.cache_tokens:,} tokens "
            f"in blocks of {self._block_size} (at most {size / 2**30:.2f} GiB), up to {self._max_rows} requests "
            f"at once, context {self.context:,}"
        )

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        generations = [self.prepare(request) for request in requests]
        families = [[g, *g.siblings] for g in generations]
        for generation in generations:
            self.add(generation)
        try:
            while any(g.completion is None for family in families for g in family):
                self._advance()
        except BaseException:
            for family in families:
                for g in family:
                    g.cancelled = True
            raise
        return [
            _together([g.completion for g in family if g.completion], request.params)
            for family, request in zip(families, requests, strict=True)
        ]

    def stream(self, request: Request) -> Iterator[Chunk]:
        if (request.params.best_of or request.params.n) > 1:
            raise RequestError("n and best_of cannot be streamed here; use generate")
        generation = self.prepare(request)  # a bad request fails here, not at the first chunk
        return self._chunks(generation)

    def score(self, texts: Sequence[str | Sequence[int]]) -> list[Scored]:
        """The first token's log-probability is None: nothing stands before it."""
        rows = [self._ids(text) for text in texts]
        tasks = [self._reading(row, "score") if len(row) > 1 else None for row in rows]
        self._run([task for task in tasks if task])
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

        Raises RequestError for an empty text.
        """
        rows = [self._ids(text) for text in texts]
        if not all(rows):
            raise RequestError(f"text {rows.index([])} is empty and has no embedding")
        tasks = [self._reading(row, "embed", adapter) for row in rows]
        self._run(tasks)
        states = [torch.cat(task.hidden).float() for task in tasks]
        pooled = [s.mean(0) if pooling == "mean" else s[-1] for s in states]
        return torch.nn.functional.normalize(torch.stack(pooled), dim=-1).cpu()

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

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Serve the PEFT adapter in `path` as `name`, at once and beside others; requests that run with an older
        one of that name end with it. Raises RequestError for a damaged or unfitting one."""
        self._adapters.load(name, path, self._why_not)
        self._refresh()
        self._sweep()

    def unload_adapter(self, name: str) -> None:
        """Serve it no more; requests that run with it end with it."""
        self._adapters.unload(name)
        self._sweep()

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._adapters.serving)

    def update_weights(self) -> None:
        """The model's tensors were written to, or replaced: what is cached no longer serves new requests."""
        self._weights += 1
        self._refresh()
        self._core.forget_prefixes()

    # For whoever runs the steps: a server's thread.

    def prepare(self, request: Request) -> Generation:
        """Tokenize and check a request. Raises RequestError; computes nothing."""
        params = request.params
        prompt = self._ids(request.prompt if request.token_ids is None else request.token_ids)
        prompt = prompt or self.tokenizer.document_start
        if not prompt:
            raise RequestError("the prompt is empty, and the tokenizer has no token to begin with")
        if len(prompt) >= self.context:
            raise ContextOverflow(len(prompt), self.context, room=1)
        for name, ids in (
            ("logit_bias", params.logit_bias),
            ("allowed_token_ids", params.allowed_token_ids or ()),
        ):
            for id in ids:
                if not 0 <= id < self.tokenizer.vocab_size:
                    raise RequestError(
                        f"{name}: there is no token {id} in a vocabulary of {self.tokenizer.vocab_size}"
                    )
        adapter = self._adapters.resident(request.adapter)
        seed = params.seed if params.seed is not None else secrets.randbits(32)
        grammar = compile_grammar(params.grammar, self.tokenizer) if params.grammar else None
        stops = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stops |= self.tokenizer.stop_ids
        count = params.best_of or params.n
        if count > 1 and params.best_of and params.logprobs is None:
            params = replace(params, logprobs=0)  # to rank by
        made: list[Generation] = []
        for i in range(count):
            only_first = params if i == 0 else replace(params, prompt_logprobs=None)
            made.append(
                self._generation(
                    prompt,
                    only_first,
                    seed=child_seed(seed, i),
                    stop_ids=stops,
                    root=(adapter, request.cache_salt, self._weights),
                    adapter=adapter,
                    matcher=grammar.matcher() if grammar else None,
                    bad_words=_as_tokens(params.bad_words, self.tokenizer),
                )
            )
        made[0].siblings = made[1:]
        return made[0]

    def add(self, generation: Generation) -> None:
        """Queue what `prepare` made."""
        self._core.stats.requests += 1
        self._core.add(generation)

    def step(self) -> list[Event]:
        """One step for all that runs. After an exception everything under way has ended and the cache is new."""
        try:
            events = self._core.step()
        except BaseException:
            for g in self._core.everyone():
                if g.completion is None:
                    g.chunks.append(g.end("error", error="the engine's step failed"))
            self._core = self._new_core(self._core.stats)
            raise
        self._sweep()
        return events

    @property
    def busy(self) -> bool:
        return self._core.busy

    def _refresh(self) -> None:
        self.runner.refresh()
        if self._drafter is not None:
            self._drafter.refresh()

    def _why_not(self) -> str | None:
        """What of the adapters now on the network this engine cannot run."""
        network = self.model.network
        why_not = NativeRunner.unsupported(network) if self.runner.name == "native" else None
        if why_not is not None:
            return f'{why_not}, or start the engine with runner="torch"'
        if any(".kv_b_proj.lora." in name for name, _ in network.named_parameters()):
            return (
                "an adapter on kv_b_proj cannot generate: its weight is used as a matrix; merge it"
            )
        return None

    def _sweep(self) -> None:
        if self._adapters.retired:
            with self._lock:
                prepared = list(self._prepared)
            in_use = {g.adapter for g in prepared if g.adapter and g.completion is None}
            if self._adapters.sweep(in_use):
                self._refresh()

    def _generation(self, prompt: list[int], params: SamplingParams, **kept) -> Generation:
        total = min(len(prompt) + params.max_tokens, self.context)
        if total > self.cache_tokens:
            raise CacheOverflow(total, self.cache_tokens)
        text = TextStream(self.tokenizer, params.stop, params.include_stop, params.min_tokens)
        switch = self.model.config.frequency_switch
        made = Generation(prompt, params, text=text, frequency_switch=switch, **kept)
        with self._lock:
            self._prepared.add(made)
        return made

    def _reading(self, row: list[int], task: Task, adapter: str | None = None) -> Generation:
        if len(row) > self.context:
            raise ContextOverflow(len(row), self.context)
        resident = self._adapters.resident(adapter)
        root = (resident, "", self._weights)
        params = SamplingParams(max_tokens=1)
        return self._generation(
            row, params, seed=0, stop_ids=frozenset(), root=root, adapter=resident, task=task
        )

    def _run(self, generations: Sequence[Generation]) -> None:
        for generation in generations:
            self._core.add(generation)
        while any(g.completion is None for g in generations):
            self._advance()
        for g in generations:
            if g.completion is not None and g.completion.error:
                raise WorkError(g.completion.error)

    def _chunks(self, generation: Generation) -> Iterator[Chunk]:
        self.add(generation)
        try:
            while generation.completion is None or generation.chunks:
                while generation.chunks:
                    yield generation.chunks.popleft()
                if generation.completion is None:
                    self._advance()
        finally:
            generation.cancelled = True  # of no effect when it has ended

    def _advance(self) -> None:
        for generation, chunk in self.step():
            generation.chunks.append(chunk)

    def _new_core(self, stats: Stats | None = None) -> EngineCore:
        core = EngineCore(
            self.runner,
            BlockPool(self._blocks, self._block_size, self._prefix_caching),
            vocab_size=self.tokenizer.vocab_size,
            context=self.context,
            step_tokens=self._step_tokens,
            max_rows=self._max_rows,
            drafter=self._drafter,
            max_drafts=self._draft_tokens,
            adaptive_drafts=self._adaptive_drafts,
        )
        core.stats = stats or core.stats
        return core

    def _ids(self, text: str | Sequence[int]) -> list[int]:
        given = self.tokenizer.prompt_ids(text) if isinstance(text, str) else text
        ids = [int(i) for i in given]
        size = self.model.config.vocab_size
        for i in ids:
            if not 0 <= i < size:
                raise RequestError(f"token id {i} is outside the vocabulary of {size}")
        return ids


def _together(answers: list[Completion], params: SamplingParams) -> Completion:
    """The first of n answers, with the others; of `best_of` those with the best mean log-probability."""
    if params.best_of:
        answers = sorted(answers, key=_mean_logprob, reverse=True)[: params.n]
    if params.logprobs is None:
        answers = [replace(answer, logprobs=None) for answer in answers]
    return replace(answers[0], alternatives=tuple(answers[1:])) if answers[1:] else answers[0]


def _as_tokens(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word as it stands alone and as it stands after a space, which most vocabularies write otherwise."""
    forms = [tuple(tokenizer.encode(form)) for word in words for form in (word, " " + word)]
    return tuple(dict.fromkeys(form for form in forms if form))


def _mean_logprob(answer: Completion) -> float:
    values = [t.logprob for t in answer.logprobs or ()]
    return sum(values) / len(values) if values else float("-inf")


def _check_sizes(
    block_size: int, cache_tokens: int | str, max_rows: int, step_tokens: int, draft_tokens: int
) -> None:
    if block_size < 16 or block_size % 16:
        raise RequestError(f"block_size must be a multiple of 16, not {block_size}")
    if cache_tokens != "auto" and (isinstance(cache_tokens, str) or cache_tokens < 1):
        raise RequestError(f'cache_tokens must be "auto" or at least 1, not {cache_tokens!r}')
    for name, value in (
        ("max_rows", max_rows),
        ("step_tokens", step_tokens),
        ("draft_tokens", draft_tokens),
    ):
        if value < 1:
            raise RequestError(f"{name} must be at least 1, not {value}")
