"""The LM interface: what evaluation, chat, retrieval and the server ask of any model.

It is the same for our own models and for a provider's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral, Real
from typing import Any, Literal

from gristmill.errors import RequestError, WorkError, nearest

Message = dict[str, str]
FinishReason = Literal["stop", "length", "abort", "error"]
_GRAMMARS = ("json_schema", "json_object", "regex", "lark", "choice")


@dataclass(frozen=True)
class Grammar:
    """What the text must be: JSON of a schema (a dict), any JSON object (source ""), a regular expression, a Lark
    grammar, or one of several strings (a tuple or list).

    JSON comes on one line, with at most one space between its parts. Keys come in the order of the schema's
    `properties`, and after them, unless it says "additionalProperties": false, as in JSON Schema, any others.
    """

    kind: Literal["json_schema", "json_object", "regex", "lark", "choice"]
    source: str | Mapping[str, Any] | Sequence[str] = ""

    def __post_init__(self) -> None:
        if self.kind not in _GRAMMARS:
            raise RequestError(
                f"grammar: the kind {self.kind!r} is none of {', '.join(_GRAMMARS)}."
                f"{nearest(str(self.kind), _GRAMMARS)}"
            )
        if self.kind == "choice" and isinstance(self.source, list):
            object.__setattr__(self, "source", tuple(self.source))
        wanted = {"json_schema": Mapping, "choice": tuple}.get(self.kind, str)
        if not isinstance(self.source, wanted):
            names = {Mapping: "a schema as a dict", tuple: "a list of strings", str: "a string"}
            kind = type(self.source).__name__
            raise RequestError(f"grammar: {self.kind} needs {names[wanted]}, not a {kind}")
        if self.kind == "choice" and not self.source:
            raise RequestError("grammar: choice needs at least one string")
        if self.kind == "choice" and not all(isinstance(s, str) and s for s in self.source):
            raise RequestError("grammar: choice needs strings, and none may be empty")


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Order: grammar and allowed ids, bad words, min_tokens, bias, penalties, temperature,
    min-p, top-k, top-p, draw (as in vLLM).

    max_tokens: the most new tokens; fewer come where the model's context ends before ("length" as well).
    min_tokens: before so many no token ends the answer, and no stop string.
    temperature: 0 is greedy (the lowest id wins a tie); bias and penalties apply to it too.
    top_k, top_p, min_p: None, 1.0 and 0.0 leave everything in.
    repetition_penalty: on ids of prompt and output; frequency_, presence_penalty: on output only.
    logit_bias: added to the logits of ids. allowed_token_ids: no others. bad_words: texts that may not come.
    seed: the draw at a position depends only on (seed, position), never on who else is asking. None: one is
    chosen, and the completion tells which.
    stop: strings that end the text and are cut from it (include_stop: are not); stop_token_ids: tokens that end
    it, besides the tokenizer's own, which ignore_eos ignores.
    n: answers to give, each with a seed of its own; best_of: of so many the n with the best mean log-probability.
    skip_special_tokens: the text leaves special tokens out; else it has them, but for a stop token that ended it.
    logprobs: how many top alternatives to return with each token (0 = the chosen token's alone,
    None = none). They are the model's own, before penalties, temperature and cuts. prompt_logprobs: the same for
    the prompt's tokens. grammar: what the text must be; where it is complete the text ends, whatever min_tokens
    and ignore_eos say, since nothing may follow.

    Raises RequestError, naming the field, for a value outside its range.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    include_stop: bool = False
    skip_special_tokens: bool = True
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    n: int = 1
    best_of: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        for name in ("stop", "bad_words", "stop_token_ids", "allowed_token_ids"):
            value = getattr(self, name)
            if isinstance(value, str | list):
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        self._check_types()
        _require("max_tokens", self.max_tokens >= 1, self.max_tokens, "at least 1")
        _require("temperature", 0 <= self.temperature <= 100, self.temperature, "0 to 100")
        _require("top_k", self.top_k is None or self.top_k >= 1, self.top_k, "None or at least 1")
        _require("top_p", 0 < self.top_p <= 1, self.top_p, "above 0, at most 1")
        _require("min_p", 0 <= self.min_p <= 1, self.min_p, "0 to 1")
        positive = self.repetition_penalty > 0 and isfinite(self.repetition_penalty)
        _require("repetition_penalty", positive, self.repetition_penalty, "above 0")
        for name in ("frequency_penalty", "presence_penalty"):
            _require(name, -2 <= getattr(self, name) <= 2, getattr(self, name), "-2 to 2")
        if self.seed is not None:
            _require("seed", 0 <= self.seed < 2**64, self.seed, "None, or 0 to 2**64 - 1")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _require(name, value is None or value >= 0, value, "None or at least 0")
        least = 0 <= self.min_tokens <= self.max_tokens
        _require("min_tokens", least, self.min_tokens, f"0 to max_tokens ({self.max_tokens})")
        for value in self.logit_bias.values():
            _require("logit_bias", -100 <= value <= 100, value, "-100 to 100")
        allowed = self.allowed_token_ids
        _require("allowed_token_ids", allowed is None or bool(allowed), allowed, "None or some ids")
        _require("n", 1 <= self.n <= _MOST_ANSWERS, self.n, f"1 to {_MOST_ANSWERS}")
        enough = self.best_of is None or self.n <= self.best_of <= _MOST_ANSWERS
        _require("best_of", enough, self.best_of, f"None, or n ({self.n}) to {_MOST_ANSWERS}")

    def _check_types(self) -> None:
        """Callers that read JSON get a word about the field, not a TypeError from a comparison."""
        for name in _WHOLE:
            value = getattr(self, name)
            optional = value is None and name in _OPTIONAL
            _require(name, optional or _whole(value), value, "a whole number")
        for name in _REAL:
            _require(name, _real(getattr(self, name)), getattr(self, name), "a number")
        for name in ("stop", "bad_words"):
            value = getattr(self, name)
            texts = isinstance(value, tuple) and all(isinstance(v, str) and v for v in value)
            _require(name, texts, value, "non-empty strings")
        for name in ("stop_token_ids", "allowed_token_ids"):
            value = getattr(self, name)
            ids = isinstance(value, tuple) and all(_whole(v) and v >= 0 for v in value)
            _require(name, ids or (value is None and name in _OPTIONAL), value, "token ids")
        bias = self.logit_bias
        pairs = isinstance(bias, Mapping) and all(
            _whole(id) and id >= 0 and _real(value) for id, value in bias.items()
        )
        _require("logit_bias", pairs, bias, "numbers by token id")
        for name in ("ignore_eos", "include_stop", "skip_special_tokens"):
            value = getattr(self, name)
            _require(name, isinstance(value, bool), value, "true or false")
        grammar = self.grammar
        _require("grammar", grammar is None or isinstance(grammar, Grammar), grammar, "a Grammar")


_MOST_ANSWERS = 1024  # to one prompt: each is a row of its own
_WHOLE = (
    "max_tokens",
    "top_k",
    "seed",
    "logprobs",
    "prompt_logprobs",
    "min_tokens",
    "n",
    "best_of",
)
_OPTIONAL = ("top_k", "seed", "logprobs", "prompt_logprobs", "best_of", "allowed_token_ids")
_REAL = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _require(field_name: str, condition: bool, value: object, allowed: str) -> None:
    if not condition:
        raise RequestError(f"{field_name} must be {allowed}, not {value!r}")


class ContextOverflow(RequestError):
    """More tokens than the model's context holds. `tokens` and `context` are the two counts."""

    def __init__(self, tokens: int, context: int, room: int = 0) -> None:
        """`room`: new tokens that must fit besides the given ones."""
        self.tokens, self.context = tokens, context
        besides = f", {room} new token included" if room else ""
        super().__init__(
            f"the prompt has {tokens} tokens, and the model's context holds {context}{besides}; "
            f"shorten it by {tokens + room - context} tokens or more"
        )


class CacheOverflow(RequestError):
    """More tokens than the key-value cache holds even with nobody else there."""

    def __init__(self, tokens: int, capacity: int, answers: bool = True) -> None:
        """`answers`: some of the tokens would be new ones; else a text was only to be read."""
        self.tokens, self.capacity = tokens, capacity
        what = "prompt and answer may come to" if answers else "the text has"
        cure = "lower max_tokens, shorten the prompt" if answers else "shorten it"
        super().__init__(
            f"{what} {tokens} tokens, and the key-value cache holds {capacity}; {cure}, or start with a larger "
            "cache (cache_tokens)"
        )


@dataclass(frozen=True)
class Request:
    """A prompt, as text or as token ids (ids win), and how to continue it.

    adapter: the name of one that was loaded; None is the model itself. cache_salt: what is cached is shared only
    among requests with the same one. Raises RequestError for a field of another type.
    """

    prompt: str = ""
    params: SamplingParams = field(default_factory=SamplingParams)
    token_ids: Sequence[int] | None = None
    adapter: str | None = None
    cache_salt: str = ""

    def __post_init__(self) -> None:
        _require("prompt", isinstance(self.prompt, str), self.prompt, "a string")
        _require("params", isinstance(self.params, SamplingParams), self.params, "SamplingParams")
        _require("token_ids", not isinstance(self.token_ids, str), self.token_ids, "token ids")
        named = self.adapter is None or isinstance(self.adapter, str)
        _require("adapter", named, self.adapter, "the name of a loaded adapter, or None")


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of one token, and of the likeliest alternatives there.

    rank: 1 when no token was likelier. sampled: its log-probability in the distribution that it was drawn from,
    after penalties, temperature and cuts, which is what reinforcement learning needs (greedy: 0; a token of the
    prompt: None).
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 1
    sampled: float | None = None


@dataclass(frozen=True)
class Completion:
    """token_ids are all that were generated, a stop token that ended them included; `text` is what
    they say up to a stop string or stop token. `logprobs` go with token_ids one to one.

    finish_reason: "stop" (a stop token or string, or the grammar is complete), "length" (max_tokens or the
    context's end: what a grammar asked for may be incomplete), "abort" (cancelled), "error" (`error` says what).
    seed: with which it comes again. prompt_logprobs: of the prompt's tokens; the first has none. cached_tokens: how
    many of the prompt's were found in the cache. alternatives: the other n - 1 answers. stop_string: which of `stop`
    ended it.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    seed: int | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    cached_tokens: int = field(default=0, compare=False)  # says how it was made, not what it is
    alternatives: tuple[Completion, ...] = ()
    error: str | None = None
    stop_string: str | None = None

    def checked(self) -> Completion:
        """Itself. Raises WorkError where it ended by an error."""
        if self.error is not None:
            raise WorkError(self.error)
        return self


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed completion. The last one carries the whole `completion`."""

    text: str
    completion: Completion | None = None


@dataclass(frozen=True)
class Scored:
    """token_ids of a text and each one's log-probability given those before it (first: None)."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]


class LM(ABC):
    """A language model one can ask. Raises ContextOverflow for a prompt that does not fit it."""

    @abstractmethod
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Continue every request; results in the order of the requests."""

    @abstractmethod
    def stream(self, request: Request) -> Iterator[Chunk]:
        """Continue one request, yielding text as it is made: joined, it is `generate`'s text, and the last chunk
        carries the `Completion`. A bad request raises here, not at the first chunk."""

    @abstractmethod
    def score(self, texts: Sequence[str | Sequence[int]]) -> list[Scored]:
        """Log-probabilities of the tokens of given texts (or token ids), a `Scored` for each in order."""

    @abstractmethod
    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Completion:
        """Answer a conversation, [{"role": "user", "content": "…"}, …], formatted by the model's own chat
        template. Raises RequestError where it has none."""

    @abstractmethod
    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None
    ) -> Iterator[Chunk]:
        """`chat`, yielding text as it is made; the last chunk carries the completion."""
