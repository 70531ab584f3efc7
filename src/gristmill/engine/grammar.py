"""Text that must have a form: JSON of a schema, a regular expression, a Lark grammar, one of several strings.

Compiled by llguidance, which then says which tokens may come next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, proxy

from torch import Tensor

from gristmill.errors import RequestError, WorkError
from gristmill.lm import Grammar
from gristmill.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_KEPT = 64  # compiled grammars of a tokenizer
# Between the tokens of JSON. A weak model fills its answer with whatever blanks are free: with up to sixteen of them
# and newlines it wrote pages of blank lines. What json.dumps writes without `indent` fits, with and without spaces.
_SPACE = " ?"
_REGEX_ERROR = re.compile(
    r"regex parse error:\n(?P<regex>.*)\n(?P<mark> *\^).*\nerror: (?P<what>.*)"
)
_MARK = "\x02"  # no vocabulary merges it with what follows
_Source = str | tuple[str, ...]
_compilers: WeakKeyDictionary[Tokenizer, Callable[[str, _Source], Compiled]] = WeakKeyDictionary()


class Matcher:
    """Where one request stands in its grammar."""

    def __init__(self, matcher: LLMatcher, ends: frozenset[int]) -> None:
        """ends: tokens that end a text, which may come where it is complete."""
        self._matcher, self.ends = matcher, ends

    def mask(self, row: Tensor) -> None:
        """Write which tokens may come next into `row`, int32 [⌈vocab_size / 32⌉], a bit a token."""
        self._matcher.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * 4)
        self._check()

    def consume(self, token: int) -> None:
        """Go on by a token. Raises WorkError for one that the grammar does not allow."""
        self._matcher.consume_token(token)
        self._check()

    def validate(self, drafts: Sequence[int]) -> int:
        """How many of the drafts the grammar allows, from the first on, up to one that ends the text."""
        ends = (i for i, token in enumerate(drafts) if token in self.ends)
        asked = list(drafts[: next(ends, len(drafts))])
        return self._matcher.validate_tokens(asked) if asked else 0

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

    def _check(self) -> None:
        if self._matcher.is_error():
            raise WorkError(f"the grammar cannot go on: {_why(self._matcher)}")


@dataclass(frozen=True)
class Compiled:
    """A grammar over a vocabulary; gives each request a matcher of its own."""

    fresh: LLMatcher
    ends: frozenset[int]

    def matcher(self) -> Matcher:
        return Matcher(self.fresh.deep_copy(), self.ends)


def compile_grammar(grammar: Grammar, tokenizer: Tokenizer) -> Compiled:
    """Raises RequestError, with the place, for a grammar that is wrong or holds what would not be enforced."""
    source = grammar.source
    if isinstance(source, Mapping):
        try:
            source = json.dumps(source, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"grammar: the {grammar.kind} is no JSON: {error}") from error
    elif not isinstance(source, str):
        source = tuple(source)
    if tokenizer not in _compilers:
        _compilers[tokenizer] = lru_cache(_KEPT)(partial(_compile, _vocabulary(tokenizer)))
    return _compilers[tokenizer](grammar.kind, source)


def _compile(vocabulary: LLTokenizer, kind: str, source: _Source) -> Compiled:
    from llguidance import LLMatcher, grammar_from

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
        raise RequestError(f"grammar: the {kind} {what}: {_reason('; '.join(notes).strip())}")
    fresh = LLMatcher(vocabulary, written, log_level=0)
    first = fresh.deep_copy()
    first.compute_bitmask()  # only then it shows that nothing can begin
    if first.is_error():
        raise RequestError(f"grammar: under the {kind} no text can begin: {_why(first)}")
    return Compiled(fresh, frozenset(vocabulary.eos_tokens))


def _reason(note: str) -> str:
    """What llguidance says; of a regular expression only what its parser says, not the Lark around it."""
    found = _REGEX_ERROR.search(note)
    if found is None:
        return note
    return f'{found["what"]}, at "{found["regex"][len(found["mark"]) - 1 :]:.40}"'


def _why(matcher: LLMatcher) -> str:
    """Why it has stopped, in words."""
    what, *_ = matcher.get_error().splitlines() or [""]  # the rest is its inner state
    if what.startswith("NoExtension"):
        return "there is no token that may come next"
    return f"{what}; make it simpler" if " too " in what else what


def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    """The tokenizer as llguidance sees it; to be made once: a trie of 100,000 tokens takes a while."""
    try:
        from llguidance import LLTokenizer
    except ImportError as error:
        raise RequestError(
            f"grammar: the package llguidance is missing ({error}); pip install llguidance"
        ) from error

    stops = sorted(tokenizer.stop_ids)
    if not stops:
        raise RequestError("grammar: this model's tokenizer has no token that ends a text")
    if tokenizer.spelling is None:
        raise RequestError(
            "grammar: what this model's tokens say depends on their neighbours, so texts cannot be held to a form"
        )
    return LLTokenizer(
        _Wrapper(tokenizer),  # type: ignore[arg-type] - duck-typed, as the library documents
        n_vocab=tokenizer.vocab_size,
        eos_token=stops,
    )


class _Wrapper:
    """What `LLTokenizer` asks of a tokenizer, which it does not keep alive."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = proxy(tokenizer)
        self.eos_token_id, self.bos_token_id = min(tokenizer.stop_ids), tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        self.special_token_ids = [i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i)]

    def __call__(self, text: str) -> list[int]:
        """Tokens that say exactly this. `encode` may put a space before it (SentencePiece) or change it (NFC)."""
        for mark in ("", _MARK):
            skipped = len(self._tokenizer.encode(mark))
            ids = self._tokenizer.encode(mark + text)[skipped:]
            if b"".join(self.tokens[id] for id in ids) == text.encode():
                return ids
        return self._longest_first(text.encode())

    def _longest_first(self, said: bytes) -> list[int]:
        ids: list[int] = []
        while said:
            ends = range(min(len(said), self._longest), 0, -1)
            end = next((end for end in ends if said[:end] in self._ids), 0)
            if end == 0:  # a byte that no token says
                break
            ids.append(self._ids[said[:end]])
            said = said[end:]
        return ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        specials = set(self.special_token_ids)
        return {token: id for id, token in enumerate(self.tokens) if token and id not in specials}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)
