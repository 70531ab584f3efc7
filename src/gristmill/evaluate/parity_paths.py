"""Probes, and what the engine makes of them in each of its states: the paths that `parity` compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gristmill.engine import Engine
from gristmill.errors import RequestError
from gristmill.formats import Model
from gristmill.formats.parity import PROBE
from gristmill.lm import Completion, Message, Request, SamplingParams

NEW = 24  # tokens that are said after each probe
NO_TEMPLATE = "has no chat template"
_CHUNK = 16  # tokens of a step, where prompts are read in chunks
TEXTS = (
    PROBE,
    "One two three four five six. One two three four five six. One two three four five six. One two",
    "x",
    "naïve 🙂 日本語\n\tçà et là\r\n",
)
MESSAGES: list[Message] = [
    {"role": "user", "content": "What is 2 + 2? Answer in one word, <|im_end|> please."},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And naïve 🙂 3 + 3?"},
]


@dataclass(frozen=True)
class Reading:
    """What a path made of tokens: `ids`, and for each from index `first` on its log-probability and the likeliest
    token there."""

    ids: tuple[int, ...]
    first: int
    logprobs: tuple[float, ...]
    likeliest: tuple[int, ...]


@dataclass
class Probes:
    """Prompts as ids, the chat last where there is one, else why there is none; and what plain decoding says after
    each."""

    prompts: list[list[int]]
    chat: list[int] | None
    no_chat: str = ""
    said: list[Completion] = field(default_factory=list)

    @property
    def whole(self) -> list[tuple[int, ...]]:
        """Each prompt with what was said after it."""
        pairs = zip(self.prompts, self.said, strict=True)
        return [(*prompt, *said.token_ids) for prompt, said in pairs]


def make_probes(model: Model) -> Probes:
    """The texts and the chat, cut so that something can be said after them."""
    room = model.config.max_seq_len - NEW - 1  # of the whole, one token is left to be said
    if room < 1:
        raise RequestError(f"a context of {model.config.max_seq_len} tokens is too short to probe")
    start = model.tokenizer.document_start[:1]
    rows = [(model.tokenizer.prompt_ids(text) or start)[:room] for text in TEXTS]
    chat, no_chat = chat_ids(model)
    if chat is not None and len(chat) > room:
        chat, no_chat = None, f"does not fit the chat of {len(chat)} tokens in its context"
    if chat is not None:
        rows.append(chat)
    return Probes([row for row in rows if row], chat, no_chat)


def chat_ids(model: Model) -> tuple[list[int] | None, str]:
    """Ids of the rendered chat; or None, and in words what the model lacks for it."""
    try:
        return model.tokenizer.chat_ids(MESSAGES, add_generation_prompt=True), ""
    except RequestError as error:
        if model.tokenizer.config.get("chat_template") is None:
            return None, NO_TEMPLATE
        return None, f"cannot render the chat ({error})"


# The engine's paths. Each gives the engine it ran on, its readings, and why it does not count if it does not.


def _decode(model: Model, probes: Probes) -> tuple[Engine, list[Reading], str]:
    """Greedy, one token after the other, alone. What it says is what the others then read."""
    engine = Engine(model, cache_dtype="float32", prefix_caching=False)
    probes.said = [engine.generate([request(ids)])[0] for ids in probes.prompts]
    return engine, said(probes.prompts, probes.said), ""


def _prefill(model: Model, probes: Probes) -> tuple[Engine, list[Reading], str]:
    engine = Engine(model, cache_dtype="float32", prefix_caching=False)
    return engine, [_read(engine, [ids])[0] for ids in probes.whole if len(ids) > 1], ""


def _chunked(model: Model, probes: Probes) -> tuple[Engine, list[Reading], str]:
    engine = Engine(
        model, cache_dtype="float32", prefix_caching=False, max_rows=4, step_tokens=_CHUNK
    )
    whole = [ids for ids in probes.whole if len(ids) > _CHUNK]
    return engine, [_read(engine, [ids])[0] for ids in whole], ""


def _among_others(model: Model, probes: Probes) -> tuple[Engine, list[Reading], str]:
    """All at once: some decode while others are read."""
    engine = Engine(model, cache_dtype="float32", prefix_caching=False, step_tokens=64)
    asked = [
        *(request(ids) for ids in probes.prompts),
        *(_reading_request(ids) for ids in probes.whole if len(ids) > 1),
    ]
    done = engine.generate(asked)
    count = len(probes.prompts)
    whole = [ids for ids in probes.whole if len(ids) > 1]
    return engine, said(probes.prompts, done[:count]) + _prompts_read(whole, done[count:]), ""


def _after_hit(model: Model, probes: Probes) -> tuple[Engine, list[Reading], str]:
    """The beginning of each comes from the cache."""
    engine = Engine(model, cache_dtype="float32")
    long = [ids for ids in probes.prompts if len(ids) > 2 * _CHUNK]
    for ids in long:
        engine.generate([request(ids, 1)])
    done = [engine.generate([request(ids)])[0] for ids in long]
    found = [c for c in done if c.cached_tokens]
    why = "" if found else "no probe is long enough to be found in the cache"
    return engine, said(long, done), why


def _speculative(model: Model, probes: Probes) -> tuple[Engine, list[Reading], str]:
    engine = Engine(model, cache_dtype="float32", prefix_caching=False, draft="ngram")
    done = [engine.generate([request(ids)])[0] for ids in probes.prompts]
    why = "" if engine.stats.spec_examined else "nothing in the probes could be drafted"
    return engine, said(probes.prompts, done), why


ENGINE_PATHS = (
    ("decode", _decode),
    ("prefill", _prefill),
    (f"chunks of {_CHUNK}", _chunked),
    ("among others", _among_others),
    ("prefix hit", _after_hit),
    ("n-gram drafts", _speculative),
)


def request(ids: Sequence[int], new: int = NEW) -> Request:
    """Say so many tokens, greedily, with their log-probabilities."""
    params = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True, logprobs=1)
    return Request(token_ids=ids, params=params)


def said(prompts: Sequence[Sequence[int]], done: Sequence[Completion]) -> list[Reading]:
    """What was generated, with the log-probabilities it was drawn with."""
    readings = []
    for ids, completion in zip(prompts, done, strict=True):
        assert completion.logprobs is not None
        readings.append(
            Reading(
                (*ids, *completion.token_ids),
                len(ids),
                tuple(token.logprob for token in completion.logprobs),
                tuple(token.top[0][0] for token in completion.logprobs),
            )
        )
    return readings


def _reading_request(ids: Sequence[int]) -> Request:
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
    return Request(token_ids=ids, params=params)


def _read(engine: Engine, rows: Sequence[tuple[int, ...]]) -> list[Reading]:
    return _prompts_read(rows, engine.generate([_reading_request(ids) for ids in rows]))


def _prompts_read(rows: Sequence[tuple[int, ...]], done: Sequence[Completion]) -> list[Reading]:
    readings = []
    for ids, completion in zip(rows, done, strict=True):
        assert completion.prompt_logprobs is not None
        tokens = [token for token in completion.prompt_logprobs if token is not None]
        readings.append(
            Reading(ids, 1, tuple(t.logprob for t in tokens), tuple(t.top[0][0] for t in tokens))
        )
    return readings
