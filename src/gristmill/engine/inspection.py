"""What a model expects: the distribution over the next token, and how surprised it is by a given text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gristmill.engine.scoring import LOGIT_BYTES
from gristmill.errors import RequestError

if TYPE_CHECKING:
    from gristmill.formats import Model


@dataclass(frozen=True)
class Candidate:
    """A token that could come next. `token` is its text, as `spelled` writes it."""

    id: int
    token: str
    probability: float


@dataclass(frozen=True)
class Read:
    """A token of the text. The first one has no probability where the tokenizer has no token to begin with.

    surprisal: -log2(probability), in bits. rank: 1 when no token was likelier. entropy: of the whole distribution
    there, in bits: the surprisal that the model itself expected. expected: the likeliest tokens there.
    """

    id: int
    token: str
    probability: float | None
    surprisal: float | None
    rank: int | None
    entropy: float | None = None
    expected: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """loss is in nats a token, perplexity = exp(loss), bits_per_byte of UTF-8; all over the tokens that have a
    probability, None where there is none. entropy: the mean of the tokens' own. `rest` is the probability of all
    tokens that `next` leaves out, next_entropy that of the whole distribution there, in bits."""

    tokens: tuple[Read, ...]
    next: tuple[Candidate, ...]
    rest: float
    next_entropy: float
    loss: float | None
    perplexity: float | None
    bits_per_byte: float | None
    entropy: float | None


@torch.inference_mode()
def inspect(model: Model, text: str, top: int = 10, alternatives: int = 3) -> Inspection:
    """Read `text`, after what the tokenizer puts before a prompt, and look at what follows.

    `top` tokens that could come next are told, and at each token of the text `alternatives` that were likeliest
    there. Raises RequestError when nothing is left to read or the text is longer than the context.
    """
    if top < 1:
        raise RequestError(f"top must be at least 1, not {top}")
    if alternatives < 0:
        raise RequestError(f"alternatives must be at least 0, not {alternatives}")
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text)
    begin = tokenizer.before
    if not begin and not ids:
        raise RequestError("the text is empty, and the tokenizer has no token to begin with")
    every = torch.tensor([begin + ids], device=model.device)
    hidden_TD = model.network.hidden(every)[0]
    first = 0 if begin else 1  # index in `ids` of the first token that has a probability
    read = [Read(id, _text(model, id), None, None, None) for id in ids[:first]]
    given = ids[first:]
    # The last state is that of what comes next; the ones before it, but for what begins, are of the text.
    rows = hidden_TD[-1 - len(given) : -1]
    for place, log_probs_V in zip(given, _log_probs(model, rows), strict=True):
        read.append(_read(model, place, log_probs_V, alternatives))
    (log_probs_V,) = _log_probs(model, hidden_TD[-1:])
    following = log_probs_V.exp()
    expected = _likeliest(model, following, top)

    bits = sum(token.surprisal or 0.0 for token in read)
    size = sum(len(tokenizer.token_bytes(id)) for id in given)
    entropies = [token.entropy for token in read if token.entropy is not None]
    loss = bits * math.log(2) / len(given) if given else None
    return Inspection(
        tokens=tuple(read),
        next=expected,
        rest=max(0.0, 1.0 - sum(candidate.probability for candidate in expected)),
        next_entropy=_entropy(following),
        loss=loss,
        perplexity=None if loss is None else math.exp(min(loss, 700.0)),
        bits_per_byte=bits / size if size else None,
        entropy=sum(entropies) / len(entropies) if entropies else None,
    )


def _log_probs(model: Model, hidden_TD: Tensor) -> Iterator[Tensor]:
    """Log-probabilities [V] in float64 after each state; those of a long text never exist together."""
    rows = max(1, LOGIT_BYTES // (8 * model.config.vocab_size))
    for part in hidden_TD.split(rows):
        yield from model.network.logits(part).cpu().double().log_softmax(dim=-1)


def _read(model: Model, id: int, log_probs_V: Tensor, alternatives: int) -> Read:
    probs_V = log_probs_V.exp()  # once: exp of one number alone may end in another digit
    return Read(
        id,
        _text(model, id),
        float(probs_V[id]),
        -float(log_probs_V[id]) / math.log(2),
        1 + int((log_probs_V > log_probs_V[id]).sum()),
        _entropy(probs_V),
        _likeliest(model, probs_V, alternatives),
    )


def _entropy(probs_V: Tensor) -> float:
    """In bits. A token that cannot come (0) adds nothing."""
    return float(torch.special.entr(probs_V).sum()) / math.log(2)


def _likeliest(model: Model, probs_V: Tensor, count: int) -> tuple[Candidate, ...]:
    probabilities, order = probs_V.topk(min(count, len(probs_V)))
    pairs = zip(probabilities.tolist(), order.tolist(), strict=True)
    return tuple(Candidate(id, _text(model, id), p) for p, id in pairs)


def spelled(data: bytes) -> str:
    """A token's bytes as text; those that are no UTF-8 by themselves as <0xE2>, as SentencePiece names them."""
    text = data.decode("utf-8", errors="surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda byte: f"<0x{ord(byte[0]) - 0xDC00:02X}>", text)


def _text(model: Model, id: int) -> str:
    return spelled(model.tokenizer.token_bytes(id))
