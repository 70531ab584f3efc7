"""One request under way: its tokens, how far they are computed, what it has said."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from gristmill.engine.blocks import Prefix
from gristmill.engine.grammar import Matcher
from gristmill.engine.sampler import History
from gristmill.engine.text import TextStream
from gristmill.lm import Chunk, Completion, FinishReason, SamplingParams, TokenLogprob

Task = Literal["generate", "score", "embed"]


@dataclass(eq=False)
class Generation:
    """`tokens` are the prompt's and then those said; the keys and values of `num_computed` of them are cached.

    A token is sampled when all but the last are computed: prefill, decoding and the verification of drafts differ
    in nothing else.
    """

    prompt: list[int]
    params: SamplingParams
    seed: int
    text: TextStream
    stop_ids: frozenset[int]  # that end it
    root: Hashable  # what its keys and values depend on besides tokens: adapter, salt, weights
    task: Task = "generate"
    adapter: str | None = None
    matcher: Matcher | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    frequency_switch: int | None = None
    siblings: list[Generation] = field(default_factory=list)  # other answers to the same prompt
    # what it has said
    output: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    scores: list[float] = field(
        default_factory=list
    )  # score: log p of the second to the last token
    hidden: list[torch.Tensor] = field(default_factory=list)  # embed: [tokens, D] of each chunk
    completion: Completion | None = None
    chunks: deque[Chunk] = field(default_factory=deque)  # for who reads them one by one
    failure: BaseException | None = None  # of a step, which ended everyone
    cancelled: bool = False  # may be set from any thread; it leaves at the next step
    # where it is in the cache
    table: list[int] = field(default_factory=list)
    num_computed: int = 0
    cached_tokens: int | None = None  # of the prompt, found in the cache when it first began
    drafts: list[int] = field(default_factory=list)  # that this step verifies
    forced: list[int] = field(default_factory=list)  # the only tokens that the grammar allows next

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self.start_anew()

    def start_anew(self) -> None:
        """Nothing is computed. What was said stays, and the draws depend on (seed, position) alone."""
        self.table, self.num_computed = [], 0
        self._outgrown = self._beyond_switch()
        self.prefix = Prefix((self.root, self._outgrown))
        if self.reads_prompt:
            for read in (self.prompt_logprobs, self.scores, self.hidden):
                read.clear()

    @property
    def ended(self) -> bool:
        return self.completion is not None or self.failure is not None

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens that must be computed before the next can be sampled."""
        return len(self.tokens) - self.num_computed

    @property
    def reads_prompt(self) -> bool:
        """Whether the hidden states of the whole prompt are wanted (still)."""
        reads = self.task != "generate" or self.params.prompt_logprobs is not None
        return reads and not self.output

    @property
    def outgrew_frequencies(self) -> bool:
        """Whether what is cached was computed with other rotary frequencies than its length now asks for."""
        return self._beyond_switch() and not self._outgrown

    @property
    def may_jump(self) -> bool:
        """Whether tokens that the grammar forces may be taken undrawn: nothing else has a say in them."""
        p = self.params
        others = self.bad_words or p.allowed_token_ids or p.logit_bias or p.min_tokens
        return not others

    def _beyond_switch(self) -> bool:
        return self.frequency_switch is not None and self.num_tokens > self.frequency_switch

    def room_for_drafts(self, context: int) -> int:
        """How many drafts could all be kept, with one more token after them."""
        if self.task != "generate" or self.siblings or self.reads_prompt:
            return 0
        room = min(self.params.max_tokens - len(self.output), context - self.num_tokens) - 1
        if self.frequency_switch is not None and self.num_tokens <= self.frequency_switch:
            room = min(room, self.frequency_switch - self.num_tokens)
        return room

    def histories(self) -> list[History]:
        """What the draw after the last token depends on, and those after each draft."""
        drafts = self.drafts
        return [
            History(
                self.params,
                self.prompt,
                self.output + drafts[:i] if i else self.output,  # a copy would grow with it
                self.seed,
                self.stop_ids,
                self.bad_words,
            )
            for i in range(len(drafts) + 1)
        ]

    def append(self, token: int, context: int) -> tuple[str, FinishReason | None]:
        """Take the next token; the text that it makes certain, and why it is the last if it is."""
        self.tokens.append(token)
        self.output.append(token)
        if token in self.stop_ids:
            return "", "stop"
        piece = self.text.push(token)
        if self.text.stopped:
            return piece, "stop"
        if self.matcher is not None:
            self.matcher.consume(token)
            if self.matcher.stopped:
                return piece, "stop"
        ended = len(self.output) >= self.params.max_tokens or self.num_tokens >= context
        return piece, "length" if ended else None

    def end(self, reason: FinishReason, piece: str = "", error: str | None = None) -> Chunk:
        """The last chunk, with the whole completion."""
        piece += self.text.finish()
        if self.text.stopped and reason == "length":
            reason = "stop"
        asked = self.params
        self.completion = Completion(
            self.text.text,
            tuple(self.output),
            reason,
            len(self.prompt),
            logprobs=None if asked.logprobs is None else tuple(self.logprobs),
            seed=self.seed,
            prompt_logprobs=None
            if asked.prompt_logprobs is None
            else (None, *self.prompt_logprobs),
            cached_tokens=self.cached_tokens or 0,
            error=error,
            stop_string=self.text.stop_string,
        )
        return Chunk(piece, self.completion)

    def rest(self, count: int) -> Sequence[int]:
        """The next `count` tokens to compute."""
        return self.tokens[self.num_computed : self.num_computed + count]
