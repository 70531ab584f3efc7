"""The LM interface: what evaluation, chat, retrieval and the server ask of any model.

It is the same for our own models and for a provider's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

from gristmill.errors import RequestError

Message = dict[str, str]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Order: penalties, temperature, min-p, top-k, top-p, draw (as in vLLM).

    temperature: 0 is greedy (the lowest id wins a tie); penalties apply to it too.
    top_k, top_p, min_p: None, 1.0 and 0.0 leave everything in.
    repetition_penalty: on ids of prompt and output; frequency_, presence_penalty: on output only.
    seed: the draw at a position depends only on (seed, position), never on the batch's other rows.
    stop: strings that end the text and are cut from it; stop_token_ids: tokens that end it, besides
    the tokenizer's own.
    logprobs: how many top alternatives to return with each token (0 = the chosen token's alone,
    None = none). They are the model's own, before penalties, temperature and cuts.

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
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        _require("max_tokens", self.max_tokens >= 1, self.max_tokens, "at least 1")
        _require("temperature", 0 <= self.temperature <= 100, self.temperature, "0 to 100")
        _require("top_k", self.top_k is None or self.top_k >= 1, self.top_k, "None or at least 1")
        _require("top_p", 0 < self.top_p <= 1, self.top_p, "above 0, at most 1")
        _require("min_p", 0 <= self.min_p <= 1, self.min_p, "0 to 1")
        positive = self.repetition_penalty > 0 and isfinite(self.repetition_penalty)
        _require("repetition_penalty", positive, self.repetition_penalty, "above 0")
        for name in ("frequency_penalty", "presence_penalty"):
            _require(name, -2 <= getattr(self, name) <= 2, getattr(self, name), "-2 to 2")
        _require("stop", all(self.stop), self.stop, "non-empty strings")
        alternatives = self.logprobs is None or self.logprobs >= 0
        _require("logprobs", alternatives, self.logprobs, "None or at least 0")


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


@dataclass(frozen=True)
class Request:
    """A prompt, as text or as token ids (ids win), and how to continue it."""

    prompt: str = ""
    params: SamplingParams = field(default_factory=SamplingParams)
    token_ids: Sequence[int] | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of one emitted token, and of the likeliest alternatives there."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """token_ids are all that were generated, a stop token that ended them included; `text` is what
    they say up to a stop string or stop token. `logprobs` go with token_ids one to one."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None


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
        """Continue one request, yielding text as it is made; joined, it is `generate`'s text."""

    @abstractmethod
    def score(self, texts: Sequence[str | Sequence[int]]) -> list[Scored]:
        """Log-probabilities of given texts (or token ids)."""

    @abstractmethod
    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Completion:
        """Answer a conversation, formatted by the model's own chat template."""

    @abstractmethod
    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None
    ) -> Iterator[Chunk]:
        """`chat`, yielding text as it is made; the last chunk carries the completion."""
