"""Text that must have a form: JSON of a schema, a regular expression, a Lark grammar, one of several strings.

Compiled by llguidance, which then says which tokens may come next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import Tensor

from gristmill.errors import RequestError
from gristmill.lm import Grammar
from gristmill.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_KEPT = 64  # compiled grammars
_SPACE = r"[ \n]{0,16}"  # between the tokens of JSON: a weak model would else write blanks for ever
_vocabularies: WeakKeyDictionary[Tokenizer, LLTokenizer] = WeakKeyDictionary()


class Matcher:
    """Where one request stands in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self, row: Tensor) -> None:
        """Write which tokens may come next into `row`, int32 [⌈vocab_size / 32⌉], a bit a token."""
        self._matcher.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * 4)
        self._check()

    def consume(self, token: int) -> None:
        """Go on by a token. Raises ValueError for one that the grammar does not allow."""
        self._matcher.consume_token(token)
        self._check()

    def validate(self, drafts: Sequence[int]) -> int:
        """How many of the drafts the grammar allows, from the first on."""
        return self._matcher.validate_tokens(list(drafts)) if drafts else 0

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens."""
        if count:
            self._matcher.rollback(count)

    def forced(self) -> list[int]:
        """The tokens that must come next, where the grammar leaves no choice."""
        return [] if self.stopped else self._matcher.compute_ff_tokens()

    @property
    def stopped(self) -> bool:
        """Whether the text is complete and nothing may follow."""
        return self._matcher.is_stopped()

    @property
    def accepting(self) -> bool:
        """Whether the text is complete, though more may follow."""
        return self._matcher.is_accepting()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"the grammar cannot go on: {self._matcher.get_error()}")


@dataclass(frozen=True)
class Compiled:
    """A grammar over a vocabulary; gives each request a matcher of its own."""

    fresh: LLMatcher

    def matcher(self) -> Matcher:
        return Matcher(self.fresh.deep_copy())


def compile_grammar(grammar: Grammar, tokenizer: Tokenizer) -> Compiled:
    """Raises RequestError, with the place, for a grammar that is wrong or holds what would not be enforced."""
    source = grammar.source
    if isinstance(source, Mapping):
        source = json.dumps(source)
    return _compile(grammar.kind, source, tokenizer)


@lru_cache(_KEPT)
def _compile(kind: str, source: str | tuple[str, ...], tokenizer: Tokenizer) -> Compiled:
    from llguidance import LLMatcher, grammar_from

    vocabulary = _vocabulary(tokenizer)
    if kind == "json_object":
        kind, source = "json_schema", '{"type": "object"}'
    try:
        text = source if isinstance(source, str) else json.dumps(source)
        if kind == "json_schema":
            written = LLMatcher.grammar_from_json_schema(text, {"whitespace_pattern": _SPACE})
        else:
            written = grammar_from(kind, text)  # type: ignore[arg-type] - our kinds are its
    except ValueError as error:
        raise RequestError(f"grammar: {kind}: {error}") from error
    wrong, notes = LLMatcher.validate_grammar_with_warnings(written, vocabulary)
    if wrong or notes:
        what = "is wrong" if wrong else "holds what cannot be enforced"
        raise RequestError(f"grammar: the {kind} {what}: {'; '.join(notes)}")
    return Compiled(LLMatcher(vocabulary, written, log_level=0))


def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    """The tokenizer as llguidance sees it, made once: a trie of 100,000 tokens takes a while."""
    from llguidance import LLTokenizer

    if tokenizer not in _vocabularies:
        stops = sorted(tokenizer.stop_ids)
        if not stops:
            raise RequestError("grammar: this model's tokenizer has no token that ends a text")
        _vocabularies[tokenizer] = LLTokenizer(
            _Wrapper(tokenizer),  # type: ignore[arg-type] - duck-typed, as the library documents
            n_vocab=tokenizer.vocab_size,
            eos_token=stops,
        )
    return _vocabularies[tokenizer]


class _Wrapper:
    """What `LLTokenizer` asks of a tokenizer."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = min(tokenizer.stop_ids), tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        self.special_token_ids = [i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i)]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)
