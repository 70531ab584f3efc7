"""The LM interface: what evaluation, chat, retrieval and the server ask of any model, ours or a provider's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

Message = dict[str, str]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. temperature 0 is greedy. `logprobs`: how many top alternatives to return
    with each token (0 = the chosen token's alone, None = none). The draw at a position depends only on
    (seed, position), never on what else is in the batch."""

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class Request:
    """A prompt, as text or as token ids (ids win), and how to continue it."""

    prompt: str = ""
    params: SamplingParams = field(default_factory=SamplingParams)
    token_ids: Sequence[int] | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of one emitted token, and of the most likely alternatives at its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
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
    """token_ids of a text and the log-probability of each given those before it (the first one's is None)."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]


class LM(ABC):
    """A language model one can ask. Raises RequestError for a prompt that does not fit its context."""

    @abstractmethod
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Continue every request; results in the order of the requests."""

    @abstractmethod
    def stream(self, request: Request) -> Iterator[Chunk]:
        """Continue one request, yielding text as it is made; joined chunks equal `generate`'s text."""

    @abstractmethod
    def score(self, texts: Sequence[str | Sequence[int]]) -> list[Scored]:
        """Log-probabilities of given texts (or token ids)."""

    @abstractmethod
    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Completion:
        """Answer a conversation, formatted by the model's own chat template."""
