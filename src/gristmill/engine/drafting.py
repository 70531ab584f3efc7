"""Who proposes the next tokens: the request's own text, or a smaller model, or this model's first layers.

A drafter draws with the target's noise, which is keyed by (seed, position, token). So where the two distributions
agree the two draws mostly do, and the engine keeps a draft when it is what the target itself draws there: the
text is that of plain decoding, token for token, whatever was proposed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, Union
from weakref import WeakKeyDictionary

from gristmill.engine.generation import Generation
from gristmill.engine.kept import CacheDtype
from gristmill.engine.lookup import Ngrams
from gristmill.engine.masks import token_masks
from gristmill.engine.native import NativeRunner
from gristmill.engine.ragged import Span, ragged
from gristmill.engine.runner import Runner, RunnerKind, runner_class
from gristmill.engine.sampler import sample
from gristmill.errors import RequestError
from gristmill.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gristmill.formats import Model

Draft: TypeAlias = Union["Model", Literal["ngram", "early-exit"], None]
_EXIT_SHARE = 4  # early exit drafts with a quarter of the layers
_CATCH_UP = 512  # tokens of prompts that a draft model reads in a step
_BEHIND = 64  # a draft model that lacks more of a request than this reads on before it drafts


class Drafter(ABC):
    """Proposes; what most need not do has nothing as its default."""

    @abstractmethod
    def room(self, g: Generation) -> int:
        """The most drafts that can be made for `g` now."""

    @abstractmethod
    def propose(self, asked: Sequence[tuple[Generation, int]]) -> float:
        """Set `drafts` of each to at most so many tokens; the seconds that it took each draft."""

    def verified(self, g: Generation, accepted: int) -> None:
        """So many of the drafts of `g` were kept; `num_computed` does not count them yet."""
        return

    def copy_block(self, source: int, target: int) -> None:
        """The cache's block was copied."""
        return

    def follow(self, running: Sequence[Generation]) -> None:
        """A step begins: a time to read on in what these have."""
        return

    def refresh(self) -> None:
        """Tensors or adapters of the network were replaced by others."""
        return


class LookupDrafter(Drafter):
    """What followed the last time. Costs nothing worth counting."""

    def __init__(self) -> None:
        self._texts: WeakKeyDictionary[Generation, Ngrams] = WeakKeyDictionary()

    def room(self, g: Generation) -> int:
        text = self._texts.setdefault(g, Ngrams())
        return 1 << 16 if text.propose(g.tokens, 1) else 0

    def propose(self, asked: Sequence[tuple[Generation, int]]) -> float:
        for g, count in asked:
            g.drafts = self._texts[g].propose(g.tokens, count)
        return 0.0


class ModelDrafter(Drafter):
    """A network that runs on the target's block tables, with a cache of its own or, being the target's first
    layers, in the target's."""

    def __init__(
        self, runner: Runner, block_size: int, vocab_size: int, context: int, shares_cache: bool
    ) -> None:
        self._runner, self._block_size, self._vocab_size = runner, block_size, vocab_size
        self._context, self._shares_cache = context, shares_cache
        # Tokens whose keys and values the draft model has, and the table that they are in.
        self._computed: WeakKeyDictionary[Generation, tuple[int, list[int]]] = WeakKeyDictionary()

    def room(self, g: Generation) -> int:
        behind = g.num_tokens - self._known(g) > _BEHIND
        return 0 if behind else max(0, self._context - g.num_tokens)

    def follow(self, running: Sequence[Generation]) -> None:
        """Read prompts along with the target, so many tokens a step, that nobody waits for it."""
        left = _CATCH_UP
        spans: list[Span] = []
        for g in running:
            start = self._known(g)
            count = min(left, g.num_tokens - start - 1)
            if g.task == "generate" and count >= _BEHIND and g.num_tokens < self._context:
                tokens = g.tokens[start : start + count]
                spans.append(Span(tokens, start, g.table, g.num_tokens, 0, self._adapter(g)))
                self._computed[g] = start + count, g.table
                left -= count
        if spans:
            self._runner.hidden(ragged(spans, self._block_size))

    def refresh(self) -> None:
        self._runner.refresh()

    def propose(self, asked: Sequence[tuple[Generation, int]]) -> float:
        for g, _ in asked:
            g.drafts = []
        begun = time.perf_counter()
        made, ended = 0, set[Generation]()
        for step in range(max(count for _, count in asked)):
            going = [g for g, count in asked if count > step and g not in ended]
            if not going:
                break
            spans = [self._span(g, step) for g in going]
            logits = self._runner.logits(self._runner.hidden(ragged(spans, self._block_size)))
            asking = [(g.matcher, g.drafts, len(g.drafts)) for g in going]
            masks, failed = token_masks(asking, self._vocab_size)
            rows = [g.histories()[-1] for g in going]
            drawn, shares = sample(logits[:, : self._vocab_size], rows, masks)
            for i, (g, token) in enumerate(zip(going, drawn, strict=True)):
                if i in failed or shares[i] == float("-inf"):  # the target will meet the same
                    ended.add(g)
                    continue
                g.drafts.append(token)
                if token in g.stop_ids or (g.matcher and token in g.matcher.ends):
                    ended.add(g)
            made += len(going)
        return (time.perf_counter() - begun) / max(made, 1)

    def verified(self, g: Generation, accepted: int) -> None:
        if not g.drafts:
            return
        # Its own last draft was never its input.
        known = g.num_computed + min(len(g.drafts) - 1, accepted)
        self._computed[g] = known, g.table

    def copy_block(self, source: int, target: int) -> None:
        if not self._shares_cache:
            self._runner.copy_block(source, target)

    def _span(self, g: Generation, step: int) -> Span:
        start = self._known(g) if step == 0 else g.num_tokens + step - 1
        tokens = g.tokens[start:] if step == 0 else g.drafts[-1:]
        return Span(tokens, start, g.table, g.num_tokens, 1, self._adapter(g))

    def _known(self, g: Generation) -> int:
        if self._shares_cache:
            return g.num_computed
        known, table = self._computed.get(g, (0, []))
        return known if table is g.table else 0  # it was put back meanwhile, and has other blocks

    def _adapter(self, g: Generation) -> str | None:
        return g.adapter if self._shares_cache else None


def make_drafter(
    draft: Draft,
    model: Model,
    target: Runner,
    blocks: int,
    block_size: int,
    cache_dtype: CacheDtype,
    kind: RunnerKind,
) -> Drafter | None:
    """A draft model's cache is kept as the target's.

    Raises RequestError for a draft model that reads or writes other tokens than `model`.
    """
    if draft is None:
        return None
    if draft == "ngram":
        return LookupDrafter()
    vocab_size, config = model.tokenizer.vocab_size, model.config
    if draft == "early-exit":
        if not isinstance(target, NativeRunner):
            raise RequestError(
                "early-exit drafts need the native runner, and this model runs on PyTorch"
            )
        layers = max(1, config.num_layers // _EXIT_SHARE)
        first_layers = NativeRunner(
            model.network, blocks, block_size, cache_dtype, layers, shared=target
        )
        return ModelDrafter(first_layers, block_size, vocab_size, config.max_seq_len, True)
    if isinstance(draft, str):
        raise RequestError(f'draft must be a model, "ngram" or "early-exit", not {draft!r}')
    _check_same_tokens(model.tokenizer, draft.tokenizer)
    runner = runner_class(draft.network, kind)(draft.network, blocks, block_size, cache_dtype)
    # Beyond a switch of frequencies its cache would not hold: it stops drafting there.
    context = min(draft.config.max_seq_len, draft.config.frequency_switch or config.max_seq_len)
    return ModelDrafter(runner, block_size, vocab_size, context, False)


def _check_same_tokens(ours: Tokenizer, drafts: Tokenizer) -> None:
    if ours.vocab_size != drafts.vocab_size:
        raise RequestError(
            f"the draft model's tokenizer has {drafts.vocab_size} tokens and the model's {ours.vocab_size}; "
            "they must share one"
        )
    for id in range(ours.vocab_size):
        if ours.token_bytes(id) != drafts.token_bytes(id):
            raise RequestError(
                f"the draft model reads token {id} as {drafts.token_bytes(id)!r} and the model as "
                f"{ours.token_bytes(id)!r}; they must share one tokenizer"
            )
