"""From what is asked to a `Generation`: tokens, parameters checked, the adapter that it will run with."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakSet

from gristmill.engine.adapters import Residents
from gristmill.engine.checks import as_ids, check_ids
from gristmill.engine.generation import Generation, Task
from gristmill.engine.grammar import compile_grammar
from gristmill.engine.philox import child_seed
from gristmill.engine.text import TextStream
from gristmill.errors import RequestError
from gristmill.lm import CacheOverflow, ContextOverflow, Request, SamplingParams

if TYPE_CHECKING:
    from gristmill.formats import Model
    from gristmill.tokenizer import Tokenizer


class Preparer:
    """Any thread may use it. `weights`, a number, is part of what cached keys and values depend on.

    cache_tokens: how many the cache holds.
    """

    def __init__(self, model: Model, adapters: Residents, cache_tokens: int) -> None:
        self._config, self._tokenizer, self._adapters = model.config, model.tokenizer, adapters
        self._context, self._cache_tokens = model.config.max_seq_len, cache_tokens
        self.weights = 0
        self._made: WeakSet[Generation] = WeakSet()
        # Of `_made`, and so that no adapter leaves the network between a request's naming it and its being there.
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Generation:
        """The first of the answers asked for, the others its siblings. Raises RequestError."""
        params = request.params
        prompt = self.ids(request.prompt if request.token_ids is None else request.token_ids)
        prompt = prompt or self._tokenizer.document_start
        if not prompt:
            raise RequestError("the prompt is empty, and the tokenizer has no token to begin with")
        if len(prompt) >= self._context:
            raise ContextOverflow(len(prompt), self._context, room=1)
        check_ids(params, self._tokenizer.vocab_size)
        seed = params.seed if params.seed is not None else secrets.randbits(32)
        grammar = compile_grammar(params.grammar, self._tokenizer) if params.grammar else None
        stops = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stops |= self._tokenizer.stop_ids
        count = params.best_of or params.n
        if count > 1 and params.best_of and params.logprobs is None:
            params = replace(params, logprobs=0)  # to rank by
        siblings = replace(params, prompt_logprobs=None)  # the first reads the prompt for all
        bad_words = _as_tokens(params.bad_words, self._tokenizer)
        with self._lock:
            adapter = self._adapters.resident(request.adapter)
            made = [
                self._generation(
                    prompt,
                    siblings if i else params,
                    seed=child_seed(seed, i),
                    stop_ids=stops,
                    root=(adapter, request.cache_salt, self.weights),
                    adapter=adapter,
                    matcher=grammar.matcher() if grammar else None,
                    bad_words=bad_words,
                )
                for i in range(count)
            ]
        made[0].siblings = made[1:]
        return made[0]

    def reading(self, row: list[int], task: Task, adapter: str | None = None) -> Generation:
        """One that computes the given tokens and says none. Raises RequestError."""
        if len(row) > self._context:
            raise ContextOverflow(len(row), self._context)
        params = SamplingParams(max_tokens=1)
        with self._lock:
            resident = self._adapters.resident(adapter)
            root = (resident, "", self.weights)
            return self._generation(
                row, params, seed=0, stop_ids=frozenset(), root=root, adapter=resident, task=task
            )

    def ids(self, text: str | Sequence[int]) -> list[int]:
        return as_ids(text, self._tokenizer, self._config.vocab_size)

    def sweep(self) -> bool:
        """Take retired adapters off the network that nobody runs with; whether there were some."""
        if not self._adapters.retired:
            return False
        with self._lock:
            return self._adapters.sweep(
                {g.adapter for g in self._made if g.adapter and not g.ended}
            )

    def _generation(self, prompt: list[int], params: SamplingParams, **kept) -> Generation:
        """The lock must be held."""
        answers = kept.get("task", "generate") == "generate"
        total = min(len(prompt) + params.max_tokens, self._context) if answers else len(prompt)
        if total > self._cache_tokens:
            raise CacheOverflow(total, self._cache_tokens, answers)
        text = TextStream(
            self._tokenizer,
            params.stop,
            params.include_stop,
            params.min_tokens,
            before=prompt,
            # What is shown must have the form, not what is left of it.
            verbatim=params.grammar is not None,
            skip_special=params.skip_special_tokens,
        )
        switch = self._config.frequency_switch
        made = Generation(prompt, params, text=text, frequency_switch=switch, **kept)
        self._made.add(made)
        return made


def _as_tokens(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word as it stands alone and as it stands after a space, which most vocabularies write otherwise."""
    forms = [tuple(tokenizer.encode(form)) for word in words for form in (word, " " + word)]
    return tuple(dict.fromkeys(form for form in forms if form))
